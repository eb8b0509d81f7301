//! Work that is counted, so that it does not grow unseen: bytes written. (Images decoded are counted in `cache`; memory
//! that is allocated, by the tests `counted` of the crates `images` and `network`.)

use crate::stack::{Service, Stack, create, has_ended, spec, watch_until};
use crate::support::contents;
use deepcluster_volume::space;

/// Bytes that a process has written so far, to files above all.
fn written(service: &Service) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/io", service.child.id())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("wchar: ")).unwrap();
    line.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_byte_of_an_epoch_is_written_once() {
    let stack = Stack::start();
    let mut runs = stack.runs();
    let run = create(&mut runs, spec(2)).await;
    watch_until(&mut runs, &run.run_id, has_ended).await;
    let volume = stack.volume.path();
    let epochs = contents(&volume.join("runs/run-0001/epochs"));
    let kept = |is_wanted: fn(&str) -> bool| -> u64 {
        epochs.iter().filter(|(name, _)| is_wanted(name)).map(|(_, content)| content.len() as u64).sum()
    };
    // Features go when their epoch is committed: 200 rows of 4096 halves, twice.
    let features = 2 * 200 * 4096 * 2;
    let expected = [
        ("extractor", features + space::used(&volume.join("cache"))),
        ("clusterer", kept(|name| !name.contains("checkpoint") && !name.ends_with("epoch.json"))),
        ("trainer", kept(|name| name.contains("checkpoint"))),
        ("coordinator", kept(|name| name.ends_with("epoch.json"))),
    ];
    for ((name, expected), service) in expected.into_iter().zip(stack.workers.iter().chain([&stack.coordinator])) {
        let total = written(service);
        println!("{name}: {total} bytes were written, {expected} of them to its files");
        // Digests, logs and messages are the rest, and of the coordinator its records, which are written anew after every step.
        let rest = if name == "coordinator" { 2 << 20 } else { 512 << 10 };
        assert!((expected..expected + expected / 20 + rest).contains(&total), "{name}: {total}, not {expected}");
    }
}
