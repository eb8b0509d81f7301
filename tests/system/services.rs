//! The services as gRPC servers: health, reflection, the Runs API, draining, and a coordinator that dies.

use crate::stack::{Service, Stack, Workers, create, has_ended, is_phase, spec, until_serving, watch_until, worker_flags};
use crate::support::{pictures, processes, text};
use deepcluster_proto::v1::*;
use nix::sys::signal::Signal;
use tokio_stream::StreamExt;
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ListServiceResponse, ServerReflectionRequest};

#[tokio::test(flavor = "multi_thread")]
async fn every_service_tells_its_health_and_its_api_and_drains() {
    let mut stack = Stack::start();
    let names = ["Extractor", "Clusterer", "Trainer", "Runs"];
    let services: Vec<&mut Service> = stack.workers.iter_mut().chain([&mut stack.coordinator]).collect();
    for (service, name) in services.into_iter().zip(names) {
        until_serving(service.channel()).await;
        let request =
            ServerReflectionRequest { host: String::new(), message_request: Some(MessageRequest::ListServices(String::new())) };
        let mut reflection = ServerReflectionClient::new(service.channel());
        let answers = reflection.server_reflection_info(tokio_stream::once(request)).await.unwrap();
        let answer = answers.into_inner().next().await.unwrap().unwrap();
        let Some(MessageResponse::ListServicesResponse(ListServiceResponse { service: listed })) = answer.message_response else {
            panic!("no list of services");
        };
        let full = format!("deepcluster.v1.{name}");
        assert!(listed.iter().any(|entry| entry.name == full), "{listed:?}");
        let health = HealthCheckRequest { service: full };
        let status = HealthClient::new(service.channel()).check(health).await.unwrap().into_inner().status();
        assert_eq!(status, ServingStatus::Serving);
        drop(reflection);
        let mut health = HealthClient::new(service.channel());
        let mut told = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
        assert_eq!(told.next().await.unwrap().unwrap().status(), ServingStatus::Serving);
        service.signal(Signal::SIGTERM);
        assert_eq!(told.next().await.unwrap().unwrap().status(), ServingStatus::NotServing, "{name}");
        drop((told, health));
        assert_eq!(service.child.wait().unwrap().code(), Some(0), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_paused_resumed_and_survives_its_coordinator() {
    let mut stack = Stack::start();
    let mut runs = stack.runs();
    let run = create(&mut runs, spec(3)).await;
    assert_eq!((run.k, run.n_images, run.n_skipped), (10, 200, 0));
    assert_eq!(run.spec.as_ref().unwrap().weight_decay, Some(1e-5), "defaults are filled in");
    assert!(run.learning_rate > 0.0 && run.learning_rate <= 0.05 && run.pca == 16, "chosen options are resolved: {run:?}");
    watch_until(&mut runs, &run.run_id, is_phase(0, "train")).await;
    let id = || run.run_id.clone();
    let paused = runs.pause_run(PauseRunRequest { run_id: id() }).await.unwrap().into_inner().run.unwrap();
    assert_eq!(paused.state(), RunState::Paused);
    let again = runs.pause_run(PauseRunRequest { run_id: id() }).await.unwrap_err();
    assert_eq!(again.code(), Code::FailedPrecondition);
    let resumed = runs.resume_run(ResumeRunRequest { run_id: id() }).await.unwrap().into_inner().run.unwrap();
    assert_eq!(resumed.state(), RunState::Queued);
    watch_until(&mut runs, &run.run_id, is_phase(1, "extract")).await;
    stack.coordinator.signal(Signal::SIGKILL);
    stack.coordinator.restart();
    let mut runs = stack.runs();
    let events = watch_until(&mut runs, &run.run_id, has_ended).await;
    let epochs = events.iter().filter(|event| event.kind == "epoch").count();
    assert_eq!(epochs, 3);
    let numbers: Vec<u64> = events.iter().map(|event| event.number).collect();
    assert_eq!(numbers, (0..events.len() as u64).collect::<Vec<_>>());
    let late = runs.cancel_run(CancelRunRequest { run_id: id() }).await.unwrap_err();
    assert_eq!(late.code(), Code::FailedPrecondition);
    let image = pictures().join("stripes").read_dir().unwrap().next().unwrap().unwrap().path();
    let image = image.strip_prefix(pictures().parent().unwrap()).unwrap();
    let request = AssignImagesRequest { run_id: id(), paths: vec![text(image).into()] };
    let assigned = runs.assign_images(request).await.unwrap().into_inner();
    assert_eq!((assigned.assignments.len(), assigned.epoch), (1, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_take_turns_and_a_cancelled_one_ends() {
    let stack = Stack::start();
    let mut runs = stack.runs();
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(create(&mut runs, spec(1)).await.run_id);
    }
    let cancelled = runs.cancel_run(CancelRunRequest { run_id: ids[1].clone() }).await.unwrap().into_inner().run.unwrap();
    assert_eq!(cancelled.state(), RunState::Cancelled);
    let back = runs.resume_run(ResumeRunRequest { run_id: ids[1].clone() }).await.unwrap_err();
    assert_eq!(back.code(), Code::FailedPrecondition);
    for id in [&ids[0], &ids[2]] {
        watch_until(&mut runs, id, has_ended).await;
    }
    let states: Vec<RunState> =
        runs.list_runs(ListRunsRequest::default()).await.unwrap().into_inner().runs.iter().map(Run::state).collect();
    assert_eq!(states, [RunState::Finished, RunState::Cancelled, RunState::Finished]);
    assert!(!processes("deepcluster-coordinator", text(stack.volume.path())).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_get_a_code_and_a_sentence() {
    let stack = Stack::start();
    until_serving(stack.coordinator.channel()).await;
    let mut runs = stack.runs();
    type Spoil = fn(&mut RunSpec);
    let table: [(Spoil, &str); 6] = [
        (|spec| spec.images = "../..".to_owned(), ".."),
        (|spec| spec.images = "/etc".to_owned(), "/etc"),
        (|spec| spec.images = "nowhere".to_owned(), "nowhere"),
        (|spec| spec.k = 201, "201"),
        (|spec| spec.device = "abacus".to_owned(), "abacus"),
        (|spec| spec.learning_rate = f64::NAN, "learning rate"),
    ];
    for (spoil, word) in table {
        let mut spec = spec(1);
        spoil(&mut spec);
        let status = runs.create_run(CreateRunRequest { spec: Some(spec), ..CreateRunRequest::default() }).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert!(status.message().contains(word), "'{word}' is missing in: {}", status.message());
    }
    for (id, code) in [("run-0007", Code::NotFound), ("../x", Code::InvalidArgument), ("", Code::InvalidArgument)] {
        let status = runs.get_run(GetRunRequest { run_id: id.to_owned() }).await.unwrap_err();
        assert_eq!(status.code(), code, "{id}");
    }
    assert!(runs.list_runs(ListRunsRequest::default()).await.unwrap().into_inner().runs.is_empty());
}

/// An extractor to which nobody has given the images.
#[tokio::test(flavor = "multi_thread")]
async fn an_extractor_that_cannot_do_its_work_does_not_end_the_run() {
    let Workers { volume, mut workers } = Stack::workers_only(1);
    let nothing = tempfile::tempdir().unwrap();
    workers.push(Service::start("extractor", volume.path(), &[format!("--images={}", text(nothing.path()))]));
    let coordinator = Service::start("coordinator", volume.path(), &worker_flags(&workers));
    let mut runs = coordinator.runs();
    let run = create(&mut runs, spec(1)).await;
    let events = watch_until(&mut runs, &run.run_id, has_ended).await;
    let faults: Vec<&Event> = events.iter().filter(|event| event.kind == "fault").collect();
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert!(faults[0].json.contains("gets no more shards") && faults[0].json.contains("is it mounted?"), "{faults:?}");
    let run = runs.get_run(GetRunRequest { run_id: run.run_id }).await.unwrap().into_inner().run.unwrap();
    assert_eq!(run.state(), RunState::Finished, "{}", run.message);
}

/// A coordinator that was killed after it had written down that a run is finished, and before it could say so.
#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_run_is_told_even_if_a_crash_came_before_the_event() {
    let mut stack = Stack::start();
    let run = create(&mut stack.runs(), spec(1)).await;
    watch_until(&mut stack.runs(), &run.run_id, has_ended).await;
    stack.coordinator.signal(Signal::SIGKILL);
    stack.coordinator.child.wait().unwrap();
    let log = stack.volume.path().join("runs/run-0001/events.jsonl");
    let events = std::fs::read_to_string(&log).unwrap();
    let without_last = &events[..events.trim_end().rfind('\n').unwrap() + 1];
    deepcluster_volume::publish::publish_bytes(&log, without_last.as_bytes()).unwrap();
    stack.coordinator.restart();
    watch_until(&mut stack.runs(), &run.run_id, has_ended).await;
}
