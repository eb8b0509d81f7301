//! Calls to the workers of this machine, and when they said how far they were.

use crate::embedded::Stack;
use crate::failure::Failure;
use crate::plan::Cost;
use deepcluster_proto::v1::clusterer_client::ClustererClient;
use deepcluster_proto::v1::extractor_client::ExtractorClient;
use deepcluster_proto::v1::trainer_client::TrainerClient;
use deepcluster_proto::v1::{
    AscendRequest, AscendResponse, AscendResult, ClusterRequest, ClusterResponse, ClusterResult, ExtractRequest, ExtractResponse,
    ExtractResult, File, FinetuneRequest, FinetuneResponse, FinetuneResult, PredictRequest, PredictResponse, PredictResult,
    ProbeRequest, ProbeResponse, ProbeResult, Progress, ScoreRequest, ScoreResponse, ScoreResult, SearchRequest, SearchResponse,
    SearchResult, TrainRequest, TrainResponse, TrainResult, TrainSaved, ascend_response, cluster_response, extract_response,
    finetune_response, predict_response, probe_response, score_response, search_response, train_response,
};
use deepcluster_service::tls::ClientSecurity;
use std::time::{Duration, Instant};
use tonic::transport::Channel;
use tonic::{Code, Response, Status, Streaming};

/// How long a worker may take until it answers at all.
const START: Duration = Duration::from_secs(60);

/// When a call was how far, in seconds since its beginning.
pub struct Timeline {
    marks: Vec<(String, u64, f64)>,
    /// All of it.
    pub seconds: f64,
}

impl Timeline {
    /// Seconds for a unit of a phase in which the call told several times how far it was; 0 where it did not. The first half
    /// does not count: what was prepared while the call began is soon used up.
    pub fn each(&self, phase: &str) -> f64 {
        let marks: Vec<_> = self.marks.iter().filter(|(name, done, _)| name == phase && *done > 0).collect();
        let from = (marks.len() / 2).min(marks.len().saturating_sub(2));
        match (marks.get(from), marks.last()) {
            (Some((_, first, then)), Some((_, last, now))) if last > first => (now - then) / (last - first) as f64,
            _ => 0.0,
        }
    }

    /// What it took for `n` units of a phase, and what it took beside.
    pub fn cost(&self, phase: &str, n: usize) -> Cost {
        let each = match self.each(phase) {
            // One batch: what it took cannot be told from what came before it.
            0.0 => self.seconds / n.max(1) as f64,
            each => each,
        };
        Cost { once: (self.seconds - each * n as f64).max(0.0), each }
    }
}

/// Told how far a call has come.
pub type Told<'a> = dyn FnMut(&Progress) + 'a;

/// How often a call is made again whose worker has died over it.
const TRIES: usize = 5;

/// The workers.
pub struct Calls {
    extractor: ExtractorClient<Channel>,
    clusterer: ClustererClient<Channel>,
    trainer: TrainerClient<Channel>,
}

impl Calls {
    /// To the workers of a stack.
    ///
    /// # Errors
    /// When one is missing.
    pub fn of(stack: &Stack) -> Result<Self, Failure> {
        let address = |name: &str| stack.service(name).map(|(address, _)| address);
        let of = |name: &str| address(name).ok_or_else(|| Failure::other(format!("there is no {name}")));
        Self::to(&of("extractor-0")?, &of("clusterer")?, &of("trainer")?)
    }
}

/// What a message of a stream says.
enum Word<R> {
    Progress(Progress),
    Saved(TrainSaved),
    Result(R),
    Nothing,
}

impl Calls {
    /// To workers at these addresses.
    ///
    /// # Errors
    /// When one is no address.
    pub fn to(extractor: &str, clusterer: &str, trainer: &str) -> Result<Self, Failure> {
        let channel = |address: &str| {
            let endpoint = ClientSecurity::default().endpoint(address, address).map_err(Failure::other)?;
            Ok::<_, Failure>(endpoint.connect_lazy())
        };
        Ok(Self {
            extractor: ExtractorClient::new(channel(extractor)?),
            clusterer: ClustererClient::new(channel(clusterer)?),
            trainer: TrainerClient::new(channel(trainer)?),
        })
    }

    /// Extracts a shard.
    ///
    /// # Errors
    /// What the extractor says.
    pub async fn extract(&self, request: &ExtractRequest, told: &mut Told<'_>) -> Result<(Timeline, ExtractResult), Failure> {
        let call = async || self.extractor.clone().extract(request.clone()).await;
        let word = |message: ExtractResponse| match message.update {
            Some(extract_response::Update::Progress(progress)) => Word::Progress(progress),
            Some(extract_response::Update::Result(result)) => Word::Result(result),
            None => Word::Nothing,
        };
        follow("extractor", call, word, told).await
    }

