//! Power iteration clustering (recipe, step 3, the alternative): every point climbs to a higher neighbour until it is on a
//! peak, and the points of a peak are a cluster. How many there are comes out of it.
//!
//! ```text
//! points ─► nearest neighbours ─► graph ─► heights ─► peaks ─► singletons join ─► labels
//! ```
//!
//! faiss finds the neighbours. Its index holds all points in memory, `[n, dims]` as f32; the graph takes at most 16 · 4 · n ·
//! neighbours bytes while it is made, half of that afterwards. All sums have a fixed order.

use crate::{ClusteringError, Points, Progress};
use faiss::index::flat::FlatIndexImpl;
use faiss::index::{Idx, Index};
use rayon::prelude::*;

/// σ of the weights exp(−d ÷ σ²) (recipe, step 3).
pub const SIGMA: f64 = 0.2;
/// Neighbours of a point (recipe, step 3).
pub const NEIGHBOURS: usize = 5;
/// Iterations (recipe, step 3).
pub const ITERATIONS: u32 = 200;

/// α: how much of a height comes from the neighbours in an iteration.
const ALPHA: f64 = 0.001;

/// Points whose neighbours faiss looks up at a time; between two such blocks it can be cancelled.
const QUERIES: usize = 1024;

/// Labels of points by power iteration clustering: 0 for the points of the peak with the smallest number, and so on without
/// gaps.
///
/// Neighbours are the `neighbours` nearest other points; an edge between points of squared distance d weighs
/// exp(−d ÷ `sigma`²). A cluster of one point joins that of its nearest neighbour that was not alone; without such a neighbour
/// it stays.
///
/// # Errors
/// When `sigma` is not positive, faiss refuses, the points cannot be read, or `progress` says so.
pub fn pic(
    points: &Points,
    sigma: f64,
    neighbours: usize,
    iterations: u32,
    progress: &mut Progress<'_>,
) -> Result<Vec<i32>, ClusteringError> {
    let variance = sigma * sigma;
    if sigma.is_nan() || sigma <= 0.0 || variance <= 0.0 {
        return Err(ClusteringError::Unusable(format!("sigma is {sigma}: it must be above 0")));
    }
    let n = points.n();
    // No point has more neighbours than there are others.
    let k = neighbours.min(n.saturating_sub(1));
    if k == 0 {
        return Ok((0..).take(n).collect());
    }
    let nearest = Neighbours::find(points, k, progress)?;
    let graph = Graph::new(&nearest, variance);
    let mut peaks = graph.peaks(&graph.heights(iterations, progress)?);
    nearest.join_singletons(&mut peaks);
    Ok(numbered(&peaks))
}

/// The nearest others of every point, the nearest first.
struct Neighbours {
    /// How many of each point.
    k: usize,
    /// `[n, k]`.
    ids: Vec<u32>,
    /// `[n, k]`, squared.
    distances: Vec<f32>,
}

impl Neighbours {
    fn find(points: &Points, k: usize, progress: &mut Progress<'_>) -> Result<Self, ClusteringError> {
        let (n, dims) = (points.n(), points.dims());
        progress("neighbours", 0, n as u64)?;
        let mut index = FlatIndexImpl::new_l2(dims as u32)?;
        points.for_each_block(|_, block| Ok(index.add(block)?))?;
        let mut nearest = Self { k, ids: Vec::with_capacity(n * k), distances: Vec::with_capacity(n * k) };
        points.for_each_block(|first, block| {
            for (queries, own) in block.chunks(QUERIES * dims).zip((first..).step_by(QUERIES)) {
                // One more: each point finds itself.
                let found = index.search(queries, k + 1)?;
                let rows = found.labels.chunks_exact(k + 1).zip(found.distances.chunks_exact(k + 1));
                for (own, (ids, distances)) in (own as u64..).zip(rows) {
                    nearest.push(own, ids, distances)?;
                }
                progress("neighbours", (own + queries.len() / dims) as u64, n as u64)?;
            }
            Ok(())
        })?;
        Ok(nearest)
    }

