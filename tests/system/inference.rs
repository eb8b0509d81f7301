//! Embeddings and clusters over the API: the run's own answers however one asks, in batches, from whoever is alive.

use crate::security::bearer;
use crate::stack::{Service, Stack, create, has_ended, spec, watch_until};
use crate::support::{pictures, python, text};
use crate::watching::{free_port, numbers, value};
use deepcluster_proto::v1::image_answer::Outcome;
use deepcluster_proto::v1::inference_client::InferenceClient;
use deepcluster_proto::v1::input_image::Source;
use deepcluster_proto::v1::*;
use deepcluster_volume::npy;
use nix::sys::signal::Signal;
use std::collections::HashMap;
use std::path::Path;
use tonic::Code;
use tonic::transport::Channel;
use tonic_types::StatusExt;

/// Images of the run's batches. Asked for in the same batches, the network gives the same features to the last bit, so that
/// nothing but whitening and comparison can differ.
const BATCH: usize = 32;

/// A run on a stack, once it has ended.
async fn finished(stack: &Stack, spec: RunSpec) -> String {
    let run = create(&mut stack.runs(), spec).await.run_id;
    watch_until(&mut stack.runs(), &run, has_ended).await;
    run
}

fn client(coordinator: &Service) -> InferenceClient<Channel> {
    InferenceClient::new(coordinator.channel())
}

/// Path below the folder of pictures, cluster and distance of every image of a run.
fn labels(volume: &Path, run: &str) -> Vec<(String, u32, f32)> {
    let csv = std::fs::read_to_string(volume.join("runs").join(run).join("labels.csv")).unwrap();
    let row = |line: &str| {
        let parts: Vec<&str> = line.split(',').collect();
        (parts[0].to_owned(), parts[1].parse().unwrap(), parts[2].parse().unwrap())
    };
    csv.lines().skip(1).map(row).collect()
}

/// A picture as the services know it.
fn by_path(picture: &str) -> InputImage {
    let below_root = Path::new(pictures().file_name().unwrap()).join(picture);
    InputImage { id: picture.to_owned(), source: Some(Source::Path(text(&below_root).into())) }
}

fn by_content(picture: &str) -> InputImage {
    let content = std::fs::read(pictures().join(picture)).unwrap();
    InputImage { id: picture.to_owned(), source: Some(Source::Content(content)) }
}

fn request(run: &str, images: Vec<InputImage>) -> InferenceAssignRequest {
    InferenceAssignRequest { run_id: run.to_owned(), epoch: None, images }
}

/// A run whose features do not depend on how many images are in a batch, as far as f32 allows.
fn precise() -> RunSpec {
    RunSpec { precision: Precision::F32.into(), ..spec(1) }
}

/// Cluster and distance of an answer.
fn assigned(answer: &ImageAnswer) -> (u32, f32) {
    match &answer.outcome {
        Some(Outcome::Assigned(assigned)) => (assigned.cluster, assigned.distance),
        other => panic!("{} has no cluster: {other:?}", answer.id),
    }
}

