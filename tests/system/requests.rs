//! Requests that no client of ours would send, to every method of every service: each is answered or refused with a word,
//! nothing panics, nothing hangs, and memory stays bounded.

use crate::stack::{Service, Stack, create, spec, until_serving};
use deepcluster_proto::v1::clusterer_client::ClustererClient;
use deepcluster_proto::v1::extractor_client::ExtractorClient;
use deepcluster_proto::v1::inference_client::InferenceClient;
use deepcluster_proto::v1::input_image::Source;
use deepcluster_proto::v1::runs_client::RunsClient;
use deepcluster_proto::v1::trainer_client::TrainerClient;
use deepcluster_proto::v1::*;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use std::collections::HashMap;
use std::time::Duration;
use tonic::{Code, Request, Response, Status, Streaming};

/// Most memory that a service may hold after all of it, in kB. libtorch alone takes a few hundred MB.
const MOST_MEMORY: u64 = 1_500_000;

/// Requests a method; `make chaos` asks for many more.
pub fn cases() -> usize {
    std::env::var("CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(150)
}

pub fn text_strategy() -> impl Strategy<Value = String> {
    let nasty = [
        "",
        ".",
        "..",
        "../../etc/passwd",
        "/etc/passwd",
        "/",
        "a/../b",
        "a//b",
        "a\0b",
        "runs",
        "runs/run-0001",
        "link-out/x",
        "no/such",
        "\u{202e}",
        "run-0001",
        "-x",
        "cuda:99",
        "cuda:-1",
        "nan",
    ];
    prop_oneof![proptest::sample::select(nasty.to_vec()).prop_map(str::to_owned), ".{0,40}", "[a-z0-9/.-]{1,200}"]
}

pub fn number<T: Arbitrary + Clone + From<u8> + 'static>(most: T) -> impl Strategy<Value = T> {
    prop_oneof![Just(T::from(0)), Just(T::from(1)), Just(T::from(2)), Just(most), any::<T>()]
}

pub fn real() -> impl Strategy<Value = f64> {
    prop_oneof![any::<f64>(), Just(f64::NAN), Just(f64::INFINITY), Just(-1.0), Just(0.0), Just(0.5), Just(1e308)]
}

pub fn file() -> impl Strategy<Value = Option<File>> {
    let file = (text_strategy(), number(u64::MAX), prop_oneof![Just("0".repeat(64)), ".{0,70}"]);
    proptest::option::weighted(0.8, file.prop_map(|(path, bytes, blake3)| File { path, bytes, blake3 }))
}

pub fn network() -> impl Strategy<Value = Option<Network>> {
    let network = (any::<i32>(), 0..6_i32, number(u32::MAX), any::<bool>(), text_strategy(), 0..5_i32, file()).prop_map(
        |(odd, architecture, image_size, sobel, device, precision, checkpoint)| Network {
            cache_side: image_size.rotate_left(odd as u32 % 32),
            architecture: if odd % 5 == 0 { odd } else { architecture },
            image_size,
            sobel,
            device,
            precision,
            checkpoint,
        },
    );
    proptest::option::weighted(0.8, network)
}

pub fn cached() -> impl Strategy<Value = Option<CachedShard>> {
    let cached = (text_strategy(), number(u64::MAX)).prop_map(|(path, first_image)| CachedShard { path, first_image });
    proptest::option::weighted(0.5, cached)
}

pub fn images() -> impl Strategy<Value = Option<ImageList>> {
    proptest::option::weighted(0.8, (text_strategy(), file()).prop_map(|(root, list)| ImageList { root, list }))
}

/// Images that are none, by paths that lead nowhere, or from nowhere.
fn input_images() -> impl Strategy<Value = Vec<InputImage>> {
    let source = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..300).prop_map(|content| Some(Source::Content(content))),
        text_strategy().prop_map(|path| Some(Source::Path(path.into_bytes()))),
        Just(None::<Source>),
    ];
    let image = (".{0,9}", source).prop_map(|(id, source)| InputImage { id, source });
    proptest::collection::vec(image, 0..4)
}

