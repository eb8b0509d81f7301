//! The principal directions of features: eigenvectors of their covariance, or of their Gram matrix where there are fewer rows
//! than columns.
//!
//! For centred rows X of n images, the covariance XᵀX / n and the Gram matrix XXᵀ / n have the same eigenvalues other than zero. With
//! an eigenvector u of the Gram matrix of eigenvalue λ, Xᵀu / √(nλ) is the eigenvector of the covariance. A few hundred images
//! of 4096 values so need a matrix of a few hundred rows, not of 4096.

use crate::eigen::leading;
use crate::features::BLOCK_ROWS;
use crate::{ClusteringError, Features, Progress};
use deepcluster_domain::Seeds;
use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, Mat, MatRef, Par};

/// Orthonormal directions of most variance, the largest first.
pub(crate) struct PrincipalDirections {
    /// Variance along each.
    pub(crate) variances: Vec<f64>,
    /// `[width, variances]`, a direction a column.
    pub(crate) vectors: Mat<f64>,
}

/// The `wanted` principal directions of all rows that take part, fewer where there is no more variance.
///
/// # Errors
/// When a value is not finite, the solver does not converge, or `progress` returns an error.
pub(crate) fn principal_directions(
    features: &Features,
    mean: &[f64],
    wanted: usize,
    seeds: Seeds,
    progress: &mut Progress<'_>,
) -> Result<PrincipalDirections, ClusteringError> {
    match features.n_kept() < features.width() {
        true => from_gram_matrix(features, mean, wanted, seeds, progress),
        false => from_covariance(features, mean, wanted, seeds, progress),
    }
}

fn from_covariance(
    features: &Features,
    mean: &[f64],
    wanted: usize,
    seeds: Seeds,
    progress: &mut Progress<'_>,
) -> Result<PrincipalDirections, ClusteringError> {
    let par = Par::rayon(0);
    let covariance = covariance(features, mean, par, progress)?;
    let pairs = leading(covariance.as_ref(), wanted, seeds, par, &mut |columns| progress("eigenvectors", columns as u64, 0))?;
    Ok(PrincipalDirections { variances: pairs.values, vectors: pairs.vectors })
}

fn from_gram_matrix(
    features: &Features,
    mean: &[f64],
    wanted: usize,
    seeds: Seeds,
    progress: &mut Progress<'_>,
) -> Result<PrincipalDirections, ClusteringError> {
    let (par, n) = (Par::rayon(0), features.n_kept());
    let rows = centred_rows(features, mean, progress)?;
    let x = MatRef::from_row_major_slice(&rows, n, features.width());
    let gram = gram_matrix(x, par);
    let pairs = leading(gram.as_ref(), wanted, seeds, par, &mut |columns| progress("eigenvectors", columns as u64, 0))?;
    let u = Mat::<f32>::from_fn(n, pairs.values.len(), |row, column| pairs.vectors[(row, column)] as f32);
    let mut products = Mat::<f32>::zeros(features.width(), pairs.values.len());
    matmul(products.as_mut(), Accum::Replace, x.transpose(), u.as_ref(), 1.0, par);
    let mut vectors = Mat::<f64>::from_fn(features.width(), pairs.values.len(), |row, column| f64::from(products[(row, column)]));
    for column in 0..vectors.ncols() {
        // The norm is √(nλ) but for rounding.
        let norm = vectors.col(column).norm_l2();
        if norm > 0.0 {
            vectors.col_mut(column).iter_mut().for_each(|value| *value /= norm);
        }
    }
    Ok(PrincipalDirections { variances: pairs.values, vectors })
}

/// All rows minus the mean, `[kept, width]`: fewer than `width` rows, so at most as large as a covariance in f32.
fn centred_rows(features: &Features, mean: &[f64], progress: &mut Progress<'_>) -> Result<Vec<f32>, ClusteringError> {
    let mean: Vec<f32> = mean.iter().map(|value| *value as f32).collect();
    let mut rows = Vec::with_capacity(features.n_kept() * features.width());
    let mut centred = Vec::new();
    features.for_each_block(|block| {
        centre(block.values, &mean, &mut centred);
        rows.extend_from_slice(&centred);
        progress("covariance", (rows.len() / mean.len()) as u64, features.n_kept() as u64)
    })?;
    Ok(rows)
}

/// XXᵀ / n, given in full. Products of some columns are summed in f32, groups of columns in f64.
fn gram_matrix(x: MatRef<'_, f32>, par: Par) -> Mat<f64> {
    const COLUMNS: usize = 512;
    let n = x.nrows();
    let mut total = Mat::<f64>::zeros(n, n);
    let mut product = Mat::<f32>::zeros(n, n);
    for first in (0..x.ncols()).step_by(COLUMNS) {
        let part = x.subcols(first, COLUMNS.min(x.ncols() - first));
        add_lower_product(&mut total, &mut product, part, part.transpose(), par);
    }
    divide_and_mirror(&mut total, n as f64);
    total
}

