//! Whitening and k-means against faiss's answers in `tests/parity`, and the promises about odd features.
#![allow(clippy::unwrap_used, reason = "a test")]

use deepcluster_clustering::kmeans::{assign, kmeans, lloyd};
use deepcluster_clustering::nearest::Faiss;
use deepcluster_clustering::{ClusteringError, Device, Features, Points, Whitening};
use deepcluster_domain::space::POINTS_IN_MEMORY;
use deepcluster_domain::{DeviceChoice, EpochId, Seeds, scores};
use deepcluster_volume::npy::{self, ArrayWriter, ElementType};
use faiss::cluster::{Clustering, ClusteringParameters};
use faiss::index::flat::FlatIndexImpl;
use std::path::{Path, PathBuf};

fn parity() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity")
}

/// splitmix64 of (fnv1a64(name) + (j + 1) · 0x9E3779B97F4A7C15), top 24 bits / 2^23 - 1.
fn unit(name: &str, n: usize) -> Vec<f32> {
    let start = name.bytes().fold(0xCBF2_9CE4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01B3));
    (1..=n as u64)
        .map(|j| {
            let mut z = start.wrapping_add(j.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^= z >> 31;
            (z >> 40) as f32 / 8_388_608.0 - 1.0
        })
        .collect()
}

fn seeds() -> Seeds {
    Seeds::new(7, EpochId(0))
}

fn quiet(_: &str, _: u64, _: u64) -> Result<(), ClusteringError> {
    Ok(())
}

/// The features of the parity case, in shards of `shard_rows`.
fn shards(folder: &Path, values: &[f32], width: usize, shard_rows: usize) -> Vec<PathBuf> {
    let shard = |(index, rows): (usize, &[f32])| {
        let path = folder.join(format!("{index:05}.npy"));
        npy::publish_f32(&path, &[rows.len() / width, width], rows).unwrap();
        path
    };
    values.chunks(shard_rows * width).enumerate().map(shard).collect()
}

#[test]
fn whitening_and_kmeans_are_faiss_s() {
    let (n, d, out, k) = (3000, 96, 24, 15);
    let groups = unit("groups", 15 * d);
    let mut values = unit("features", n * d);
    for (at, value) in values.iter_mut().enumerate() {
        let (row, column) = (at / d, at % d);
        *value = *value * (1.0 / ((1 + column) as f32).sqrt()) + 0.5 * groups[(row % 15) * d + column];
    }
    let folder = tempfile::tempdir().unwrap();
    let features = Features::open(&shards(folder.path(), &values, d, 700), None).unwrap();
    let whitening = Whitening::fit(&features, out, seeds(), &mut quiet).unwrap();
    let points = whitening.apply(&features, &nowhere(), &mut quiet).unwrap();
    let w = points.some(&(0..n).collect::<Vec<_>>()).unwrap();

    let (_, gram) = npy::read_f32(&parity().join("whiten-gram.npy")).unwrap();
    let dot = |i: usize, j: usize| -> f32 { (0..out).map(|c| w[i * out + c] * w[j * out + c]).sum() };
    let worst = (0..256).map(|at| (dot(at / 16, at % 16) - gram[at]).abs()).fold(0.0, f32::max);
    println!("Gram matrix: {worst:.2e}");
    assert!(worst <= 1e-3, "Gram matrix is off by {worst}");

    let centroids = kmeans(&points, k, 20, 7, Device::Cpu, &mut quiet).unwrap();
    let clusters = assign(&points, &centroids, Device::Cpu, &mut quiet).unwrap();
    let case: serde_json::Value = serde_json::from_slice(&std::fs::read(parity().join("cases.json")).unwrap()).unwrap();
    let expected = case["cluster"]["objective"].as_f64().unwrap();
    println!("objective: {} (faiss {expected})", clusters.objective());
    assert!((clusters.objective() / expected - 1.0).abs() <= 0.01, "objective {}", clusters.objective());
    let truth: Vec<i32> = (0..n as i32).map(|row| row % 15).collect();
    assert!(scores::nmi(&truth, &clusters.labels) > 0.93);
    assert_eq!(centroids, kmeans(&points, k, 20, 7, Device::Cpu, &mut quiet).unwrap(), "the same seed gives the same clusters");

    // faiss's own loop, from the same start.
    let mut parameters = ClusteringParameters::new();
    parameters.set_niter(20);
    parameters.set_seed(7);
    let mut reference = Clustering::new_with_params(out as u32, k, &parameters).unwrap();
    reference.train(&w, &mut FlatIndexImpl::new_l2(out as u32).unwrap()).unwrap();
    let reference = assign(&points, &reference.centroids().unwrap().concat(), Device::Cpu, &mut quiet).unwrap();
    println!("objective by faiss's loop: {}", reference.objective());
    assert!((clusters.objective() / reference.objective() - 1.0).abs() <= 1e-3, "objective {}", reference.objective());
    let same = clusters.labels.iter().zip(&reference.labels).filter(|(ours, theirs)| ours == theirs).count();
    assert!(same * 100 >= n * 99, "{same} of {n} points are in the same clusters");
    // By faiss's index the same loop comes to the same.
    let mut flat = Faiss::new(out, FlatIndexImpl::new_l2(out as u32).unwrap());
    let by_faiss = lloyd(&points, k, 20, 7, &mut flat, &mut quiet).unwrap();
    let by_faiss = assign(&points, &by_faiss, Device::Cpu, &mut quiet).unwrap();
    assert!((clusters.objective() / by_faiss.objective() - 1.0).abs() <= 1e-3, "objective {}", by_faiss.objective());

    let path = folder.path().join("whiten.safetensors");
    whitening.publish(&path).unwrap();
    assert_eq!(Whitening::read(&path).unwrap(), whitening);
}