/// Specs that never start a run: their folder is not there.
fn run_spec() -> impl Strategy<Value = Option<RunSpec>> {
    let numbers = (number(u32::MAX), number(u32::MAX), any::<i32>(), number(u32::MAX), number(u32::MAX), number(u32::MAX));
    let others = (real(), proptest::option::of(real()), real(), proptest::option::of(real()), text_strategy(), text_strategy());
    let spec = (numbers, others, text_strategy()).prop_map(|(numbers, others, images)| RunSpec {
        images: format!("no-such-folder/{images}"),
        k: numbers.0,
        epochs: numbers.1,
        architecture: numbers.2,
        image_size: numbers.3,
        batch: numbers.4,
        pca: numbers.5,
        learning_rate: others.0,
        weight_decay: others.1,
        reassign: others.2,
        max_skipped: others.3,
        device: others.4,
        checkpoint_every: others.5,
        ..RunSpec::default()
    });
    proptest::option::weighted(0.9, spec)
}

/// A value of a strategy.
pub fn any_of<T: std::fmt::Debug>(runner: &mut TestRunner, strategy: &impl Strategy<Value = T>) -> T {
    strategy.new_tree(runner).unwrap().current()
}

/// An answer or a refusal comes in time, and a refusal says something.
async fn judge<T>(what: &str, call: impl Future<Output = Result<Response<T>, Status>>) -> Option<T> {
    let answer = tokio::time::timeout(Duration::from_secs(30), call).await.unwrap_or_else(|_| panic!("{what}: no answer"));
    match answer {
        Ok(answer) => Some(answer.into_inner()),
        Err(status) => {
            refusal(what, &status);
            None
        }
    }
}

fn refusal(what: &str, status: &Status) {
    let expected = [
        Code::InvalidArgument,
        Code::NotFound,
        Code::FailedPrecondition,
        Code::DataLoss,
        Code::ResourceExhausted,
        Code::OutOfRange,
    ];
    assert!(expected.contains(&status.code()) && !status.message().is_empty(), "{what}: {status:?}");
}

/// Reads a worker's answer to its end.
pub async fn judge_stream<T>(what: &str, call: impl Future<Output = Result<Response<Streaming<T>>, Status>>) {
    let Some(mut stream) = judge(what, call).await else { return };
    loop {
        match tokio::time::timeout(Duration::from_secs(30), stream.message()).await {
            Err(_) => panic!("{what}: the stream does not go on"),
            Ok(Ok(Some(_))) => {}
            Ok(Ok(None)) => return,
            Ok(Err(status)) => return refusal(what, &status),
        }
    }
}

