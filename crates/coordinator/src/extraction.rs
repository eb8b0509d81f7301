//! Shards over extractors: whoever is free takes the next one, and what an extractor cannot do goes to another.
//!
//! 1. Extractors come and go (`members`). Each that is ready has one shard in hand and one queued, so that it never idles.
//! 2. What is queued at one goes to another that has nothing to do, and so does what the other would finish sooner, measured
//!    by how long shards have taken so far. The first result of a shard wins; the other try is cancelled.
//! 3. An extractor that cannot do its work at all, as one that does not see the images, gets no more shards until the next
//!    epoch. The run fails only when the last one has given up.

use crate::activity::EXTRACTOR;
use crate::members::{Member, Members};
use crate::queue::{Queue, Work};
use crate::workers::{Call, WAITING};
use deepcluster_domain::ShardId;
use deepcluster_proto::v1::{ExtractRequest, ExtractResult, Progress};
use deepcluster_service::requests::is_no_room;
use futures_util::future::try_join;
use futures_util::stream::{FuturesUnordered, StreamExt};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tracing::{info, warn};

/// How often an extractor without work looks whether another is late with a shard.
const LOOK_FOR_LATE: Duration = Duration::from_secs(1);

/// Makes the request of a try at a shard.
pub type ShardRequest<'a> = &'a (dyn Fn(ShardId) -> Result<ExtractRequest, Status> + Sync);

/// Told how far a shard (first argument) has come.
pub type ShardProgress<'a> = &'a (dyn Fn(ShardId, Progress) + Sync);

/// Told what came out of a shard.
pub type ShardDone<'a> = &'a (dyn Fn(ShardId, ExtractResult) -> Result<(), Status> + Sync);

/// Told of a try that failed or came too late, whose files nobody waits for any more.
pub type ShardFailed<'a> = &'a (dyn Fn(&ExtractRequest) -> Result<(), Status> + Sync);

/// Who is asked and told about shards.
pub struct Shards<'a> {
    /// Makes requests.
    pub request: ShardRequest<'a>,
    /// Hears of progress.
    pub progress: ShardProgress<'a>,
    /// Takes results; once for each shard.
    pub done: ShardDone<'a>,
    /// Clears up after a try.
    pub failed: ShardFailed<'a>,
}

/// Computes shards on all extractors at once.
pub struct Extraction<'a> {
    queue: Mutex<Queue>,
    call: Call<'a>,
    shards: Shards<'a>,
    /// Something may be there to do for one that had nothing.
    changed: Notify,
    /// Cancelled once every shard is done, so that nobody waits for an extractor that is away.
    finished: CancellationToken,
}

impl<'a> Extraction<'a> {
    /// Of these shards; `call` says how to stop and whom to tell of faults.
    pub fn new(waiting: impl IntoIterator<Item = ShardId>, call: Call<'a>, shards: Shards<'a>) -> Self {
        let queue = Mutex::new(Queue::new(waiting));
        Self { queue, call, shards, changed: Notify::new(), finished: CancellationToken::new() }
    }

    /// Ends when every shard is done; waits for extractors as long as there is none, and says so.
    ///
    /// # Errors
    /// What an extractor or `done` says once trying again is no use; CANCELLED when stopped.
    pub async fn run(self) -> Result<(), Status> {
        if self.lock().is_done() {
            return Ok(());
        }
        let (tell, mut found) = mpsc::unbounded_channel();
        let members = Members::new(self.call);
        let look = members.look(&tell);
        tokio::pin!(look);
        let mut at_work = FuturesUnordered::new();
        loop {
            tokio::select! {
                last = &mut look => return Err(last),
                Some(member) = found.recv() => at_work.push(self.serve(member)),
                Some(left) = at_work.next(), if !at_work.is_empty() => match left? {
                    (member, Some(last)) if !members.others_are_left(&member, &last) => return Err(last),
                    (member, Some(last)) => members.tell_of_loss(&member, &last),
                    (member, None) => info!(extractor = %member.address, "gone"),
                },
                () = self.finished.cancelled() => return Ok(()),
                () = self.call.stop.cancelled() => return Err(crate::workers::stopped()),
            }
        }
    }

    /// Keeps an extractor at work until it is gone, gives up (then with its last failure), or all is done.
    async fn serve(&self, member: Arc<Member>) -> Result<(Arc<Member>, Option<Status>), Status> {
        let (first, second) = try_join(self.one_shard_after_another(&member), self.one_shard_after_another(&member)).await?;
        Ok((member, first.or(second)))
    }

    async fn one_shard_after_another(&self, member: &Member) -> Result<Option<Status>, Status> {
        while !member.gone.is_cancelled() {
            tokio::select! {
                () = member.until_serving(&self.call) => {}
                () = member.gone.cancelled() => return Ok(None),
            }
            let next = self.lock().take(member.address);
            self.lock().tell();
            let Some(work) = next else {
                tokio::select! {
                    () = self.changed.notified() => {}
                    () = tokio::time::sleep(LOOK_FOR_LATE) => {}
                    () = member.gone.cancelled() => return Ok(None),
                }
                continue;
            };
            let request = (self.shards.request)(work.shard)?;
            match self.one_try(member, &work, &request).await {
                Some(Ok(result)) => {
                    member.succeeded();
                    let first = self.lock().won(&work);
                    if first {
                        (self.shards.done)(work.shard, result)?;
                    } else {
                        self.clear_up(&request);
                    }
                }
                Some(Err(status)) => {
                    self.clear_up(&request);
                    let begun = self.lock().lost(&work);
                    self.changed.notify_waiters();
                    if let Some(last) = self.after_failure(member, status, begun).await? {
                        return Ok(Some(last));
                    }
                }
                // Another took it over, or has won.
                None => self.clear_up(&request),
            }
            self.changed.notify_waiters();
            if self.lock().is_done() {
                self.finished.cancel();
            }
        }
        Ok(None)
    }

    /// None when the try was cancelled, because another has the shard.
    async fn one_try(&self, member: &Member, work: &Work, request: &ExtractRequest) -> Option<Result<ExtractResult, Status>> {
        let task = format!("shard {} of epoch {} of {}", work.shard.0, request.epoch, request.run_id);
        let busy = self.call.workers.activity.begin(EXTRACTOR, &member.address.to_string(), task);
        let progress = |progress: Progress| {
            busy.tell(&progress);
            if progress.phase != WAITING {
                self.lock().moved(work, progress.done, progress.total);
                // Its queue has room for one more.
                self.changed.notify_waiters();
                (self.shards.progress)(work.shard, progress);
            }
        };
        let call = Call { progress: &progress, ..self.call };
        tokio::select! {
            outcome = call.extract_once(member.channel(), request.clone()) => {
                Some(outcome.inspect_err(|status| busy.failed(status)))
            }
            () = work.cancelled.cancelled() => None,
        }
    }

    /// What stays here goes with the epoch.
    fn clear_up(&self, request: &ExtractRequest) {
        if let Err(status) = (self.shards.failed)(request) {
            warn!(message = status.message(), "the files of a try stay for now");
        }
    }

    /// Waits before the next try; the failure, when there shall be none.
    async fn after_failure(&self, member: &Member, status: Status, begun: bool) -> Result<Option<Status>, Status> {
        if self.call.stop.is_cancelled() || is_no_room(&status) {
            return Err(status);
        }
        match member.failed(status, begun, &self.call) {
            Ok(pause) => self.call.sleep(pause).await.map(|()| None),
            Err(last) => Ok(Some(last)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