    /// Clusters features.
    ///
    /// # Errors
    /// What the clusterer says.
    pub async fn cluster(&self, request: &ClusterRequest) -> Result<(Timeline, ClusterResult), Failure> {
        let call = async || self.clusterer.clone().cluster(request.clone()).await;
        let word = |message: ClusterResponse| match message.update {
            Some(cluster_response::Update::Progress(progress)) => Word::Progress(progress),
            Some(cluster_response::Update::Result(result)) => Word::Result(result),
            Some(cluster_response::Update::Saved(_)) | None => Word::Nothing,
        };
        follow("clusterer", call, word, &mut |_| {}).await
    }

    /// Trains an epoch.
    ///
    /// # Errors
    /// What the trainer says.
    pub async fn train(&self, request: &TrainRequest) -> Result<(Timeline, TrainResult), Failure> {
        let call = async || self.trainer.clone().train(request.clone()).await;
        let word = |message: TrainResponse| match message.update {
            Some(train_response::Update::Progress(progress)) => Word::Progress(progress),
            Some(train_response::Update::Result(result)) => Word::Result(result),
            Some(train_response::Update::Saved(_)) | None => Word::Nothing,
        };
        follow("trainer", call, word, &mut |_| {}).await
    }
}

/// What evaluations and visualizations ask for.
impl Calls {
    /// Searches for similar features.
    ///
    /// # Errors
    /// What the clusterer says.
    pub async fn search(&self, request: &SearchRequest, told: &mut Told<'_>) -> Result<SearchResult, Failure> {
        let call = async || self.clusterer.clone().search(request.clone()).await;
        let word = |message: SearchResponse| match message.update {
            Some(search_response::Update::Progress(progress)) => Word::Progress(progress),
            Some(search_response::Update::Result(result)) => Word::Result(result),
            None => Word::Nothing,
        };
        Ok(follow("clusterer", call, word, told).await?.1)
    }

    /// Counts what probes get right.
    ///
    /// # Errors
    /// What the trainer says.
    pub async fn score(&self, request: &ScoreRequest, told: &mut Told<'_>) -> Result<ScoreResult, Failure> {
        let call = async || self.trainer.clone().score(request.clone()).await;
        let word = |message: ScoreResponse| match message.update {
            Some(score_response::Update::Progress(progress)) => Word::Progress(progress),
            Some(score_response::Update::Result(result)) => Word::Result(result),
            None => Word::Nothing,
        };
        Ok(follow("trainer", call, word, told).await?.1)
    }

    /// Scores images by what a network has learned that they show.
    ///
    /// # Errors
    /// What the trainer says.
    pub async fn predict(&self, request: &PredictRequest, told: &mut Told<'_>) -> Result<PredictResult, Failure> {
        let call = async || self.trainer.clone().predict(request.clone()).await;
        let word = |message: PredictResponse| match message.update {
            Some(predict_response::Update::Progress(progress)) => Word::Progress(progress),
            Some(predict_response::Update::Result(result)) => Word::Result(result),
            None => Word::Nothing,
        };
        Ok(follow("trainer", call, word, told).await?.1)
    }

    /// Makes pictures that excite filters.
    ///
    /// # Errors
    /// What the trainer says.
    pub async fn ascend(&self, request: &AscendRequest, told: &mut Told<'_>) -> Result<AscendResult, Failure> {
        let call = async || self.trainer.clone().ascend(request.clone()).await;
        let word = |message: AscendResponse| match message.update {
            Some(ascend_response::Update::Progress(progress)) => Word::Progress(progress),
            Some(ascend_response::Update::Result(result)) => Word::Result(result),
            None => Word::Nothing,
        };
        Ok(follow("trainer", call, word, told).await?.1)
    }

    /// Teaches probes; `saved` is told what another call could go on from, and tells what this one shall.
    ///
    /// # Errors
    /// What the trainer says.
    pub async fn probe(&self, request: &ProbeRequest, told: &mut Told<'_>, saved: &mut Kept<'_>) -> Result<ProbeResult, Failure> {
        let call = async |from: Option<File>| self.trainer.clone().probe(ProbeRequest { saved: from, ..request.clone() }).await;
        let word = |message: ProbeResponse| match message.update {
            Some(probe_response::Update::Progress(progress)) => Word::Progress(progress),
            Some(probe_response::Update::Result(result)) => Word::Result(result),
            Some(probe_response::Update::Saved(file)) => Word::Saved(file),
            None => Word::Nothing,
        };
        follow_saved("trainer", call, word, told, saved, request.saved.clone()).await
    }

    /// Teaches a network what images show; `saved` as of [`Calls::probe`].
    ///
    /// # Errors
    /// What the trainer says.
    pub async fn finetune(
        &self,
        request: &FinetuneRequest,
        told: &mut Told<'_>,
        saved: &mut Kept<'_>,
    ) -> Result<FinetuneResult, Failure> {
        let call =
            async |from: Option<File>| self.trainer.clone().finetune(FinetuneRequest { saved: from, ..request.clone() }).await;
        let word = |message: FinetuneResponse| match message.update {
            Some(finetune_response::Update::Progress(progress)) => Word::Progress(progress),
            Some(finetune_response::Update::Result(result)) => Word::Result(result),
            Some(finetune_response::Update::Saved(file)) => Word::Saved(file),
            None => Word::Nothing,
        };
        follow_saved("trainer", call, word, told, saved, request.saved.clone()).await
    }
}