#[test]
fn odd_features_are_named_dropped_or_left_zero() {
    let folder = tempfile::tempdir().unwrap();
    let width = 8;
    let mut values = unit("odd", 100 * width);
    // Column 3 is constant, column 5 a copy of column 4: two directions have no variance.
    for row in values.chunks_exact_mut(width) {
        row[3] = 7.5;
        row[5] = row[4];
    }
    let features = Features::open(&shards(folder.path(), &values, width, 64), None).unwrap();
    let whitening = Whitening::fit(&features, width, seeds(), &mut quiet).unwrap();
    assert_eq!(whitening.dims(), 6);
    let whitened = whitening.apply(&features, &nowhere(), &mut quiet).unwrap().some(&(0..100).collect::<Vec<_>>()).unwrap();
    assert!(whitened.iter().all(|value| value.is_finite()));

    // A row that is the mean of two others has no direction.
    let symmetric = [1.0, -1.0, 0.0, 2.0, -2.0].map(|x: f32| [x, 0.0]).concat();
    let features = Features::open(&shards(folder.path(), &symmetric, 2, 9), None).unwrap();
    let whitening = Whitening::fit(&features, 2, seeds(), &mut quiet).unwrap();
    let whitened = whitening.apply(&features, &nowhere(), &mut quiet).unwrap();
    assert_eq!((whitened.n(), whitened.dims()), (5, 1));
    assert_eq!(whitened.some(&[2]).unwrap(), [0.0]);

    // Skipped rows take no part, however odd; kept ones are named.
    values[70 * width + 2] = f32::INFINITY;
    let paths = shards(folder.path(), &values, width, 64);
    let mut kept = vec![true; 100];
    let features = Features::open(&paths, Some(kept.clone())).unwrap();
    let refused = Whitening::fit(&features, 4, seeds(), &mut quiet).unwrap_err();
    assert!(matches!(refused, ClusteringError::NotFinite { row: 70 }));
    kept[70] = false;
    let features = Features::open(&paths, Some(kept)).unwrap();
    let whitening = Whitening::fit(&features, 4, seeds(), &mut quiet).unwrap();
    assert_eq!(whitening.apply(&features, &nowhere(), &mut quiet).unwrap().n(), 99);

    let same = Features::open(&shards(folder.path(), &[1.5; 40], 4, 5), None).unwrap();
    let refused = Whitening::fit(&same, 4, seeds(), &mut quiet).unwrap_err().to_string();
    assert!(refused.contains("same features"), "{refused}");
    assert!(kmeans(&Points::of(vec![0.0; 6], 2), 4, 20, 7, Device::Cpu, &mut quiet).is_err());
}

/// Where few points never go.
fn nowhere() -> PathBuf {
    PathBuf::from("/nowhere/points.npy")
}

