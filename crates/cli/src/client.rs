//! Talking to a coordinator: the commands that any client could be, and following a run.

use crate::failure::Failure;
use crate::server::Server;
use crate::show::Show;
use deepcluster_proto::v1::runs_client::RunsClient;
use deepcluster_proto::v1::{
    AssignImagesRequest, Assignment, CancelRunRequest, CreateRunRequest, GetRunRequest, ListRunsRequest, PauseRunRequest,
    ResumeRunRequest, Run, RunState, UpdateRunRequest, WatchRunRequest, watch_run_response,
};
use deepcluster_service::tls::ClientSecurity;
use deepcluster_service::tokens::TokenFile;
use serde_json::{Value, json};
use std::error::Error;
use std::time::{Duration, Instant};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

/// How long a coordinator that does not answer is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long the answer to a question that needs no work may take.
const DEADLINE: Duration = Duration::from_secs(30);

/// What to make of a run that is paused because the volume is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRoom {
    /// Nobody else will let it go on.
    Ends,
    /// Somebody may make room and let it go on.
    Waits,
}

/// A connection to a coordinator.
#[derive(Clone)]
pub struct Client {
    runs: RunsClient<Channel>,
    server: String,
    token: Option<TokenFile>,
}

impl Client {
    /// A client of the coordinator of this machine at `address`. Connects when it is first used.
    ///
    /// # Errors
    /// When the address is none.
    pub fn of_this_machine(address: &str) -> Result<Self, Failure> {
        let endpoint = ClientSecurity::default().endpoint(address, address).map_err(Failure::other)?;
        Ok(Self { runs: RunsClient::new(endpoint.connect_lazy()), server: address.to_owned(), token: None })
    }

    /// A client that is connected; a coordinator that is starting is waited for.
    ///
    /// # Errors
    /// When the address is none, or nobody answers there.
    pub async fn connect(to: &Server) -> Result<Self, Failure> {
        let (endpoint, token, server) = (to.endpoint()?, to.token()?, to.server.clone());
        let start = Instant::now();
        loop {
            match endpoint.connect().await {
                Ok(channel) => return Ok(Self { runs: RunsClient::new(channel), server, token }),
                Err(_) if start.elapsed() < PATIENCE => tokio::time::sleep(Duration::from_millis(200)).await,
                Err(error) => {
                    let why = error.source().map_or_else(|| error.to_string(), ToString::to_string);
                    return Err(Failure::other(not_a_coordinator(&server, &why)));
                }
            }
        }
    }

    /// The runs that pass the filters of a request, of all pages, oldest first.
    ///
    /// # Errors
    /// What the coordinator says.
    pub async fn list(&mut self, mut request: ListRunsRequest) -> Result<Vec<Run>, Failure> {
        let mut all = Vec::new();
        loop {
            let question = self.quick(request.clone())?;
            let answer = self.runs.list_runs(question).await;
            let answer = answer.map_err(|status| self.failure(&status))?.into_inner();
            all.extend(answer.runs);
            if answer.next_page_token.is_empty() {
                return Ok(all);
            }
            request.page_token = answer.next_page_token;
        }
    }

    /// The run of that name, or the newest when none is named.
    ///
    /// # Errors
    /// When there is no such run.
    pub async fn find(&mut self, run: Option<&str>) -> Result<Run, Failure> {
        match run {
            None => self.list(ListRunsRequest::default()).await?.pop().ok_or_else(|| Failure::usage("there are no runs yet")),
            Some(id) => {
                let question = self.quick(GetRunRequest { run_id: id.to_owned() })?;
                let answer = self.runs.get_run(question).await;
                present(answer.map_err(|status| self.failure(&status))?.into_inner().run)
            }
        }
    }

    /// Queues a run.
    ///
    /// # Errors
    /// What the coordinator says.
    pub async fn create(&mut self, request: CreateRunRequest) -> Result<Run, Failure> {
        let question = self.ask(request)?;
        let answer = self.runs.create_run(question).await;
        present(answer.map_err(|status| self.failure(&status))?.into_inner().run)
    }

    /// Changes what is said about a run.
    ///
    /// # Errors
    /// What the coordinator says.
    pub async fn update(&mut self, request: UpdateRunRequest) -> Result<Run, Failure> {
        let question = self.quick(request)?;
        let answer = self.runs.update_run(question).await;
        present(answer.map_err(|status| self.failure(&status))?.into_inner().run)
    }

