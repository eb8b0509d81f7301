//! k-means (recipe, step 3) by faiss's rules: its start, its sums, its way with empty clusters.
//!
//! The loop is ours, so that it tells how far it is and can be cancelled between two iterations; who is nearest, faiss or matrix
//! products say (`nearest`).

use crate::nearest::Nearest;
use crate::{ClusteringError, Device, Points, Progress};
use deepcluster_domain::{Purpose, Seeds};
use rand_mt::Mt;
use rayon::prelude::*;

/// By how much faiss pushes the halves of a split cluster apart.
const NUDGE: f32 = 1.0 / 1024.0;

/// The seed of faiss's choice of clusters to split.
const SPLIT_SEED: u32 = 1234;

/// Points and their nearest centroids.
#[derive(Clone, Debug, PartialEq)]
pub struct Assigned {
    /// Nearest centroid of each point.
    pub labels: Vec<i32>,
    /// Squared distance to it.
    pub distances: Vec<f32>,
}

impl Assigned {
    /// The sum of the squared distances.
    pub fn objective(&self) -> f64 {
        self.distances.iter().map(|distance| f64::from(*distance)).sum()
    }
}

/// faiss's seed for an epoch: each has a start of its own. faiss takes it as a signed number.
pub fn seed(seeds: Seeds) -> u32 {
    (seeds.number(Purpose::KMeans, 0) & 0x7FFF_FFFF) as u32
}

/// Centroids `[k, dims]` of points: Euclidean, every point used, faiss's rule for empty clusters, faiss's
/// start for `seed`.
///
/// # Errors
/// When there are fewer points than clusters, faiss refuses, the points cannot be read, or `progress` says so.
pub fn kmeans(
    points: &Points,
    k: u32,
    iterations: u32,
    seed: u32,
    device: Device,
    progress: &mut Progress<'_>,
) -> Result<Vec<f32>, ClusteringError> {
    device.with_nearest(points.dims(), |nearest| lloyd(points, k, iterations, seed, nearest, progress))
}

/// As [`kmeans`], by a given way to find the nearest centroid.
///
/// # Errors
/// As there.
pub fn lloyd(
    points: &Points,
    k: u32,
    iterations: u32,
    seed: u32,
    nearest: &mut dyn Nearest,
    progress: &mut Progress<'_>,
) -> Result<Vec<f32>, ClusteringError> {
    let (n, dims, n_clusters) = (points.n(), points.dims(), k as usize);
    if n_clusters > n {
        return Err(ClusteringError::Unusable(format!("k = {k} is larger than the {n} readable images")));
    }
    // An iteration over many points takes long: each block of them is told.
    let (mut n_done, total) = (0, u64::from(iterations) * points.n_blocks() as u64);
    progress("k-means", n_done, total)?;
    let mut centroids = points.some(&start(n, n_clusters, seed))?;
    if n_clusters == n {
        return Ok(centroids);
    }
    let (mut labels, mut distances) = (Vec::new(), Vec::new());
    for _ in 0..iterations {
        nearest.set(&centroids)?;
        let mut sums = Sums { dims, values: vec![0.0; centroids.len()], sizes: vec![0; n_clusters] };
        points.for_each_block(|_, block| {
            labels.resize(block.len() / dims, 0);
            distances.resize(block.len() / dims, 0.0);
            nearest.find(block, &mut labels, &mut distances)?;
            sums.add(block, &labels);
            n_done += 1;
            progress("k-means", n_done, total)
        })?;
        let mut sizes = sums.means(&mut centroids);
        split_empty(&mut centroids, &mut sizes, dims, n);
    }
    Ok(centroids)
}

/// The points at which faiss starts: the first of a permutation.
fn start(n: usize, k: usize, seed: u32) -> Vec<usize> {
    let mut generator = Mt::new(seed.wrapping_add(1));
    let mut permutation: Vec<usize> = (0..n).collect();
    for at in 0..k.min(n.saturating_sub(1)) {
        let other = at + generator.next_u32() as usize % (n - at);
        permutation.swap(at, other);
    }
    permutation.truncate(k);
    permutation
}

