//! Long work behind a server stream: on a thread of its own, one job at a time, with progress, heartbeats and cancellation.
//!
//! ```text
//! request ─► gate (one job at a time) ─► thread ─► progress … saved … progress ─► result
//!                     └── heartbeat every two seconds, also while waiting ──┘
//! ```
//!
//! Dropping the stream cancels the token that the work looks at between its steps.

use deepcluster_proto::v1::Progress;
use metrics::{gauge, histogram};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::Interval;
use tokio_stream::Stream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Status;
use tracing::{Instrument, Span, info, warn};

/// Longest silence on a stream.
const HEARTBEAT: Duration = Duration::from_secs(2);

/// What a job tells its caller. `S` is what it saves on the way; [`Infallible`] for jobs that save nothing.
#[derive(Clone, Debug)]
pub enum Update<R, S = Infallible> {
    /// How far it has come.
    Progress(Progress),
    /// What a repetition of the job could go on from.
    Saved(S),
    /// What came out; the last message.
    Done(R),
}

/// The stream that answers a call.
pub type Updates<M> = Pin<Box<dyn Stream<Item = Result<M, Status>> + Send>>;

/// What running work may ask and tell.
pub struct JobContext<S = Infallible> {
    progress: watch::Sender<Progress>,
    saved: mpsc::UnboundedSender<S>,
    cancelled: CancellationToken,
}

impl<S> JobContext<S> {
    /// Tells how far the work has come; only the latest word reaches the caller.
    ///
    /// # Errors
    /// CANCELLED when nobody waits for the result any more.
    pub fn progress(&self, progress: Progress) -> Result<(), Status> {
        if self.cancelled.is_cancelled() {
            return Err(Status::cancelled("the caller went away"));
        }
        self.progress.send_replace(progress);
        Ok(())
    }

    /// Tells what was saved; every word reaches the caller, in order.
    ///
    /// # Errors
    /// CANCELLED when nobody waits for the result any more.
    pub fn saved(&self, saved: S) -> Result<(), Status> {
        self.saved.send(saved).map_err(|_| Status::cancelled("the caller went away"))
    }
}

/// Runs jobs one at a time. Clones share the gate.
#[derive(Clone)]
pub struct Jobs {
    gate: Arc<Semaphore>,
    shutdown: CancellationToken,
}

impl Jobs {
    /// A gate that opens for one job at a time and closes at shutdown.
    pub fn new(shutdown: CancellationToken) -> Self {
        Self { gate: Arc::new(Semaphore::new(1)), shutdown }
    }

    /// Starts `work` when its turn has come; `wrap` makes the messages of the call's stream.
    pub fn start<R, S, M>(
        &self,
        work: impl FnOnce(&JobContext<S>) -> Result<R, Status> + Send + 'static,
        wrap: impl Fn(Update<R, S>) -> M + Send + Sync + 'static,
    ) -> Updates<M>
    where
        R: Send + 'static,
        S: Send + 'static,
        M: Send + 'static,
    {
        // A drained worker stops computing: whoever asked asks somebody else, and gets the same files.
        let cancelled = self.shutdown.child_token();
        let guard = cancelled.clone().drop_guard();
        let (messages, stream) = mpsc::channel(4);
        let gate = Arc::clone(&self.gate);
        let driver = Driver { messages, cancelled, shutdown: self.shutdown.clone() };
        tokio::spawn(driver.drive(gate, work, wrap).in_current_span());
        Box::pin(GuardedStream { inner: tokio_stream::wrappers::ReceiverStream::new(stream), _guard: guard })
    }
}

/// Passes what the work says on to the stream.
struct Driver<M> {
    messages: mpsc::Sender<Result<M, Status>>,
    cancelled: CancellationToken,
    shutdown: CancellationToken,
}

