//! The trainer as a process.
#![forbid(unsafe_code)]

use clap::Parser;
use deepcluster_service::probe::probe;
use deepcluster_service::threads::apply_environment;
use deepcluster_service::{Options, ServeError, run};
use std::process::ExitCode;

/// DeepCluster's trainer
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(flatten)]
    options: Options,
    /// Only say whether a device is there: cpu, cuda:0, auto
    #[arg(long, value_name = "DEVICE")]
    check_device: Option<String>,
}

fn main() -> ExitCode {
    deepcluster_network::memory::keep();
    let cli = Cli::parse();
    if let Some(device) = cli.check_device {
        return match deepcluster_trainer::check_device(&device) {
            Ok(()) => ExitCode::SUCCESS,
            Err(sentence) => {
                eprintln!("deepcluster-trainer: {sentence}");
                ExitCode::from(2)
            }
        };
    }
    let config = match cli.options.check("127.0.0.1:7073") {
        Ok(config) => config,
        Err(mistakes) => {
            eprintln!("deepcluster-trainer: {mistakes}");
            return ExitCode::from(2);
        }
    };
    if config.probe {
        return probe(&config);
    }
    if let Err(error) = apply_environment(config.threads.count) {
        eprintln!("deepcluster-trainer: threads wait as the libraries' defaults have it: {error}");
    }
    match run(&config, deepcluster_trainer::Trainer::new(&config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("deepcluster-trainer: {error}");
            ExitCode::from(if matches!(error, ServeError::Setup(_)) { 2 } else { 1 })
        }
    }
}
