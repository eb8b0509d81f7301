//! The coordinator as a process.
#![forbid(unsafe_code)]

use clap::Parser;
use deepcluster_coordinator::{Coordinator, workers::Workers};
use deepcluster_service::{ConfigError, Options, ServeError, run};
use std::process::ExitCode;

/// DeepCluster's coordinator
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(flatten)]
    options: Options,
    /// Extractors, as HOST:PORT, separated by commas
    #[arg(long, env = "DC_EXTRACTORS", value_delimiter = ',', default_value = "127.0.0.1:7071")]
    extractors: Vec<String>,
    /// The clusterer, as HOST:PORT
    #[arg(long, env = "DC_CLUSTERER", default_value = "127.0.0.1:7072")]
    clusterer: String,
    /// The trainer, as HOST:PORT
    #[arg(long, env = "DC_TRAINER", default_value = "127.0.0.1:7073")]
    trainer: String,
    /// Leave unfinished runs on the volume paused instead of going on with them
    #[arg(long, env = "DC_START_PAUSED")]
    start_paused: bool,
}

fn main() -> ExitCode {
    let Cli { options, extractors, clusterer, trainer, start_paused } = Cli::parse();
    let fail = |code: u8, error: &dyn std::fmt::Display| {
        eprintln!("deepcluster-coordinator: {error}");
        ExitCode::from(code)
    };
    let workers = Workers::new(&extractors, &clusterer, &trainer);
    let (config, workers) = match (options.check("127.0.0.1:7070"), workers) {
        (Ok(config), Ok(workers)) => (config, workers),
        (config, workers) => {
            let of_config = config.err().map(|error| error.0).unwrap_or_default();
            let mistakes = of_config.into_iter().chain(workers.err().unwrap_or_default()).collect();
            return fail(2, &ConfigError(mistakes));
        }
    };
    let coordinator = match Coordinator::new(&config, workers, start_paused) {
        Ok(coordinator) => coordinator,
        Err(sentence) => return fail(2, &sentence),
    };
    match run(&config, coordinator) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error @ ServeError::Setup(_)) => fail(2, &error),
        Err(error @ ServeError::Failed(_)) => fail(1, &error),
    }
}