/// More points than there may be in memory, in a file: they come to the same clusters, and the file goes with them.
#[test]
fn points_in_a_file_come_to_the_clusters_of_those_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let (n, width, k) = (POINTS_IN_MEMORY + 3000, 6, 40);
    let features = Features::open(&shards(folder.path(), &unit("many", n * width), width, 30_000), None).unwrap();
    let whitening = Whitening::fit(&features, 4, seeds(), &mut quiet).unwrap();
    let file = folder.path().join("points.npy");
    let points = whitening.apply(&features, &file, &mut quiet).unwrap();
    assert!(file.is_file());
    let all = Points::of(points.some(&(0..n).collect::<Vec<_>>()).unwrap(), 4);
    let clusters = |points: &Points| {
        let centroids = kmeans(points, k, 20, 7, Device::Cpu, &mut quiet).unwrap();
        let assigned = assign(points, &centroids, Device::Cpu, &mut quiet).unwrap();
        (centroids, assigned)
    };
    let (from_file, from_memory) = (clusters(&points), clusters(&all));
    assert_eq!(from_file, from_memory);
    assert_eq!(from_file.1.labels.len(), n);
    drop(points);
    assert!(!file.is_file());
}

/// The peak of resident memory of this process so far, in bytes.
fn peak_resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// 200,000 x 4096 half-precision features in k = 1000, or ROWS in K: memory grows by the labels alone. Run by
/// `make test-memory`: minutes, not seconds. The program can be brought to a machine with a GPU, if it was built for one.
#[test]
#[ignore = "takes minutes; `make test-memory` runs it"]
fn memory_stays_bounded() {
    let number = |name: &str, default: usize| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let (n, k) = (number("ROWS", 200_000), number("K", 1000) as u32);
    let (width, shard_rows) = (4096, 4096);
    let device = Device::find(DeviceChoice::Auto);
    let folder = tempfile::tempdir().unwrap();
    let directions: Vec<f32> = unit("directions", 64 * width);
    let mut paths = Vec::new();
    for first in (0..n).step_by(shard_rows) {
        let rows = shard_rows.min(n - first);
        let path = folder.path().join(format!("{first}.npy"));
        let mut writer = ArrayWriter::create(&path, ElementType::F16, &[rows, width]).unwrap();
        for row in first..first + rows {
            let (direction, shift) = ((row % 64) * width, (row * 37) % width);
            let value =
                |column: usize| directions[direction + column] + 0.5 * directions[(column * 61 + shift * 17) % (64 * width)];
            writer.push(&(0..width).map(value).collect::<Vec<f32>>()).unwrap();
        }
        writer.commit().unwrap();
        paths.push(path);
    }
    let start = std::time::Instant::now();
    let features = Features::open(&paths, None).unwrap();
    let whitening = Whitening::fit(&features, 256, seeds(), &mut quiet).unwrap();
    let dims = whitening.dims();
    // The products alone: of the lower half of the covariance, and of all points with all centroids.
    let (n_flop, k_flop) = (n as f64, f64::from(k));
    let said = |what: &str, flop: f64, seconds: f64| println!("{what}: {seconds:.1} s, {:.0} GFLOP/s", flop / seconds / 1e9);
    said("PCA", n_flop * (width * width) as f64, start.elapsed().as_secs_f64());
    let points = whitening.apply(&features, &folder.path().join("points.npy"), &mut quiet).unwrap();
    println!("projected to {dims} dimensions after {:.1} s", start.elapsed().as_secs_f64());
    let begin = std::time::Instant::now();
    let centroids = kmeans(&points, k, 20, 7, device, &mut quiet).unwrap();
    said("k-means", 20.0 * 2.0 * n_flop * k_flop * dims as f64, begin.elapsed().as_secs_f64());
    let clusters = assign(&points, &centroids, device, &mut quiet).unwrap();
    let peak = peak_resident();
    println!("{n} x {width} in {k}: peak resident {:.2} GB, {:.0} s", peak as f64 / 1e9, start.elapsed().as_secs_f64());
    assert_eq!(clusters.labels.len(), n);
    // Labels, distances, and who starts: whatever the width.
    assert!(peak < 1_000_000_000 + 32 * n as u64, "peak resident memory is {peak} bytes");
}
