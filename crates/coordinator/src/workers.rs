//! The coordinator's side of the three workers: connect, call, watch for silence, try again.

use deepcluster_proto::v1::{
    AssignRequest, AssignResult, ClusterRequest, ClusterResult, ExtractRequest, ExtractResult, Progress, TrainRequest,
    TrainResult, assign_response, cluster_response, clusterer_client::ClustererClient, extract_response,
    extractor_client::ExtractorClient, train_response, trainer_client::TrainerClient,
};
use std::time::Duration;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;
use tonic::{Code, Status, Streaming};
use tracing::warn;

/// Longest silence of a worker that computes; it promises a message every two seconds.
const SILENCE: Duration = Duration::from_secs(30);

/// First and longest pause before a call is tried again.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// How often a call that ended in INTERNAL is tried again before the run fails.
const INTERNAL_TRIES: u32 = 3;

/// Where the workers are.
#[derive(Clone, Debug)]
pub struct Workers {
    /// At least one extractor.
    pub extractors: Vec<Endpoint>,
    /// The clusterer.
    pub clusterer: Endpoint,
    /// The trainer.
    pub trainer: Endpoint,
}

impl Workers {
    /// Checks the addresses. Every call connects anew, so that a worker may die and come back between calls.
    ///
    /// # Errors
    /// When an address is none.
    pub fn new(extractors: &[String], clusterer: &str, trainer: &str) -> Result<Self, String> {
        Ok(Self {
            extractors: extractors.iter().map(|address| endpoint(address)).collect::<Result<_, _>>()?,
            clusterer: endpoint(clusterer)?,
            trainer: endpoint(trainer)?,
        })
    }
}

fn endpoint(address: &str) -> Result<Endpoint, String> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| format!("worker '{address}': {error}"))?;
    Ok(endpoint
        .connect_timeout(Duration::from_secs(5))
        // Until an answer begins; once it has, [`Call::follow`] watches for silence.
        .timeout(SILENCE)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(10))
        .tcp_nodelay(true))
}

/// What a call needs beside its request.
pub struct Call<'a> {
    /// Cancelled to give up at once.
    pub stop: &'a CancellationToken,
    /// Told how far the work has come.
    pub progress: &'a (dyn Fn(Progress) + Sync),
    /// Told of every try that failed and is made again.
    pub fault: &'a (dyn Fn(&Status) + Sync),
}

impl Call<'_> {
    /// Computes the features of a shard.
    ///
    /// # Errors
    /// What the worker says once trying again is no use; CANCELLED when stopped.
    pub async fn extract(&self, worker: &Endpoint, request: &ExtractRequest) -> Result<ExtractResult, Status> {
        self.retried(async || {
            let stream = ExtractorClient::new(worker.connect_lazy()).extract(request.clone()).await?.into_inner();
            self.follow(stream, |message| match message.update? {
                extract_response::Update::Progress(progress) => Some(Step::Progress(progress)),
                extract_response::Update::Result(result) => Some(Step::Done(result)),
            })
            .await
        })
        .await
    }

    /// Clusters the features of an epoch.
    ///
    /// # Errors
    /// As [`Call::extract`].
    pub async fn cluster(&self, worker: &Endpoint, request: &ClusterRequest) -> Result<ClusterResult, Status> {
        self.retried(async || {
            let stream = ClustererClient::new(worker.connect_lazy()).cluster(request.clone()).await?.into_inner();
            self.follow(stream, |message| match message.update? {
                cluster_response::Update::Progress(progress) => Some(Step::Progress(progress)),
                cluster_response::Update::Result(result) => Some(Step::Done(result)),
            })
            .await
        })
        .await
    }

    /// Assigns features to stored clusters.
    ///
    /// # Errors
    /// As [`Call::extract`].
    pub async fn assign(&self, worker: &Endpoint, request: &AssignRequest) -> Result<AssignResult, Status> {
        self.retried(async || {
            let stream = ClustererClient::new(worker.connect_lazy()).assign(request.clone()).await?.into_inner();
            self.follow(stream, |message| match message.update? {
                assign_response::Update::Progress(progress) => Some(Step::Progress(progress)),
                assign_response::Update::Result(result) => Some(Step::Done(result)),
            })
            .await
        })
        .await
    }

    /// Trains an epoch.
    ///
    /// # Errors
    /// As [`Call::extract`].
    pub async fn train(&self, worker: &Endpoint, request: &TrainRequest) -> Result<TrainResult, Status> {
        self.retried(async || {
            let stream = TrainerClient::new(worker.connect_lazy()).train(request.clone()).await?.into_inner();
            self.follow(stream, |message| match message.update? {
                train_response::Update::Progress(progress) => Some(Step::Progress(progress)),
                train_response::Update::Result(result) => Some(Step::Done(result)),
            })
            .await
        })
        .await
    }

    /// Reads a stream to its result; silence counts as a lost worker.
    async fn follow<M, R>(&self, mut stream: Streaming<M>, read: impl Fn(M) -> Option<Step<R>>) -> Result<R, Status> {
        loop {
            let message = timeout(SILENCE, stream.message()).await;
            let message =
                message.map_err(|_| Status::unavailable(format!("the worker was silent for {} s", SILENCE.as_secs())))??;
            let message = message.ok_or_else(|| Status::unavailable("the worker ended its answer without a result"))?;
            match read(message) {
                Some(Step::Progress(progress)) => (self.progress)(progress),
                Some(Step::Done(result)) => return Ok(result),
                None => return Err(Status::internal("the worker sent an empty message")),
            }
        }
    }

    /// Tries again for as long as the fault lies with the worker or the network; the same request gives the same files.
    async fn retried<R>(&self, attempt: impl AsyncFn() -> Result<R, Status>) -> Result<R, Status> {
        let mut pause = BACK_OFF.0;
        let mut internal = 0;
        loop {
            let outcome = tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(Status::cancelled("the run was stopped")),
                outcome = attempt() => outcome,
            };
            let Err(status) = outcome else { return outcome };
            internal += u32::from(status.code() == Code::Internal);
            if !is_transient(status.code()) || internal >= INTERNAL_TRIES {
                return Err(status);
            }
            warn!(code = ?status.code(), message = status.message(), "call failed, trying again");
            (self.fault)(&status);
            tokio::select! {
                () = self.stop.cancelled() => return Err(Status::cancelled("the run was stopped")),
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(BACK_OFF.1);
        }
    }
}

enum Step<R> {
    Progress(Progress),
    Done(R),
}

/// Faults that another try, or another worker, may not have. A killed worker shows as UNKNOWN or CANCELLED.
fn is_transient(code: Code) -> bool {
    match code {
        Code::Unavailable | Code::Unknown | Code::Cancelled | Code::DeadlineExceeded | Code::Aborted | Code::Internal => true,
        Code::Ok
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::DataLoss
        | Code::Unauthenticated => false,
    }
}
