//! The extractor as a process.
#![forbid(unsafe_code)]

use clap::Parser;
use deepcluster_service::probe::probe;
use deepcluster_service::threads::apply_environment;
use deepcluster_service::{Options, ServeError, run};
use std::process::ExitCode;

/// DeepCluster's extractor
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(flatten)]
    options: Options,
}

fn main() -> ExitCode {
    deepcluster_network::memory::keep();
    let config = match Cli::parse().options.check("127.0.0.1:7071") {
        Ok(config) => config,
        Err(mistakes) => {
            eprintln!("deepcluster-extractor: {mistakes}");
            return ExitCode::from(2);
        }
    };
    if config.probe {
        return probe(&config);
    }
    if let Err(error) = apply_environment(config.threads.count) {
        eprintln!("deepcluster-extractor: threads wait as the libraries' defaults have it: {error}");
    }
    match run(&config, deepcluster_extractor::Extractor::new(&config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("deepcluster-extractor: {error}");
            ExitCode::from(if matches!(error, ServeError::Setup(_)) { 2 } else { 1 })
        }
    }
}