    /// Takes what was found for a point, without the point itself.
    fn push(&mut self, own: u64, ids: &[Idx], distances: &[f32]) -> Result<(), ClusteringError> {
        // A point with many copies need not be among those that are nearest to it: then the last one goes.
        let left_out = ids.iter().position(|id| id.get() == Some(own)).unwrap_or(self.k);
        for (at, (id, distance)) in ids.iter().zip(distances).enumerate() {
            if at != left_out {
                let id = id.get().ok_or_else(|| ClusteringError::Faiss("a point has too few neighbours".to_owned()))?;
                self.ids.push(id as u32);
                // faiss computes |x|² + |y|² − 2xy, which rounding can make a little negative.
                self.distances.push(distance.max(0.0));
            }
        }
        Ok(())
    }

    /// Every point with its neighbours.
    fn rows(&self) -> impl Iterator<Item = (u32, &[u32])> {
        (0..).zip(self.ids.chunks_exact(self.k))
    }

    /// Moves every point that is alone on its peak to the peak of its nearest neighbour that is not. Who is alone is settled
    /// before anybody moves.
    fn join_singletons(&self, peaks: &mut [u32]) {
        let mut sizes = vec![0_u32; peaks.len()];
        for peak in peaks.iter() {
            sizes[*peak as usize] += 1;
        }
        let alone: Vec<bool> = peaks.iter().map(|peak| sizes[*peak as usize] == 1).collect();
        for (point, ids) in self.rows().filter(|(point, _)| alone[*point as usize]) {
            if let Some(company) = ids.iter().find(|id| !alone[**id as usize]) {
                peaks[point as usize] = peaks[*company as usize];
            }
        }
    }
}

/// Neighbourhood in both directions: the matrix of weights plus its transpose, by rows.
struct Graph {
    /// Where each point's edges begin, and where the last one's end, `[n + 1]`.
    starts: Vec<usize>,
    /// The other end and the weight; those of a point in order of their other ends.
    edges: Vec<(u32, f64)>,
}

impl Graph {
    fn new(nearest: &Neighbours, variance: f64) -> Self {
        let mut degrees = vec![nearest.k; nearest.ids.len() / nearest.k];
        for id in &nearest.ids {
            degrees[*id as usize] += 1;
        }
        let mut ends: Vec<usize> = degrees.iter().scan(0, |sum, size| Some(std::mem::replace(sum, *sum + size))).collect();
        let mut both_ways = vec![(0_u32, 0.0_f64); 2 * nearest.ids.len()];
        for ((point, ids), distances) in nearest.rows().zip(nearest.distances.chunks_exact(nearest.k)) {
            for (id, distance) in ids.iter().zip(distances) {
                let weight = (-f64::from(*distance) / variance).exp();
                for (here, there) in [(point, *id), (*id, point)] {
                    let end = &mut ends[here as usize];
                    both_ways[*end] = (there, weight);
                    *end += 1;
                }
            }
        }
        let mut graph = Self { starts: vec![0], edges: Vec::with_capacity(both_ways.len()) };
        let mut start = 0;
        for end in ends {
            let row = &mut both_ways[start..end];
            row.sort_unstable_by_key(|(there, _)| *there);
            // Where both found each other, there are two.
            let edges = row.chunk_by(|x, y| x.0 == y.0).map(|same| (same[0].0, same.iter().map(|edge| edge.1).sum::<f64>()));
            graph.edges.extend(edges);
            graph.starts.push(graph.edges.len());
            start = end;
        }
        graph.edges.shrink_to_fit();
        graph
    }

    fn row(&self, point: usize) -> &[(u32, f64)] {
        &self.edges[self.starts[point]..self.starts[point + 1]]
    }

    /// v ← α Wᵀ v + (1 − α) / n, made to sum to 1: high in the midst of many near points.
    fn heights(&self, iterations: u32, progress: &mut Progress<'_>) -> Result<Vec<f64>, ClusteringError> {
        let n = self.starts.len() - 1;
        let mut heights = vec![1.0 / n as f64; n];
        let mut next = vec![0.0_f64; n];
        for done in 0..iterations {
            progress("power iteration", u64::from(done), u64::from(iterations))?;
            next.par_iter_mut().enumerate().for_each(|(point, next)| {
                // W is its own transpose.
                let sum: f64 = self.row(point).iter().map(|(there, weight)| weight * heights[*there as usize]).sum();
                *next = ALPHA * sum + (1.0 - ALPHA) / n as f64;
            });
            let total: f64 = next.iter().sum();
            heights.iter_mut().zip(&next).for_each(|(height, next)| *height = *next / total);
        }
        progress("power iteration", u64::from(iterations), u64::from(iterations))?;
        Ok(heights)
    }

