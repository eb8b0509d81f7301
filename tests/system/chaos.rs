//! Every fail point of every service, and kills at random moments: each ends in the bytes of an undisturbed run.
//!
//! The programs come from `target/chaos`, where `make chaos-programs` puts those with fail points.

use crate::recovery::assert_same;
use crate::stack::{Service, has_ended, watch_until};
use crate::support::{contents, pictures, python, text};
use deepcluster_domain::Plan;
use deepcluster_domain::plan::Start;
use deepcluster_proto::v1::runs_client::RunsClient;
use deepcluster_proto::v1::{Architecture, Clustering, CreateRunRequest, GetRunRequest, ListRunsRequest, RunSpec, RunState};
use deepcluster_volume::tensors::{self, F32Tensor};
use nix::sys::signal::Signal;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;
use tempfile::TempDir;
use tonic::transport::Channel;

const KINDS: [&str; 4] = ["extractor", "clusterer", "trainer", "coordinator"];

/// How many fail points the short walk visits; `make chaos` walks all (`CHAOS=all`).
const SHORT: usize = 24;

/// How many fail points of each service the short walk of power iteration clustering visits.
const SHORT_OF_EACH: usize = 3;

/// A service and one of its fail points.
type Point = (&'static str, String);

/// Small, and yet with several shards, saved training, weights to start from, and pruning of old epochs.
fn small(epochs: u32, clustering: Clustering) -> RunSpec {
    // Power iteration clustering finds k itself; with more dimensions, twenty images would be equally far from each other.
    let (k, pca) = if clustering == Clustering::Pic { (0, 3) } else { (3, 0) };
    RunSpec {
        images: format!("{}/stripes", pictures().file_name().unwrap().to_str().unwrap()),
        k,
        pca,
        clustering: clustering.into(),
        seed: Some(11),
        epochs,
        architecture: Architecture::Resnet18.into(),
        image_size: 32,
        batch: 4,
        shard_images: 8,
        keep_epochs: 2,
        learning_rate: 0.002,
        checkpoint_every: "2".to_owned(),
        // The top layer then takes rows over by lineage.json, which has to survive as well.
        match_labels: true,
        init: weights(),
        device: "cpu".to_owned(),
        ..RunSpec::default()
    }
}

/// Weights of the small run's network, relative to the folder below which all images lie; made once.
fn weights() -> String {
    static FOLDER: LazyLock<TempDir> = LazyLock::new(|| {
        let folder = tempfile::tempdir_in(pictures().parent().unwrap()).unwrap();
        let mut random = ChaCha8Rng::seed_from_u64(3);
        let weights = Plan::new(deepcluster_domain::Architecture::ResNet18, 32, true).weights();
        let mut named = BTreeMap::new();
        for weight in &weights {
            let shape: Vec<usize> = weight.shape.iter().map(|n| *n as usize).collect();
            let mut value = || match weight.start {
                Start::Normal(std) => random.random_range(-1.0..1.0_f32) * std as f32,
                Start::Zero | Start::RunningMean => 0.0,
                Start::One | Start::RunningVar => 1.0,
            };
            let values: Vec<f32> = (0..shape.iter().product::<usize>()).map(|_| value()).collect();
            named.insert(weight.name.as_str(), F32Tensor { shape, values });
        }
        tensors::publish_f32(&folder.path().join("weights.safetensors"), &named).unwrap();
        folder
    });
    format!("{}/weights.safetensors", FOLDER.path().file_name().unwrap().to_str().unwrap())
}

/// Four services whose programs have fail points.
struct Chaos {
    volume: TempDir,
    services: BTreeMap<&'static str, Service>,
}

impl Chaos {
    /// `environment` is that of each service's first life.
    fn start(environment: impl Fn(&str) -> Vec<(String, String)>) -> Self {
        let volume = tempfile::tempdir().unwrap();
        let mut services: BTreeMap<&'static str, Service> = BTreeMap::new();
        for kind in KINDS {
            let flags: Vec<String> = match kind {
                "coordinator" => {
                    let workers = [("extractors", "extractor"), ("clusterer", "clusterer"), ("trainer", "trainer")];
                    let workers = workers.map(|(flag, kind)| format!("--{flag}={}", services[kind].address()));
                    workers.into_iter().chain(["--tensorboard".to_owned()]).collect()
                }
                _ => Vec::new(),
            };
            services.insert(kind, Service::start_from(&programs(), kind, volume.path(), &flags, &environment(kind)));
        }
        Self { volume, services }
    }

    /// Creates the run, over the dead bodies of coordinators if need be.
    async fn create(&mut self, spec: &RunSpec) -> String {
        loop {
            let coordinator = self.services.get_mut("coordinator").unwrap();
            if coordinator.has_died() {
                coordinator.restart();
            }
            // One that died while it created the run may have got as far as its record.
            let runs = patiently(self.coordinator().list_runs(ListRunsRequest::default())).await;
            if let Some(run) = runs.and_then(|runs| runs.runs.into_iter().next()) {
                return run.run_id;
            }
            let request = CreateRunRequest { spec: Some(spec.clone()), ..CreateRunRequest::default() };
            if let Some(answer) = patiently(self.coordinator().create_run(request)).await {
                return answer.run.unwrap().run_id;
            }
        }
    }

    fn coordinator(&self) -> RunsClient<Channel> {
        self.services["coordinator"].runs()
    }

    /// Has the run ended? False while nobody answers.
    async fn has_ended(&self, run_id: &str) -> bool {
        let request = GetRunRequest { run_id: run_id.to_owned() };
        let Some(answer) = patiently(self.coordinator().get_run(request)).await else { return false };
        let run = answer.run.unwrap();
        assert!(!matches!(run.state(), RunState::Failed | RunState::Paused), "{run:?}");
        run.state() == RunState::Finished
    }
}

/// The answer to a call, if one comes: a coordinator may die before it has accepted the connection.
async fn patiently<T>(call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>) -> Option<T> {
    tokio::time::timeout(Duration::from_secs(2), call).await.ok()?.ok().map(tonic::Response::into_inner)
}

fn programs() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let folder = test.ancestors().nth(3).unwrap().join("chaos");
    assert!(
        folder.join("deepcluster-trainer").is_file(),
        "{} has no programs; `make chaos-programs` makes them",
        folder.display()
    );
    folder
}