pub async fn still_well(service: &mut Service) {
    assert!(!service.has_died(), "{service:?}");
    until_serving(service.channel()).await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", service.child.id())).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kilobytes: u64 = resident.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kilobytes < MOST_MEMORY, "{service:?} holds {kilobytes} kB");
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_requests_to_workers_are_refused() {
    let mut stack = Stack::start();
    std::os::unix::fs::symlink("/etc", stack.volume.path().join("link-out")).unwrap();
    // Before that, it would only say so.
    until_serving(stack.workers[0].channel()).await;
    let mut runner = TestRunner::deterministic();
    let [extractor, clusterer, trainer] = [0, 1, 2].map(|n| stack.workers[n].channel());
    let (mut extractor, mut clusterer) = (ExtractorClient::new(extractor), ClustererClient::new(clusterer));
    let mut trainer = TrainerClient::new(trainer);
    let (text, counts) = (text_strategy(), (number(u32::MAX), number(u32::MAX), number(u32::MAX), number(u64::MAX)));
    for _ in 0..cases() {
        let (epoch, one, other, seed) = any_of(&mut runner, &counts);
        let (run_id, output) = (any_of(&mut runner, &text), any_of(&mut runner, &text));
        let features: Vec<File> = (0..3).filter_map(|_| any_of(&mut runner, &file())).collect();
        let request = ExtractRequest {
            run_id: run_id.clone(),
            epoch,
            shard: one,
            images: any_of(&mut runner, &images()),
            first_image: seed,
            n_images: u64::from(other),
            network: any_of(&mut runner, &network()),
            seed,
            batch: one,
            feature_dtype: (other % 9) as i32,
            output: output.clone(),
            digests: any_of(&mut runner, &file()),
            digests_output: any_of(&mut runner, &text),
            cache: any_of(&mut runner, &cached()),
            cache_output: any_of(&mut runner, &text),
            layer: any_of(&mut runner, &text),
            values: other,
            regions_side: one % 7,
        };
        judge_stream(&format!("{request:?}"), extractor.extract(request.clone())).await;
        let request = EmbedRequest {
            network: any_of(&mut runner, &network()),
            seed,
            images: any_of(&mut runner, &input_images()),
            feature_dtype: (other % 9) as i32,
            whiten: any_of(&mut runner, &file()),
            centroids: any_of(&mut runner, &file()),
        };
        judge(&format!("{request:?}"), extractor.embed(request.clone())).await;
        let request = ClusterRequest {
            run_id: run_id.clone(),
            epoch,
            images: any_of(&mut runner, &file()),
            features: features.clone(),
            k: one,
            pca: other,
            iterations: one,
            seed,
            output: output.clone(),
            whiten: any_of(&mut runner, &file()),
            centroids: any_of(&mut runner, &file()),
            device: any_of(&mut runner, &text),
            clustering: (other % 5) as i32,
        };
        judge_stream(&format!("{request:?}"), clusterer.cluster(request.clone())).await;
        let (whiten, centroids) = (any_of(&mut runner, &file()), any_of(&mut runner, &file()));
        let device = any_of(&mut runner, &text);
        let request = AssignRequest { features, whiten, centroids, output: output.clone(), device };
        judge_stream(&format!("{request:?}"), clusterer.assign(request.clone())).await;
        let request = TrainRequest {
            run_id,
            epoch,
            images: any_of(&mut runner, &images()),
            labels: any_of(&mut runner, &file()),
            k: one,
            network: any_of(&mut runner, &network()),
            seed,
            batch: other,
            learning_rate: any_of(&mut runner, &real()),
            momentum: any_of(&mut runner, &real()),
            weight_decay: any_of(&mut runner, &real()),
            reassign: any_of(&mut runner, &real()),
            output,
            save_every: any_of(&mut runner, &text),
            save_to: any_of(&mut runner, &text),
            saved: any_of(&mut runner, &file()),
            retry: one,
            cache: (0..2).filter_map(|_| any_of(&mut runner, &cached())).collect(),
            digests: vec![DigestsOfShard { file: any_of(&mut runner, &file()), first_image: seed }],
            lineage: any_of(&mut runner, &file()),
        };
        judge_stream(&format!("{request:?}"), trainer.train(request.clone())).await;
    }
    println!("{} requests to each of 5 methods", cases());
    for worker in &mut stack.workers {
        still_well(worker).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_requests_to_the_coordinator_are_refused() {
    let mut stack = Stack::start();
    let mut runner = TestRunner::deterministic();
    let (mut runs, mut inference) = (stack.runs(), InferenceClient::new(stack.coordinator.channel()));
    let (text, spec) = (text_strategy(), run_spec());
    let labels = |runner: &mut TestRunner| HashMap::from([(any_of(runner, &text), any_of(runner, &text))]);
    for _ in 0..cases() {
        let request = CreateRunRequest {
            spec: any_of(&mut runner, &spec),
            request_id: any_of(&mut runner, &text),
            priority: any_of(&mut runner, &any::<i32>()),
            labels: labels(&mut runner),
            note: any_of(&mut runner, &text),
        };
        // A spec without a folder would be a run on all images.
        if request.spec.is_some() {
            assert!(judge(&format!("{request:?}"), runs.create_run(request.clone())).await.is_none());
        }
        let run_id = any_of(&mut runner, &text);
        judge("GetRun", runs.get_run(GetRunRequest { run_id: run_id.clone() })).await;
        judge("PauseRun", runs.pause_run(PauseRunRequest { run_id: run_id.clone() })).await;
        judge("ResumeRun", runs.resume_run(ResumeRunRequest { run_id: run_id.clone() })).await;
        judge("CancelRun", runs.cancel_run(CancelRunRequest { run_id: run_id.clone() })).await;
        let page_size = any_of(&mut runner, &number(u32::MAX));
        let list = ListRunsRequest {
            states: vec![any_of(&mut runner, &any::<i32>())],
            labels: labels(&mut runner),
            page_size,
            page_token: any_of(&mut runner, &text),
        };
        judge("ListRuns", runs.list_runs(list)).await;
        let update = UpdateRunRequest {
            run_id: run_id.clone(),
            priority: Some(any_of(&mut runner, &any::<i32>())),
            labels: Some(Labels { labels: labels(&mut runner) }),
            note: Some(any_of(&mut runner, &text)),
        };
        judge("UpdateRun", runs.update_run(update)).await;
        let from_event = any_of(&mut runner, &number(u64::MAX));
        judge_stream("WatchRun", runs.watch_run(WatchRunRequest { run_id: run_id.clone(), from_event })).await;
        let paths = (0..3).map(|_| any_of(&mut runner, &text).into_bytes()).collect();
        judge("AssignImages", runs.assign_images(AssignImagesRequest { run_id: run_id.clone(), paths })).await;
        let epoch = any_of(&mut runner, &proptest::option::of(number(u32::MAX)));
        let images = any_of(&mut runner, &input_images());
        let request = InferenceEmbedRequest { run_id: run_id.clone(), epoch, whiten: page_size % 2 == 0, images: images.clone() };
        judge("Embed", inference.embed(request)).await;
        let request = InferenceAssignRequest { run_id: run_id.clone(), epoch, images: images.clone() };
        judge("Assign", inference.assign(request)).await;
        let message =
            InferenceEmbedStreamRequest { run_id: run_id.clone(), epoch, whiten: page_size % 2 == 0, images: images.clone() };
        judge_stream("EmbedStream", inference.embed_stream(tokio_stream::iter([message.clone(), message]))).await;
        let message = InferenceAssignStreamRequest { run_id, epoch, images };
        judge_stream("AssignStream", inference.assign_stream(tokio_stream::iter([message.clone(), message]))).await;
    }
    println!("{} requests to each of 13 methods", cases());
    still_well(&mut stack.coordinator).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn huge_messages_and_watchers_that_never_read_are_survived() {
    const WATCHERS: usize = 10_000;
    let mut stack = Stack::with(1, &["--watchers-limit=10001"]);
    let mut runs = stack.runs();
    let huge = RunSpec { images: "x".repeat(100_000_000), ..RunSpec::default() };
    let refused = runs.create_run(CreateRunRequest { spec: Some(huge), ..CreateRunRequest::default() }).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    assert!(refused.message().contains("too large"), "{refused:?}");

    let run_id = create(&mut stack.runs(), spec(1)).await.run_id;
    let mut open = Vec::with_capacity(WATCHERS);
    for _ in 0..WATCHERS.div_ceil(100) {
        let mut connection = RunsClient::connect(format!("http://{}", stack.coordinator.address())).await.unwrap();
        for _ in 0..100 {
            let request = Request::new(WatchRunRequest { run_id: run_id.clone(), from_event: 0 });
            open.push(connection.watch_run(request).await.unwrap());
        }
    }
    assert_eq!(open.len(), WATCHERS);
    crate::stack::watch_until(&mut stack.runs(), &run_id, crate::stack::has_ended).await;
    println!("the run has ended beside {} watchers that never read", open.len());
    still_well(&mut stack.coordinator).await;
}
