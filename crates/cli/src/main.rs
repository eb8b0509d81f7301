//! `deepcluster`: the command line.
#![forbid(unsafe_code)]

mod demo_images;
mod failure;
mod local;

use clap::{Parser, Subcommand};
use demo_images::DemoImages;
use failure::Failure;
use std::path::PathBuf;
use std::process::ExitCode;

/// DeepCluster: a folder of unlabelled images in; a trained convnet and a cluster for every image out
#[derive(Parser)]
#[command(name = "deepcluster", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a folder of pictures in ten classes to try the system on
    DemoImages {
        /// Where the ten folders go
        dir: PathBuf,
        /// Pictures over all classes together
        #[arg(long, default_value_t = 2000)]
        count: u32,
        /// Height and width of each, in pixels
        #[arg(long, default_value_t = 64)]
        size: u32,
        /// Another seed draws other pictures
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Print path, cluster and distance of every image of a run
    Labels {
        /// Folder of the run
        run_dir: PathBuf,
        /// One JSON object a line instead of CSV
        #[arg(long)]
        json: bool,
    },
    /// Write the weights of a run for PyTorch users
    Export {
        /// Folder of the run
        run_dir: PathBuf,
        /// The .safetensors file to write
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    match execute(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("deepcluster: {failure}");
            ExitCode::from(failure.code)
        }
    }
}

fn execute(command: Command) -> Result<(), Failure> {
    match command {
        Command::DemoImages { dir, count, size, seed } => {
            let n = DemoImages { count, size, seed }.write(&dir).map_err(|error| Failure::usage(error.to_string()))?;
            println!("wrote {n} pictures to {}", dir.display());
            Ok(())
        }
        Command::Labels { run_dir, json } => local::labels(&run_dir, json),
        Command::Export { run_dir, to, json } => local::export(&run_dir, &to, json),
    }
}
