//! The four services started by hand, for tests that speak gRPC and kill.

use crate::support::{pictures, program, text};
use deepcluster_proto::v1::runs_client::RunsClient;
use deepcluster_proto::v1::watch_run_response::Update;
use deepcluster_proto::v1::{CreateRunRequest, Event, Run, RunSpec, WatchRunRequest};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

/// One service on a socket that stays open when it dies.
pub struct Service {
    kind: &'static str,
    arguments: Vec<String>,
    listener: TcpListener,
    pub child: Child,
}

impl Service {
    pub fn start(kind: &'static str, volume: &Path, more: &[String]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let images = pictures().parent().unwrap();
        let mut arguments = vec![format!("--volume={}", text(volume)), format!("--images={}", text(images))];
        arguments.push("--listen=stdin".to_owned());
        arguments.extend_from_slice(more);
        let child = Self::spawn(kind, &arguments, &listener);
        Self { kind, arguments, listener, child }
    }

    fn spawn(kind: &str, arguments: &[String], listener: &TcpListener) -> Child {
        let socket = OwnedFd::from(listener.try_clone().unwrap());
        let mut command = Command::new(program(&format!("deepcluster-{kind}")));
        command.args(arguments).stdin(Stdio::from(socket)).stderr(Stdio::null()).spawn().unwrap()
    }

    pub fn address(&self) -> String {
        self.listener.local_addr().unwrap().to_string()
    }

    pub fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.address())).unwrap().connect_lazy()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    pub fn restart(&mut self) {
        self.child.wait().unwrap();
        self.child = Self::spawn(self.kind, &self.arguments, &self.listener);
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// All four on a volume.
pub struct Stack {
    pub volume: TempDir,
    pub workers: Vec<Service>,
    pub coordinator: Service,
}

impl Stack {
    pub fn start() -> Self {
        let volume = tempfile::tempdir().unwrap();
        let workers: Vec<_> =
            ["extractor", "clusterer", "trainer"].map(|kind| Service::start(kind, volume.path(), &[])).into_iter().collect();
        let flags = ["extractors", "clusterer", "trainer"];
        let more = flags.iter().zip(&workers).map(|(flag, worker)| format!("--{flag}={}", worker.address()));
        let more: Vec<String> = more.collect();
        let coordinator = Service::start("coordinator", volume.path(), &more);
        Self { volume, workers, coordinator }
    }

    pub fn runs(&self) -> RunsClient<Channel> {
        RunsClient::new(self.coordinator.channel())
    }
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
    runs.create_run(CreateRunRequest { spec: Some(spec) }).await.unwrap().into_inner().run.unwrap()
}

/// Work of a phase that has begun.
pub fn is_phase<'a>(epoch: u32, phase: &'a str) -> impl Fn(&Update) -> bool + 'a {
    move |update| matches!(update, Update::Progress(progress) if progress.epoch == epoch && progress.phase == phase && progress.progress.as_ref().is_some_and(|inner| inner.done > 0))
}

/// The end of a run that went well.
pub fn has_ended(update: &Update) -> bool {
    matches!(update, Update::Event(event) if event.kind == "run" && event.json.contains("\"state\":\"finished\""))
}
