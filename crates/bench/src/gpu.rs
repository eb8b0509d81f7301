//! Three networks on a GPU. Only whole commands run, so the programs can be brought from another machine:
//!
//! ```sh
//! BENCH_ONLY=gpu BENCH_PHOTOS=DIR PEER_PYTHON=FILE BENCH_CLUSTERING=FILE target/release/deepcluster-bench
//! ```
//!
//! The last one is the test program `parity` of the clustering crate, built with its feature `gpu`.

use crate::commands::{Shown, output_of, train};
use crate::peer::Peer;
use crate::table::{Goal, Row};
use std::path::Path;
use std::process::Command;

/// Goals for AlexNet from the cache, in images a second, whatever the batch.
const EXTRACTION: f64 = 20_000.0;
const TRAINING: f64 = 10_000.0;

/// Rows and clusters of the clustering, those of ImageNet, and seconds that PCA and k-means may take.
const ROWS: &str = "1281167";
const K: &str = "10000";
const PCA_S: f64 = 5.0;
const KMEANS_S: f64 = 10.0;

/// How many times as fast as the peer a run is to be.
const PEER: f64 = 5.0;

/// Rates of each network and batch, and the peer's where it has that network. What fails, as what does not fit the GPU, is told
/// and left out.
pub(crate) fn rows(
    photos: &Path,
    shown: usize,
    device: &str,
    scratch: &Path,
    peer: Option<&Peer>,
    rows: &mut Vec<Row>,
) -> Result<(), String> {
    let shown = Shown::of(photos, shown, scratch.join("photos-gpu"))?;
    for architecture in ["alexnet", "vgg16", "resnet50"] {
        for batch in [256, 1024] {
            if let Err(why) = one(architecture, batch, &shown, device, scratch, peer, rows) {
                eprintln!("bench: {architecture} with batches of {batch} is left out: {why}");
            }
        }
    }
    Ok(())
}

/// PCA and k-means of generated features, by a program that says "PCA: 4.5 s, 210 GFLOP/s" of each.
pub(crate) fn clustering(program: &Path, rows: &mut Vec<Row>) -> Result<(), String> {
    let mut command = Command::new(program);
    command.args(["memory_stays_bounded", "--ignored", "--nocapture"]).env("ROWS", ROWS).env("K", K);
    let said = output_of(&mut command)?;
    for (part, goal) in [("PCA", PCA_S), ("k-means", KMEANS_S)] {
        let line = said.lines().find_map(|line| line.strip_prefix(part)).unwrap_or_default();
        let numbers: Vec<f64> = line.split([' ', ':']).filter_map(|word| word.parse().ok()).collect();
        let [seconds, rate] = numbers[..] else { return Err(format!("{}: no word of {part}", program.display())) };
        let name = format!("{part} of {ROWS} × 4096 → 256, k = {K}");
        rows.push(Row::new(format!("{name}: seconds"), seconds, Goal::AtMost(goal)));
        rows.push(Row::plain(format!("{name}: GFLOP/s"), rate));
    }
    Ok(())
}

fn one(
    architecture: &str,
    batch: usize,
    shown: &Shown,
    device: &str,
    scratch: &Path,
    peer: Option<&Peer>,
    rows: &mut Vec<Row>,
) -> Result<(), String> {
    let (architecture_flag, batch_flag) = (format!("--arch={architecture}"), format!("--batch={batch}"));
    let common = ["--k=100", "--epochs=2", batch_flag.as_str(), architecture_flag.as_str()];
    let device_flag = format!("--device={device}");
    let ours = [&common[..], &["--image-size=224", "--precision=bf16", &device_flag]].concat();
    let volume = scratch.join("volume-gpu");
    let trained = train(&shown.images, &volume, &ours, &[]);
    std::fs::remove_dir_all(&volume).map_err(|error| format!("{}: {error}", volume.display()))?;
    let (times, ..) = trained?;
    let name = |what: &str| format!("{what}, {architecture}, bf16, batches of {batch}: images a second");
    let goal = |at_least| if architecture == "alexnet" { Some(Goal::AtLeast(at_least)) } else { None };
    let mut rate = |what: &str, seconds: f64, goal: Option<Goal>| {
        let rate = shown.n / seconds;
        rows.push(goal.map_or_else(|| Row::plain(name(what), rate), |goal| Row::new(name(what), rate, goal)));
    };
    rate("extraction from JPEGs", times.first(), None);
    rate("extraction from the cache", times.extract - times.first(), goal(EXTRACTION));
    rate("training from the cache", times.train / 2.0, goal(TRAINING));
    // The peer has no ResNets.
    let Some(peer) = peer.filter(|_| architecture != "resnet50") else { return Ok(()) };
    let options = ["--size=224", "--sobel", "--amp", "--channels-last", "--workers=16", &device_flag];
    let theirs = peer.epochs(&shown.images, &[&common[..], &options].concat())?;
    let ratio = theirs.total() / times.total();
    rows.push(Row::new(
        format!("whole epochs, {architecture}, batches of {batch}: the peer's time ÷ ours"),
        ratio,
        Goal::AtLeast(PEER),
    ));
    Ok(())
}