    /// Stops a run for now.
    ///
    /// # Errors
    /// What the coordinator says.
    pub async fn pause(&mut self, run_id: String) -> Result<Run, Failure> {
        let question = self.quick(PauseRunRequest { run_id })?;
        let answer = self.runs.pause_run(question).await;
        present(answer.map_err(|status| self.failure(&status))?.into_inner().run)
    }

    /// Continues a run.
    ///
    /// # Errors
    /// What the coordinator says.
    pub async fn resume(&mut self, run_id: String) -> Result<Run, Failure> {
        let question = self.ask(ResumeRunRequest { run_id })?;
        let answer = self.runs.resume_run(question).await;
        present(answer.map_err(|status| self.failure(&status))?.into_inner().run)
    }

    /// Ends a run for good.
    ///
    /// # Errors
    /// What the coordinator says.
    pub async fn cancel(&mut self, run_id: String) -> Result<Run, Failure> {
        let question = self.quick(CancelRunRequest { run_id })?;
        let answer = self.runs.cancel_run(question).await;
        present(answer.map_err(|status| self.failure(&status))?.into_inner().run)
    }

    /// Cluster and distance of images by the last committed epoch of a run; paths are relative to the images root.
    ///
    /// # Errors
    /// What the coordinator says.
    pub async fn assign(&mut self, run_id: String, paths: Vec<Vec<u8>>) -> Result<Vec<Assignment>, Failure> {
        let question = self.ask(AssignImagesRequest { run_id, paths })?;
        let answer = self.runs.assign_images(question).await;
        Ok(answer.map_err(|status| self.failure(&status))?.into_inner().assignments)
    }

    /// Follows a run until it has ended, also across restarts of the coordinator. Progress is shown; a run that failed is
    /// a failure, and so is one that is out of room, unless that is waited for.
    ///
    /// # Errors
    /// When the run failed or is out of room, or the coordinator does not know it.
    pub async fn follow(&mut self, run_id: &str, no_room: NoRoom, show: &mut Show) -> Result<(), Failure> {
        let mut next = 0;
        let mut told = false;
        loop {
            let before = next;
            match self.follow_once(run_id, no_room, &mut next, show).await {
                Ok(Some(outcome)) => return outcome,
                Ok(None) => {}
                Err(status) if !matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled) => {
                    return Err(self.failure(&status));
                }
                // Once an outage: news since the last one says that it was over.
                Err(_) => {
                    if !told || next > before {
                        show.notice(&format!("no coordinator answers at {}; waiting for it", self.server));
                    }
                    told = true;
                }
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }

    /// One stream's worth; says how the run ended, if it did.
    async fn follow_once(
        &mut self,
        run_id: &str,
        no_room: NoRoom,
        next: &mut u64,
        show: &mut Show,
    ) -> Result<Option<Result<(), Failure>>, Status> {
        let request = WatchRunRequest { run_id: run_id.to_owned(), from_event: *next };
        let question = self.ask(request).map_err(|failure| Status::invalid_argument(failure.message))?;
        let mut updates = self.runs.watch_run(question).await?.into_inner();
        let mut outcome = None;
        while let Some(message) = updates.message().await? {
            match message.update {
                Some(watch_run_response::Update::Event(event)) => {
                    *next = event.number + 1;
                    if let Err(failure) = show.event(&event) {
                        return Ok(Some(Err(failure)));
                    }
                    if event.kind == "run" {
                        outcome = ending(&event.json);
                        if no_room == NoRoom::Ends
                            && is_out_of_room(&event.json)
                            && let Some(failure) = self.still_paused(run_id).await
                        {
                            return Ok(Some(Err(failure)));
                        }
                    }
                }
                Some(watch_run_response::Update::Progress(progress)) => show.progress(&progress),
                None => {}
            }
        }
        Ok(outcome)
    }

    /// Why a run is paused now. An event may be old, and the run may have gone on since.
    async fn still_paused(&mut self, run_id: &str) -> Option<Failure> {
        let run = self.find(Some(run_id)).await.ok()?;
        (run.state() == RunState::Paused).then(|| Failure::usage(run.message))
    }

    /// A question that is answered soon.
    fn quick<T>(&self, message: T) -> Result<Request<T>, Failure> {
        let mut request = self.ask(message)?;
        request.set_timeout(DEADLINE);
        Ok(request)
    }

    /// A message with the token.
    fn ask<T>(&self, message: T) -> Result<Request<T>, Failure> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            let authorization = token.authorization().map_err(|why| Failure::usage(format!("--token-file: {why}")))?;
            request.metadata_mut().insert("authorization", authorization);
        }
        Ok(request)
    }

    fn failure(&self, status: &Status) -> Failure {
        let message = status.message();
        match status.code() {
            Code::InvalidArgument | Code::NotFound | Code::FailedPrecondition | Code::AlreadyExists => Failure::usage(message),
            Code::Unauthenticated | Code::PermissionDenied => Failure::usage(format!("{message} (--token-file)")),
            // The user can do something about a full volume.
            Code::ResourceExhausted => Failure::usage(message),
            Code::Unavailable => Failure::other(not_a_coordinator(&self.server, message)),
            Code::Unimplemented => Failure::usage(format!(
                "what answers at {} is no coordinator, though it speaks gRPC: it may be a worker, whose port is another",
                self.server
            )),
            _ if is_not_grpc(message) => Failure::usage(not_a_coordinator(&self.server, message)),
            _ => Failure::other(message),
        }
    }
}

