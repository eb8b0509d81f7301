//! The Runs API beyond a single run: the queue, idempotent creation, pages and filters, tags, details of errors; and clients
//! that share no code with us.

use crate::stack::{Service, Stack, Workers, create, has_ended, is_phase, spec, watch_until, worker_flags};
use crate::support::{deepcluster, python, text};
use deepcluster_proto::v1::*;
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;
use tonic::Code;
use tonic_types::StatusExt;

fn request(request_id: &str, priority: i32, label: &str) -> CreateRunRequest {
    CreateRunRequest {
        spec: Some(spec(1)),
        request_id: request_id.to_owned(),
        priority,
        labels: HashMap::from([("team".to_owned(), label.to_owned())]),
        note: format!("of {label}"),
    }
}

/// A coordinator whose workers are not there, so that runs stay where they are.
fn alone(flags: &[&str]) -> (Workers, Service) {
    let folder = Stack::workers_only(1);
    let mut all = vec!["--extractors=127.0.0.1:1".to_owned()];
    all.extend(flags.iter().map(|flag| (*flag).to_owned()));
    let coordinator = Service::start("coordinator", folder.volume.path(), &all);
    (folder, coordinator)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_sent_again_makes_no_second_run() {
    let (_folder, mut coordinator) = alone(&["--queue-limit=3"]);
    let mut runs = coordinator.runs();
    let first = runs.create_run(request("a", 0, "red")).await.unwrap().into_inner().run.unwrap();
    let again = runs.create_run(request("a", 7, "other")).await.unwrap().into_inner().run.unwrap();
    assert_eq!((again.run_id, again.priority), (first.run_id.clone(), 0), "the first request counts");
    let (mut one, mut other) = (runs.clone(), runs.clone());
    let both = tokio::join!(one.create_run(request("b", 0, "red")), other.create_run(request("b", 0, "red")));
    let ids = [both.0, both.1].map(|answer| answer.unwrap().into_inner().run.unwrap().run_id);
    assert_eq!(ids[0], ids[1]);
    let other = CreateRunRequest { spec: Some(spec(2)), ..request("a", 0, "red") };
    assert_eq!(runs.create_run(other.clone()).await.unwrap_err().code(), Code::AlreadyExists);
    // The coordinator remembers beyond its death.
    coordinator.signal(nix::sys::signal::Signal::SIGKILL);
    coordinator.restart();
    let mut runs = coordinator.runs();
    assert_eq!(runs.create_run(request("a", 0, "red")).await.unwrap().into_inner().run.unwrap().run_id, first.run_id);
    runs.create_run(request("", 0, "red")).await.unwrap();
    let full = runs.create_run(request("", 0, "red")).await.unwrap_err();
    assert_eq!(full.code(), Code::ResourceExhausted);
    assert!(full.message().contains("queue is full") && full.get_details_retry_info().is_some(), "{full:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_are_listed_by_page_and_filter_and_tagged_anew() {
    let (_folder, coordinator) = alone(&[]);
    let mut runs = coordinator.runs();
    for n in 0..5 {
        runs.create_run(request("", n, if n % 2 == 0 { "red" } else { "blue" })).await.unwrap();
    }
    let mut list = async |request: ListRunsRequest| runs.list_runs(request).await.map(tonic::Response::into_inner);
    let ids = |answer: &ListRunsResponse| answer.runs.iter().map(|run| run.run_id.clone()).collect::<Vec<_>>();
    let mut pages = Vec::new();
    let mut page_token = String::new();
    loop {
        let page = list(ListRunsRequest { page_size: 2, page_token, ..Default::default() }).await.unwrap();
        pages.push(ids(&page));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 1]);
    let all = pages.concat();
    let red = HashMap::from([("team".to_owned(), "red".to_owned())]);
    let found = list(ListRunsRequest { labels: red.clone(), ..Default::default() }).await.unwrap();
    assert_eq!(ids(&found), [all[0].clone(), all[2].clone(), all[4].clone()]);
    let paused = list(ListRunsRequest { states: vec![RunState::Paused.into()], ..Default::default() }).await.unwrap();
    assert!(paused.runs.is_empty());
    for (wrong, field) in [
        (ListRunsRequest { page_token: "run-9999".to_owned(), ..Default::default() }, "page_token"),
        (ListRunsRequest { states: vec![99], ..Default::default() }, "states"),
    ] {
        let status = list(wrong).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(status.get_details_bad_request().unwrap().field_violations[0].field, field);
    }

    // The same from the command line.
    let server = format!("http://{}", coordinator.address());
    let cli = |arguments: &[&str]| deepcluster(arguments.iter().copied().chain(["--server", &server, "--json"]));
    let tagged =
        cli(&["tag", &all[1], "--label", "team=red", "--label", "grant=17", "--note", "mine", "--priority", "-3"]).good();
    let tagged: Value = serde_json::from_str(&tagged).unwrap();
    assert_eq!((&tagged["labels"]["grant"], &tagged["note"], &tagged["priority"]), (&"17".into(), &"mine".into(), &(-3).into()));
    assert_eq!(cli(&["runs", "--label", "team=red"]).good().lines().count(), 4);
    assert_eq!(cli(&["runs", "--state", "finished"]).good(), "");
    for (arguments, word) in [(["runs", "--state", "odd"], "--state 'odd'"), (["tag", &all[1], "--note="], "")] {
        let outcome = cli(&arguments);
        assert_eq!(outcome.code, Some(if word.is_empty() { 0 } else { 2 }), "{}", outcome.stderr);
        assert!(outcome.stderr.contains(word), "{}", outcome.stderr);
    }
    assert_eq!(cli(&["tag", &all[1]]).code, Some(2));
    assert!(cli(&["tag", &all[1], "--label", "a b=c"]).stderr.contains("--labels: key 'a b'"));
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_beyond_the_limit_of_a_connection_are_refused_until_one_ends() {
    let (_folder, coordinator) = alone(&["--streams-limit=3"]);
    let mut runs = coordinator.runs();
    let run_id = runs.create_run(request("", 0, "red")).await.unwrap().into_inner().run.unwrap().run_id;
    let watch = || WatchRunRequest { run_id: run_id.clone(), from_event: 0 };
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(runs.watch_run(watch()).await.unwrap());
    }
    let refused = runs.watch_run(watch()).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    assert!(refused.message().contains("streams") && refused.get_details_retry_info().is_some(), "{refused:?}");
    coordinator.runs().watch_run(watch()).await.expect("another connection has streams of its own");
    open.pop();
    // The coordinator hears of it a moment later.
    while runs.watch_run(watch()).await.is_err() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn watchers_beyond_the_limit_are_refused_until_one_leaves() {
    let (_folder, coordinator) = alone(&["--watchers-limit=1"]);
    let mut runs = coordinator.runs();
    let run_id = runs.create_run(request("", 0, "red")).await.unwrap().into_inner().run.unwrap().run_id;
    let watch = || WatchRunRequest { run_id: run_id.clone(), from_event: 0 };
    let first = runs.watch_run(watch()).await.unwrap();
    let second = runs.watch_run(watch()).await.unwrap_err();
    assert_eq!(second.code(), Code::ResourceExhausted);
    assert!(second.message().contains("1 are the most") && second.get_details_retry_info().is_some(), "{second:?}");
    drop(first);
    // The coordinator hears of it a moment later.
    while runs.watch_run(watch()).await.is_err() {
        tokio::task::yield_now().await;
    }
}

/// Who has no token cannot take the places of those who have one.
#[tokio::test(flavor = "multi_thread")]
async fn questions_about_health_that_never_come_keep_nobody_out() {
    use tonic_health::pb::HealthCheckRequest;
    let (_folder, coordinator) = alone(&["--requests-limit=2"]);
    crate::stack::until_serving(coordinator.channel()).await;
    let mut waiting = Vec::new();
    for _ in 0..20 {
        let mut client = tonic::client::Grpc::new(coordinator.channel());
        client.ready().await.unwrap();
        let path = http::uri::PathAndQuery::from_static("/grpc.health.v1.Health/Check");
        waiting.push(tokio::spawn(async move {
            let never = tonic::Request::new(tokio_stream::pending::<HealthCheckRequest>());
            let codec = tonic_prost::ProstCodec::<HealthCheckRequest, tonic_health::pb::HealthCheckResponse>::default();
            client.streaming(never, path, codec).await.map(drop)
        }));
    }
    let mut runs = coordinator.runs();
    for _ in 0..20 {
        runs.list_runs(ListRunsRequest::default()).await.unwrap();
    }
    for one in waiting {
        assert!(one.await.unwrap().is_err(), "it is not waited for without end");
    }
}

/// The second run comes with a higher priority and overtakes the first between two epochs.
#[tokio::test(flavor = "multi_thread")]
async fn runs_of_a_higher_priority_come_first() {
    let stack = Stack::start();
    let mut runs = stack.runs();
    let low = create(&mut runs, spec(2)).await.run_id;
    watch_until(&mut runs, &low, is_phase(0, "extract")).await;
    let high = runs.create_run(request("", 5, "red")).await.unwrap().into_inner().run.unwrap().run_id;
    watch_until(&mut runs, &high, has_ended).await;
    let get = GetRunRequest { run_id: low.clone() };
    let waiting = runs.get_run(get.clone()).await.unwrap().into_inner().run.unwrap();
    assert_eq!(waiting.epochs_done, 1, "its first epoch was under way, its second comes after the other run");
    watch_until(&mut runs, &low, has_ended).await;
    let deepest = UpdateRunRequest { run_id: low, priority: Some(-1001), ..Default::default() };
    assert_eq!(runs.update_run(deepest).await.unwrap_err().code(), Code::InvalidArgument);
}

/// With stubs that Python makes of `proto/`, and with no file of ours at all.
#[test]
fn python_clients_create_watch_pause_and_cancel_runs() {
    let Workers { volume, workers } = Stack::workers_only(1);
    let coordinator = Service::start("coordinator", volume.path(), &worker_flags(&workers));
    let proto = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto");
    let images = spec(1).images;
    python("client.py", [Path::new(&coordinator.address()), &proto, Path::new(&images)]);
    assert!(volume.path().join("runs/run-0001/epochs/0000/epoch.json").is_file(), "{}", text(volume.path()));
}
