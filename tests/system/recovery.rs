//! What dies comes back, and the bytes are those of a run that nothing happened to.

use crate::stack::{Stack, create, has_ended, is_phase, spec, watch_until};
use crate::support::{
    Followed, contents, deepcluster, finished_run, processes, program, text, train_arguments, wait_until_deserted,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

pub fn same_as_undisturbed(volume: &Path) {
    let epochs_of = |volume: &Path| contents(&volume.join("runs/run-0001/epochs"));
    assert_same(&epochs_of(finished_run().volume.path()), &epochs_of(volume));
}

/// Two runs have the same files with the same bytes.
pub fn assert_same(expected: &BTreeMap<String, Vec<u8>>, found: &BTreeMap<String, Vec<u8>>) {
    assert_eq!(expected.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>());
    for (name, bytes) in expected {
        assert!(found[name] == *bytes, "{name} differs");
    }
}

/// Settings that a user has made for services elsewhere part those of one command from each other, if they reach them.
#[test]
fn variables_of_other_services_change_nothing() {
    let volume = tempfile::tempdir().unwrap();
    let mut command = Command::new(program("deepcluster"));
    command.args(train_arguments(volume.path()));
    for (name, value) in [("DC_METRICS", "127.0.0.1:1"), ("DC_WRITE_TOKEN_FILE", "/no/file"), ("DC_EXTRACTORS", "nowhere:1")] {
        command.env(name, value);
    }
    assert!(command.output().unwrap().status.success());
    same_as_undisturbed(volume.path());
}

/// Every worker is killed in the middle of its work, then the coordinator.
#[tokio::test(flavor = "multi_thread")]
async fn killed_services_cost_time_and_nothing_else() {
    let mut stack = Stack::start();
    let mut runs = stack.runs();
    let run = create(&mut runs, spec(2)).await;
    for (worker, epoch, phase) in [(0, 0, "extract"), (1, 0, "cluster"), (2, 0, "train"), (2, 1, "train")] {
        watch_until(&mut runs, &run.run_id, is_phase(epoch, phase)).await;
        stack.workers[worker].signal(Signal::SIGKILL);
        stack.workers[worker].restart();
    }
    watch_until(&mut runs, &run.run_id, is_phase(1, "train")).await;
    stack.coordinator.signal(Signal::SIGKILL);
    stack.coordinator.restart();
    let events = watch_until(&mut stack.runs(), &run.run_id, has_ended).await;
    let faults = events.iter().filter(|event| event.kind == "fault" && event.json.contains("\"worker\":\"trainer\""));
    assert!(faults.count() >= 1, "{events:?}");
    same_as_undisturbed(stack.volume.path());
}

/// The embedded services are started again by the command itself.
#[test]
fn the_command_restarts_killed_services() {
    let volume = tempfile::tempdir().unwrap();
    let mut train = Followed::start(&train_arguments(volume.path()));
    for (epoch, service) in [(0, "deepcluster-trainer"), (1, "deepcluster-coordinator")] {
        train.wait_for_phase(epoch, "train");
        let found = processes(service, text(volume.path()));
        assert_eq!(found.len(), 1);
        kill(Pid::from_raw(found[0]), Signal::SIGKILL).unwrap();
    }
    assert_eq!(train.finish().1, Some(0));
    same_as_undisturbed(volume.path());
}

#[test]
fn an_interrupted_command_is_resumed() {
    let volume = tempfile::tempdir().unwrap();
    let mut train = Followed::start(&train_arguments(volume.path()));
    train.wait_for_phase(0, "train");
    kill(Pid::from_raw(train.child.id() as i32), Signal::SIGINT).unwrap();
    assert_eq!(train.finish().1, Some(1));
    assert!(processes("deepcluster-", text(volume.path())).is_empty());
    deepcluster(["resume", text(volume.path())]).good();
    same_as_undisturbed(volume.path());
}

#[test]
fn a_killed_command_leaves_no_processes_and_the_same_command_goes_on() {
    let volume = tempfile::tempdir().unwrap();
    let mut train = Followed::start(&train_arguments(volume.path()));
    train.wait_for_phase(1, "extract");
    kill(Pid::from_raw(train.child.id() as i32), Signal::SIGKILL).unwrap();
    assert_eq!(train.finish().1, None);
    wait_until_deserted(volume.path());
    let output = Command::new(program("deepcluster")).args(train_arguments(volume.path())).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    same_as_undisturbed(volume.path());
}

/// Whoever computes a shard, its features are the same, and so is everything after them.
#[tokio::test(flavor = "multi_thread")]
async fn more_extractors_give_the_same_bytes() {
    let stack = Stack::with(3, &[]);
    let mut runs = stack.runs();
    let run = create(&mut runs, spec(2)).await;
    watch_until(&mut runs, &run.run_id, has_ended).await;
    same_as_undisturbed(stack.volume.path());
}

/// The command's own extractors share the cores: other thread counts, so other digits, but the same run.
#[test]
fn the_command_starts_as_many_extractors_as_it_is_told() {
    let volume = tempfile::tempdir().unwrap();
    let mut arguments = train_arguments(volume.path());
    arguments.extend(["--extractors".to_owned(), "2".to_owned()]);
    let mut train = Followed::start(&arguments);
    train.wait_for_phase(1, "extract");
    assert_eq!(processes("deepcluster-extractor", text(volume.path())).len(), 2);
    assert_eq!(train.finish().1, Some(0));
}
