//! `make bench`: what the system reaches, as ratios to its ceiling and to the peer, all measured in one run on one machine.
//!
//! ```text
//! parts (criterion) ─┐
//! whole commands ────┼─► rows: measure, value, goal ─► table
//! the peer (Python) ─┘
//! ```
#![forbid(unsafe_code)]

mod commands;
mod gpu;
mod memory;
mod parts;
mod peer;
mod sharing;
mod small;
mod table;

use clap::{Parser, ValueEnum};
use std::path::PathBuf;
use std::process::ExitCode;

/// Measures the system against its ceiling, and against the peer where PEER_PYTHON names a Python that has it
#[derive(Parser)]
struct Cli {
    /// A folder of photographs of ImageNet's sizes
    #[arg(long, env = "BENCH_PHOTOS", value_name = "FOLDER")]
    photos: Option<PathBuf>,
    /// A folder of small pictures in folders by class: 20,000 of CIFAR-10
    #[arg(long, env = "BENCH_CIFAR", value_name = "FOLDER")]
    cifar: Option<PathBuf>,
    /// Python with torch, torchvision, faiss-cpu and scikit-learn
    #[arg(long, env = "PEER_PYTHON", value_name = "FILE")]
    peer_python: Option<PathBuf>,
    /// Only these
    #[arg(
        long,
        env = "BENCH_ONLY",
        value_enum,
        value_delimiter = ',',
        value_name = "WHAT",
        default_value = "views,clustering,network,epoch,sharing,small"
    )]
    only: Vec<What>,
    /// Photographs that the network is shown, by repeating those that there are: a shard, so that what comes with each shard
    /// and epoch has the share that it has in a large run
    #[arg(long, env = "BENCH_SHOWN", default_value_t = 4000, value_name = "N")]
    shown: usize,
    /// The clustering crate's test program `parity`, which `gpu` lets cluster 1.28 million rows
    #[arg(long, env = "BENCH_CLUSTERING", value_name = "FILE")]
    clustering: Option<PathBuf>,
    /// Where `gpu` computes
    #[arg(long, env = "BENCH_DEVICE", default_value = "cuda:0", value_name = "DEVICE")]
    device: String,
    /// Epochs of the small pictures
    #[arg(long, default_value_t = 2, value_name = "N")]
    epochs: usize,
    /// Only keep so many threads busy until standard input ends: a neighbour of the runs of `sharing`
    #[arg(long, hide = true, value_name = "N")]
    busy_threads: Option<usize>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum What {
    /// Decoding and views of photographs
    Views,
    /// PCA and k-means
    Clustering,
    /// Extraction and training of photographs, against the bare network
    Network,
    /// A whole epoch of small pictures
    Epoch,
    /// Clustering of few images
    Small,
    /// Runs beside other processes on the same cores, and several extractors on one host
    Sharing,
    /// Three networks with large batches on a GPU, from photographs and from the cache; needs no compiler
    Gpu,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Some(n) = cli.busy_threads {
        sharing::keep_busy(n);
        return ExitCode::SUCCESS;
    }
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("bench: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<(), String> {
    let scratch = tempfile::tempdir().map_err(|error| error.to_string())?;
    let peer = cli.peer_python.clone().map(peer::Peer);
    let mut rows = Vec::new();
    let left_out = |what: &str, why: &str| eprintln!("bench: {what} left out: {why}");
    let wanted = |what| cli.only.contains(&what);

    let photos = cli.photos.as_deref();
    if wanted(What::Views) || wanted(What::Clustering) {
        let photos = photos.filter(|_| wanted(What::Views));
        if wanted(What::Views) && photos.is_none() {
            left_out("views", "no --photos");
        }
        let data = scratch.path().join("data");
        parts::rows(photos, wanted(What::Clustering).then_some(data.as_path()), peer.as_ref(), &mut rows)?;
    }
    match photos {
        Some(photos) if wanted(What::Network) => commands::against_ceiling(photos, cli.shown, scratch.path(), &mut rows)?,
        None if wanted(What::Network) => left_out("network", "no --photos"),
        _ => {}
    }
    match photos {
        Some(photos) if wanted(What::Gpu) => {
            gpu::rows(photos, cli.shown, &cli.device, scratch.path(), peer.as_ref(), &mut rows)?;
        }
        None if wanted(What::Gpu) => left_out("gpu", "no --photos"),
        _ => {}
    }
    match &cli.clustering {
        Some(program) if wanted(What::Gpu) => gpu::clustering(program, &mut rows)?,
        None if wanted(What::Gpu) => left_out("clustering on a GPU", "no --clustering"),
        _ => {}
    }
    match &cli.cifar {
        Some(cifar) if wanted(What::Epoch) => {
            commands::whole_epochs(cifar, cli.epochs, scratch.path(), peer.as_ref(), &mut rows)?
        }
        None if wanted(What::Epoch) => left_out("epoch", "no --cifar"),
        _ => {}
    }
    if wanted(What::Small) {
        small::rows(scratch.path(), &mut rows)?;
    }
    if wanted(What::Sharing) {
        sharing::rows(scratch.path(), &mut rows)?;
    }
    table::print(&rows);
    Ok(())
}
