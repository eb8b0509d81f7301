//! The leading eigenvectors of a large symmetric matrix, and nothing more.
//!
//! faiss (LAPACK's dsyev) computes all 4096 eigenvectors to use 256 of them: minutes, where block Lanczos with full
//! reorthogonalisation (Golub and Underwood 1977) takes seconds. A Krylov basis grows by blocks from a random start until
//! the wanted Ritz pairs have small residuals; should the spectrum be so flat that the basis would grow to half of the
//! matrix, all eigenvectors are computed after all.

use crate::ClusteringError;
use deepcluster_domain::{Purpose, Seeds};
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par, Side};
use rand_distr::{Distribution, StandardNormal};

/// Columns by which the basis grows.
const BLOCK: usize = 64;

/// A Ritz pair is good when ‖Cv − λv‖ is at most this times λ.
const TOLERANCE: f64 = 1e-5;

/// Directions with less variance than this share of the largest one are rounding, not signal.
pub const NO_VARIANCE: f64 = 1e-6;

/// Eigenvalues in descending order, and their eigenvectors as columns.
pub struct Leading {
    /// At most as many as asked for; none below [`NO_VARIANCE`] of the first.
    pub values: Vec<f64>,
    /// `[d, values]`, orthonormal.
    pub vectors: Mat<f64>,
    /// Columns that were multiplied with the matrix; 0 when all eigenvectors were computed at once.
    pub n_products: usize,
}

/// The `wanted` leading eigenpairs of a symmetric positive semi-definite matrix, given in full.
///
/// # Errors
/// When the dense solver does not converge, or `progress` says so.
pub fn leading(
    matrix: MatRef<'_, f64>,
    wanted: usize,
    seeds: Seeds,
    par: Par,
    progress: &mut dyn FnMut(usize) -> Result<(), ClusteringError>,
) -> Result<Leading, ClusteringError> {
    let d = matrix.nrows();
    let wanted = wanted.min(d);
    // A small matrix is solved whole faster than its basis would be built.
    if wanted + 4 * BLOCK >= d / 2 {
        return dense(matrix, wanted);
    }
    let mut rng = seeds.rng(Purpose::Whitening, 0);
    let start = Mat::<f64>::from_fn(d, BLOCK, |_, _| StandardNormal.sample(&mut rng));
    let mut next: Mat<f64> = start.qr().compute_thin_Q();
    let mut basis: Mat<f64> = Mat::zeros(d, 0);
    let mut products: Mat<f64> = Mat::zeros(d, 0);
    let mut check_at = wanted + 4 * BLOCK;
    while basis.ncols() + BLOCK <= d / 2 {
        let product = multiply(matrix, next.as_ref(), par);
        basis = append(&basis, next.as_ref());
        products = append(&products, product.as_ref());
        progress(basis.ncols())?;
        if basis.ncols() >= check_at {
            if let Some(found) = rayleigh_ritz(&basis, &products, wanted, par)? {
                return Ok(found);
            }
            check_at = basis.ncols() + basis.ncols() / 4;
        }
        next = orthonormal_to(&basis, product, par);
    }
    dense(matrix, wanted)
}

/// Ritz pairs of the basis, when all that are wanted have converged.
fn rayleigh_ritz(basis: &Mat<f64>, products: &Mat<f64>, wanted: usize, par: Par) -> Result<Option<Leading>, ClusteringError> {
    let small = multiply(basis.transpose(), products.as_ref(), par);
    let solved = eigen(small.as_ref())?;
    let (values, coordinates) = descending(solved.S().column_vector().iter().copied(), solved.U(), wanted);
    let vectors = multiply(basis.as_ref(), coordinates.as_ref(), par);
    let images = multiply(products.as_ref(), coordinates.as_ref(), par);
    let converged = values.iter().enumerate().all(|(column, value)| {
        let residual = (images.col(column) - vectors.col(column) * faer::Scale(*value)).norm_l2();
        residual <= TOLERANCE * value
    });
    Ok(converged.then(|| Leading { values, vectors, n_products: basis.ncols() }))
}

fn dense(matrix: MatRef<'_, f64>, wanted: usize) -> Result<Leading, ClusteringError> {
    let solved = eigen(matrix)?;
    let (values, vectors) = descending(solved.S().column_vector().iter().copied(), solved.U(), wanted);
    Ok(Leading { values, vectors, n_products: 0 })
}

fn eigen(matrix: MatRef<'_, f64>) -> Result<faer::linalg::solvers::SelfAdjointEigen<f64>, ClusteringError> {
    matrix.self_adjoint_eigen(Side::Lower).map_err(|error| ClusteringError::Eigen(format!("{error:?}")))
}