/// Products of a block are summed in f32, blocks in f64.
fn covariance(features: &Features, mean: &[f64], par: Par, progress: &mut Progress<'_>) -> Result<Mat<f64>, ClusteringError> {
    let d = features.width();
    let mean: Vec<f32> = mean.iter().map(|value| *value as f32).collect();
    let mut total = Mat::<f64>::zeros(d, d);
    let mut product = Mat::<f32>::zeros(d, d);
    let mut centred = Vec::with_capacity(BLOCK_ROWS * d);
    let mut done = 0;
    features.for_each_block(|block| {
        centre(block.values, &mean, &mut centred);
        let x = MatRef::from_row_major_slice(&centred, block.rows.len(), d);
        add_lower_product(&mut total, &mut product, x.transpose(), x, par);
        done += block.rows.len() as u64;
        progress("covariance", done, features.n_kept() as u64)
    })?;
    divide_and_mirror(&mut total, features.n_kept() as f64);
    Ok(total)
}

/// Adds the lower triangle of `left` times `right` to that of `total`.
fn add_lower_product(total: &mut Mat<f64>, product: &mut Mat<f32>, left: MatRef<'_, f32>, right: MatRef<'_, f32>, par: Par) {
    triangular::matmul(
        product.as_mut(),
        BlockStructure::TriangularLower,
        Accum::Replace,
        left,
        BlockStructure::Rectangular,
        right,
        BlockStructure::Rectangular,
        1.0_f32,
        par,
    );
    let d = total.nrows();
    for column in 0..d {
        let (mut total, product) = (total.as_mut().col_mut(column), product.col(column));
        for row in column..d {
            total[row] += f64::from(product[row]);
        }
    }
}

/// Divides the lower triangle and copies it to the upper one.
fn divide_and_mirror(matrix: &mut Mat<f64>, divisor: f64) {
    for column in 0..matrix.ncols() {
        for row in column..matrix.nrows() {
            let value = matrix[(row, column)] / divisor;
            matrix[(row, column)] = value;
            matrix[(column, row)] = value;
        }
    }
}

/// Rows `[n, mean]` minus the mean.
pub(crate) fn centre(values: &[f32], mean: &[f32], out: &mut Vec<f32>) {
    out.clear();
    for row in values.chunks_exact(mean.len()) {
        out.extend(row.iter().zip(mean).map(|(value, mean)| value - mean));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use deepcluster_domain::EpochId;
    use deepcluster_volume::npy;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    const WIDTH: usize = 96;

    /// Random rows with a decaying spectrum of `rank` directions around a large mean.
    fn features(folder: &std::path::Path, n: usize, rank: usize) -> (Features, Vec<f64>) {
        let mut rng = ChaCha8Rng::seed_from_u64(n as u64);
        let basis: Vec<f32> = (0..rank * WIDTH).map(|_| rng.random_range(-1.0..1.0)).collect();
        let mut values = vec![3.0_f32; n * WIDTH];
        for row in values.chunks_exact_mut(WIDTH) {
            for (index, direction) in basis.chunks_exact(WIDTH).enumerate() {
                let weight = rng.random_range(-1.0..1.0) / (1.0 + index as f32).sqrt();
                row.iter_mut().zip(direction).for_each(|(value, part)| *value += weight * part);
            }
        }
        let path = folder.join("features.npy");
        npy::publish_f32(&path, &[n, WIDTH], &values).unwrap();
        let mut mean = vec![0.0; WIDTH];
        for row in values.chunks_exact(WIDTH) {
            mean.iter_mut().zip(row).for_each(|(mean, value)| *mean += f64::from(*value) / n as f64);
        }
        (Features::open(&[path], None).unwrap(), mean)
    }

    /// The largest difference of two sets of directions, a sign of each left open, relative to the whitened length.
    fn difference(left: &PrincipalDirections, right: &PrincipalDirections) -> f64 {
        let mut largest: f64 = 0.0;
        for column in 0..left.variances.len() {
            largest = largest.max((left.variances[column] / right.variances[column] - 1.0).abs());
            let (one, two) = (left.vectors.col(column), right.vectors.col(column));
            let sign: f64 = one.iter().zip(two.iter()).map(|(a, b)| a * b).sum::<f64>().signum();
            largest = one.iter().zip(two.iter()).map(|(a, b)| (a - sign * b).abs()).fold(largest, f64::max);
        }
        largest
    }

    #[test]
    fn gram_matrix_and_covariance_give_the_same_directions() {
        let folder = tempfile::tempdir().unwrap();
        let seeds = Seeds::new(7, EpochId(0));
        // Rows fewer than, nearly as many as, as many as, and more than columns; and fewer directions than asked for.
        for (n, rank, wanted) in [(40, 60, 16), (95, 60, 16), (96, 60, 16), (97, 60, 16), (130, 60, 16), (40, 5, 16), (8, 60, 7)]
        {
            let (features, mean) = features(folder.path(), n, rank);
            let quiet: &mut Progress<'_> = &mut |_, _, _| Ok(());
            let gram = from_gram_matrix(&features, &mean, wanted, seeds, quiet).unwrap();
            let covariance = from_covariance(&features, &mean, wanted, seeds, quiet).unwrap();
            assert_eq!(gram.variances.len(), wanted.min(rank), "{n} rows of rank {rank}");
            assert_eq!(gram.variances.len(), covariance.variances.len(), "{n} rows of rank {rank}");
            let difference = difference(&gram, &covariance);
            assert!(difference <= 1e-4, "{n} rows of rank {rank}: directions differ by {difference:.1e}");
        }
    }
}
