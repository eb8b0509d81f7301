//! The coordinator as a process.
#![forbid(unsafe_code)]

use clap::Parser;
use deepcluster_coordinator::workers::{Patience, Workers};
use deepcluster_coordinator::{Coordinator, Start};
use deepcluster_domain::space::CacheLimit;
use deepcluster_service::config::{optional_address, token_file};
use deepcluster_service::door::Tokens;
use deepcluster_service::limits::Limits;
use deepcluster_service::probe::probe;
use deepcluster_service::tls::ClientSecurity;
use deepcluster_service::{Config, ConfigError, Options, ServeError, run};
use std::path::PathBuf;
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
    /// Where the live page is served, as HOST:PORT, to the same callers as the API; nowhere unless given
    #[arg(long, env = "DC_HTTP", value_name = "ADDRESS", default_value = "")]
    http: String,
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
    /// Most room that decoded images may take on the volume, as 200GB, or 0 for none; without it, half of what is free
    #[arg(long, env = "DC_CACHE_LIMIT", value_name = "SIZE")]
    cache_limit: Option<String>,
    /// Write files for TensorBoard beside the events of every run
    #[arg(long, env = "DC_TENSORBOARD")]
    tensorboard: bool,
    /// Most runs that wait for their turns
    #[arg(long, env = "DC_QUEUE_LIMIT", value_name = "N", default_value = "100")]
    queue_limit: String,
    /// Most streams that follow runs
    #[arg(long, env = "DC_WATCHERS_LIMIT", value_name = "N", default_value = "10000")]
    watchers_limit: String,
    /// Most requests that wait for an answer at a time
    #[arg(long, env = "DC_REQUESTS_LIMIT", value_name = "N", default_value = "1000")]
    requests_limit: String,
    /// Most streams of one connection
    #[arg(long, env = "DC_STREAMS_LIMIT", value_name = "N", default_value = "1000")]
    streams_limit: String,
    /// A file with the token that lets clients read
    #[arg(long, env = "DC_READ_TOKEN_FILE", value_name = "FILE", requires = "write_token_file")]
    read_token_file: Option<String>,
    /// A file with the token that lets clients do everything; without it, nobody needs a token
    #[arg(long, env = "DC_WRITE_TOKEN_FILE", value_name = "FILE")]
    write_token_file: Option<String>,
    /// Speak TLS with the workers, whose certificates are of this authority (PEM)
    #[arg(long, env = "DC_WORKERS_CA", value_name = "FILE")]
    workers_ca: Option<PathBuf>,
    /// The certificate to show to the workers (PEM)
    #[arg(long, env = "DC_WORKERS_CERT", value_name = "FILE", requires_all = ["workers_key", "workers_ca"])]
    workers_cert: Option<PathBuf>,
    /// The private key of --workers-cert (PEM)
    #[arg(long, env = "DC_WORKERS_KEY", value_name = "FILE", requires = "workers_cert")]
    workers_key: Option<PathBuf>,
}

impl Cli {
    /// Everything checked: the configuration, the workers, and how to start.
    fn check(self) -> Result<(Config, Workers, Start), ConfigError> {
        let mut mistakes = Vec::new();
        let patience = Patience {
            silence: seconds("worker-silence", &self.worker_silence, &mut mistakes),
            standstill: seconds("worker-standstill", &self.worker_standstill, &mut mistakes),
        };
        let takeover_after = seconds("takeover-after", &self.takeover_after, &mut mistakes);
        let cache_limit = cache_limit(self.cache_limit.as_deref(), &mut mistakes);
        let http = optional_address("http", &self.http, &mut mistakes);
        let limits = Limits {
            queue: count("queue-limit", &self.queue_limit, &mut mistakes),
            watchers: count("watchers-limit", &self.watchers_limit, &mut mistakes),
            requests: count("requests-limit", &self.requests_limit, &mut mistakes),
            streams: count("streams-limit", &self.streams_limit, &mut mistakes),
            ..Limits::default()
        };
        let tokens = Tokens {
            read: token_file("read-token-file", self.read_token_file.as_deref(), &mut mistakes),
            write: token_file("write-token-file", self.write_token_file.as_deref(), &mut mistakes),
        };
        let config = self.options.check("127.0.0.1:7070").map_err(|error| mistakes.extend(error.0)).ok();
        let security = ClientSecurity {
            tls: self.workers_ca.is_some(),
            ca: self.workers_ca,
            identity: self.workers_cert.zip(self.workers_key),
            token: config.as_ref().and_then(|config| config.worker_token.clone()),
        };
        let workers = Workers::new(&self.extractors, &self.clusterer, &self.trainer, patience, security);
        let workers = workers.map_err(|error| mistakes.extend(error)).ok();
        match (config, workers) {
            (Some(config), Some(workers)) if mistakes.is_empty() => {
                let start = Start { paused: self.start_paused, takeover_after, cache_limit, http, tensorboard: self.tensorboard };
                Ok((Config { tokens, limits, ..config }, workers, start))
            }
            _ => Err(ConfigError(mistakes)),
        }
    }
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

/// A number of bytes; a mistake is noted.
fn cache_limit(text: Option<&str>, mistakes: &mut Vec<String>) -> CacheLimit {
    // A container's environment may name it and say nothing.
    match text.filter(|text| !text.is_empty()).map(str::parse) {
        None => CacheLimit::HalfOfFree,
        Some(Ok(limit)) => limit,
        Some(Err(error)) => {
            mistakes.push(format!("--cache-limit {error}"));
            CacheLimit::HalfOfFree
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
    let (config, workers, start) = match cli.check() {
        Ok(checked) => checked,
        Err(mistakes) => return fail(2, &mistakes),
    };
    if config.probe {
        return probe(&config);
    }
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
