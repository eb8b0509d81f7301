//! `deepcluster`: the command line.
#![forbid(unsafe_code)]

mod demo_images;

use clap::{Parser, Subcommand};
use demo_images::DemoImages;
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
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::DemoImages { dir, count, size, seed } => match (DemoImages { count, size, seed }).write(&dir) {
            Ok(n) => {
                println!("wrote {n} pictures to {}", dir.display());
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("deepcluster: {error}");
                ExitCode::from(2)
            }
        },
    }
}
