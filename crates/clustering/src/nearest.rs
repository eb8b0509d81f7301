//! The nearest of some vectors, in two ways: by matrix products of our own, and by faiss, which has GPUs as well and is the
//! reference in tests.

use crate::ClusteringError;
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use faiss::index::Index;
use rayon::prelude::*;

/// Points whose products are in a core's cache at a time.
const POINTS: usize = 256;

/// Vectors whose products are in a core's cache at a time.
const VECTORS: usize = 1024;

/// Points that faiss looks up at a time.
const FAISS_BLOCK: usize = 65_536;

/// Lanes of a comparison: a register of AVX-512, two of AVX2.
const LANES: usize = 16;

/// Finds the nearest of some vectors, by Euclidean distance.
pub trait Nearest {
    /// Takes other vectors, `[k, dims]`.
    ///
    /// # Errors
    /// When faiss refuses.
    fn set(&mut self, vectors: &[f32]) -> Result<(), ClusteringError>;

    /// Writes the number of the nearest vector of each point, `[n, dims]`, and the squared distance to it.
    ///
    /// # Errors
    /// When faiss refuses.
    fn find(&mut self, points: &[f32], labels: &mut [i32], distances: &mut [f32]) -> Result<(), ClusteringError>;
}

/// Matrix products in blocks that stay in the caches: |x − c|² = |x|² − 2 (xc − |c|² / 2). On the CPU it is faster than faiss,
/// since the comparison never leaves the cache and the products use the widest instructions there are.
pub struct Products {
    dims: usize,
    vectors: Vec<f32>,
    /// Half of each vector's squared length.
    half_squares: Vec<f32>,
}

impl Products {
    /// For vectors of `dims` numbers. Computes on rayon's threads.
    pub fn new(dims: usize) -> Self {
        Self { dims, vectors: Vec::new(), half_squares: Vec::new() }
    }

    fn block(&self, scores: &mut [f32], points: &[f32], labels: &mut [i32], distances: &mut [f32]) {
        let n = labels.len();
        let x = MatRef::from_row_major_slice(points, n, self.dims);
        labels.fill(0);
        distances.fill(f32::NEG_INFINITY);
        let tiles = self.vectors.chunks(VECTORS * self.dims).zip(self.half_squares.chunks(VECTORS));
        for (tile, (vectors, half_squares)) in tiles.enumerate() {
            let k = half_squares.len();
            let c = MatRef::from_row_major_slice(vectors, k, self.dims);
            let scores = &mut scores[..n * k];
            matmul(MatMut::from_row_major_slice_mut(scores, n, k), Accum::Replace, x, c.transpose(), 1.0, Par::Seq);
            pulp::Arch::new().dispatch(|| {
                for ((scores, label), best) in scores.chunks_exact(k).zip(&mut *labels).zip(&mut *distances) {
                    let (score, at) = largest(scores, half_squares);
                    if score > *best {
                        *best = score;
                        *label = (tile * VECTORS + at) as i32;
                    }
                }
            });
        }
        for (point, distance) in points.chunks_exact(self.dims).zip(distances) {
            // Rounding can make it a little negative.
            *distance = (squares(point) - 2.0 * *distance).max(0.0);
        }
    }
}

impl Nearest for Products {
    fn set(&mut self, vectors: &[f32]) -> Result<(), ClusteringError> {
        self.vectors.clear();
        self.vectors.extend_from_slice(vectors);
        self.half_squares = vectors.chunks_exact(self.dims).map(|vector| squares(vector) / 2.0).collect();
        Ok(())
    }

    fn find(&mut self, points: &[f32], labels: &mut [i32], distances: &mut [f32]) -> Result<(), ClusteringError> {
        let this = &*self;
        let width = POINTS * self.half_squares.len().min(VECTORS);
        let blocks = points.par_chunks(POINTS * self.dims).zip(labels.par_chunks_mut(POINTS));
        blocks.zip(distances.par_chunks_mut(POINTS)).for_each_init(
            || vec![0.0; width],
            |scores, ((points, labels), distances)| this.block(scores, points, labels, distances),
        );
        Ok(())
    }
}