/// Names and bytes of what is left of a finished run, without times, and what TensorBoard reads. A coordinator that died while it
/// created the run may have left the first name taken.
fn outcome(volume: &Path, run_id: &str) -> BTreeMap<String, Vec<u8>> {
    let run = volume.join("runs").join(run_id);
    let mut files = contents(&run.join("epochs"));
    for (_, bytes) in files.iter_mut().filter(|(name, _)| name.ends_with("epoch.json")) {
        *bytes = String::from_utf8(std::mem::take(bytes)).unwrap().replace(run_id, "run").into_bytes();
    }
    files.insert("init.safetensors".to_owned(), std::fs::read(run.join("init.safetensors")).unwrap());
    files.extend(tensorboard(&run.join("tensorboard")));
    files
}

/// What TensorBoard reads in its files, by tag, without times; the projection as it is. No step of a tag is there twice.
fn tensorboard(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found: BTreeMap<String, Vec<u8>> = contents(folder);
    // Their times differ, and their names, which are made of times.
    found.retain(|name, _| name.starts_with('.') || !name.contains("tfevents"));
    let read: Value = serde_json::from_str(&python("tensorboard_reader.py", [folder])).unwrap();
    for kind in ["scalars", "histograms", "images"] {
        for (tag, values) in read[kind].as_object().unwrap() {
            let values = values.as_array().unwrap();
            let steps: Vec<i64> = values.iter().map(|value| value[0].as_i64().unwrap()).collect();
            assert!(steps.windows(2).all(|pair| pair[0] < pair[1]), "{tag} has steps {steps:?}");
            let said = if tag.starts_with("seconds/") { format!("{steps:?}") } else { read[kind][tag].to_string() };
            found.insert(format!("tensorboard/{kind}/{tag}"), said.into_bytes());
        }
    }
    assert!(found.contains_key("tensorboard/scalars/loss/train"), "{read}");
    found
}

/// The points that an undisturbed run passes, by service; and what comes out of it.
async fn undisturbed(spec: &RunSpec) -> (Vec<Point>, BTreeMap<String, Vec<u8>>) {
    let notes = tempfile::tempdir().unwrap();
    let notes_of = |kind: &str| notes.path().join(kind);
    let mut chaos = Chaos::start(|kind| vec![("DC_STEPS".to_owned(), text(&notes_of(kind)).to_owned())]);
    let run_id = chaos.create(spec).await;
    watch_until(&mut chaos.coordinator(), &run_id, has_ended).await;
    let mut points = BTreeSet::new();
    for kind in KINDS {
        let steps = std::fs::read_to_string(notes_of(kind)).unwrap();
        points.extend(steps.lines().map(|point| (kind, point.to_owned())));
    }
    (points.into_iter().collect(), outcome(chaos.volume.path(), &run_id))
}

fn all() -> bool {
    std::env::var("CHAOS").is_ok_and(|chaos| chaos == "all")
}

fn random() -> ChaCha8Rng {
    let seed = std::env::var("CHAOS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| rand::rng().random());
    println!("CHAOS_SEED={seed}");
    ChaCha8Rng::seed_from_u64(seed)
}

/// Each service is told of one fail point at a time, dies there, and is told of the next.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_at_any_fail_point_changes_nothing() {
    let spec = small(3, Clustering::Kmeans);
    let (mut points, expected) = undisturbed(&spec).await;
    assert!(points.len() > 60, "{points:?}");
    points.shuffle(&mut random());
    if !all() {
        points.truncate(SHORT);
    }
    walk(points, &spec, &expected).await;
}

