//! What hangs is noticed, and what wakes up late changes nothing.

use crate::recovery::same_as_undisturbed;
use crate::stack::{Service, Stack, create, has_ended, is_phase, spec, until_serving, watch_until};
use deepcluster_proto::v1::watch_run_response::Update;
use nix::sys::signal::Signal;
use std::path::Path;
use std::time::Duration;

fn is_fault<'a>(word: &'a str) -> impl Fn(&Update) -> bool + 'a {
    move |update| matches!(update, Update::Event(event) if event.kind == "fault" && event.json.contains(word))
}

/// Everything below a folder that nobody has finished writing.
fn unfinished(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let of = |path: std::path::PathBuf| {
        let mut found = if path.is_dir() { unfinished(&path) } else { Vec::new() };
        if path.extension().is_some_and(|ending| ending == "tmp") {
            found.push(path);
        }
        found
    };
    entries.flat_map(of).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shard_of_an_extractor_that_hangs_goes_to_another() {
    let stack = Stack::with(2, &["--worker-silence=5"]);
    let mut runs = stack.runs();
    let run = create(&mut runs, spec(2)).await;
    watch_until(&mut runs, &run.run_id, is_phase(0, "extract")).await;
    stack.workers[0].signal(Signal::SIGSTOP);
    watch_until(&mut runs, &run.run_id, has_ended).await;
    stack.workers[0].signal(Signal::SIGCONT);
    until_serving(stack.workers[0].channel()).await;
    same_as_undisturbed(stack.volume.path());
    assert_eq!(unfinished(&stack.volume.path().join("runs")), [""; 0].map(std::path::PathBuf::from));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_work_of_a_trainer_and_a_clusterer_that_hang_is_repeated() {
    let stack = Stack::with(1, &["--worker-silence=5"]);
    let mut runs = stack.runs();
    let run = create(&mut runs, spec(2)).await;
    // One hangs before its work comes, as the clustering of so few images takes no longer than a signal; the other in its work.
    let (clusterer, trainer) = (&stack.workers[1], &stack.workers[2]);
    watch_until(&mut runs, &run.run_id, is_phase(0, "extract")).await;
    clusterer.signal(Signal::SIGSTOP);
    watch_until(&mut runs, &run.run_id, is_fault("clusterer")).await;
    clusterer.signal(Signal::SIGCONT);
    watch_until(&mut runs, &run.run_id, is_phase(0, "train")).await;
    trainer.signal(Signal::SIGSTOP);
    watch_until(&mut runs, &run.run_id, is_fault("trainer")).await;
    trainer.signal(Signal::SIGCONT);
    let events = watch_until(&mut runs, &run.run_id, has_ended).await;
    assert!(events.iter().any(|event| event.json.contains("silent for 5 s")), "{events:?}");
    same_as_undisturbed(stack.volume.path());
}

/// The first coordinator hangs; a second takes the volume over; the first wakes up, writes nothing, and ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_wakes_up_after_a_takeover_ends() {
    let mut stack = Stack::start();
    let mut runs = stack.runs();
    let run = create(&mut runs, spec(2)).await;
    watch_until(&mut runs, &run.run_id, is_phase(0, "train")).await;
    stack.coordinator.signal(Signal::SIGSTOP);
    let mut flags = stack.worker_flags();
    flags.push("--takeover-after=5".to_owned());
    let second = loop {
        let mut second = Service::start("coordinator", stack.volume.path(), &flags);
        // It is refused while the first may still be alive.
        tokio::time::sleep(Duration::from_millis(500)).await;
        match second.child.try_wait().unwrap() {
            None => break second,
            Some(status) => assert_eq!(status.code(), Some(2)),
        }
    };
    let mut runs = second.runs();
    watch_until(&mut runs, &run.run_id, is_phase(1, "extract")).await;
    stack.coordinator.signal(Signal::SIGCONT);
    assert_eq!(stack.coordinator.child.wait().unwrap().code(), Some(1));
    let events = watch_until(&mut runs, &run.run_id, has_ended).await;
    let numbers: Vec<u64> = events.iter().map(|event| event.number).collect();
    assert_eq!(numbers, (0..events.len() as u64).collect::<Vec<_>>());
    let stored = std::fs::read_to_string(stack.volume.path().join("runs/run-0001/events.jsonl")).unwrap();
    assert_eq!(stored.lines().count(), events.len(), "the late coordinator wrote nothing");
    same_as_undisturbed(stack.volume.path());
}

/// The command kills a service of its own that no longer answers, and goes on.
#[test]
fn the_command_replaces_a_service_that_hangs() {
    use crate::support::{Followed, processes, text, train_arguments};
    let volume = tempfile::tempdir().unwrap();
    let mut train = Followed::start(&train_arguments(volume.path()));
    train.wait_for_phase(0, "train");
    let trainer = nix::unistd::Pid::from_raw(processes("deepcluster-trainer", text(volume.path()))[0]);
    nix::sys::signal::kill(trainer, Signal::SIGSTOP).unwrap();
    assert_eq!(train.finish().1, Some(0));
    let log = std::fs::read_to_string(volume.path().join("logs/trainer.log")).unwrap();
    assert!(log.contains("did not answer any more and was killed"), "{log}");
    same_as_undisturbed(volume.path());
}
