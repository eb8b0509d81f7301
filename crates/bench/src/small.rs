//! Clustering of few images: of what an epoch takes, the share that nobody who tries the system should wait for.

use crate::commands::{output_of, train};
use crate::table::{Goal, Row};
use std::path::Path;
use std::process::Command;

/// Images, clusters, and the seconds that clustering may take in an epoch.
const SETS: [(u32, u32, f64); 2] = [(200, 10, 0.3), (2000, 20, 0.8)];

const EPOCHS: f64 = 3.0;

/// Adds a row for each set and number of dimensions: the mean over the epochs, against the seconds that are allowed.
pub(crate) fn rows(scratch: &Path, rows: &mut Vec<Row>) -> Result<(), String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?.with_file_name("deepcluster");
    for (n, k, allowed) in SETS {
        let images = scratch.join(format!("small-images-{n}"));
        let count = format!("--count={n}");
        output_of(Command::new(&program).arg("demo-images").arg(&images).args([&count, "--size=64", "--seed=1"]))?;
        for pca in ["auto", "256"] {
            let (k, pca_flag) = (format!("--k={k}"), format!("--pca={pca}"));
            let flags = ["--image-size=64", "--epochs=3", "--precision=f32", k.as_str(), pca_flag.as_str()];
            let (times, ..) = train(&images, &scratch.join(format!("small-volume-{n}-{pca}")), &flags, &[])?;
            let seconds = times.cluster / EPOCHS;
            rows.push(Row::plain(format!("clustering of {n} images, {pca} dimensions: seconds an epoch"), seconds));
            let name = format!("clustering of {n} images, {pca} dimensions ÷ {allowed} s");
            rows.push(Row::new(name, seconds / allowed, Goal::AtMost(1.0)));
        }
    }
    Ok(())
}
