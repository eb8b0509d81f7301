//! PCA, whitening (eigenvalue power −½) and L2 normalisation (recipe, step 2).

use crate::points::PointsWriter;
use crate::principal::{centre, principal_directions};
use crate::{ClusteringError, Features, Points, Progress};
use deepcluster_domain::Seeds;
use deepcluster_volume::publish::Digest;
use deepcluster_volume::tensors::{self, F32Tensor};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;

/// A fitted whitening: x ↦ P (x − mean), then to unit length.
#[derive(Clone, Debug, PartialEq)]
pub struct Whitening {
    /// `[width]`.
    mean: Vec<f32>,
    /// `[dims, width]`, eigenvectors divided by the root of their eigenvalues.
    projection: Vec<f32>,
    dims: usize,
}

impl Whitening {
    /// Fits the whitening of all rows that take part, to at most `pca` dimensions.
    ///
    /// The mean goes first and is taken off before rows are multiplied: features of an untrained network differ little
    /// from image to image, and subtracting mean products afterwards would lose just those digits.
    ///
    /// # Errors
    /// When a value is not finite, there is no variance at all, or `progress` says so.
    pub fn fit(features: &Features, pca: usize, seeds: Seeds, progress: &mut Progress<'_>) -> Result<Self, ClusteringError> {
        if features.n_kept() < 2 {
            return Err(ClusteringError::Unusable(format!("{} images are too few for a PCA", features.n_kept())));
        }
        let mean = mean(features, progress)?;
        // N rows span at most N − 1 directions around their mean.
        let wanted = pca.min(features.width()).min(features.n_kept() - 1);
        let directions = principal_directions(features, &mean, wanted, seeds, progress)?;
        let dims = directions.variances.len();
        if dims == 0 {
            return Err(ClusteringError::Unusable("all images have the same features: there is nothing to cluster".to_owned()));
        }
        let mut projection = vec![0.0; dims * features.width()];
        for (row, (out, variance)) in projection.chunks_exact_mut(features.width()).zip(&directions.variances).enumerate() {
            for (at, out) in out.iter_mut().enumerate() {
                *out = (directions.vectors[(at, row)] / variance.sqrt()) as f32;
            }
        }
        Ok(Self { mean: mean.iter().map(|value| *value as f32).collect(), projection, dims })
    }

    /// Number of dimensions after whitening.
    pub fn dims(&self) -> usize {
        self.dims
    }

    /// Whitens all rows that take part: `[kept, dims]`, each of length 1; a row without any direction stays zero. They may
    /// go to `file`.
    ///
    /// # Errors
    /// When the features have another width, a value is not finite, the file cannot be written, or `progress` says so.
    pub fn apply(&self, features: &Features, file: &Path, progress: &mut Progress<'_>) -> Result<Points, ClusteringError> {
        if features.width() != self.mean.len() {
            let (is, should) = (features.width(), self.mean.len());
            return Err(ClusteringError::Unusable(format!("features are {is} wide, the whitening is for {should}")));
        }
        let mut points = PointsWriter::new(features.n_kept(), self.dims, file)?;
        let mut n_done = 0;
        let total = features.n_kept() as u64;
        features.for_each_block(|block| {
            points.push(&self.apply_to(block.values)?)?;
            n_done += block.rows.len() as u64;
            progress("project", n_done, total)
        })?;
        points.finish()
    }

    /// Whitens some rows `[n, width]`, which are in memory: `[n, dims]`, likewise of length 1.
    ///
    /// # Errors
    /// When the rows have another width.
    pub fn apply_to(&self, rows: &[f32]) -> Result<Vec<f32>, ClusteringError> {
        let width = self.mean.len();
        if !rows.len().is_multiple_of(width) {
            return Err(ClusteringError::Unusable(format!(
                "features are no rows of the {width} values that the whitening is for"
            )));
        }
        let n = rows.len() / width;
        let mut centred = Vec::with_capacity(rows.len());
        centre(rows, &self.mean, &mut centred);
        let mut whitened = vec![0.0; n * self.dims];
        let x = MatRef::from_row_major_slice(&centred, n, width);
        let projection = MatRef::from_row_major_slice(&self.projection, self.dims, width);
        let y = MatMut::from_row_major_slice_mut(&mut whitened, n, self.dims);
        matmul(y, Accum::Replace, x, projection.transpose(), 1.0, Par::rayon(0));
        whitened.par_chunks_exact_mut(self.dims).for_each(normalise);
        Ok(whitened)
    }

    /// Publishes it as safetensors: `mean` and `projection`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn publish(&self, path: &Path) -> Result<Digest, ClusteringError> {
        let width = self.mean.len();
        let tensors = BTreeMap::from([
            ("mean", F32Tensor { shape: vec![width], values: self.mean.clone() }),
            ("projection", F32Tensor { shape: vec![self.dims, width], values: self.projection.clone() }),
        ]);
        Ok(tensors::publish_f32(path, &tensors)?)
    }

    /// Reads what [`Whitening::publish`] wrote.
    ///
    /// # Errors
    /// When the file cannot be read or is no whitening.
    pub fn read(path: &Path) -> Result<Self, ClusteringError> {
        let mut tensors = tensors::read_f32(path)?;
        let wrong = || ClusteringError::Unusable(format!("{} is no whitening", path.display()));
        let mean = tensors.remove("mean").ok_or_else(wrong)?;
        let projection = tensors.remove("projection").ok_or_else(wrong)?;
        match (mean.shape.as_slice(), projection.shape.as_slice()) {
            ([width], [dims, columns]) if width == columns && *dims > 0 => {
                Ok(Self { mean: mean.values, dims: *dims, projection: projection.values })
            }
            _ => Err(wrong()),
        }
    }
}

fn mean(features: &Features, progress: &mut Progress<'_>) -> Result<Vec<f64>, ClusteringError> {
    let mut sum = vec![0.0_f64; features.width()];
    let mut done = 0;
    features.for_each_block(|block| {
        for row in block.values.chunks_exact(features.width()) {
            for (sum, value) in sum.iter_mut().zip(row) {
                *sum += f64::from(*value);
            }
        }
        done += block.rows.len() as u64;
        progress("mean", done, features.n_kept() as u64)
    })?;
    let n = features.n_kept() as f64;
    Ok(sum.into_iter().map(|sum| sum / n).collect())
}

pub(crate) fn normalise(row: &mut [f32]) {
    let norm = row.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    if norm > 0.0 {
        let scale = (1.0 / norm) as f32;
        row.iter_mut().for_each(|value| *value *= scale);
    }
}
