//! The clusterer as a process.
#![forbid(unsafe_code)]

use clap::Parser;
use deepcluster_service::probe::probe;
use deepcluster_service::threads::apply_environment;
use deepcluster_service::{Options, ServeError, run};
use std::process::ExitCode;

/// DeepCluster's clusterer
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(flatten)]
    options: Options,
}

fn main() -> ExitCode {
    let config = match Cli::parse().options.check("127.0.0.1:7072") {
        Ok(config) => config,
        Err(mistakes) => {
            eprintln!("deepcluster-clusterer: {mistakes}");
            return ExitCode::from(2);
        }
    };
    if config.probe {
        return probe(&config);
    }
    if let Err(error) = apply_environment(config.threads.count) {
        eprintln!("deepcluster-clusterer: threads wait as the libraries' defaults have it: {error}");
    }
    match run(&config, deepcluster_clusterer::Clusterer::new(&config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("deepcluster-clusterer: {error}");
            ExitCode::from(if matches!(error, ServeError::Setup(_)) { 2 } else { 1 })
        }
    }
}
