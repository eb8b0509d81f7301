//! The Runs API.

use crate::actions::{self, blocking};
use crate::assign::assign_images;
use crate::create::NewRun;
use crate::list;
use crate::run::{News, Run};
use crate::runs::Runs;
use deepcluster_proto::v1::runs_server::Runs as RunsRpc;
use deepcluster_proto::v1::*;
use deepcluster_proto::{retry_later, tags_of};
use deepcluster_service::requests::volume_status;
use deepcluster_volume::records::RunRecord;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};

/// Events that a watcher who does not read keeps in memory.
const AT_A_TIME: usize = 8;

/// When it is worth another try to watch where too many do.
const WATCH_AGAIN: Duration = Duration::from_secs(10);

/// Answers clients.
pub struct Rpc {
    /// What they ask about.
    pub runs: Arc<Runs>,
    /// Ends watches when the server drains.
    shutdown: CancellationToken,
    /// Room for watchers.
    watchers: Arc<Semaphore>,
}

impl Rpc {
    /// Of these runs, until `shutdown`.
    pub fn new(runs: Arc<Runs>, shutdown: CancellationToken) -> Self {
        let watchers = Arc::new(Semaphore::new(runs.limits.watchers));
        Self { runs, shutdown, watchers }
    }
}

#[tonic::async_trait]
impl RunsRpc for Rpc {
    type WatchRunStream = Pin<Box<dyn Stream<Item = Result<WatchRunResponse, Status>> + Send>>;

    async fn create_run(&self, request: Request<CreateRunRequest>) -> Result<Response<CreateRunResponse>, Status> {
        let new = NewRun::try_from(request.into_inner())?;
        let runs = Arc::clone(&self.runs);
        let run = blocking(move || runs.create(new)).await?;
        Ok(Response::new(CreateRunResponse { run: Some(run.to_wire()) }))
    }

    async fn get_run(&self, request: Request<GetRunRequest>) -> Result<Response<GetRunResponse>, Status> {
        let run = self.runs.get(&request.into_inner().run_id)?;
        Ok(Response::new(GetRunResponse { run: Some(run.to_wire()) }))
    }

    async fn list_runs(&self, request: Request<ListRunsRequest>) -> Result<Response<ListRunsResponse>, Status> {
        Ok(Response::new(list::page(&self.runs.all(), request.get_ref())?))
    }

    async fn update_run(&self, request: Request<UpdateRunRequest>) -> Result<Response<UpdateRunResponse>, Status> {
        let request = request.into_inner();
        let run = self.runs.get(&request.run_id)?;
        let (priority, has_labels, has_note) = (request.priority, request.labels.is_some(), request.note.is_some());
        // Each has limits of its own, so what is absent need not be known.
        let labels = request.labels.unwrap_or_default().labels;
        let tags = tags_of(priority.unwrap_or(0), labels, request.note.unwrap_or_default())?;
        let change = move |record: &mut RunRecord| {
            record.priority = priority.unwrap_or(record.priority);
            if has_labels {
                record.labels = tags.labels;
            }
            if has_note {
                record.note = tags.note;
            }
        };
        let run = blocking(move || run.update(change).map(|()| run).map_err(|error| volume_status(&error))).await?;
        Ok(Response::new(UpdateRunResponse { run: Some(run.to_wire()) }))
    }

    async fn watch_run(&self, request: Request<WatchRunRequest>) -> Result<Response<Self::WatchRunStream>, Status> {
        let request = request.into_inner();
        let run = self.runs.get(&request.run_id)?;
        let Ok(place) = Arc::clone(&self.watchers).try_acquire_owned() else {
            let sentence = format!("too many watchers: {} are the most", self.runs.limits.watchers);
            return Err(retry_later(Code::ResourceExhausted, sentence, WATCH_AGAIN));
        };
        let (sender, receiver) = mpsc::channel(AT_A_TIME);
        let watched = watch(run.news(), run, request.from_event, sender, self.shutdown.clone());
        tokio::spawn(async move {
            watched.await;
            drop(place);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn pause_run(&self, request: Request<PauseRunRequest>) -> Result<Response<PauseRunResponse>, Status> {
        let run = actions::pause(&self.runs, &request.into_inner().run_id).await?;
        Ok(Response::new(PauseRunResponse { run: Some(run.to_wire()) }))
    }

    async fn resume_run(&self, request: Request<ResumeRunRequest>) -> Result<Response<ResumeRunResponse>, Status> {
        let run = actions::resume(&self.runs, &request.into_inner().run_id).await?;
        Ok(Response::new(ResumeRunResponse { run: Some(run.to_wire()) }))
    }

    async fn cancel_run(&self, request: Request<CancelRunRequest>) -> Result<Response<CancelRunResponse>, Status> {
        let run = actions::cancel(&self.runs, &request.into_inner().run_id).await?;
        Ok(Response::new(CancelRunResponse { run: Some(run.to_wire()) }))
    }

    async fn assign_images(&self, request: Request<AssignImagesRequest>) -> Result<Response<AssignImagesResponse>, Status> {
        let runs = Arc::clone(&self.runs);
        let stop = self.shutdown.child_token();
        // Whoever drops the call drops this, which ends the work.
        let _guard = stop.clone().drop_guard();
        let runtime = tokio::runtime::Handle::current();
        let work = move || runtime.block_on(assign_images(&runs, request.into_inner(), &stop));
        blocking(work).await.map(Response::new)
    }
}

/// Replays events, then follows; a slow watcher misses progress but never an event.
async fn watch(
    mut news: watch::Receiver<News>,
    run: Arc<Run>,
    mut next: u64,
    sender: mpsc::Sender<Result<WatchRunResponse, Status>>,
    shutdown: CancellationToken,
) {
    loop {
        let latest = news.borrow_and_update().clone();
        loop {
            let events = run.events_from(next, AT_A_TIME);
            if events.is_empty() {
                break;
            }
            for event in events {
                next = event.number + 1;
                let event = Event { number: event.number, kind: event.kind, json: event.json };
                if sender.send(Ok(WatchRunResponse { update: Some(watch_run_response::Update::Event(event)) })).await.is_err() {
                    return;
                }
            }
        }
        if latest.ended {
            return;
        }
        if let Some(progress) = latest.progress {
            let _ = sender.try_send(Ok(WatchRunResponse { update: Some(watch_run_response::Update::Progress(progress)) }));
        }
        tokio::select! {
            changed = news.changed() => if changed.is_err() { return },
            () = sender.closed() => return,
            () = shutdown.cancelled() => return,
        }
    }
}
