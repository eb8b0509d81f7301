//! Generates the gRPC types from `proto/`, with a descriptor set for reflection.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    // tonic-prost-build does not say when it must run again.
    println!("cargo::rerun-if-changed={}", root.display());
    let services = ["common", "extractor", "clusterer", "trainer", "runs", "inference"];
    let files: Vec<PathBuf> = services.iter().map(|name| root.join(format!("deepcluster/v1/{name}.proto"))).collect();
    let mut config = tonic_prost_build::Config::new();
    config.protoc_executable(protoc_bin_vendored::protoc_bin_path()?);
    tonic_prost_build::configure()
        .file_descriptor_set_path(PathBuf::from(std::env::var("OUT_DIR")?).join("deepcluster.bin"))
        .compile_with_config(config, &files, &[root])?;
    Ok(())
}
