//! The coordinator as a process.
#![forbid(unsafe_code)]

use clap::Parser;
use deepcluster_coordinator::workers::{Patience, Workers};
use deepcluster_coordinator::{Coordinator, Start};
use deepcluster_service::{ConfigError, Options, ServeError, run};
use std::process::ExitCode;
use std::time::Duration;

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
    /// Seconds without a sign of life after which another owner of the volume is taken for dead, at least 5
    #[arg(long, env = "DC_TAKEOVER_AFTER", value_name = "SECONDS", default_value = "60")]
    takeover_after: String,
    /// Seconds of silence after which a worker is taken for dead and its work is given to another, at least 5
    #[arg(long, env = "DC_WORKER_SILENCE", value_name = "SECONDS", default_value = "20")]
    worker_silence: String,
    /// Seconds without progress after which a worker that still answers is taken for stuck, at least 5
    #[arg(long, env = "DC_WORKER_STANDSTILL", value_name = "SECONDS", default_value = "3600")]
    worker_standstill: String,
    /// Most runs that wait for their turns
    #[arg(long, env = "DC_QUEUE_LIMIT", value_name = "N", default_value = "100")]
    queue_limit: String,
}

/// A number of at least one; a mistake is noted.
fn count(flag: &str, text: &str, mistakes: &mut Vec<String>) -> usize {
    match text.parse() {
        Ok(number @ 1..) => number,
        _ => {
            mistakes.push(format!("--{flag} '{text}' is not a number from 1 on"));
            1
        }
    }
}

/// A number of seconds; a mistake is noted.
fn seconds(flag: &str, text: &str, mistakes: &mut Vec<String>) -> Duration {
    match text.parse() {
        Ok(seconds @ 5..) => Duration::from_secs(seconds),
        _ => {
            mistakes.push(format!("--{flag} '{text}' is not a number of seconds from 5 on"));
            Duration::ZERO
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let fail = |code: u8, error: &dyn std::fmt::Display| {
        eprintln!("deepcluster-coordinator: {error}");
        ExitCode::from(code)
    };
    let mut mistakes = Vec::new();
    let patience = Patience {
        silence: seconds("worker-silence", &cli.worker_silence, &mut mistakes),
        standstill: seconds("worker-standstill", &cli.worker_standstill, &mut mistakes),
    };
    let start = Start {
        paused: cli.start_paused,
        takeover_after: seconds("takeover-after", &cli.takeover_after, &mut mistakes),
        queue_limit: count("queue-limit", &cli.queue_limit, &mut mistakes),
    };
    let workers = Workers::new(&cli.extractors, &cli.clusterer, &cli.trainer, patience);
    let (config, workers) = match (cli.options.check("127.0.0.1:7070"), workers) {
        (Ok(config), Ok(workers)) if mistakes.is_empty() => (config, workers),
        (config, workers) => {
            let of_config = config.err().map(|error| error.0).unwrap_or_default();
            let all = of_config.into_iter().chain(workers.err().unwrap_or_default()).chain(mistakes).collect();
            return fail(2, &ConfigError(all));
        }
    };
    let coordinator = match Coordinator::new(&config, workers, start) {
        Ok(coordinator) => coordinator,
        Err(sentence) => return fail(2, &sentence),
    };
    let lost = coordinator.lost();
    match run(&config, coordinator) {
        Ok(()) => lost.get().map_or(ExitCode::SUCCESS, |sentence| fail(1, sentence)),
        Err(error @ ServeError::Setup(_)) => fail(2, &error),
        Err(error @ ServeError::Failed(_)) => fail(1, &error),
    }
}
