//! Files that others may have written: reading them never panics and takes no more memory than their size suggests.
#![allow(clippy::unwrap_used, reason = "a test")]

use deepcluster_volume::events::EventLog;
use deepcluster_volume::publish::publish_bytes;
use deepcluster_volume::records::{EpochManifest, PendingEpoch, RunRecord, read_record};
use deepcluster_volume::{image_list, npy, tensors};
use proptest::prelude::*;
use proptest::sample::Index;
use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Remembers the largest piece of memory that was ever asked for.
struct Watched;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is passed on to the system's allocator as it came.
#[expect(unsafe_code, reason = "an allocator cannot be watched otherwise")]
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

/// Buffers of fixed size that readers use, whatever the file.
const BUFFERS: usize = 1 << 21;

/// Reads a file as everything that it could be taken for.
fn read_as_all(path: &Path) {
    let _ = npy::ArrayFile::open(path);
    let _ = npy::read_i32(path);
    let _ = npy::read_f32(path);
    let _ = tensors::read_f32(path);
    let _ = read_record::<RunRecord>(path);
    let _ = read_record::<EpochManifest>(path);
    let _ = read_record::<PendingEpoch>(path);
    let _ = image_list::read(path);
    let _ = EventLog::read(path);
}

fn check(content: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    publish_bytes(&path, content).unwrap();
    LARGEST.store(0, Ordering::Relaxed);
    read_as_all(&path);
    let largest = LARGEST.load(Ordering::Relaxed);
    assert!(largest <= BUFFERS + 64 * content.len(), "{largest} bytes at once for a file of {}", content.len());
}

/// Good files of every kind, to be spoiled.
fn good_files() -> Vec<Vec<u8>> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/v1");
    let names = ["run.json", "images.csv", "events.jsonl", "epochs/0001/epoch.json", "epochs/0002/pending.json"];
    let mut files: Vec<Vec<u8>> = names.iter().map(|name| std::fs::read(golden.join(name)).unwrap()).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    npy::publish_i32(&path, &[1, 2, -1]).unwrap();
    files.push(std::fs::read(&path).unwrap());
    npy::publish_f32(&path, &[2, 3], &[0.5; 6]).unwrap();
    files.push(std::fs::read(&path).unwrap());
    let mean = tensors::F32Tensor { shape: vec![2], values: vec![1.0, 2.0] };
    tensors::publish_f32(&path, &std::collections::BTreeMap::from([("mean", mean)])).unwrap();
    files.push(std::fs::read(&path).unwrap());
    files
}

/// One change to a file.
#[derive(Clone, Debug)]
enum Spoil {
    Flip(Index, u8),
    Cut(Index),
    Insert(Index, Vec<u8>),
    Number(Index, u64),
}

fn spoil() -> impl Strategy<Value = Spoil> {
    let bytes = prop::collection::vec(any::<u8>(), 0..40);
    prop_oneof![
        (any::<Index>(), any::<u8>()).prop_map(|(at, bits)| Spoil::Flip(at, bits)),
        any::<Index>().prop_map(Spoil::Cut),
        (any::<Index>(), bytes).prop_map(|(at, bytes)| Spoil::Insert(at, bytes)),
        (any::<Index>(), prop_oneof![any::<u64>(), Just(u64::MAX), Just(1 << 40)]).prop_map(|(at, n)| Spoil::Number(at, n)),
    ]
}

fn apply(content: &mut Vec<u8>, spoil: &Spoil) {
    if content.is_empty() {
        return;
    }
    match spoil {
        Spoil::Flip(at, bits) => {
            let at = at.index(content.len());
            content[at] ^= bits;
        }
        Spoil::Cut(at) => content.truncate(at.index(content.len())),
        Spoil::Insert(at, bytes) => {
            let at = at.index(content.len());
            content.splice(at..at, bytes.iter().copied());
        }
        // A digit of the file becomes a huge number.
        Spoil::Number(at, number) => {
            let digits: Vec<usize> = (0..content.len()).filter(|at| content[*at].is_ascii_digit()).collect();
            if !digits.is_empty() {
                let at = digits[at.index(digits.len())];
                content.splice(at..=at, number.to_string().bytes());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_read_or_refused(content in prop::collection::vec(any::<u8>(), 0..2000)) {
        check(&content);
    }

    #[test]
    fn spoiled_files_are_read_or_refused(which in any::<Index>(), spoils in prop::collection::vec(spoil(), 1..6)) {
        let files = good_files();
        let mut content = files[which.index(files.len())].clone();
        spoils.iter().for_each(|spoil| apply(&mut content, spoil));
        check(&content);
    }
}

/// `make chaos` asks for many more.
fn cases() -> u32 {
    std::env::var("CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(300)
}
