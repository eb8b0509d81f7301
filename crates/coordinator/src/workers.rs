//! The coordinator's side of the three workers: connect, call, watch for silence, try again.

use deepcluster_proto::v1::{
    AssignRequest, AssignResult, ClusterRequest, ClusterResult, ExtractRequest, ExtractResult, Progress, TrainRequest,
    TrainResult, assign_response, cluster_response, clusterer_client::ClustererClient, extract_response,
    extractor_client::ExtractorClient, train_response, trainer_client::TrainerClient,
};
use std::error::Error;
use std::time::Duration;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;
use tonic::{Code, Status, Streaming};
use tracing::warn;

/// Longest silence of a worker that computes; it promises a message every two seconds.
const SILENCE: Duration = Duration::from_secs(30);

/// What ends a call when its run is stopped.
const STOPPED: &str = "the run was stopped";

/// First and longest pause before a call is tried again.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// How often a call may end in INTERNAL or DATA_LOSS before the run fails. A file that was published a moment ago may not be
/// seen yet through a network file system.
const FAULTY_TRIES: u32 = 5;

/// How often in a row a worker may go away in the middle of the same work before the run fails: by then it is the work that
/// kills it, as when the memory does not suffice. A worker that is merely not there is waited for as long as it takes.
const BROKEN_TRIES: u32 = 10;

/// Largest answer of a worker: a shard's result names every image that could not be read.
const LARGEST_ANSWER: usize = 64 << 20;

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
    /// A clause for every address that is none.
    pub fn new(extractors: &[String], clusterer: &str, trainer: &str) -> Result<Self, Vec<String>> {
        let mut mistakes = Vec::new();
        let mut checked = |flag: &str, address: &str| {
            endpoint(address).map_err(|why| mistakes.push(format!("--{flag} '{address}': {why}"))).ok()
        };
        let extractors: Vec<_> = extractors.iter().filter_map(|address| checked("extractors", address)).collect();
        let (clusterer, trainer) = (checked("clusterer", clusterer), checked("trainer", trainer));
        match (clusterer, trainer) {
            (Some(clusterer), Some(trainer)) if mistakes.is_empty() => Ok(Self { extractors, clusterer, trainer }),
            _ => Err(mistakes),
        }
    }
}

fn endpoint(address: &str) -> Result<Endpoint, String> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| error.to_string())?;
    if endpoint.uri().port_u16().is_none() {
        return Err("is not HOST:PORT".to_owned());
    }
    Ok(endpoint
        .connect_timeout(Duration::from_secs(5))
        // Until an answer begins; once it has, [`Call::follow`] watches for silence.
        .timeout(SILENCE)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(10))
        .tcp_nodelay(true))
}

/// What a call needs beside its request.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    /// Cancelled to give up at once.
    pub stop: &'a CancellationToken,
    /// Told how far the work has come.
    pub progress: &'a (dyn Fn(Progress) + Sync),
    /// Told of every try that failed and is made again.
    pub fault: &'a (dyn Fn(&Status) + Sync),
}

impl Call<'_> {
    /// Computes the features of a shard, in one try.
    ///
    /// # Errors
    /// What the worker says; CANCELLED when stopped.
    pub async fn extract_once(&self, worker: &Endpoint, request: &ExtractRequest) -> Result<ExtractResult, Status> {
        self.unless_stopped(async {
            let mut client = ExtractorClient::new(worker.connect_lazy()).max_decoding_message_size(LARGEST_ANSWER);
            let stream = client.extract(request.clone()).await?.into_inner();
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
    /// What the worker says once trying again is no use; CANCELLED when stopped.
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
    /// As [`Call::cluster`].
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
    /// As [`Call::cluster`].
    pub async fn train(&self, worker: &Endpoint, request: &TrainRequest) -> Result<TrainResult, Status> {
        self.retried(async || {
            let stream = TrainerClient::new(worker.connect_lazy())
                .max_decoding_message_size(LARGEST_ANSWER)
                .train(request.clone())
                .await?
                .into_inner();
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
            let message = message.map_err(|_| broken(&format!("it was silent for {} s", SILENCE.as_secs())))?;
            let message = message.map_err(in_the_middle)?.ok_or_else(|| broken("it ended its answer without a result"))?;
            match read(message) {
                Some(Step::Progress(progress)) => (self.progress)(progress),
                Some(Step::Done(result)) => return Ok(result),
                None => return Err(Status::internal("the worker sent an empty message")),
            }
        }
    }

    /// Tries again for as long as the fault lies with the worker or the network; the same request gives the same files.
    async fn retried<R>(&self, attempt: impl AsyncFn() -> Result<R, Status>) -> Result<R, Status> {
        let mut retry = Retry::default();
        loop {
            match self.unless_stopped(attempt()).await {
                Ok(result) => return Ok(result),
                Err(status) => self.sleep(retry.after(status, self)?).await?,
            }
        }
    }

    /// Waits, unless the run is stopped.
    ///
    /// # Errors
    /// CANCELLED when stopped.
    pub async fn sleep(&self, pause: Duration) -> Result<(), Status> {
        self.unless_stopped(async {
            tokio::time::sleep(pause).await;
            Ok(())
        })
        .await
    }

    async fn unless_stopped<R>(&self, work: impl Future<Output = Result<R, Status>>) -> Result<R, Status> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(Status::cancelled(STOPPED)),
            outcome = work => outcome,
        }
    }
}

/// What the tries of one piece of work have seen so far.
#[derive(Default)]
pub struct Retry {
    pause: Duration,
    faulty: u32,
    broken: u32,
    /// The last failure's message.
    told: String,
}

impl Retry {
    /// How long to wait before the next try after this failure, which `call` is told of.
    ///
    /// # Errors
    /// The failure, when another try is no use.
    pub fn after(&mut self, status: Status, call: &Call<'_>) -> Result<Duration, Status> {
        if call.stop.is_cancelled() || !is_transient(status.code()) {
            return Err(status);
        }
        self.faulty += u32::from(matches!(status.code(), Code::Internal | Code::DataLoss));
        self.broken = if status.code() == Code::Aborted { self.broken + 1 } else { 0 };
        if self.faulty >= FAULTY_TRIES {
            return Err(status);
        }
        if self.broken >= BROKEN_TRIES {
            return Err(Status::internal(format!("{BROKEN_TRIES} times in a row, {}", status.message())));
        }
        warn!(code = ?status.code(), message = status.message(), "call failed, trying again");
        // A worker that stays away for days is one fault.
        if status.code() != Code::Unavailable || self.told != status.message() {
            (call.fault)(&status);
        }
        status.message().clone_into(&mut self.told);
        self.pause = (self.pause * 2).clamp(BACK_OFF.0, BACK_OFF.1);
        Ok(self.pause)
    }
}

/// A worker that was lost while it worked.
fn broken(why: &str) -> Status {
    Status::aborted(format!("the worker was lost in the middle of its work: {why}"))
}

/// An error inside an answer: the worker's own word, or the end of its connection.
fn in_the_middle(status: Status) -> Status {
    match status.code() {
        Code::Unknown | Code::Cancelled => broken(status.message()),
        Code::Unavailable if status.source().is_some() => broken(status.message()),
        _ => status,
    }
}

enum Step<R> {
    Progress(Progress),
    Done(R),
}

/// Faults that another try, or another worker, may not have. A killed worker shows as UNKNOWN or CANCELLED.
fn is_transient(code: Code) -> bool {
    match code {
        Code::Unavailable
        | Code::Unknown
        | Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::Internal
        | Code::DataLoss => true,
        Code::Ok
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::Unauthenticated => false,
    }
}
