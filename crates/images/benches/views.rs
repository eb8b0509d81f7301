//! Photographs from file to pixels, on one core: images a second of both views.
//!
//!     BENCH_PHOTOS=FOLDER cargo bench -p deepcluster-images --bench views
#![expect(missing_docs, clippy::expect_used, reason = "a bench has no callers and nobody to tell")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use deepcluster_domain::{EpochId, Seeds};
use deepcluster_images::transform::Transformer;
use deepcluster_images::{View, decode, find_images};
use std::path::PathBuf;

const SIZE: u32 = 224;

fn views(criterion: &mut Criterion) {
    let folder = PathBuf::from(std::env::var_os("BENCH_PHOTOS").expect("BENCH_PHOTOS names a folder of photographs"));
    let photos: Vec<PathBuf> =
        find_images(&folder).expect("a folder").into_iter().map(|entry| folder.join(entry.as_path())).collect();
    let mut group = criterion.benchmark_group("views");
    group.sample_size(10).throughput(Throughput::Elements(photos.len() as u64));
    let mut transformer = Transformer::default();
    let mut out = vec![0; (SIZE * SIZE * 3) as usize];
    let seeds = Seeds::new(31, EpochId(0));
    for (name, is_random) in [("center", false), ("random", true)] {
        let view = |step| if is_random { View::Random { seeds, step } } else { View::Center };
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                for (step, photo) in photos.iter().enumerate() {
                    let decoded = decode(photo, None).expect("a photograph");
                    transformer.view(&decoded.image, view(step as u64), SIZE, &mut out).expect("a view");
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, views);
criterion_main!(benches);