/// The last `wanted` columns in reverse, without those that have no variance.
fn descending(ascending: impl Iterator<Item = f64>, vectors: MatRef<'_, f64>, wanted: usize) -> (Vec<f64>, Mat<f64>) {
    let mut values: Vec<f64> = ascending.collect();
    values.reverse();
    let floor = values.first().copied().unwrap_or(0.0) * NO_VARIANCE;
    values.truncate(wanted);
    values.retain(|value| *value > floor && *value > 0.0);
    let last = vectors.ncols();
    let columns = Mat::from_fn(vectors.nrows(), values.len(), |row, column| vectors[(row, last - 1 - column)]);
    (values, columns)
}

/// An orthonormal block in the span of `block`, orthogonal to `basis`; twice, because once leaves rounding behind.
fn orthonormal_to(basis: &Mat<f64>, mut block: Mat<f64>, par: Par) -> Mat<f64> {
    for _ in 0..2 {
        let overlap = multiply(basis.transpose(), block.as_ref(), par);
        matmul(block.as_mut(), Accum::Add, basis.as_ref(), overlap.as_ref(), -1.0, par);
        block = block.qr().compute_thin_Q();
    }
    block
}

fn multiply(left: MatRef<'_, f64>, right: MatRef<'_, f64>, par: Par) -> Mat<f64> {
    let mut product = Mat::zeros(left.nrows(), right.ncols());
    matmul(product.as_mut(), Accum::Replace, left, right, 1.0, par);
    product
}

fn append(matrix: &Mat<f64>, columns: MatRef<'_, f64>) -> Mat<f64> {
    let old = matrix.ncols();
    let mut longer = Mat::zeros(matrix.nrows(), old + columns.ncols());
    longer.as_mut().subcols_mut(0, old).copy_from(matrix);
    longer.as_mut().subcols_mut(old, columns.ncols()).copy_from(columns);
    longer
}

#[cfg(test)]
mod tests {
    use super::*;
    use deepcluster_domain::EpochId;

    /// A matrix with known eigenvalues and random eigenvectors.
    fn matrix_of(values: &[f64]) -> Mat<f64> {
        let d = values.len();
        let mut rng = Seeds::new(5, EpochId(0)).rng(Purpose::Whitening, 1);
        let q = Mat::<f64>::from_fn(d, d, |_, _| StandardNormal.sample(&mut rng)).qr().compute_thin_Q();
        let scaled = Mat::from_fn(d, d, |row, column| q[(row, column)] * values[column]);
        &scaled * q.transpose()
    }

    fn check(values: &[f64], wanted: usize, iterates: bool) {
        let matrix = matrix_of(values);
        let found = leading(matrix.as_ref(), wanted, Seeds::new(1, EpochId(0)), Par::Seq, &mut |_| Ok(())).unwrap();
        assert_eq!(found.n_products > 0, iterates, "{} products", found.n_products);
        let mut expected = values.to_vec();
        expected.sort_by(|a, b| b.total_cmp(a));
        expected.truncate(wanted);
        let floor = expected[0] * NO_VARIANCE;
        expected.retain(|value| *value > floor);
        assert_eq!(found.values.len(), expected.len());
        for (column, (value, truth)) in found.values.iter().zip(&expected).enumerate() {
            assert!((value / truth - 1.0).abs() < 1e-8, "eigenvalue {column}: {value}, not {truth}");
            let vector = found.vectors.col(column);
            let residual = (&matrix * vector - vector * faer::Scale(*value)).norm_l2();
            assert!(residual <= 2.0 * TOLERANCE * value, "residual {residual} at {column}");
        }
    }

    #[test]
    fn decaying_spectra_are_solved_iteratively() {
        let values: Vec<f64> = (0..1100).map(|i| 1000.0 / f64::from(i + 1).powi(2)).collect();
        check(&values, 40, true);
    }

    #[test]
    fn flat_spectra_and_small_matrices_are_solved_whole() {
        let flat: Vec<f64> = (0..800).map(|i| 1.0 + 1e-4 * f64::from(i)).collect();
        check(&flat, 40, false);
        check(&[3.0, 1.0, 2.0], 2, false);
    }

    #[test]
    fn directions_without_variance_are_dropped() {
        let mut values = vec![0.0; 900];
        values[..30].fill(2.0);
        check(&values, 64, true);
        check(&[4.0, 0.0, 1.0, 1e-9], 4, false);
    }
}