/// Cluster and distance of all images of a stream, by their ids.
async fn streamed(
    inference: &mut InferenceClient<Channel>,
    run: &str,
    images: &[InputImage],
    n: usize,
) -> HashMap<String, (u32, f32)> {
    let message = |(number, images): (usize, &[InputImage])| {
        // Only the first one names the run.
        let run_id = if number == 0 { run.to_owned() } else { String::new() };
        InferenceAssignStreamRequest { run_id, epoch: None, images: images.to_vec() }
    };
    let messages: Vec<_> = images.chunks(n).enumerate().map(message).collect();
    let mut answers = inference.assign_stream(tokio_stream::iter(messages)).await.unwrap().into_inner();
    let mut all = HashMap::new();
    while let Some(message) = answers.message().await.unwrap() {
        for answer in &message.images {
            assert!(all.insert(answer.id.clone(), assigned(answer)).is_none(), "{} was answered twice", answer.id);
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn clusters_are_those_of_the_run_however_one_asks() {
    let stack = Stack::start();
    let run = finished(&stack, spec(2)).await;
    let labels = labels(stack.volume.path(), &run);
    assert_eq!(labels.len(), 200);
    let mut inference = client(&stack.coordinator);
    let same = |path: &str, (cluster, distance): (u32, f32), expected: (u32, f32)| {
        assert_eq!(cluster, expected.0, "{path}");
        assert!((distance - expected.1).abs() < 1e-4, "{path}: {distance}, not {}", expected.1);
    };
    for input in [by_path, by_content] {
        let images: Vec<InputImage> = labels.iter().map(|(path, _, _)| input(path)).collect();
        for (some, expected) in images.chunks(BATCH).zip(labels.chunks(BATCH)) {
            let answer = inference.assign(request(&run, some.to_vec())).await.unwrap().into_inner();
            assert_eq!((answer.epoch, answer.images.len()), (1, some.len()));
            for (answer, (path, cluster, distance)) in answer.images.iter().zip(expected) {
                assert_eq!(&answer.id, path);
                same(path, assigned(answer), (*cluster, *distance));
            }
        }
        let all = streamed(&mut inference, &run, &images, BATCH).await;
        assert_eq!(all.len(), labels.len());
        for (path, cluster, distance) in &labels {
            same(path, all[path], (*cluster, *distance));
        }
    }

    // An epoch that is named: the first, whose network nobody has trained.
    let first = stack.volume.path().join("runs").join(&run).join("epochs/0000");
    let clusters = npy::read_i32(&first.join("labels.npy")).unwrap();
    let (_, distances) = npy::read_f32(&first.join("distances.npy")).unwrap();
    let expected: Vec<(u32, f32)> = clusters.iter().map(|cluster| *cluster as u32).zip(distances).collect();
    for (some, expected) in labels.chunks(BATCH).zip(expected.chunks(BATCH)) {
        let images = some.iter().map(|(path, _, _)| by_path(path)).collect();
        let answer = inference.assign(InferenceAssignRequest { epoch: Some(0), ..request(&run, images) }).await.unwrap();
        let answer = answer.into_inner();
        assert_eq!(answer.epoch, 0);
        for (answer, expected) in answer.images.iter().zip(expected) {
            same(&answer.id, assigned(answer), *expected);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn images_of_many_requests_share_batches() {
    const REQUESTS: usize = 64;
    let port = free_port();
    let stack = Stack::with(1, &[&format!("--metrics=127.0.0.1:{port}")]);
    let run = finished(&stack, precise()).await;
    let labels = labels(stack.volume.path(), &run);
    let mut inference = client(&stack.coordinator);
    // The network is loaded once the first answer is there.
    inference.assign(request(&run, vec![by_path(&labels[0].0)])).await.unwrap();
    let count = |name: &str| value(&numbers(port), name);
    let before = [count("deepcluster_inference_images_total"), count("deepcluster_inference_batches_total")];
    assert_eq!(before, [1.0, 1.0]);
    let mut asked = Vec::new();
    for (path, cluster, _) in labels.iter().take(REQUESTS) {
        let (mut inference, question, cluster) = (inference.clone(), request(&run, vec![by_content(path)]), *cluster);
        asked.push(tokio::spawn(async move {
            let answer = inference.assign(question).await.unwrap().into_inner();
            assert_eq!(answer.images.len(), 1);
            assigned(&answer.images[0]).0 == cluster
        }));
    }
    let mut n_same = 0;
    for one in asked {
        n_same += usize::from(one.await.unwrap());
    }
    // Batches of another size round differently; between two clusters, that may decide.
    assert!(n_same + 2 >= REQUESTS, "{n_same} of {REQUESTS}");
    let images = count("deepcluster_inference_images_total") - before[0];
    let batches = count("deepcluster_inference_batches_total") - before[1];
    println!("{images} images of as many requests in {batches} batches");
    assert_eq!(images, REQUESTS as f64);
    assert!(batches <= images / 2.0, "{batches} batches");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_extractor_that_dies_in_the_middle_of_a_stream_loses_nothing() {
    const ROUNDS: usize = 10;
    let stack = Stack::with(2, &[]);
    let run = finished(&stack, spec(1)).await;
    let labels = labels(stack.volume.path(), &run);
    let image = |round: usize, path: &str| InputImage { id: format!("{round} {path}"), ..by_path(path) };
    let images: Vec<InputImage> =
        (0..ROUNDS).flat_map(|round| labels.iter().map(move |(path, _, _)| image(round, path))).collect();
    let messages: Vec<_> = images
        .chunks(16)
        .map(|images| InferenceAssignStreamRequest { run_id: run.clone(), epoch: None, images: images.to_vec() })
        .collect();
    let mut answers = client(&stack.coordinator).assign_stream(tokio_stream::iter(messages)).await.unwrap().into_inner();
    let mut seen: HashMap<String, (u32, f32)> = HashMap::new();
    let mut is_killed = false;
    while let Some(message) = answers.message().await.unwrap() {
        for answer in &message.images {
            assert!(seen.insert(answer.id.clone(), assigned(answer)).is_none(), "{} was answered twice", answer.id);
        }
        if !is_killed && seen.len() >= images.len() / 4 {
            is_killed = true;
            stack.workers[0].signal(Signal::SIGKILL);
        }
    }
    assert!(is_killed && images.iter().all(|image| seen.contains_key(&image.id)), "{} of {}", seen.len(), images.len());
    for extractor in [&stack.workers[0], &stack.workers[3]] {
        assert!(extractor.log().contains("a network is loaded for images"), "it has done nothing: {}", extractor.log());
    }
    assert!(stack.coordinator.log().contains("goes to another extractor"), "{}", stack.coordinator.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn images_that_cannot_be_read_get_a_reason_and_the_others_their_answers() {
    let stack = Stack::start();
    let run = finished(&stack, precise()).await;
    let (picture, cluster, _) = labels(stack.volume.path(), &run).remove(0);
    let mut inference = client(&stack.coordinator);
    let content = std::fs::read(pictures().join(&picture)).unwrap();
    let given = |id: &str, source: Source| InputImage { id: id.to_owned(), source: Some(source) };
    let mut images = vec![
        given("noise", Source::Content((0..5000_u32).map(|at| (at * at / 7) as u8).collect())),
        given("cut", Source::Content(content[..content.len() / 2].to_vec())),
        given("empty", Source::Content(Vec::new())),
        given("large", Source::Content(vec![0; 13 << 20])),
        given("missing", Source::Path(b"no/such.png".to_vec())),
        given("folder", Source::Path(pictures().file_name().unwrap().as_encoded_bytes().to_vec())),
    ];
    // Bytes in the middle that are others: read or refused, but answered.
    for at in 0..20 {
        let mut content = content.clone();
        let n = content.len();
        content[(at * 7919 + 13) % n] ^= 0x5a;
        images.push(given(&format!("changed {at}"), Source::Content(content)));
    }
    images.push(by_content(&picture));
    let n = images.len();
    let answer = inference.assign(request(&run, images)).await.unwrap().into_inner();
    assert_eq!(answer.images.len(), n);
    for answer in &answer.images[..6] {
        let Some(Outcome::Skipped(reason)) = &answer.outcome else { panic!("{answer:?}") };
        assert!(!reason.is_empty(), "{answer:?}");
    }
    let ids: Vec<&str> = answer.images[..6].iter().map(|answer| answer.id.as_str()).collect();
    assert_eq!(ids, ["noise", "cut", "empty", "large", "missing", "folder"]);
    assert!(answer.images.iter().all(|answer| answer.outcome.is_some()));
    assert_eq!(assigned(answer.images.last().unwrap()).0, cluster);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_answered_is_refused_with_a_sentence() {
    let stack = Stack::start();
    let run = finished(&stack, RunSpec { keep_epochs: 2, no_keep_best: true, ..spec(4) }).await;
    let picture = labels(stack.volume.path(), &run).remove(0).0;
    let mut inference = client(&stack.coordinator);
    let image = || vec![by_path(&picture)];
    let path = |path: &str| vec![InputImage { id: String::new(), source: Some(Source::Path(path.into())) }];
    let of_epoch = |epoch: u32| InferenceAssignRequest { epoch: Some(epoch), ..request(&run, image()) };
    for (question, code, word) in [
        (request("run-0099", image()), Code::NotFound, "run-0099"),
        (request("../x", image()), Code::InvalidArgument, "../x"),
        (of_epoch(7), Code::FailedPrecondition, "epoch 7"),
        (of_epoch(4), Code::FailedPrecondition, "epoch 4"),
        (of_epoch(1), Code::FailedPrecondition, "epoch 1 of run"),
        (of_epoch(2), Code::FailedPrecondition, "that of epoch 1, which is no longer on the volume"),
        (request(&run, Vec::new()), Code::InvalidArgument, "images"),
        (request(&run, vec![InputImage::default()]), Code::InvalidArgument, "neither content nor path"),
        (request(&run, path("../../etc/passwd")), Code::InvalidArgument, "number 0 (''): path '../../etc/passwd'"),
        (request(&run, path("/etc/passwd")), Code::InvalidArgument, "/etc/passwd"),
        (request(&run, path("")), Code::InvalidArgument, "images"),
        (request(&run, vec![by_path(&picture); 129]), Code::ResourceExhausted, "128"),
    ] {
        let status = inference.assign(question).await.unwrap_err();
        assert_eq!(status.code(), code, "{status:?}");
        assert!(status.message().contains(word), "'{word}' is missing in: {}", status.message());
    }
    let huge = InputImage { id: String::new(), source: Some(Source::Content(vec![0; 17 << 20])) };
    let status = inference.assign(request(&run, vec![huge])).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    let wrong = inference.assign(request(&run, path("../x"))).await.unwrap_err();
    assert_eq!(wrong.get_details_bad_request().unwrap().field_violations[0].field, "images");
    inference.assign(of_epoch(3)).await.unwrap();

    // The network that came out of the last epoch embeds, and nobody has clustered what it makes.
    let embed = |whiten| InferenceEmbedRequest { run_id: run.clone(), epoch: Some(4), whiten, images: image() };
    assert_eq!(inference.embed(embed(false)).await.unwrap().into_inner().epoch, 4);
    assert_eq!(inference.embed(embed(true)).await.unwrap_err().code(), Code::FailedPrecondition);

    // A stream ends with the same words.
    let message = |run_id: &str, images| InferenceAssignStreamRequest { run_id: run_id.to_owned(), epoch: None, images };
    for (messages, code) in [
        (vec![message("run-0099", image())], Code::NotFound),
        (vec![message(&run, image()), message("", path("../x"))], Code::InvalidArgument),
    ] {
        let mut answers = inference.assign_stream(tokio_stream::iter(messages)).await.unwrap().into_inner();
        let status = loop {
            match answers.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ended well"),
                Err(status) => break status,
            }
        };
        assert_eq!(status.code(), code, "{status:?}");
    }
    let nothing = tokio_stream::iter(Vec::<InferenceAssignStreamRequest>::new());
    assert!(inference.assign_stream(nothing).await.unwrap().into_inner().message().await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_token_will_do() {
    let folder = tempfile::tempdir().unwrap();
    let volume = folder.path().join("volume");
    let mut flags = vec!["--extractors=127.0.0.1:1".to_owned()];
    for name in ["read", "write"] {
        let path = folder.path().join(name);
        deepcluster_volume::publish::publish_bytes(&path, format!("the-{name}-token\n").as_bytes()).unwrap();
        flags.push(format!("--{name}-token-file={}", text(&path)));
    }
    let coordinator = Service::start("coordinator", &volume, &flags);
    let mut inference = client(&coordinator);
    let question = || request("run-0001", vec![by_path("stripes/none.png")]);
    for (token, code) in [
        ("", Code::Unauthenticated),
        ("wrong", Code::Unauthenticated),
        // Let in, and told that there is no such run.
        ("the-read-token", Code::NotFound),
        ("the-write-token", Code::NotFound),
    ] {
        assert_eq!(inference.assign(bearer(question(), token)).await.unwrap_err().code(), code, "'{token}'");
        let message = InferenceEmbedStreamRequest { run_id: "run-0001".to_owned(), ..Default::default() };
        let status = match inference.embed_stream(bearer(tokio_stream::once(message), token)).await {
            Ok(answers) => answers.into_inner().message().await.unwrap_err(),
            Err(status) => status,
        };
        assert_eq!(status.code(), code, "'{token}'");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_python_client_embeds_two_images() {
    let stack = Stack::start();
    let run = finished(&stack, precise()).await;
    let labels = labels(stack.volume.path(), &run);
    let proto = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto");
    let [first, second] = [0, 100].map(|at| pictures().join(&labels[at].0));
    let root = pictures().parent().unwrap();
    let said = python("embed.py", [Path::new(&stack.coordinator.address()), &proto, Path::new(&run), root, &first, &second]);
    assert!(said.contains("two images are embedded"), "{said}");
}
