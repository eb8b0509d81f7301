//! k-means through faiss (recipe, step 3).

use crate::{ClusteringError, Device, Progress};
use deepcluster_domain::{Purpose, Seeds};
use faiss::cluster::{Clustering, ClusteringParameters};

/// Points that are looked up at a time.
const BLOCK: usize = 65_536;

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

/// Centroids `[k, dims]` of `points`, `[N, dims]`: Euclidean, every point used, faiss's rule for empty clusters, faiss's
/// start for `seed`.
///
/// # Errors
/// When faiss refuses, or `progress` says so.
pub fn kmeans(
    points: &[f32],
    dims: usize,
    k: u32,
    iterations: u32,
    seed: u32,
    device: Device,
    progress: &mut Progress<'_>,
) -> Result<Vec<f32>, ClusteringError> {
    let n = points.len() / dims;
    if (k as usize) > n {
        return Err(ClusteringError::Unusable(format!("k = {k} is larger than the {n} readable images")));
    }
    progress("k-means", 0, u64::from(iterations))?;
    let mut parameters = ClusteringParameters::new();
    parameters.set_niter(iterations);
    parameters.set_seed(seed);
    parameters.set_min_points_per_centroid(1);
    // No subsampling.
    parameters.set_max_points_per_centroid(i32::MAX as u32 / k.max(1));
    let mut clustering = Clustering::new_with_params(dims as u32, k, &parameters)?;
    device.with_index(dims, |index| index.train(&mut clustering, points))?;
    progress("k-means", u64::from(iterations), u64::from(iterations))?;
    Ok(clustering.centroids()?.concat())
}

/// The nearest centroid of each point, and the squared distance to it.
///
/// # Errors
/// When faiss refuses, or `progress` says so.
pub fn assign(
    points: &[f32],
    centroids: &[f32],
    dims: usize,
    device: Device,
    progress: &mut Progress<'_>,
) -> Result<Assigned, ClusteringError> {
    let n = points.len() / dims;
    let (mut labels, mut distances) = (Vec::with_capacity(n), Vec::with_capacity(n));
    device.with_index(dims, |index| {
        index.add(centroids)?;
        for block in points.chunks(BLOCK * dims) {
            let found = index.nearest(block)?;
            for label in &found.labels {
                let label = label.get().ok_or_else(|| ClusteringError::Faiss("a point has no nearest centroid".to_owned()))?;
                labels.push(label as i32);
            }
            // faiss computes |x|² + |c|² − 2xc, which rounding can make a little negative.
            distances.extend(found.distances.iter().map(|distance| distance.max(0.0)));
            progress("assign", labels.len() as u64, n as u64)?;
        }
        Ok(())
    })?;
    Ok(Assigned { labels, distances })
}
