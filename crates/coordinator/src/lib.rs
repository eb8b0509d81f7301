//! The coordinator: owns the volume, drives the epoch loop, answers clients.
//!
//! ```text
//! Inference API ─► batches of clients' images ─► Embed
//! Runs API ─► runs ─► turn by turn: epoch ─► Extract × shards ─► Cluster ─► Train ─► epoch.json
//! live page ─┘                       └── pending.json after every shard and phase
//! ```
#![forbid(unsafe_code)]

mod actions;
pub mod activity;
pub mod assign;
mod cache;
mod commit;
pub mod create;
pub mod epoch;
pub mod extraction;
mod fallback;
mod images;
pub mod inference;
mod init;
mod lineage;
mod list;
mod members;
mod pace;
mod phases;
mod queue;
mod retry;
pub mod rpc;
pub mod run;
mod run_wire;
mod runs;
mod tensorboard;
pub mod web;
pub mod workers;

use deepcluster_domain::space::CacheLimit;
use deepcluster_proto::v1::inference_server::InferenceServer;
use deepcluster_proto::v1::runs_server::RunsServer;
use deepcluster_service::{Config, Service};
use deepcluster_volume::lock::{BEAT, VolumeLock};
use deepcluster_volume::{Volume, VolumeError};
use epoch::Workshop;
use inference::InferenceRpc;
use runs::Runs;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tonic::service::RoutesBuilder;
use tracing::{error, warn};
use web::LivePage;
use workers::Workers;

/// The service.
pub struct Coordinator {
    runs: Arc<Runs>,
    /// Until it is opened.
    page: Option<LivePage>,
    shutdown: CancellationToken,
    lock: Arc<VolumeLock>,
    lost: Arc<OnceLock<String>>,
}

/// How a coordinator starts.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// Unfinished runs wait for `unpause` instead of going on.
    pub paused: bool,
    /// How long another owner of the volume may show no sign of life before it is taken for dead.
    pub takeover_after: Duration,
    /// How much room decoded images may take.
    pub cache_limit: CacheLimit,
    /// Where the live page is served; nowhere without an address.
    pub http: Option<SocketAddr>,
    /// Whether runs write files for TensorBoard.
    pub tensorboard: bool,
}

impl Coordinator {
    /// Takes the volume and reads its runs.
    ///
    /// # Errors
    /// When the live page's port is taken, or the volume is owned or cannot be written.
    pub fn new(config: &Config, workers: Workers, start: Start) -> Result<Self, String> {
        // Before anybody is answered: what cannot start like this must not begin a run.
        let page = start.http.map(|address| LivePage::bind(address, config.tokens.clone(), config.tls.clone())).transpose()?;
        let lock = VolumeLock::take(&config.volume, start.takeover_after).map_err(|error| error.to_string())?;
        // Clients and the network know the volume's files by paths below its real root.
        let workshop = Workshop::new(Volume::new(&config.volume), workers, lock.token(), start.cache_limit, start.tensorboard);
        let runs = Runs::open(workshop, config.images.clone(), start.paused, config.limits).map_err(|error| error.to_string())?;
        let lost = Arc::new(OnceLock::new());
        Ok(Self { runs: Arc::new(runs), page, shutdown: CancellationToken::new(), lock: Arc::new(lock), lost })
    }

    /// Says, once the service has ended, by whom it lost its volume, if so.
    pub fn lost(&self) -> Arc<OnceLock<String>> {
        Arc::clone(&self.lost)
    }

    /// Shows that the owner of the volume is alive, and ends the service when it no longer is the owner.
    fn keep_volume(&self) -> std::io::Result<()> {
        let (lock, lost, shutdown) = (Arc::clone(&self.lock), Arc::clone(&self.lost), self.shutdown.clone());
        let beats = move || {
            while !shutdown.is_cancelled() {
                match lock.beat() {
                    Ok(()) => {}
                    Err(error @ VolumeError::Lost { .. }) => {
                        error!(%error, "ending");
                        let _ = lost.set(error.to_string());
                        shutdown.cancel();
                    }
                    Err(error) => warn!(%error, "no sign of life could be left on the volume"),
                }
                std::thread::sleep(BEAT);
            }
        };
        std::thread::Builder::new().name("beats".to_owned()).spawn(beats).map(drop)
    }
}

impl Service for Coordinator {
    fn names(&self) -> Vec<&'static str> {
        vec!["deepcluster.v1.Runs", "deepcluster.v1.Inference"]
    }

    fn read_methods(&self) -> Vec<&'static str> {
        vec![
            "/deepcluster.v1.Runs/GetRun",
            "/deepcluster.v1.Runs/ListRuns",
            "/deepcluster.v1.Runs/WatchRun",
            "/deepcluster.v1.Inference/Embed",
            "/deepcluster.v1.Inference/EmbedStream",
            "/deepcluster.v1.Inference/Assign",
            "/deepcluster.v1.Inference/AssignStream",
        ]
    }

    fn add_to(&mut self, routes: &mut RoutesBuilder, shutdown: &CancellationToken) {
        self.shutdown = shutdown.clone();
        let largest = self.runs.limits.message_bytes;
        routes.add_service(
            RunsServer::new(rpc::Rpc::new(Arc::clone(&self.runs), shutdown.clone())).max_decoding_message_size(largest),
        );
        let inference = InferenceRpc::new(Arc::clone(&self.runs), shutdown.clone());
        routes.add_service(InferenceServer::new(inference).max_decoding_message_size(self.runs.limits.images_bytes));
    }

    async fn warm_up(&mut self) -> Result<(), String> {
        self.keep_volume().map_err(|error| error.to_string())?;
        if let Some(page) = self.page.take() {
            page.serve(Arc::clone(&self.runs), self.shutdown.clone())?;
        }
        let (runs, shutdown) = (Arc::clone(&self.runs), self.shutdown.clone());
        // A thread of its own: the loop reads and hashes files, which must not hold up the answers to clients.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
        let thread = std::thread::Builder::new().name("epochs".to_owned());
        let started = thread.spawn(move || {
            // However the loop ends, a coordinator without it must not go on saying that it serves.
            let _end = shutdown.clone().drop_guard();
            runtime.block_on(runs.run_epochs(&shutdown));
        });
        started.map(drop).map_err(|error| error.to_string())
    }
}
