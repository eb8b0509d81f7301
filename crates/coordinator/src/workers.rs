//! The coordinator's side of the three workers: connect, call, watch for silence, try again.

use crate::activity::{Activity, Busy, CLUSTERER, TRAINER};
use crate::retry::{Retry, at_the_start, broken, in_the_middle};
use deepcluster_proto::v1::{
    AssignRequest, AssignResponse, AssignResult, ClusterRequest, ClusterResponse, ClusterResult, ClusterSaved, EmbedRequest,
    EmbedResponse, ExtractRequest, ExtractResponse, ExtractResult, Progress, TrainRequest, TrainResponse, TrainResult,
    TrainSaved, assign_response, cluster_response, clusterer_client::ClustererClient, extract_response,
    extractor_client::ExtractorClient, train_response, trainer_client::TrainerClient,
};
use deepcluster_service::telemetry;
use deepcluster_service::tls::ClientSecurity;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

/// How long a worker may show no sign of life, and none of getting on, before it counts as lost.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Longest silence of a worker that computes; it promises a message every two seconds.
    pub silence: Duration,
    /// Longest time in which its work may not move. Work that cannot tell how far it is must fit, and so must what may be
    /// before it in the worker's queue.
    pub standstill: Duration,
}

/// Progress of a call that waits for its turn behind another.
pub(crate) const WAITING: &str = "wait";

/// Largest answer of a worker: a shard's result names every image that could not be read.
const LARGEST_ANSWER: usize = 64 << 20;

/// Where the workers are.
#[derive(Clone, Debug)]
pub struct Workers {
    /// Names of extractors, each HOST:PORT. Every address that a name stands for is one.
    pub extractors: Vec<String>,
    /// The clusterer, HOST:PORT.
    pub clusterer: String,
    /// The trainer, HOST:PORT.
    pub trainer: String,
    /// With all of them.
    pub patience: Patience,
    /// What they are shown, and must show.
    pub security: ClientSecurity,
    /// What they are doing.
    pub activity: Activity,
}

/// Makes the request of a try; each try has its own place for its results, so that a late one changes nothing.
pub type MakeRequest<'a, Q> = &'a (dyn Fn() -> Result<Q, Status> + Sync);

/// Told what a worker has saved on its way.
pub type Saved<'a, S> = &'a (dyn Fn(S) -> Result<(), Status> + Sync);

impl Workers {
    /// Checks the names. Every call to clusterer and trainer connects anew, so that they may die and come back between calls.
    ///
    /// # Errors
    /// A clause for every name that is none.
    pub fn new(
        extractors: &[String],
        clusterer: &str,
        trainer: &str,
        patience: Patience,
        security: ClientSecurity,
    ) -> Result<Self, Vec<String>> {
        let names = extractors.iter().map(|name| ("extractors", name.as_str()));
        let mut mistakes = Vec::new();
        for (flag, name) in names.chain([("clusterer", clusterer), ("trainer", trainer)]) {
            if let Err(why) = security.endpoint(name, host_of(name)) {
                mistakes.push(format!("--{flag} '{name}': {why}"));
            }
        }
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        let (extractors, clusterer, trainer) = (extractors.to_vec(), clusterer.to_owned(), trainer.to_owned());
        Ok(Self { extractors, clusterer, trainer, patience, security, activity: Activity::default() })
    }

    /// The extractor at one of the addresses that a name stands for.
    pub(crate) fn extractor_at(&self, address: SocketAddr, name: &str) -> Result<Channel, String> {
        self.channel(&address.to_string(), host_of(name))
    }

    /// Connects when it is used. Certificates are read now.
    fn channel(&self, authority: &str, host: &str) -> Result<Channel, String> {
        let endpoint = self.security.endpoint(authority, host)?;
        let endpoint = endpoint
            .connect_timeout(Duration::from_secs(5))
            // Until an answer begins; once it has, [`Call::follow`] watches for silence.
            .timeout(self.patience.silence)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(10))
            .tcp_nodelay(true);
        Ok(endpoint.connect_lazy())
    }

    fn of_name(&self, name: &str) -> Result<Channel, Status> {
        self.channel(name, host_of(name)).map_err(|why| Status::unavailable(format!("{name}: {why}")))
    }

    /// A call that can be stopped, and whom it tells what.
    pub fn call<'a>(
        &'a self,
        stop: &'a CancellationToken,
        progress: &'a (dyn Fn(Progress) + Sync),
        fault: &'a (dyn Fn(&Status) + Sync),
    ) -> Call<'a> {
        Call { workers: self, stop, progress, fault }
    }
}

