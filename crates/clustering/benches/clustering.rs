//! PCA with whitening, and k-means, on generated features. What they worked on stays in BENCH_DATA for others to try.
//!
//!     BENCH_DATA=FOLDER cargo bench -p deepcluster-clustering --bench clustering
#![expect(missing_docs, clippy::expect_used, reason = "a bench has no callers and nobody to tell")]

use criterion::{Criterion, SamplingMode, criterion_group, criterion_main};
use deepcluster_clustering::kmeans::{assign, kmeans};
use deepcluster_clustering::{ClusteringError, Device, Features, Points, Whitening};
use deepcluster_domain::{EpochId, Seeds};
use deepcluster_volume::npy::{ArrayWriter, ElementType};
use deepcluster_volume::publish::publish_bytes;
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use std::path::{Path, PathBuf};

const K: u32 = 1000;
const ITERATIONS: u32 = 20;
const SEED: u32 = 7;

fn quiet(_: &str, _: u64, _: u64) -> Result<(), ClusteringError> {
    Ok(())
}

fn normal(seed: u64, n: usize) -> Vec<f32> {
    StandardNormal.sample_iter(ChaCha8Rng::seed_from_u64(seed)).take(n).collect()
}

/// Rows whose spectrum falls like one over the rank, as that of convnets' features does.
fn features(n: usize, width: usize) -> Vec<f32> {
    const RANK: usize = 512;
    let mut hidden = normal(1, n * RANK);
    for row in hidden.chunks_exact_mut(RANK) {
        row.iter_mut().enumerate().for_each(|(rank, value)| *value /= (1.0 + rank as f32).sqrt());
    }
    let directions = normal(2, RANK * width);
    let mut rows: Vec<f32> = normal(3, n * width).into_iter().map(|noise| 0.1 * noise).collect();
    matmul(
        MatMut::from_row_major_slice_mut(&mut rows, n, width),
        Accum::Add,
        MatRef::from_row_major_slice(&hidden, n, RANK),
        MatRef::from_row_major_slice(&directions, RANK, width),
        1.0,
        Par::rayon(0),
    );
    rows
}

fn store(path: &Path, rows: &[f32], width: usize) {
    let mut writer = ArrayWriter::create(path, ElementType::F32, &[rows.len() / width, width]).expect("a file");
    writer.push(rows).expect("rows");
    writer.commit().expect("a file");
}

fn clustering(criterion: &mut Criterion) {
    let folder = PathBuf::from(std::env::var_os("BENCH_DATA").expect("BENCH_DATA names a folder for what is generated"));
    let mut group = criterion.benchmark_group("clustering");
    group.sample_size(10).sampling_mode(SamplingMode::Flat);

    let file = folder.join("features.npy");
    store(&file, &features(20_000, 4096), 4096);
    group.bench_function("pca-kmeans", |bencher| {
        bencher.iter(|| {
            let features = Features::open(std::slice::from_ref(&file), None).expect("features");
            let whitening = Whitening::fit(&features, 256, Seeds::new(31, EpochId(0)), &mut quiet).expect("a whitening");
            let points = whitening.apply(&features, &folder.join("whitened.npy"), &mut quiet).expect("points");
            kmeans(&points, K, ITERATIONS, SEED, Device::Cpu, &mut quiet).expect("centroids")
        });
    });

    let mut points = normal(4, 50_000 * 256);
    for point in points.chunks_exact_mut(256) {
        let norm = point.iter().map(|value| value * value).sum::<f32>().sqrt();
        point.iter_mut().for_each(|value| *value /= norm);
    }
    store(&folder.join("points.npy"), &points, 256);
    let points = Points::of(points, 256);
    let mut centroids = Vec::new();
    group.bench_function("kmeans", |bencher| {
        bencher.iter(|| centroids = kmeans(&points, K, ITERATIONS, SEED, Device::Cpu, &mut quiet).expect("centroids"));
    });
    let objective = assign(&points, &centroids, Device::Cpu, &mut quiet).expect("labels").objective();
    publish_bytes(&folder.join("objective"), objective.to_string().as_bytes()).expect("a file");
    group.finish();
}

criterion_group!(benches, clustering);
criterion_main!(benches);
