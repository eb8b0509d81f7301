//! What a step costs beside arithmetic, counted: pages that the kernel hands out, and what our own code allocates.
//!
//! A program of its own without a harness, since memory is kept only where it is asked for before there are other threads.
#![allow(clippy::unwrap_used, reason = "a test")]

use deepcluster_domain::{DeviceChoice, EpochId, Precision, RunSpec, Seeds};
use deepcluster_network::{Network, Runtime, SgdOptions, TrainingPass, memory};
use nix::sys::resource::{UsageWho, getrusage};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

const SIZE: usize = 64;
const BATCH: usize = 32;
const STEPS: u64 = 5;

/// Pages that were handed out to this process so far.
fn pages() -> u64 {
    getrusage(UsageWho::RUSAGE_SELF).unwrap().minor_page_faults() as u64
}

/// Pages, and bytes of our own, for each of some calls after as many that do not count.
fn each(mut call: impl FnMut(u64)) -> (u64, u64) {
    (0..STEPS).for_each(&mut call);
    let (pages_before, bytes_before) = (pages(), dhat::HeapStats::get().total_bytes);
    (STEPS..2 * STEPS).for_each(&mut call);
    ((pages() - pages_before) / STEPS, (dhat::HeapStats::get().total_bytes - bytes_before) / STEPS)
}

fn main() {
    memory::keep();
    let _profiler = dhat::Profiler::builder().testing().build();
    let pixels: Vec<u8> = (0..BATCH * SIZE * SIZE * 3).map(|at| (at * 31 % 251) as u8).collect();
    let labels: Vec<i64> = (0..BATCH as i64).collect();
    let runtime = Runtime::prepare(DeviceChoice::Cpu, Precision::F32, 2).unwrap();
    let spec = RunSpec { image_size: SIZE as u32, ..RunSpec::default() };
    let network = || Network::load(&spec, runtime, None).unwrap();

    let folded = network().folded().unwrap();
    let (extraction_pages, extraction_bytes) = each(|_| drop(folded.features(&pixels).unwrap()));
    let sgd = SgdOptions { learning_rate: 1e-3, momentum: 0.9, weight_decay: 1e-5 };
    let mut pass = TrainingPass::start(network(), 100, sgd, Seeds::new(1, EpochId(0)), None, &[]).unwrap();
    let (training_pages, training_bytes) = each(|step| assert!(pass.step(&pixels, &labels, step).unwrap().is_finite()));
    println!("extraction: {extraction_pages} pages and {extraction_bytes} bytes of ours a batch");
    println!("training: {training_pages} pages and {training_bytes} bytes of ours a step");

    // The gradients alone take 20,000 pages.
    assert!(extraction_pages < 200, "{extraction_pages} pages are handed out for a batch");
    assert!(training_pages < 1000, "{training_pages} pages are handed out for a step");
    // Features that are handed over; names of layers.
    let features = BATCH as u64 * 4096 * 4;
    assert!(extraction_bytes < features + 64 * 1024, "{extraction_bytes} bytes are allocated for a batch");
    assert!(training_bytes < 64 * 1024, "{training_bytes} bytes are allocated for a step");
}
