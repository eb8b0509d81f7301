//! What loading allocates, counted: a guard against copies and allocations that come with every image.
#![allow(clippy::unwrap_used, reason = "a test")]

use deepcluster_domain::{EpochId, Seeds};
use deepcluster_images::decode::UNKNOWN;
use deepcluster_images::{BatchLoader, Cached, Expected, LoaderOptions, Request, Source, View};
use deepcluster_volume::pixels::{PixelsFile, PixelsWriter};
use std::path::Path;
use std::sync::Arc;

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

const SIZE: u32 = 224;
const OPTIONS: LoaderOptions = LoaderOptions { batch: 8, size: SIZE, cache_side: 256, threads: 2, skip: 0 };

/// Bytes of an image as the network gets it.
const IMAGE: u64 = SIZE as u64 * SIZE as u64 * 3;

fn sources(folder: &Path) -> Vec<Source> {
    let source = |index: u32| {
        let path = folder.join(format!("{index}.png"));
        image::RgbImage::from_fn(500, 375, |x, y| image::Rgb([x as u8, y as u8, index as u8])).save(&path).unwrap();
        let expected = Expected { bytes: std::fs::metadata(&path).unwrap().len(), digest: UNKNOWN };
        Source { path, expected, cached: None }
    };
    (0..16).map(source).collect()
}

/// Blocks and bytes that are allocated for `n` images in turn.
fn allocated(sources: &[Source], n: usize, view: View) -> (u64, u64) {
    let before = dhat::HeapStats::get();
    let sources = sources.to_vec();
    let request = move |at: usize| Request { source: Some(sources[at % sources.len()].clone()), view };
    let loaded: usize = BatchLoader::start(n, request, OPTIONS, None).unwrap().map(|batch| batch.len).sum();
    assert_eq!(loaded, n);
    let after = dhat::HeapStats::get();
    (after.total_blocks - before.total_blocks, after.total_bytes - before.total_bytes)
}

/// What each further image costs.
fn each(sources: &[Source], view: View) -> (u64, u64) {
    const FEW: usize = 64;
    const MANY: usize = 192;
    let (few, many) = (allocated(sources, FEW, view), allocated(sources, MANY, view));
    let more = (MANY - FEW) as u64;
    ((many.0.saturating_sub(few.0)) / more, (many.1.saturating_sub(few.1)) / more)
}

#[test]
fn an_image_from_the_cache_allocates_no_pixels() {
    let _profiler = dhat::Profiler::builder().testing().build();
    let folder = tempfile::tempdir().unwrap();
    let mut sources = sources(folder.path());
    let random = View::Random { seeds: Seeds::new(1, EpochId(0)), step: 3 };

    let path = folder.path().join("00000.pixels");
    let wanted = sources.clone();
    let request = move |at: usize| Request { source: Some(wanted[at].clone()), view: View::Center };
    let cache = PixelsWriter::create(&path).unwrap();
    let mut loader = BatchLoader::start(sources.len(), request, OPTIONS, Some(cache)).unwrap();
    let digests: Vec<i64> = (&mut loader).flat_map(|batch| batch.digests.clone()).collect();
    loader.into_cached().unwrap();

    // The decoder's own picture of 500 x 375, its rows and tables, and the shrunk one; no more copies of it.
    for view in [View::Center, random] {
        let (blocks, bytes) = each(&sources, view);
        println!("decoded, {view:?}: {blocks} blocks, {bytes} bytes an image");
        let decoded = 500 * 375 * 3;
        assert!(bytes < 3 * decoded, "{view:?}: {bytes} bytes are allocated for an image of {decoded}");
    }
    let file = Arc::new(PixelsFile::open(&path).unwrap());
    for (index, (source, digest)) in sources.iter_mut().zip(digests).enumerate() {
        source.expected.digest = digest;
        source.cached = Some(Cached { file: Arc::clone(&file), index });
    }
    // A random crop is resized, for which fast_image_resize makes a list of factors for each column and row.
    // Now and then a batch is not yet back when the next one is begun.
    for (view, most_blocks) in [(View::Center, 4), (random, 8 + 2 * u64::from(SIZE))] {
        let (blocks, bytes) = each(&sources, view);
        println!("from the cache, {view:?}: {blocks} blocks, {bytes} bytes an image");
        assert!(blocks <= most_blocks, "{view:?}: {blocks} blocks are allocated for an image");
        assert!(bytes <= IMAGE / 2, "{view:?}: {bytes} bytes are allocated for an image");
    }
}
