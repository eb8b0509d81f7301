//! The trainer: pseudo-labels in, a network that has learned them out.
//!
//! ```text
//! Train ─► list uniform over clusters ─► augmented batches ahead ─► SGD steps ─► checkpoint.safetensors ─► result
//!                                                                     └── saved now and then, to go on from
//! Probe ─► shuffled, shifted batches ─► frozen layers ─► logistic regressions ─► probes.safetensors ─► result
//! Score ─► centre or ten crops ─► frozen layers ─► probes ─► hits
//! Finetune ─► shuffled squares ─► SGD steps of some layers or all ─► trained.safetensors ─► result
//! Ascend ─► noise ─► up the gradients of filters ─► pictures ─► result
//! Predict ─► ten squares or ten crops ─► what has learned ─► scores.npy ─► result
//! ```
#![forbid(unsafe_code)]

mod ascend;
mod finetune;
mod pictures;
mod probe;
mod saver;
mod train;

use deepcluster_domain::{DeviceChoice, Precision};
use deepcluster_network::{Runtime, check_libtorch};
use deepcluster_proto::v1::trainer_server::{Trainer as TrainerRpc, TrainerServer};
use deepcluster_proto::v1::{
    AscendRequest, AscendResponse, FinetuneRequest, FinetuneResponse, PredictRequest, PredictResponse, ProbeRequest,
    ProbeResponse, ScoreRequest, ScoreResponse, TrainRequest, TrainResponse, ascend_response, finetune_response,
    predict_response, probe_response, score_response, train_response,
};
use deepcluster_service::jobs::Updates;
use deepcluster_service::{Config, Jobs, Service, Update};
use deepcluster_volume::Volume;
use std::path::PathBuf;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tonic::service::RoutesBuilder;
use tonic::{Request, Response, Status};
use tracing::info_span;

/// What a trainer needs to know of its machine.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) volume: Volume,
    pub(crate) images: PathBuf,
    pub(crate) threads: usize,
}

/// Whether this machine has a device, as a run's spec names it.
///
/// # Errors
/// One sentence that names the device.
pub fn check_device(device: &str) -> Result<(), String> {
    let choice = device.parse::<DeviceChoice>().map_err(|error| error.to_string())?;
    Runtime::prepare(choice, Precision::Auto, 1).map(drop).map_err(|error| error.to_string())
}

/// The service.
pub struct Trainer {
    place: Arc<Place>,
}

impl Trainer {
    /// A trainer on this volume and these images.
    pub fn new(config: &Config) -> Self {
        let place = Place { volume: Volume::new(&config.volume), images: config.images.clone(), threads: config.threads.count };
        Self { place: Arc::new(place) }
    }
}

impl Service for Trainer {
    fn names(&self) -> Vec<&'static str> {
        vec!["deepcluster.v1.Trainer"]
    }

    fn add_to(&mut self, routes: &mut RoutesBuilder, shutdown: &CancellationToken) {
        let rpc = Rpc { place: Arc::clone(&self.place), jobs: Jobs::new(shutdown.clone()) };
        routes.add_service(TrainerServer::new(rpc));
    }

    async fn warm_up(&mut self) -> Result<(), String> {
        tokio::task::spawn_blocking(check_libtorch).await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    }
}

struct Rpc {
    place: Arc<Place>,
    jobs: Jobs,
}

#[tonic::async_trait]
impl TrainerRpc for Rpc {
    type TrainStream = Updates<TrainResponse>;
    type ProbeStream = Updates<ProbeResponse>;
    type ScoreStream = Updates<ScoreResponse>;
    type FinetuneStream = Updates<FinetuneResponse>;
    type PredictStream = Updates<PredictResponse>;
    type AscendStream = Updates<AscendResponse>;