/// Sums of the points of each cluster, as f32, added in the order of the points.
struct Sums {
    dims: usize,
    /// `[k, dims]`.
    values: Vec<f32>,
    /// How many points each has.
    sizes: Vec<usize>,
}

impl Sums {
    /// Adds further points.
    fn add(&mut self, points: &[f32], labels: &[i32]) {
        let mut sizes = vec![0_usize; self.sizes.len()];
        for label in labels {
            sizes[*label as usize] += 1;
        }
        // Points in order of their clusters: each cluster is one thread's, whatever their number.
        let mut next: Vec<usize> = sizes.iter().scan(0, |sum, size| Some(std::mem::replace(sum, *sum + size))).collect();
        let begins = next.clone();
        let mut order = vec![0_u32; labels.len()];
        for (point, label) in (0..).zip(labels) {
            let slot = &mut next[*label as usize];
            order[*slot] = point;
            *slot += 1;
        }
        let dims = self.dims;
        self.values.par_chunks_mut(dims).zip(begins).zip(&sizes).for_each(|((sum, begin), size)| {
            for point in &order[begin..begin + size] {
                let point = &points[*point as usize * dims..][..dims];
                sum.iter_mut().zip(point).for_each(|(sum, value)| *sum += value);
            }
        });
        self.sizes.iter_mut().zip(sizes).for_each(|(all, more)| *all += more);
    }

    /// Moves every centroid to the mean of its points; an empty cluster's stays. How many points each has.
    fn means(self, centroids: &mut [f32]) -> Vec<f32> {
        let sums = self.values.chunks_exact(self.dims).zip(&self.sizes);
        for (centroid, (sum, size)) in centroids.chunks_exact_mut(self.dims).zip(sums).filter(|(_, (_, size))| **size > 0) {
            let norm = 1.0 / *size as f32;
            centroid.iter_mut().zip(sum).for_each(|(mean, sum)| *mean = sum * norm);
        }
        self.sizes.into_iter().map(|size| size as f32).collect()
    }
}

/// Gives each empty cluster half of a large one: faiss draws one with a probability that grows with its size, and pushes the
/// two centroids a little apart. Sizes are halves of halves, as faiss has them.
fn split_empty(centroids: &mut [f32], sizes: &mut [f32], dims: usize, n: usize) {
    let k = sizes.len();
    let mut generator = Mt::new(SPLIT_SEED);
    for empty in 0..k {
        if sizes[empty] > 0.0 {
            continue;
        }
        let mut large = 0;
        loop {
            let probability = (sizes[large] - 1.0) / (n - k) as f32;
            if (generator.next_u32() as f32 / u32::MAX as f32) < probability {
                break;
            }
            large = (large + 1) % k;
        }
        centroids.copy_within(large * dims..(large + 1) * dims, empty * dims);
        for column in 0..dims {
            let sign = if column % 2 == 0 { NUDGE } else { -NUDGE };
            centroids[empty * dims + column] *= 1.0 + sign;
            centroids[large * dims + column] *= 1.0 - sign;
        }
        sizes[empty] = sizes[large] / 2.0;
        sizes[large] -= sizes[empty];
    }
}

/// The nearest centroid of each point, and the squared distance to it.
///
/// # Errors
/// When faiss refuses, the points cannot be read, or `progress` says so.
pub fn assign(
    points: &Points,
    centroids: &[f32],
    device: Device,
    progress: &mut Progress<'_>,
) -> Result<Assigned, ClusteringError> {
    let n = points.n();
    let mut assigned = Assigned { labels: vec![0; n], distances: vec![0.0; n] };
    device.with_nearest(points.dims(), |nearest| {
        nearest.set(centroids)?;
        points.for_each_block(|first, block| {
            let end = first + block.len() / points.dims();
            nearest.find(block, &mut assigned.labels[first..end], &mut assigned.distances[first..end])?;
            progress("assign", end as u64, n as u64)
        })
    })?;
    Ok(assigned)
}