/// The same for power iteration clustering, whose labels do not follow from the centroids that it saves.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_in_power_iteration_clustering_changes_nothing() {
    let spec = small(2, Clustering::Pic);
    let (mut points, expected) = undisturbed(&spec).await;
    let n_clusters = &expected["tensorboard/scalars/clusters/nonempty"];
    assert_ne!(n_clusters.as_slice(), b"[[0,1.0],[1,1.0]]", "with one cluster there is nothing to learn");
    points.shuffle(&mut random());
    if !all() {
        let mut taken: BTreeMap<&str, usize> = BTreeMap::new();
        points.retain(|(kind, _)| {
            let n = taken.entry(*kind).or_default();
            *n += 1;
            *n <= SHORT_OF_EACH
        });
    }
    walk(points, &spec, &expected).await;
}

/// Runs until services have died at all of these points; each run ends in the same bytes.
async fn walk(mut points: Vec<Point>, spec: &RunSpec, expected: &BTreeMap<String, Vec<u8>>) {
    let (n_points, mut n_runs) = (points.len(), 0);
    while !points.is_empty() {
        n_runs += 1;
        let before = points.len();
        let (chaos, run_id) = crash_at(&mut points, spec).await;
        assert_same(expected, &outcome(chaos.volume.path(), &run_id));
        assert!(points.len() < before, "never reached: {points:?}");
    }
    println!("{n_points} fail points walked in {n_runs} runs");
}

/// What a coordinator passes only when it first starts on a volume, or creates a run.
fn is_at_birth(point: &str) -> bool {
    [":reserve", ":images.csv", ":init.safetensors"].iter().any(|file| point.ends_with(file))
}

/// One run in which services die at as many of the points as they come to; those are taken off the list.
async fn crash_at(points: &mut Vec<Point>, spec: &RunSpec) -> (Chaos, String) {
    let pick = |points: &[Point], kind: &str, at_birth: bool| {
        let fitting = |(of, point): &&Point| *of == kind && is_at_birth(point) == at_birth;
        points.iter().find(fitting).map(|(_, point)| point.clone())
    };
    let arm = |point: &Option<String>| -> Vec<(String, String)> {
        point.iter().map(|point| ("FAILPOINTS".to_owned(), format!("{point}=return"))).collect()
    };
    let mut armed: BTreeMap<&'static str, String> = BTreeMap::new();
    for kind in KINDS {
        let first = pick(points, kind, true).or_else(|| pick(points, kind, false));
        armed.extend(first.map(|first| (kind, first)));
    }
    let mut chaos = Chaos::start(|kind| arm(&armed.get(kind).cloned()));
    let run_id = chaos.create(spec).await;
    if chaos.services["coordinator"].lives() > 1 {
        let reached = armed.remove("coordinator");
        points.retain(|(kind, point)| *kind != "coordinator" || Some(point) != reached.as_ref());
    } else if armed.get("coordinator").is_some_and(|point| is_at_birth(point)) {
        // It is not as it was in the undisturbed run: the run has been created without it.
        panic!("never reached: {armed:?}");
    }
    while !chaos.has_ended(&run_id).await {
        for (kind, service) in &mut chaos.services {
            if !service.has_died() {
                continue;
            }
            let reached = armed.remove(kind);
            points.retain(|(of, point)| of != kind || Some(point) != reached.as_ref());
            let next = pick(points, kind, false);
            service.restart_with(&arm(&next));
            armed.extend(next.map(|next| (*kind, next)));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // What was not reached for want of time goes to the end of the list.
    points.sort_by_key(|(kind, point)| armed.get(kind) == Some(point));
    (chaos, run_id)
}

/// SIGKILL to a random service, again and again, while one run goes on.
#[tokio::test(flavor = "multi_thread")]
async fn kills_at_random_moments_change_nothing() {
    let (n_kills, epochs) = if all() { (100, 12) } else { (30, 4) };
    let spec = small(epochs, Clustering::Kmeans);
    let (_, expected) = undisturbed(&spec).await;
    let mut random = random();
    let mut chaos = Chaos::start(|_| Vec::new());
    let run_id = chaos.create(&spec).await;
    let mut n_killed = 0;
    while !chaos.has_ended(&run_id).await {
        tokio::time::sleep(Duration::from_millis(random.random_range(10..400))).await;
        if n_killed < n_kills {
            let kind = *KINDS.choose(&mut random).unwrap();
            let service = chaos.services.get_mut(kind).unwrap();
            service.signal(Signal::SIGKILL);
            service.restart();
            n_killed += 1;
        }
    }
    println!("{n_killed} kills survived");
    assert_eq!(n_killed, n_kills, "the run ended before all of them");
    assert_same(&expected, &outcome(chaos.volume.path(), &run_id));
}
