//! The coordinator: owns the volume, drives the epoch loop, answers clients.
//!
//! ```text
//! Runs API ─► runs ─► turn by turn: epoch ─► Extract × shards ─► Cluster ─► Train ─► epoch.json
//!                                    └── pending.json after every shard and phase
//! ```
#![forbid(unsafe_code)]

pub mod assign;
pub mod epoch;
mod extraction;
mod fallback;
mod images;
pub mod rpc;
pub mod run;
pub mod runs;
pub mod workers;

use deepcluster_proto::v1::runs_server::RunsServer;
use deepcluster_service::{Config, Service};
use deepcluster_volume::Volume;
use deepcluster_volume::lock::VolumeLock;
use runs::Runs;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tonic::service::RoutesBuilder;
use workers::Workers;

/// The service.
pub struct Coordinator {
    runs: Arc<Runs>,
    workers: Workers,
    shutdown: CancellationToken,
    _lock: VolumeLock,
}

impl Coordinator {
    /// Takes the volume and reads its runs; unfinished ones go on, or wait for `unpause` when `start_paused` is set.
    ///
    /// # Errors
    /// When the volume is owned or cannot be written.
    pub fn new(config: &Config, workers: Workers, start_paused: bool) -> Result<Self, String> {
        let lock = VolumeLock::take(&config.volume).map_err(|error| error.to_string())?;
        // Clients and the network know the volume's files by paths below its real root.
        let runs = Runs::open(Volume::new(&config.volume), config.images.clone(), start_paused);
        let runs = Arc::new(runs.map_err(|error| error.to_string())?);
        Ok(Self { runs, workers, shutdown: CancellationToken::new(), _lock: lock })
    }
}

impl Service for Coordinator {
    fn names(&self) -> Vec<&'static str> {
        vec!["deepcluster.v1.Runs"]
    }

    fn add_to(&mut self, routes: &mut RoutesBuilder, shutdown: &CancellationToken) {
        self.shutdown = shutdown.clone();
        routes.add_service(RunsServer::new(rpc::Rpc {
            runs: Arc::clone(&self.runs),
            workers: self.workers.clone(),
            shutdown: shutdown.clone(),
        }));
    }

    async fn warm_up(&mut self) -> Result<(), String> {
        let (runs, workers, shutdown) = (Arc::clone(&self.runs), self.workers.clone(), self.shutdown.clone());
        // A thread of its own: the loop reads and hashes files, which must not hold up the answers to clients.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
        let thread = std::thread::Builder::new().name("epochs".to_owned());
        let started = thread.spawn(move || {
            // However the loop ends, a coordinator without it must not go on saying that it serves.
            let _end = shutdown.clone().drop_guard();
            runtime.block_on(runs.run_epochs(&workers, &shutdown));
        });
        started.map(drop).map_err(|error| error.to_string())
    }
}
