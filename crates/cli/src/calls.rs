//! Calls to the workers of this machine, and when they said how far they were.

use super::forecast::Cost;
use crate::failure::Failure;
use deepcluster_proto::v1::clusterer_client::ClustererClient;
use deepcluster_proto::v1::extractor_client::ExtractorClient;
use deepcluster_proto::v1::trainer_client::TrainerClient;
use deepcluster_proto::v1::{
    ClusterRequest, ClusterResult, ExtractRequest, ExtractResult, Progress, TrainRequest, TrainResult, cluster_response,
    extract_response, train_response,
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

/// The workers.
pub struct Calls {
    extractor: ExtractorClient<Channel>,
    clusterer: ClustererClient<Channel>,
    trainer: TrainerClient<Channel>,
}

/// What a message of a stream says.
enum Word<R> {
    Progress(Progress),
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
    pub async fn extract(&self, request: &ExtractRequest) -> Result<(Timeline, ExtractResult), Failure> {
        let call = async || self.extractor.clone().extract(request.clone()).await;
        follow("extractor", call, |message| match message.update {
            Some(extract_response::Update::Progress(progress)) => Word::Progress(progress),
            Some(extract_response::Update::Result(result)) => Word::Result(result),
            None => Word::Nothing,
        })
        .await
    }

    /// Clusters features.
    ///
    /// # Errors
    /// What the clusterer says.
    pub async fn cluster(&self, request: &ClusterRequest) -> Result<(Timeline, ClusterResult), Failure> {
        let call = async || self.clusterer.clone().cluster(request.clone()).await;
        follow("clusterer", call, |message| match message.update {
            Some(cluster_response::Update::Progress(progress)) => Word::Progress(progress),
            Some(cluster_response::Update::Result(result)) => Word::Result(result),
            Some(cluster_response::Update::Saved(_)) | None => Word::Nothing,
        })
        .await
    }

    /// Trains an epoch.
    ///
    /// # Errors
    /// What the trainer says.
    pub async fn train(&self, request: &TrainRequest) -> Result<(Timeline, TrainResult), Failure> {
        let call = async || self.trainer.clone().train(request.clone()).await;
        follow("trainer", call, |message| match message.update {
            Some(train_response::Update::Progress(progress)) => Word::Progress(progress),
            Some(train_response::Update::Result(result)) => Word::Result(result),
            Some(train_response::Update::Saved(_)) | None => Word::Nothing,
        })
        .await
    }
}

/// Follows a call to its result; one that comes before the worker is ready is made again.
async fn follow<M, R>(
    worker: &str,
    call: impl AsyncFn() -> Result<Response<Streaming<M>>, Status>,
    word: impl Fn(M) -> Word<R>,
) -> Result<(Timeline, R), Failure> {
    let failed = |status: Status| match status.code() {
        Code::InvalidArgument => Failure::usage(status.message()),
        _ => Failure::other(format!("{worker}: {}", status.message())),
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
                // Said again where nothing has moved.
                if marks.last().is_none_or(|(phase, done, _)| (phase, *done) != (&progress.phase, progress.done)) {
                    marks.push((progress.phase, progress.done, start.elapsed().as_secs_f64()));
                }
            }
            Word::Nothing => {}
        }
    }
    Err(Failure::other(format!("{worker}: it ended without a result")))
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