/// The largest of `scores − half_squares`, and where it is; of equal ones the first of a lane.
#[inline(always)]
fn largest(scores: &[f32], half_squares: &[f32]) -> (f32, usize) {
    let ((blocks, rest), (half_blocks, half_rest)) = (scores.as_chunks::<LANES>(), half_squares.as_chunks::<LANES>());
    let (mut best, mut at) = ([f32::NEG_INFINITY; LANES], [0_u32; LANES]);
    for (number, (block, halves)) in blocks.iter().zip(half_blocks).enumerate() {
        for lane in 0..LANES {
            let score = block[lane] - halves[lane];
            let better = score > best[lane];
            best[lane] = if better { score } else { best[lane] };
            at[lane] = if better { number as u32 } else { at[lane] };
        }
    }
    let mut found = (f32::NEG_INFINITY, 0);
    for lane in 0..LANES {
        if best[lane] > found.0 {
            found = (best[lane], at[lane] as usize * LANES + lane);
        }
    }
    for (offset, (score, half)) in rest.iter().zip(half_rest).enumerate() {
        if score - half > found.0 {
            found = (score - half, blocks.len() * LANES + offset);
        }
    }
    found
}

fn squares(vector: &[f32]) -> f32 {
    vector.iter().map(|value| value * value).sum()
}

/// A flat index of faiss, on whatever device it lies.
pub struct Faiss<I> {
    dims: usize,
    index: I,
}

impl<I: Index> Faiss<I> {
    /// By an empty index of vectors of `dims` numbers, by Euclidean distance.
    pub fn new(dims: usize, index: I) -> Self {
        Self { dims, index }
    }
}

impl<I: Index> Nearest for Faiss<I> {
    fn set(&mut self, vectors: &[f32]) -> Result<(), ClusteringError> {
        self.index.reset()?;
        Ok(self.index.add(vectors)?)
    }

    fn find(&mut self, points: &[f32], labels: &mut [i32], distances: &mut [f32]) -> Result<(), ClusteringError> {
        let blocks = points.chunks(FAISS_BLOCK * self.dims).zip(labels.chunks_mut(FAISS_BLOCK));
        for ((points, labels), distances) in blocks.zip(distances.chunks_mut(FAISS_BLOCK)) {
            let found = self.index.search(points, 1)?;
            for (label, found) in labels.iter_mut().zip(&found.labels) {
                let found = found.get().ok_or_else(|| ClusteringError::Faiss("a point has no nearest centroid".to_owned()))?;
                *label = found as i32;
            }
            // faiss computes |x|² + |c|² − 2xc, which rounding can make a little negative.
            for (distance, found) in distances.iter_mut().zip(&found.distances) {
                *distance = found.max(0.0);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use faiss::index::flat::FlatIndexImpl;
    use rand::{Rng, SeedableRng};

    /// More vectors than a tile, and numbers that are no multiple of anything.
    #[test]
    fn both_ways_find_the_same() {
        for (n, k, dims) in [(1, 1, 1), (300, 7, 3), (1001, 2050, 20)] {
            let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(n as u64);
            let mut numbers = |n: usize| (0..n).map(|_| rng.random_range(-1.0..1.0_f32)).collect::<Vec<f32>>();
            let (points, vectors) = (numbers(n * dims), numbers(k * dims));
            let find = |nearest: &mut dyn Nearest| {
                let (mut labels, mut distances) = (vec![-1; n], vec![-1.0; n]);
                nearest.set(&vectors).unwrap();
                nearest.find(&points, &mut labels, &mut distances).unwrap();
                (labels, distances)
            };
            let ours = find(&mut Products::new(dims));
            let theirs = find(&mut Faiss::new(dims, FlatIndexImpl::new_l2(dims as u32).unwrap()));
            for at in 0..n {
                // Where they differ, two vectors are equally near as far as f32 tells.
                assert!((ours.1[at] - theirs.1[at]).abs() <= 1e-5, "{at}: {} and {}", ours.1[at], theirs.1[at]);
            }
            let same = (0..n).filter(|at| ours.0[*at] == theirs.0[*at]).count();
            assert!(same * 1000 >= n * 999, "{same} of {n}");
        }
    }
}