/// The name without its port.
fn host_of(name: &str) -> &str {
    name.rsplit_once(':').map_or(name, |(host, _)| host).trim_matches(['[', ']'])
}

/// What a call needs beside its request.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    /// Who is called.
    pub workers: &'a Workers,
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
    pub async fn extract_once(&self, worker: Channel, request: ExtractRequest) -> Result<ExtractResult, Status> {
        self.unless_stopped(async {
            let mut client = ExtractorClient::new(worker).max_decoding_message_size(LARGEST_ANSWER);
            let stream = begun(client.extract(self.request(request)?).await)?;
            let read = |message: ExtractResponse| match message.update? {
                extract_response::Update::Progress(progress) => Some(Step::Progress(progress)),
                extract_response::Update::Result(result) => Some(Step::Done(result)),
            };
            self.follow(stream, read, &|never: Infallible| match never {}).await
        })
        .await
    }

    /// Embeds some images, or finds their clusters, in one try.
    ///
    /// # Errors
    /// What the worker says; CANCELLED when stopped.
    pub async fn embed_once(&self, worker: Channel, request: EmbedRequest) -> Result<EmbedResponse, Status> {
        self.unless_stopped(async {
            let mut client = ExtractorClient::new(worker).max_decoding_message_size(LARGEST_ANSWER);
            client.embed(self.request(request)?).await.map(Response::into_inner).map_err(at_the_start)
        })
        .await
    }

    /// Clusters the features of an epoch.
    ///
    /// # Errors
    /// What the worker says once trying again is no use; CANCELLED when stopped.
    pub async fn cluster(
        &self,
        request: MakeRequest<'_, ClusterRequest>,
        saved: Saved<'_, ClusterSaved>,
    ) -> Result<ClusterResult, Status> {
        let read = |message: ClusterResponse| match message.update? {
            cluster_response::Update::Progress(progress) => Some(Step::Progress(progress)),
            cluster_response::Update::Saved(saved) => Some(Step::Saved(saved)),
            cluster_response::Update::Result(result) => Some(Step::Done(result)),
        };
        self.retried(saved, async |saved| {
            let mut client = ClustererClient::new(self.workers.of_name(&self.workers.clusterer)?);
            let request = request()?;
            let task = format!("epoch {} of {}", request.epoch, request.run_id);
            let busy = self.workers.activity.begin(CLUSTERER, &self.workers.clusterer, task);
            let request = self.request(request)?;
            self.one_try(&busy, client.cluster(request), read, saved).await
        })
        .await
    }

    /// Assigns features to stored clusters.
    ///
    /// # Errors
    /// As [`Call::cluster`].
    pub async fn assign(&self, request: &AssignRequest) -> Result<AssignResult, Status> {
        let read = |message: AssignResponse| match message.update? {
            assign_response::Update::Progress(progress) => Some(Step::Progress(progress)),
            assign_response::Update::Result(result) => Some(Step::Done(result)),
        };
        self.retried(&|never: Infallible| match never {}, async |saved| {
            let mut client = ClustererClient::new(self.workers.of_name(&self.workers.clusterer)?);
            let busy = self.workers.activity.begin(CLUSTERER, &self.workers.clusterer, "images of no run".to_owned());
            let request = self.request(request.clone())?;
            self.one_try(&busy, client.assign(request), read, saved).await
        })
        .await
    }

    /// Trains an epoch.
    ///
    /// # Errors
    /// As [`Call::cluster`].
    pub async fn train(
        &self,
        request: MakeRequest<'_, TrainRequest>,
        saved: Saved<'_, TrainSaved>,
    ) -> Result<TrainResult, Status> {
        let read = |message: TrainResponse| match message.update? {
            train_response::Update::Progress(progress) => Some(Step::Progress(progress)),
            train_response::Update::Saved(saved) => Some(Step::Saved(saved)),
            train_response::Update::Result(result) => Some(Step::Done(result)),
        };
        self.retried(saved, async |saved| {
            let mut client =
                TrainerClient::new(self.workers.of_name(&self.workers.trainer)?).max_decoding_message_size(LARGEST_ANSWER);
            let request = request()?;
            let task = format!("epoch {} of {}", request.epoch, request.run_id);
            let busy = self.workers.activity.begin(TRAINER, &self.workers.trainer, task);
            let request = self.request(request)?;
            self.one_try(&busy, client.train(request), read, saved).await
        })
        .await
    }

    /// A message with what its receiver must be shown.
    fn request<T>(&self, message: T) -> Result<Request<T>, Status> {
        let mut request = Request::new(message);
        if let Some(token) = &self.workers.security.token {
            let authorization = token.authorization().map_err(Status::internal)?;
            request.metadata_mut().insert("authorization", authorization);
        }
        if let Ok(traceparent) = telemetry::traceparent().parse() {
            request.metadata_mut().insert("traceparent", traceparent);
        }
        Ok(request)
    }

    /// One try of a worker that is seen to be busy with it.
    async fn one_try<M, S, R>(
        &self,
        busy: &Busy,
        answer: impl Future<Output = Result<Response<Streaming<M>>, Status>>,
        read: impl Fn(M) -> Option<Step<S, R>>,
        saved: Saved<'_, S>,
    ) -> Result<R, Status> {
        let told = |progress: Progress| {
            busy.tell(&progress);
            (self.progress)(progress);
        };
        let call = Call { progress: &told, ..*self };
        let outcome = match begun(answer.await) {
            Ok(stream) => call.follow(stream, read, saved).await,
            Err(status) => Err(status),
        };
        outcome.inspect_err(|status| busy.failed(status))
    }

    /// Reads a stream to its result; silence and standstill count as a lost worker.
    async fn follow<M, S, R>(
        &self,
        mut stream: Streaming<M>,
        read: impl Fn(M) -> Option<Step<S, R>>,
        saved: Saved<'_, S>,
    ) -> Result<R, Status> {
        let Patience { silence, standstill } = self.workers.patience;
        let mut last = (String::new(), 0);
        let mut moved = Instant::now();
        loop {
            let message = timeout(silence, stream.message()).await;
            let message = message.map_err(|_| broken(&format!("it was silent for {} s", silence.as_secs())))?;
            let message = message.map_err(in_the_middle)?.ok_or_else(|| broken("it ended its answer without a result"))?;
            match read(message) {
                Some(Step::Progress(progress)) => {
                    if (&progress.phase, progress.done) != (&last.0, last.1) {
                        last = (progress.phase.clone(), progress.done);
                        moved = Instant::now();
                    } else if moved.elapsed() > standstill {
                        return Err(broken(&format!("its work did not move for {} s", standstill.as_secs())));
                    }
                    (self.progress)(progress);
                }
                Some(Step::Saved(what)) => saved(what)?,
                Some(Step::Done(result)) => return Ok(result),
                None => return Err(Status::internal("the worker sent an empty message")),
            }
        }
    }

    /// Tries again for as long as the fault lies with the worker or the network; the same request gives the same files.
    async fn retried<S, R>(
        &self,
        saved: Saved<'_, S>,
        attempt: impl AsyncFn(Saved<'_, S>) -> Result<R, Status>,
    ) -> Result<R, Status> {
        let mut retry = Retry::default();
        let n_saved = AtomicU32::new(0);
        let counted = |what: S| {
            n_saved.fetch_add(1, Ordering::Relaxed);
            saved(what)
        };
        loop {
            match self.unless_stopped(attempt(&counted)).await {
                Ok(result) => return Ok(result),
                Err(status) => {
                    if n_saved.swap(0, Ordering::Relaxed) > 0 {
                        retry.moved_on();
                    }
                    self.sleep(retry.after(status, self)?).await?;
                }
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
            () = self.stop.cancelled() => Err(stopped()),
            outcome = work => outcome,
        }
    }
}

/// The answer of a worker that has begun one.
fn begun<M>(answer: Result<Response<Streaming<M>>, Status>) -> Result<Streaming<M>, Status> {
    answer.map(Response::into_inner).map_err(at_the_start)
}

/// What ends a call when its run is stopped.
pub(crate) fn stopped() -> Status {
    Status::cancelled("the run was stopped")
}

enum Step<S, R> {
    Progress(Progress),
    Saved(S),
    Done(R),
}
