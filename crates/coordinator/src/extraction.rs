//! Shards over extractors: whoever is free takes the next one, and what an extractor cannot do goes to another.
//!
//! An extractor that cannot do its work at all, as one that does not see the images, gets no more shards until the next
//! epoch. The run fails only when the last one has given up.

use crate::retry::Retry;
use crate::workers::{Call, Workers};
use deepcluster_domain::ShardId;
use deepcluster_proto::v1::{ExtractRequest, ExtractResult, Progress};
use futures_util::future::try_join_all;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;
use tonic::{Code, Status};

/// How often an idle extractor looks whether a shard has come back.
const IDLE: Duration = Duration::from_millis(50);

/// Makes the request of a try at a shard.
pub(crate) type ShardRequest<'a> = &'a (dyn Fn(ShardId) -> Result<ExtractRequest, Status> + Sync);

/// Told how far a shard (first argument) has come.
pub(crate) type ShardProgress<'a> = &'a (dyn Fn(ShardId, Progress) + Sync);

/// Told what came out of a shard.
pub(crate) type ShardDone<'a> = &'a (dyn Fn(ShardId, ExtractResult) -> Result<(), Status> + Sync);

/// Told of a try that failed, whose files nobody waits for any more.
pub(crate) type ShardFailed<'a> = &'a (dyn Fn(&ExtractRequest) -> Result<(), Status> + Sync);

/// Who is asked and told about shards.
pub(crate) struct Shards<'a> {
    pub(crate) request: ShardRequest<'a>,
    pub(crate) progress: ShardProgress<'a>,
    pub(crate) done: ShardDone<'a>,
    pub(crate) failed: ShardFailed<'a>,
}

/// Computes shards on all extractors at once.
pub(crate) struct Extraction<'a> {
    queue: Mutex<Queue>,
    call: Call<'a>,
    shards: Shards<'a>,
    /// Cancelled once every shard is done, so that nobody waits for an extractor that is away.
    finished: CancellationToken,
}

struct Queue {
    waiting: VecDeque<ShardId>,
    under_way: usize,
    /// Extractors that have not given up.
    n_extractors: usize,
}

/// What an extractor that is free does next.
enum Take {
    Shard(ShardId),
    /// Nothing for now: others are at work on the last shards, and may give one back.
    Wait,
    Finished,
}

impl<'a> Extraction<'a> {
    /// Of these shards; `call` says how to stop and whom to tell of faults.
    pub(crate) fn new(waiting: impl IntoIterator<Item = ShardId>, call: Call<'a>, shards: Shards<'a>) -> Self {
        let queue = Queue { waiting: waiting.into_iter().collect(), under_way: 0, n_extractors: 0 };
        Self { queue: Mutex::new(queue), call, shards, finished: CancellationToken::new() }
    }

    /// Ends when every shard is done.
    ///
    /// # Errors
    /// What an extractor or `done` says once trying again is no use; CANCELLED when stopped.
    pub(crate) async fn run(self, workers: &Workers) -> Result<(), Status> {
        self.lock().n_extractors = workers.extractors.len();
        try_join_all(workers.extractors.iter().map(|worker| self.one_worker(worker))).await.map(drop)
    }

    async fn one_worker(&self, worker: &Endpoint) -> Result<(), Status> {
        let mut retry = Retry::default();
        loop {
            let shard = match self.take() {
                Take::Shard(shard) => shard,
                Take::Wait => {
                    tokio::time::sleep(IDLE).await;
                    continue;
                }
                Take::Finished => {
                    self.finished.cancel();
                    return Ok(());
                }
            };
            let progress = |progress| (self.shards.progress)(shard, progress);
            let call = Call { progress: &progress, ..self.call };
            let request = (self.shards.request)(shard)?;
            match call.extract_once(worker, request.clone()).await {
                Ok(result) => {
                    (self.shards.done)(shard, result)?;
                    self.lock().under_way -= 1;
                    retry = Retry::default();
                }
                Err(status) => {
                    (self.shards.failed)(&request)?;
                    let pause = match retry.after(named(worker, status), &self.call) {
                        Ok(pause) => Some(pause),
                        Err(last) => self.give_up(worker, last).map(|()| None)?,
                    };
                    {
                        let mut queue = self.lock();
                        queue.waiting.push_front(shard);
                        queue.under_way -= 1;
                    }
                    let Some(pause) = pause else { return Ok(()) };
                    tokio::select! {
                        slept = self.call.sleep(pause) => slept?,
                        () = self.finished.cancelled() => return Ok(()),
                    }
                }
            }
        }
    }

    /// An extractor leaves, unless its failure is everybody's or nobody else is left.
    fn give_up(&self, worker: &Endpoint, last: Status) -> Result<(), Status> {
        if self.call.stop.is_cancelled() || last.code() == Code::ResourceExhausted {
            return Err(last);
        }
        let mut queue = self.lock();
        queue.n_extractors = queue.n_extractors.saturating_sub(1);
        if queue.n_extractors == 0 {
            return Err(last);
        }
        drop(queue);
        let (address, why) = (worker.uri(), last.message());
        (self.call.fault)(&Status::new(last.code(), format!("{address} gets no more shards in this epoch: {why}")));
        Ok(())
    }

    fn take(&self) -> Take {
        let mut queue = self.lock();
        match queue.waiting.pop_front() {
            Some(shard) => {
                queue.under_way += 1;
                Take::Shard(shard)
            }
            None if queue.under_way > 0 => Take::Wait,
            None => Take::Finished,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of many extractors, a fault says which.
fn named(worker: &Endpoint, status: Status) -> Status {
    // What is no worker's fault is for the user to read.
    if matches!(status.code(), Code::InvalidArgument | Code::ResourceExhausted) {
        return status;
    }
    match worker.uri().authority() {
        Some(address) => Status::new(status.code(), format!("{address}: {}", status.message())),
        None => status,
    }
}
