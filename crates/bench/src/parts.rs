//! Parts of an epoch, by criterion: the bench targets of the crates that do them.

use crate::commands::{number, output_of};
use crate::peer::Peer;
use crate::table::{Goal, Row};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Rows of views (with photographs) and of clustering (with a folder for its data).
pub(crate) fn rows(photos: Option<&Path>, data: Option<&Path>, peer: Option<&Peer>, rows: &mut Vec<Row>) -> Result<(), String> {
    if let Some(photos) = photos {
        bench("deepcluster-images", "views", &[("BENCH_PHOTOS", photos)])?;
        for view in ["center", "random", "center-cached", "random-cached"] {
            rows.push(Row::plain(format!("{view} view of all photographs on one core: seconds"), seconds("views", view)?));
        }
    }
    if let Some(data) = data {
        fs::create_dir_all(data).map_err(|error| error.to_string())?;
        bench("deepcluster-clustering", "clustering", &[("BENCH_DATA", data)])?;
        rows.push(Row::plain("PCA 20,000 × 4096 → 256 and k-means, k = 1000: seconds", seconds("clustering", "pca-kmeans")?));
        rows.push(Row::plain("k-means 50,000 × 256, k = 1000: seconds", seconds("clustering", "kmeans")?));
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let Some(peer) = peer else {
        eprintln!("bench: no PEER_PYTHON, so nothing to compare the parts with");
        return Ok(());
    };
    let theirs = peer.parts(photos, data.unwrap_or(Path::new("/nonexistent")), threads)?;
    if photos.is_some() {
        for view in ["center", "random"] {
            let ratio = number(&theirs, &format!("{view}_s"))? / seconds("views", view)?;
            rows.push(Row::new(
                format!("decode and {view} view of JPEGs, images a second and core ÷ Pillow and torchvision"),
                ratio,
                Goal::AtLeast(3.0),
            ));
            let ratio = number(&theirs, &format!("{view}_s"))? / seconds("views", &format!("{view}-cached"))?;
            rows.push(Row::new(format!("{view} view from the cache, the same ratio"), ratio, Goal::AtLeast(15.0)));
        }
    }
    if let Some(data) = data {
        let ratio = seconds("clustering", "pca-kmeans")? / number(&theirs, "pca_kmeans_s")?;
        rows.push(Row::new("PCA 20,000 × 4096 → 256 and k-means, k = 1000: time ÷ faiss-cpu wheel", ratio, Goal::AtMost(0.10)));
        let ratio = seconds("clustering", "kmeans")? / number(&theirs, "kmeans_s")?;
        rows.push(Row::new("k-means 50,000 × 256, k = 1000, 20 iterations: time ÷ faiss-cpu wheel", ratio, Goal::AtMost(0.7)));
        let objective = fs::read_to_string(data.join("objective")).map_err(|error| error.to_string())?;
        let objective: f64 = objective.parse().map_err(|_| "no objective".to_owned())?;
        let ratio = objective / number(&theirs, "objective")?;
        rows.push(Row::new("its objective ÷ theirs", ratio, Goal::AtMost(1.005)));
    }
    Ok(())
}

/// Runs a bench target; its results are read with [`seconds`].
pub(crate) fn bench(package: &str, target: &str, variables: &[(&str, &Path)]) -> Result<(), String> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["bench", "--quiet", "--package", package, "--bench", target, "--", "--noplot"]);
    for (name, path) in variables {
        command.env(name, fs::canonicalize(path).map_err(|error| format!("{}: {error}", path.display()))?);
    }
    output_of(&mut command).map(drop)
}

/// The mean time of one of criterion's benchmarks.
pub(crate) fn seconds(group: &str, name: &str) -> Result<f64, String> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let path = target.join("criterion").join(group).join(name).join("new/estimates.json");
    let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let estimates: Value = serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(number(&estimates["mean"], "point_estimate")? / 1e9)
}