/// Told what a call has saved; tells what another one would go on from.
pub type Kept<'a> = dyn FnMut(TrainSaved) -> Result<File, Failure> + 'a;

/// Follows a call to its result; where its worker dies, another one goes on from what was saved last.
async fn follow_saved<M, R>(
    worker: &str,
    call: impl AsyncFn(Option<File>) -> Result<Response<Streaming<M>>, Status>,
    word: impl Fn(M) -> Word<R>,
    told: &mut Told<'_>,
    saved: &mut Kept<'_>,
    mut from: Option<File>,
) -> Result<R, Failure> {
    let mut failed = None;
    for _ in 0..TRIES {
        let (mut latest, mut unkept) = (None, None);
        let heard = |message: M| match word(message) {
            Word::Saved(file) => {
                match saved(file) {
                    Ok(file) => latest = Some(file),
                    Err(failure) => unkept = Some(failure),
                }
                Word::Nothing
            }
            other => other,
        };
        let outcome = follow_once(worker, async || call(from.clone()).await, heard, told).await;
        if let Some(failure) = unkept {
            return Err(failure);
        }
        match outcome {
            Ok((_, result)) => return Ok(result),
            Err(Ended::Failed(failure)) => return Err(failure),
            // The worker is started again, and goes on from what it has saved.
            Err(Ended::Died(failure)) => failed = Some(failure),
        }
        from = latest.or(from);
    }
    Err(failed.unwrap_or_else(|| Failure::other(format!("the {worker} has died"))))
}

/// How a call ended without a result.
enum Ended {
    /// The worker said no.
    Failed(Failure),
    /// The worker is gone; another call may do.
    Died(Failure),
}

/// Follows a call to its result, and makes it again where its worker dies.
async fn follow<M, R>(
    worker: &str,
    call: impl AsyncFn() -> Result<Response<Streaming<M>>, Status>,
    word: impl Fn(M) -> Word<R>,
    told: &mut Told<'_>,
) -> Result<(Timeline, R), Failure> {
    let mut failed = None;
    for _ in 0..TRIES {
        match follow_once(worker, &call, &word, told).await {
            Ok(done) => return Ok(done),
            Err(Ended::Failed(failure)) => return Err(failure),
            Err(Ended::Died(failure)) => failed = Some(failure),
        }
    }
    Err(failed.unwrap_or_else(|| Failure::other(format!("the {worker} has died"))))
}

/// Follows a call to its result; one that comes before the worker is ready is made again.
async fn follow_once<M, R>(
    worker: &str,
    call: impl AsyncFn() -> Result<Response<Streaming<M>>, Status>,
    mut word: impl FnMut(M) -> Word<R>,
    told: &mut Told<'_>,
) -> Result<(Timeline, R), Ended> {
    let failed = |status: Status| match status.code() {
        Code::InvalidArgument => Ended::Failed(Failure::usage(status.message())),
        Code::Unavailable | Code::Unknown | Code::Cancelled => {
            Ended::Died(Failure::other(format!("{worker}: {}", status.message())))
        }
        _ => Ended::Failed(Failure::other(format!("{worker}: {}", status.message()))),
    };
    let first = Instant::now();
    let (start, mut stream) = loop {
        let start = Instant::now();
        match call().await {
            Ok(response) => break (start, response.into_inner()),
            Err(status) if status.code() == Code::Unavailable && first.elapsed() < START => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(status) => return Err(failed(status)),
        }
    };
    let mut marks: Vec<(String, u64, f64)> = Vec::new();
    while let Some(message) = stream.message().await.map_err(failed)? {
        match word(message) {
            Word::Result(result) => return Ok((Timeline { marks, seconds: start.elapsed().as_secs_f64() }, result)),
            Word::Progress(progress) => {
                told(&progress);
                // Said again where nothing has moved.
                if marks.last().is_none_or(|(phase, done, _)| (phase, *done) != (&progress.phase, progress.done)) {
                    marks.push((progress.phase, progress.done, start.elapsed().as_secs_f64()));
                }
            }
            Word::Saved(_) | Word::Nothing => {}
        }
    }
    Err(Ended::Died(Failure::other(format!("{worker}: it ended without a result"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_count_from_the_middle_to_the_end() {
        let mark = |phase: &str, done, at| (phase.to_owned(), done, at);
        let marks = vec![
            mark("load", 0, 0.1),
            mark("images", 0, 1.0),
            mark("images", 10, 2.9),
            mark("images", 20, 3.0),
            mark("images", 30, 4.0),
            mark("images", 40, 5.0),
            mark("write", 40, 5.5),
        ];
        let timeline = Timeline { marks, seconds: 6.0 };
        assert_eq!(timeline.cost("images", 40), Cost { once: 2.0, each: 0.1 });
        assert_eq!(timeline.each("load"), 0.0);
        assert_eq!(timeline.cost("write", 3), Cost { once: 0.0, each: 2.0 });
    }
}