    /// The peak that each point comes to. Every step goes up, so nobody walks in circles.
    fn peaks(&self, heights: &[f64]) -> Vec<u32> {
        let mut peaks: Vec<u32> = (0..heights.len()).map(|point| self.step(point, heights)).collect();
        for point in 0..peaks.len() {
            let mut at = point;
            while peaks[at] as usize != at {
                at = peaks[at] as usize;
            }
            peaks[point] = at as u32;
        }
        peaks
    }

    /// The neighbour with the largest weight times gain in height, of equal ones the first; the point itself where none is
    /// higher.
    fn step(&self, point: usize, heights: &[f64]) -> u32 {
        let (mut to, mut best) = (point as u32, 0.0);
        for (there, weight) in self.row(point) {
            let gain = weight * (heights[*there as usize] - heights[point]);
            if gain > best {
                (to, best) = (*there, gain);
            }
        }
        to
    }
}

/// Peaks by their rank among all peaks.
fn numbered(peaks: &[u32]) -> Vec<i32> {
    let mut distinct = peaks.to_vec();
    distinct.sort_unstable();
    distinct.dedup();
    peaks.iter().map(|peak| distinct.partition_point(|other| other < peak) as i32).collect()
}

/// Mean of the points of each of `k` clusters, `[k, dims]`, by which further points find theirs. That of an empty cluster is
/// zero.
///
/// # Errors
/// When there is not one label below `k` for each point, or the points cannot be read.
pub fn centroids_of(points: &Points, labels: &[i32], k: u32) -> Result<Vec<f32>, ClusteringError> {
    let (dims, n_clusters) = (points.dims(), k as usize);
    if labels.len() != points.n() {
        return Err(ClusteringError::Unusable(format!("{} labels are not those of {} points", labels.len(), points.n())));
    }
    let mut sums = vec![0.0_f64; n_clusters * dims];
    let mut sizes = vec![0_usize; n_clusters];
    points.for_each_block(|first, block| {
        for (point, label) in block.chunks_exact(dims).zip(&labels[first..]) {
            let Some(cluster) = usize::try_from(*label).ok().filter(|cluster| *cluster < n_clusters) else {
                return Err(ClusteringError::Unusable(format!("label {label} is none of {k} clusters")));
            };
            sizes[cluster] += 1;
            let sum = &mut sums[cluster * dims..(cluster + 1) * dims];
            sum.iter_mut().zip(point).for_each(|(sum, value)| *sum += f64::from(*value));
        }
        Ok(())
    })?;
    let means = sums.chunks_exact(dims).zip(sizes).flat_map(|(sum, size)| {
        let size = size.max(1) as f64;
        sum.iter().map(move |sum| (sum / size) as f32)
    });
    Ok(means.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;
    use crate::kmeans::assign;
    use serde_json::Value;

    fn quiet(_: &str, _: u64, _: u64) -> Result<(), ClusteringError> {
        Ok(())
    }

    /// The same with matrices that hold everything.
    fn dense(points: &[Vec<f64>], sigma: f64, neighbours: usize, iterations: u32) -> Vec<i32> {
        let n = points.len();
        let squared = |i: usize, j: usize| -> f64 { points[i].iter().zip(&points[j]).map(|(x, y)| (x - y) * (x - y)).sum() };
        let nearest = |i: usize| {
            let mut others: Vec<usize> = (0..n).filter(|j| *j != i).collect();
            others.sort_by(|x, y| squared(i, *x).total_cmp(&squared(i, *y)));
            others.truncate(neighbours);
            others
        };
        let lists: Vec<Vec<usize>> = (0..n).map(nearest).collect();
        let mut w = vec![vec![0.0; n]; n];
        for (i, list) in lists.iter().enumerate() {
            for j in list {
                let weight = (-squared(i, *j) / (sigma * sigma)).exp();
                w[i][*j] += weight;
                w[*j][i] += weight;
            }
        }
        let mut v = vec![1.0 / n as f64; n];
        for _ in 0..iterations {
            let row = |row: &Vec<f64>| 0.001 * row.iter().zip(&v).map(|(w, v)| w * v).sum::<f64>() + (1.0 - 0.001) / n as f64;
            let next: Vec<f64> = w.iter().map(row).collect();
            let total: f64 = next.iter().sum();
            v = next.into_iter().map(|value| value / total).collect();
        }
        let climb = |mut i: usize| loop {
            let gain = |j: usize| w[i][j] * (v[j] - v[i]);
            // Of equal ones the first.
            let best = (0..n).fold(i, |best, j| if gain(j) > gain(best).max(0.0) { j } else { best });
            if best == i {
                break i;
            }
            i = best;
        };
        let peaks: Vec<usize> = (0..n).map(climb).collect();
        let alone = |i: usize| peaks.iter().filter(|peak| **peak == peaks[i]).count() == 1;
        let home = |i: usize| if alone(i) { lists[i].iter().find(|j| !alone(**j)).map_or(i, |j| peaks[*j]) } else { peaks[i] };
        let homes: Vec<usize> = (0..n).map(home).collect();
        let numbers: std::collections::BTreeSet<usize> = homes.iter().copied().collect();
        homes.iter().map(|home| numbers.range(..*home).count() as i32).collect()
    }

    /// Groups, copies (one point eleven times), two that are alone; labels by scipy's matrices and the steps of the release.
    #[test]
    fn labels_are_those_of_dense_matrices_and_of_the_release() {
        let all: Value = serde_json::from_str(include_str!("../../../tests/parity/evaluation.json")).unwrap();
        let case = &all["pic"];
        let number = |value: &Value| value.as_f64().unwrap();
        let unit = number(&case["unit"]);
        let row = |row: &Value| row.as_array().unwrap().iter().map(|value| number(value) / unit).collect::<Vec<f64>>();
        let rows: Vec<Vec<f64>> = case["points"].as_array().unwrap().iter().map(row).collect();
        let expected: Vec<i32> = case["labels"].as_array().unwrap().iter().map(|label| number(label) as i32).collect();
        assert!(rows.len() == 300 && number(&case["singletons"]) > 0.0);

        let points = Points::of(rows.iter().flatten().map(|value| *value as f32).collect(), 3);
        let (sigma, neighbours, iterations) = (number(&case["sigma"]), number(&case["neighbours"]) as usize, 200);
        let labels = pic(&points, sigma, neighbours, iterations, &mut quiet).unwrap();
        assert_eq!(labels, dense(&rows, sigma, neighbours, iterations));
        assert_eq!(labels, expected);

        // Its centroids are means: of a cluster's points, and of nothing.
        let k = *labels.iter().max().unwrap() as u32 + 1;
        let centroids = centroids_of(&points, &labels, k + 1).unwrap();
        for cluster in 0..k as i32 {
            let own: Vec<&Vec<f64>> =
                rows.iter().zip(&labels).filter(|(_, label)| **label == cluster).map(|(row, _)| row).collect();
            for column in 0..3 {
                let mean = own.iter().map(|row| row[column]).sum::<f64>() / own.len() as f64;
                assert!((f64::from(centroids[cluster as usize * 3 + column]) - mean).abs() < 1e-5);
            }
        }
        assert_eq!(centroids[k as usize * 3..], [0.0; 3]);
        let again = assign(&points, &centroids[..k as usize * 3], Device::Cpu, &mut quiet).unwrap();
        let same = again.labels.iter().zip(&labels).filter(|(x, y)| x == y).count();
        assert!(same > 200, "{same} of 300 points are nearest to the centroid of their cluster");
    }

    #[test]
    fn odd_requests_are_answered() {
        let two = Points::of(vec![0.0, 1.0], 1);
        assert_eq!(pic(&two, 0.2, 5, 10, &mut quiet).unwrap(), [0, 1]);
        assert_eq!(pic(&Points::of(vec![0.5], 1), 0.2, 5, 10, &mut quiet).unwrap(), [0]);
        assert!(pic(&two, 0.0, 5, 10, &mut quiet).unwrap_err().to_string().contains("sigma"));
        assert!(centroids_of(&two, &[0, 2], 2).unwrap_err().to_string().contains("label 2"));
        assert!(centroids_of(&two, &[0], 2).is_err());
        let mut stop = |_: &str, _: u64, _: u64| -> Result<(), ClusteringError> { Err(ClusteringError::Cancelled) };
        assert!(matches!(pic(&two, 0.2, 5, 10, &mut stop), Err(ClusteringError::Cancelled)));
    }
}
