//! The four services started by hand, for tests that speak gRPC and kill.

use crate::support::{pictures, program, text};
use deepcluster_proto::v1::runs_client::RunsClient;
use deepcluster_proto::v1::watch_run_response::Update;
use deepcluster_proto::v1::{CreateRunRequest, Event, Run, RunSpec, WatchRunRequest};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

/// One service on a socket that stays open when it dies.
#[derive(Debug)]
pub struct Service {
    program: PathBuf,
    arguments: Vec<String>,
    listener: TcpListener,
    pub child: Child,
    lives: usize,
    log: PathBuf,
}

impl Service {
    pub fn start(kind: &str, volume: &Path, more: &[String]) -> Self {
        let programs = program("deepcluster");
        Self::start_from(programs.parent().unwrap(), kind, volume, more, &[])
    }

    /// The program of a folder, with variables in the environment of its first life.
    pub fn start_from(programs: &Path, kind: &str, volume: &Path, more: &[String], environment: &[(String, String)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Self::start_on(listener, &[], &programs.join(format!("deepcluster-{kind}")), volume, more, environment)
    }

    /// A program on a socket, started by another if `prefix` names one.
    pub fn start_on(
        listener: TcpListener,
        prefix: &[String],
        program: &Path,
        volume: &Path,
        more: &[String],
        environment: &[(String, String)],
    ) -> Self {
        let mut command = prefix.to_vec();
        command.push(text(program).to_owned());
        let mut arguments = command.split_off(1);
        arguments.extend([format!("--volume={}", text(volume)), "--listen=stdin".to_owned()]);
        if !more.iter().any(|flag| flag.starts_with("--images=")) {
            arguments.push(format!("--images={}", text(pictures().parent().unwrap())));
        }
        arguments.extend_from_slice(more);
        let program = PathBuf::from(&command[0]);
        let logs = volume.join("logs");
        std::fs::create_dir_all(&logs).unwrap();
        let log = logs.join(format!("{}.log", listener.local_addr().unwrap()));
        let child = Self::spawn(&program, &arguments, &listener, environment, &log);
        Self { program, arguments, listener, child, lives: 1, log }
    }

    fn spawn(
        program: &Path,
        arguments: &[String],
        listener: &TcpListener,
        environment: &[(String, String)],
        log: &Path,
    ) -> Child {
        let socket = OwnedFd::from(listener.try_clone().unwrap());
        let mut command = Command::new(program);
        let log = std::fs::File::options().create(true).append(true).open(log).unwrap();
        command.args(arguments).envs(environment.iter().cloned());
        command.stdin(Stdio::from(socket)).stderr(log).spawn().unwrap()
    }

    pub fn address(&self) -> String {
        self.listener.local_addr().unwrap().to_string()
    }

    pub fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.address())).unwrap().connect_lazy()
    }

    /// Of a coordinator.
    pub fn runs(&self) -> RunsClient<Channel> {
        RunsClient::new(self.channel())
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// What it has said so far, in all its lives.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Has its last life ended by itself?
    pub fn has_died(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// How often it was started.
    pub fn lives(&self) -> usize {
        self.lives
    }

    pub fn restart(&mut self) {
        self.restart_with(&[]);
    }

    pub fn restart_with(&mut self, environment: &[(String, String)]) {
        self.child.wait().unwrap();
        self.child = Self::spawn(&self.program, &self.arguments, &self.listener, environment, &self.log);
        self.lives += 1;
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// All of them on a volume.
pub struct Stack {
    pub volume: TempDir,
    /// An extractor, the clusterer, the trainer; then further extractors.
    pub workers: Vec<Service>,
    pub coordinator: Service,
}

/// The workers on a volume.
pub struct Workers {
    pub volume: TempDir,
    /// As in [`Stack`].
    pub workers: Vec<Service>,
}

impl Stack {
    pub fn start() -> Self {
        Self::with(1, &[])
    }

    /// Every extractor computes with all cores, so that what they compute does not depend on their number.
    pub fn with(n_extractors: usize, coordinator_flags: &[&str]) -> Self {
        let Workers { volume, workers } = Self::workers_only(n_extractors);
        let mut flags = worker_flags(&workers);
        flags.extend(coordinator_flags.iter().map(|flag| (*flag).to_owned()));
        let coordinator = Service::start("coordinator", volume.path(), &flags);
        Self { volume, workers, coordinator }
    }

    pub fn workers_only(n_extractors: usize) -> Workers {
        let volume = tempfile::tempdir().unwrap();
        let further = std::iter::repeat_n("extractor", n_extractors - 1);
        let kinds = ["extractor", "clusterer", "trainer"].into_iter().chain(further);
        let workers = kinds.map(|kind| Service::start(kind, volume.path(), &[])).collect();
        Workers { volume, workers }
    }

    /// What a coordinator must be told of the workers.
    pub fn worker_flags(&self) -> Vec<String> {
        worker_flags(&self.workers)
    }

    pub fn runs(&self) -> RunsClient<Channel> {
        self.coordinator.runs()
    }
}

/// What a coordinator must be told of workers: an extractor, the clusterer, the trainer, further extractors.
pub fn worker_flags(workers: &[Service]) -> Vec<String> {
    let flags = ["extractors", "clusterer", "trainer"].into_iter().chain(std::iter::repeat("extractors"));
    flags.zip(workers).map(|(flag, worker)| format!("--{flag}={}", worker.address())).collect()
}

/// The spec of [`crate::support::train_arguments`].
pub fn spec(epochs: u32) -> RunSpec {
    RunSpec {
        images: pictures().file_name().unwrap().to_str().unwrap().to_owned(),
        k: 10,
        seed: Some(5),
        epochs,
        image_size: 64,
        batch: 32,
        shard_images: 64,
        device: "cpu".to_owned(),
        ..RunSpec::default()
    }
}

pub async fn until_serving(channel: Channel) {
    for _ in 0..600 {
        let answer = HealthClient::new(channel.clone()).check(HealthCheckRequest { service: String::new() }).await;
        if answer.is_ok_and(|answer| answer.into_inner().status() == ServingStatus::Serving) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("never serving");
}

/// Reads a run's stream, from the first event on, to an update that passes the test.
pub async fn watch_until(runs: &mut RunsClient<Channel>, run_id: &str, mut wanted: impl FnMut(&Update) -> bool) -> Vec<Event> {
    let request = WatchRunRequest { run_id: run_id.to_owned(), from_event: 0 };
    let mut updates = runs.watch_run(request).await.unwrap().into_inner();
    let mut events = Vec::new();
    while let Some(message) = updates.message().await.unwrap() {
        let update = message.update.unwrap();
        let found = wanted(&update);
        if let Update::Event(event) = update {
            events.push(event);
        }
        if found {
            return events;
        }
    }
    panic!("the stream ended before: {events:?}");
}

/// Queues a run.
pub async fn create(runs: &mut RunsClient<Channel>, spec: RunSpec) -> Run {
    runs.create_run(CreateRunRequest { spec: Some(spec), ..CreateRunRequest::default() }).await.unwrap().into_inner().run.unwrap()
}

/// Work of a phase that has begun.
pub fn is_phase<'a>(epoch: u32, phase: &'a str) -> impl Fn(&Update) -> bool + 'a {
    move |update| matches!(update, Update::Progress(progress) if progress.epoch == epoch && progress.phase == phase && progress.progress.as_ref().is_some_and(|inner| inner.done > 0))
}

/// The end of a run that went well.
pub fn has_ended(update: &Update) -> bool {
    matches!(update, Update::Event(event) if event.kind == "run" && event.json.contains("\"state\":\"finished\""))
}
