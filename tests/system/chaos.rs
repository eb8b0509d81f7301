//! Every fail point of every service, and kills at random moments: each ends in the bytes of an undisturbed run.
//!
//! The programs come from `target/chaos`, where `make chaos-programs` puts those with fail points.

use crate::recovery::assert_same;
use crate::stack::{Service, has_ended, watch_until};
use crate::support::{contents, pictures, text};
use deepcluster_proto::v1::runs_client::RunsClient;
use deepcluster_proto::v1::{Architecture, CreateRunRequest, GetRunRequest, ListRunsRequest, RunSpec, RunState};
use nix::sys::signal::Signal;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;
use tonic::transport::Channel;

const KINDS: [&str; 4] = ["extractor", "clusterer", "trainer", "coordinator"];

/// How many fail points the short walk visits; `make chaos` walks all (`CHAOS=all`).
const SHORT: usize = 24;

/// Small, and yet with several shards, saved training, and pruning of old epochs.
fn small(epochs: u32) -> RunSpec {
    RunSpec {
        images: format!("{}/stripes", pictures().file_name().unwrap().to_str().unwrap()),
        k: 3,
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
        device: "cpu".to_owned(),
        ..RunSpec::default()
    }
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
            let flags = match kind {
                "coordinator" => ["extractor", "clusterer", "trainer"]
                    .map(|kind| {
                        format!("--{}={}", if kind == "extractor" { "extractors" } else { kind }, services[kind].address())
                    })
                    .to_vec(),
                _ => Vec::new(),
            };
            services.insert(kind, Service::start_from(&programs(), kind, volume.path(), &flags, &environment(kind)));
        }
        Self { volume, services }
    }

    /// Creates the run, over the dead bodies of coordinators if need be.
    async fn create(&mut self, epochs: u32) -> String {
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
            let request = CreateRunRequest { spec: Some(small(epochs)), ..CreateRunRequest::default() };
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

/// Names and bytes of the epochs of a finished run, without times. A coordinator that died while it created the run may
/// have left the first name taken.
fn outcome(volume: &Path, run_id: &str) -> BTreeMap<String, Vec<u8>> {
    let mut files = contents(&volume.join("runs").join(run_id).join("epochs"));
    for (_, bytes) in files.iter_mut().filter(|(name, _)| name.ends_with("epoch.json")) {
        *bytes = String::from_utf8(std::mem::take(bytes)).unwrap().replace(run_id, "run").into_bytes();
    }
    files
}

/// The points that an undisturbed run passes, by service; and what comes out of it.
async fn undisturbed(epochs: u32) -> (Vec<(&'static str, String)>, BTreeMap<String, Vec<u8>>) {
    let notes = tempfile::tempdir().unwrap();
    let notes_of = |kind: &str| notes.path().join(kind);
    let mut chaos = Chaos::start(|kind| vec![("DC_STEPS".to_owned(), text(&notes_of(kind)).to_owned())]);
    let run_id = chaos.create(epochs).await;
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
    const EPOCHS: u32 = 3;
    let (mut points, expected) = undisturbed(EPOCHS).await;
    let n_points = points.len();
    assert!(n_points > 60, "{points:?}");
    points.shuffle(&mut random());
    if !all() {
        points.truncate(SHORT);
    }
    let (n_wanted, mut n_runs) = (points.len(), 0);
    while !points.is_empty() {
        n_runs += 1;
        let before = points.len();
        let (chaos, run_id) = crash_at(&mut points, EPOCHS).await;
        assert_same(&expected, &outcome(chaos.volume.path(), &run_id));
        assert!(points.len() < before, "never reached: {points:?}");
    }
    println!("{n_wanted} of {n_points} fail points walked in {n_runs} runs");
}

/// What a coordinator passes only when it first starts on a volume, or creates a run.
fn is_at_birth(point: &str) -> bool {
    point.ends_with(":reserve") || point.ends_with(":images.csv")
}

/// One run in which services die at as many of the points as they come to; those are taken off the list.
async fn crash_at(points: &mut Vec<(&'static str, String)>, epochs: u32) -> (Chaos, String) {
    let pick = |points: &[(&'static str, String)], kind: &str, at_birth: bool| {
        let fitting = |(of, point): &&(&'static str, String)| *of == kind && is_at_birth(point) == at_birth;
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
    let run_id = chaos.create(epochs).await;
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
    let (_, expected) = undisturbed(epochs).await;
    let mut random = random();
    let mut chaos = Chaos::start(|_| Vec::new());
    let run_id = chaos.create(epochs).await;
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
