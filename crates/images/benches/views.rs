//! Photographs from file to pixels and from the cache to pixels, on one core: images a second of both views.
//!
//!     BENCH_PHOTOS=FOLDER cargo bench -p deepcluster-images --bench views
#![expect(missing_docs, clippy::expect_used, reason = "a bench has no callers and nobody to tell")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use deepcluster_domain::geometry::resize_side;
use deepcluster_domain::{EpochId, Seeds};
use deepcluster_images::decode::UNKNOWN;
use deepcluster_images::{BatchLoader, Cached, Expected, LoaderOptions, Request, Source, View, find_images};
use deepcluster_volume::pixels::{PixelsFile, PixelsWriter};
use std::path::PathBuf;
use std::sync::Arc;

const OPTIONS: LoaderOptions = LoaderOptions { batch: 64, size: 224, cache_side: 256, threads: 1, skip: 0 };

fn load(sources: &[Source], view: fn(u64) -> View, cache: Option<PixelsWriter>) -> (Vec<i64>, BatchLoader) {
    let (sources, n) = (sources.to_vec(), sources.len());
    let request = move |at: usize| Request { source: Some(sources[at].clone()), view: view(at as u64) };
    let mut loader = BatchLoader::start(n, request, OPTIONS, cache).expect("a loader");
    let digests = (&mut loader).flat_map(|batch| batch.digests.clone()).collect();
    (digests, loader)
}

fn views(criterion: &mut Criterion) {
    let folder = PathBuf::from(std::env::var_os("BENCH_PHOTOS").expect("BENCH_PHOTOS names a folder of photographs"));
    let photos = find_images(&folder).expect("a folder");
    let sources: Vec<Source> = photos
        .iter()
        .map(|entry| Source {
            path: folder.join(entry.as_path()),
            expected: Expected { bytes: entry.bytes, digest: UNKNOWN },
            cached: None,
        })
        .collect();
    let scratch = tempfile::tempdir().expect("a folder");
    let path = scratch.path().join("photos.pixels");
    let (digests, loader) = load(&sources, |_| View::Center, Some(PixelsWriter::create(&path).expect("a file")));
    loader.into_cached().expect("a cache");
    let file = Arc::new(PixelsFile::open(&path).expect("a cache"));
    let cached: Vec<Source> = (sources.iter().zip(digests).enumerate())
        .map(|(index, (source, digest))| Source {
            expected: Expected { digest, ..source.expected },
            cached: Some(Cached { file: Arc::clone(&file), index }),
            ..source.clone()
        })
        .collect();
    let mut group = criterion.benchmark_group("views");
    group.sample_size(10).throughput(Throughput::Elements(photos.len() as u64));
    let center = |_| View::Center;
    let random = |step| View::Random { seeds: Seeds::new(31, EpochId(0)), step };
    for (name, sources, view) in [
        ("center", &sources, center as fn(u64) -> View),
        ("random", &sources, random),
        ("center-cached", &cached, center),
        ("random-cached", &cached, random),
    ] {
        group.bench_function(name, |bencher| bencher.iter(|| load(sources, view, None).0));
    }
    group.finish();
}

criterion_group!(benches, views);
criterion_main!(benches);
