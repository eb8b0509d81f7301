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
    let epochs: usize = contents(&volume.join("runs/run-0001/epochs")).values().map(Vec::len).sum();
    // Features go when their epoch is committed: 200 rows of 4096 halves, twice.
    let features = 2 * 200 * 4096 * 2;
    let expected = epochs as u64 + features + space::used(&volume.join("cache"));
    let total: u64 = stack.workers.iter().chain([&stack.coordinator]).map(written).sum();
    println!("{total} bytes were written, {expected} of them features, cache and what is kept");
    // Records, events, logs and messages are the rest.
    assert!((expected..expected + expected / 50 + (2 << 20)).contains(&total), "{total} bytes were written, not {expected}");
}