    async fn train(&self, request: Request<TrainRequest>) -> Result<Response<Self::TrainStream>, Status> {
        let request = request.into_inner();
        let place = Arc::clone(&self.place);
        let wrap = |update| {
            let update = match update {
                Update::Progress(progress) => train_response::Update::Progress(progress),
                Update::Saved(saved) => train_response::Update::Saved(saved),
                Update::Done(result) => train_response::Update::Result(result),
            };
            TrainResponse { update: Some(update) }
        };
        let span = info_span!("train", run = ?request.run_id, epoch = request.epoch);
        let work = move |context: &_| train::train(&place, &request, context);
        Ok(Response::new(span.in_scope(|| self.jobs.start(work, wrap))))
    }

    async fn probe(&self, request: Request<ProbeRequest>) -> Result<Response<Self::ProbeStream>, Status> {
        let request = request.into_inner();
        let place = Arc::clone(&self.place);
        let wrap = |update| {
            let update = match update {
                Update::Progress(progress) => probe_response::Update::Progress(progress),
                Update::Saved(saved) => probe_response::Update::Saved(saved),
                Update::Done(result) => probe_response::Update::Result(result),
            };
            ProbeResponse { update: Some(update) }
        };
        let work = move |context: &_| probe::probe(&place, &request, context);
        Ok(Response::new(info_span!("probe").in_scope(|| self.jobs.start(work, wrap))))
    }

    async fn score(&self, request: Request<ScoreRequest>) -> Result<Response<Self::ScoreStream>, Status> {
        let request = request.into_inner();
        let place = Arc::clone(&self.place);
        let wrap = |update: Update<_>| {
            let update = match update {
                Update::Saved(never) => match never {},
                Update::Progress(progress) => score_response::Update::Progress(progress),
                Update::Done(result) => score_response::Update::Result(result),
            };
            ScoreResponse { update: Some(update) }
        };
        let work = move |context: &_| probe::score(&place, &request, context);
        Ok(Response::new(info_span!("score").in_scope(|| self.jobs.start(work, wrap))))
    }

    async fn finetune(&self, request: Request<FinetuneRequest>) -> Result<Response<Self::FinetuneStream>, Status> {
        let request = request.into_inner();
        let place = Arc::clone(&self.place);
        let wrap = |update| {
            let update = match update {
                Update::Progress(progress) => finetune_response::Update::Progress(progress),
                Update::Saved(saved) => finetune_response::Update::Saved(saved),
                Update::Done(result) => finetune_response::Update::Result(result),
            };
            FinetuneResponse { update: Some(update) }
        };
        let work = move |context: &_| finetune::finetune(&place, &request, context);
        Ok(Response::new(info_span!("finetune").in_scope(|| self.jobs.start(work, wrap))))
    }

    async fn ascend(&self, request: Request<AscendRequest>) -> Result<Response<Self::AscendStream>, Status> {
        let request = request.into_inner();
        let place = Arc::clone(&self.place);
        let wrap = |update: Update<_>| {
            let update = match update {
                Update::Saved(never) => match never {},
                Update::Progress(progress) => ascend_response::Update::Progress(progress),
                Update::Done(result) => ascend_response::Update::Result(result),
            };
            AscendResponse { update: Some(update) }
        };
        let work = move |context: &_| ascend::ascend(&place, &request, context);
        Ok(Response::new(info_span!("ascend").in_scope(|| self.jobs.start(work, wrap))))
    }

    async fn predict(&self, request: Request<PredictRequest>) -> Result<Response<Self::PredictStream>, Status> {
        let request = request.into_inner();
        let place = Arc::clone(&self.place);
        let wrap = |update: Update<_>| {
            let update = match update {
                Update::Saved(never) => match never {},
                Update::Progress(progress) => predict_response::Update::Progress(progress),
                Update::Done(result) => predict_response::Update::Result(result),
            };
            PredictResponse { update: Some(update) }
        };
        let work = move |context: &_| finetune::predict(&place, &request, context);
        Ok(Response::new(info_span!("predict").in_scope(|| self.jobs.start(work, wrap))))
    }
}