impl<M: Send + 'static> Driver<M> {
    async fn drive<R: Send + 'static, S: Send + 'static>(
        self,
        gate: Arc<Semaphore>,
        work: impl FnOnce(&JobContext<S>) -> Result<R, Status> + Send + 'static,
        wrap: impl Fn(Update<R, S>) -> M + Send + Sync + 'static,
    ) {
        let mut beat = tokio::time::interval(HEARTBEAT);
        let Some(permit) = self.turn(gate, &mut beat, &wrap).await else { return };
        let _timed = Timed(Instant::now());
        let (progress, latest) = watch::channel(waiting());
        let (saved, saves) = mpsc::unbounded_channel();
        let context = JobContext { progress, saved, cancelled: self.cancelled.clone() };
        match on_thread(work, context, permit) {
            Ok(result) => self.pass_on(latest, saves, result, beat, &wrap).await,
            Err(error) => self.finish(Err(Status::resource_exhausted(format!("no thread for the job: {error}")))).await,
        }
    }

    /// Waits for the gate, with heartbeats; none when the job is over before it has begun.
    async fn turn<R, S>(
        &self,
        gate: Arc<Semaphore>,
        beat: &mut Interval,
        wrap: &(impl Fn(Update<R, S>) -> M + Sync),
    ) -> Option<OwnedSemaphorePermit> {
        let _waits = Waits::new();
        let turn = gate.acquire_owned();
        tokio::pin!(turn);
        loop {
            tokio::select! {
                biased;
                permit = &mut turn => return permit.ok(),
                () = self.cancelled.cancelled() => {
                    self.finish(Err(Status::cancelled("cancelled while waiting"))).await;
                    return None;
                }
                _ = beat.tick() => {
                    let message = wrap(Update::Progress(waiting()));
                    if self.messages.send(Ok(message)).await.is_err() {
                        return None;
                    }
                }
            }
        }
    }

    /// Passes on what running work says, up to its result.
    async fn pass_on<R: Send, S: Send>(
        &self,
        mut latest: watch::Receiver<Progress>,
        mut saves: mpsc::UnboundedReceiver<S>,
        mut result: oneshot::Receiver<Result<R, Status>>,
        mut beat: Interval,
        wrap: &(impl Fn(Update<R, S>) -> M + Sync),
    ) {
        loop {
            tokio::select! {
                biased;
                // Before the result, or the last of what was saved would be lost.
                Some(saved) = saves.recv() => {
                    let message = wrap(Update::Saved(saved));
                    if self.messages.send(Ok(message)).await.is_err() {
                        return;
                    }
                    continue;
                }
                outcome = &mut result => {
                    let outcome = outcome.unwrap_or_else(|_| Err(Status::internal("the job panicked; see the log of the worker")));
                    let outcome = outcome.map(|done| wrap(Update::Done(done)));
                    return self.finish(outcome).await;
                }
                _ = beat.tick() => {}
                Ok(()) = latest.changed() => {}
            }
            let progress = latest.borrow_and_update().clone();
            let message = wrap(Update::Progress(progress));
            if self.messages.send(Ok(message)).await.is_err() {
                return;
            }
        }
    }

    async fn finish(&self, outcome: Result<M, Status>) {
        let outcome = match outcome {
            // What a draining worker leaves undone is for another to do.
            Err(status) if status.code() == tonic::Code::Cancelled && self.shutdown.is_cancelled() => {
                Err(Status::unavailable("the worker is shutting down"))
            }
            other => other,
        };
        match &outcome {
            Ok(_) => info!("job done"),
            Err(status) => warn!(code = ?status.code(), message = status.message(), "job failed"),
        }
        let _ = self.messages.send(outcome).await;
    }
}

/// What a job says before its turn has come.
fn waiting() -> Progress {
    Progress { phase: "wait".to_owned(), ..Progress::default() }
}

/// Starts work on a thread of its own, which keeps the gate closed until the work is done.
fn on_thread<R: Send + 'static, S: Send + 'static>(
    work: impl FnOnce(&JobContext<S>) -> Result<R, Status> + Send + 'static,
    context: JobContext<S>,
    permit: OwnedSemaphorePermit,
) -> std::io::Result<oneshot::Receiver<Result<R, Status>>> {
    let span = Span::current();
    let (sender, result) = oneshot::channel();
    thread::Builder::new().name("job".to_owned()).spawn(move || {
        let _turn = permit;
        let outcome = span.in_scope(|| work(&context));
        let _ = sender.send(outcome);
    })?;
    Ok(result)
}

/// Counted among the jobs that wait, for as long as it lives.
struct Waits;

impl Waits {
    fn new() -> Self {
        gauge!("deepcluster_jobs_waiting").increment(1.0);
        Self
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        gauge!("deepcluster_jobs_waiting").decrement(1.0);
    }
}

/// Tells how long it has lived.
struct Timed(Instant);

impl Drop for Timed {
    fn drop(&mut self) {
        histogram!("deepcluster_job_seconds").record(self.0.elapsed());
    }
}

/// A stream whose end, however it comes, cancels the job.
struct GuardedStream<S> {
    inner: S,
    _guard: DropGuard,
}

impl<S: Stream + Unpin> Stream for GuardedStream<S> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut std::task::Context<'_>) -> std::task::Poll<Option<S::Item>> {
        Pin::new(&mut self.inner).poll_next(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_stream::StreamExt;

    #[tokio::test]
    async fn work_reports_progress_and_ends_in_its_result() {
        let jobs = Jobs::new(CancellationToken::new());
        let (go_on, wait) = std::sync::mpsc::channel();
        let work = move |context: &JobContext<u8>| {
            context.progress(Progress { done: 3, ..Progress::default() })?;
            context.saved(1)?;
            context.saved(2)?;
            let _ = wait.recv();
            Ok(42)
        };
        let mut stream = jobs.start(work, |update| update);
        let mut updates = Vec::new();
        while let Some(update) = stream.next().await {
            if matches!(update, Ok(Update::Saved(2))) {
                go_on.send(()).unwrap();
            }
            updates.push(update);
        }
        let saved = updates.iter().filter_map(|update| match update {
            Ok(Update::Saved(saved)) => Some(*saved),
            _ => None,
        });
        assert_eq!(saved.collect::<Vec<_>>(), [1, 2]);
        assert!(matches!(updates.last(), Some(Ok(Update::Done(42)))));
    }

    #[tokio::test]
    async fn a_dropped_stream_cancels_the_work_and_a_panic_is_an_error() {
        let jobs = Jobs::new(CancellationToken::new());
        let (ended, wait) = tokio::sync::oneshot::channel();
        let endless = move |context: &JobContext<()>| {
            while context.progress(Progress::default()).is_ok() {
                thread::yield_now();
            }
            let _ = ended.send(());
            Ok(())
        };
        let mut stream = jobs.start(endless, |update| update);
        assert!(stream.next().await.is_some());
        drop(stream);
        wait.await.unwrap();
        let outcome = jobs.start(|_: &JobContext| -> Result<(), Status> { std::panic::panic_any("oh") }, |update| update);
        let last = outcome.collect::<Vec<_>>().await.pop().unwrap();
        assert_eq!(last.unwrap_err().code(), tonic::Code::Internal);
    }
}