/// How a run ended, by its latest event of kind "run"; none while it goes on.
fn ending(json: &str) -> Option<Result<(), Failure>> {
    let event: Value = serde_json::from_str(json).ok()?;
    let message = event["message"].as_str().unwrap_or_default();
    match event["state"].as_str()? {
        "finished" => Some(Ok(())),
        "cancelled" => Some(Err(Failure::other("the run was cancelled"))),
        "failed" if event["bad_input"] == true => Some(Err(Failure::usage(message))),
        "failed" => Some(Err(Failure::other(message))),
        _ => None,
    }
}

fn is_out_of_room(json: &str) -> bool {
    serde_json::from_str::<Value>(json).is_ok_and(|event| event["reason"] == "no-room")
}

/// A run as one JSON object.
pub fn run_json(run: &Run) -> Value {
    let state = state_name(run);
    // In one order, whatever that of the map is.
    let labels: std::collections::BTreeMap<_, _> = run.labels.iter().collect();
    json!({
        "run_id": run.run_id, "state": state, "message": run.message, "epochs_done": run.epochs_done,
        "epochs": run.spec.as_ref().map(|spec| spec.epochs), "k": run.k, "images": run.n_images, "skipped": run.n_skipped,
        "priority": run.priority, "labels": labels, "note": run.note, "request_id": run.request_id, "created": run.created,
        "folder": run.folder, "images_folder": run.spec.as_ref().map(|spec| spec.images.clone()),
    })
}

/// The state of that name.
pub fn state_of(name: &str) -> Option<RunState> {
    RunState::from_str_name(&format!("RUN_STATE_{}", name.to_uppercase())).filter(|state| *state != RunState::Unspecified)
}

/// A run's state in one lower-case word.
pub fn state_name(run: &Run) -> String {
    let name = RunState::try_from(run.state).unwrap_or_default().as_str_name();
    name.trim_start_matches("RUN_STATE_").to_lowercase()
}

/// Words of the libraries for an answer that is not one of gRPC.
fn is_not_grpc(message: &str) -> bool {
    ["h2 protocol error", "http2 error", "frame with invalid size", "invalid compression flag", "grpc-status header missing"]
        .iter()
        .any(|words| message.contains(words))
}

/// Why nobody at an address can be talked to.
fn not_a_coordinator(server: &str, why: &str) -> String {
    if why.contains("InvalidContentType") {
        return format!("what answers at {server} does not speak TLS; try http:// instead of https://");
    }
    if is_not_grpc(why) {
        return format!("what answers at {server} is no coordinator: it does not speak gRPC, or wants TLS (https://)");
    }
    format!("no coordinator answers at {server}: {why}")
}

fn present(run: Option<Run>) -> Result<Run, Failure> {
    run.ok_or_else(|| Failure::other("the coordinator sent an empty answer"))
}
