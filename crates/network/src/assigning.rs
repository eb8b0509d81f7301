//! Whitening and the nearest centroid of a few features, beside the network that made them.
//!
//! The clusterer does the same for whole runs, with a BLAS that cannot be in one process with libtorch. Here a batch costs a
//! few matrix products, so they happen on the CPU in f32 wherever the network is.

use crate::NetworkError;
use deepcluster_domain::FeatureDtype;
use deepcluster_volume::{npy, tensors};
use std::path::Path;
use tch::{Kind, Tensor};

/// A stored whitening, x ↦ P (x − mean) and then to unit length, and centroids in its space.
pub struct Assigning {
    /// `[width]`.
    mean: Tensor,
    /// `[width, dims]`: P, transposed.
    projection: Tensor,
    centroids: Option<Centroids>,
    width: usize,
    dims: usize,
}

struct Centroids {
    /// `[dims, k]`: a centroid a column.
    columns: Tensor,
    /// `[k]`: the squared length of each.
    squares: Tensor,
}

impl Assigning {
    /// Reads what the clusterer has published: safetensors with `mean` and `projection`, and npy `[k, dims]`.
    ///
    /// # Errors
    /// When a file cannot be read or is none of these, or the two do not fit each other.
    pub fn read(whiten: &Path, centroids: Option<&Path>) -> Result<Self, NetworkError> {
        let _no_grad = tch::no_grad_guard();
        let mut found = tensors::read_f32(whiten)?;
        let wrong = || NetworkError::unfit(whiten, "is no whitening");
        let mean = found.remove("mean").ok_or_else(wrong)?;
        let projection = found.remove("projection").ok_or_else(wrong)?;
        let (width, dims) = match (mean.shape.as_slice(), projection.shape.as_slice()) {
            (&[width], &[dims, columns]) if width == columns && width > 0 && dims > 0 => (width, dims),
            _ => return Err(wrong()),
        };
        let projection = matrix(&projection.values, width)?.f_transpose(0, 1)?.f_contiguous()?;
        let centroids = match centroids {
            None => None,
            Some(path) => Some(Centroids::read(path, dims)?),
        };
        Ok(Self { mean: Tensor::f_from_slice(&mean.values)?, projection, centroids, width, dims })
    }

    /// Values of a feature.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Dimensions after whitening.
    pub fn dims(&self) -> usize {
        self.dims
    }

    /// Whitens features `[n, width]`: `[n, dims]`, each of length 1; a row without any direction stays zero.
    ///
    /// # Errors
    /// When the features have another width, or libtorch is out of memory.
    pub fn whitened(&self, features: &[f32]) -> Result<Vec<f32>, NetworkError> {
        let _no_grad = tch::no_grad_guard();
        to_vec(&self.points(features)?)
    }

    /// The nearest centroid of each of `[n, width]` features, and the squared distance to it.
    ///
    /// # Errors
    /// When there are no centroids, the features have another width, or libtorch is out of memory.
    pub fn nearest(&self, features: &[f32]) -> Result<Vec<(u32, f32)>, NetworkError> {
        let _no_grad = tch::no_grad_guard();
        let Some(centroids) = &self.centroids else {
            return Err(NetworkError::Torch("there are no centroids to compare with".to_owned()));
        };
        let points = self.points(features)?;
        // |x − c|² = |x|² − 2 xc + |c|². Rounding can make it a little negative.
        let squares = points.f_square()?.f_sum_dim_intlist([1_i64].as_slice(), true, Kind::Float)?;
        let products = points.f_matmul(&centroids.columns)?.f_mul_scalar(-2.0)?;
        let distances = products.f_add(&centroids.squares)?.f_add(&squares)?.f_clamp_min(0.0)?;
        let (least, at) = distances.f_min_dim(1, false)?;
        let mut labels = vec![0_i64; at.numel()];
        at.f_contiguous()?.f_copy_data(&mut labels, at.numel())?;
        Ok(labels.into_iter().map(|label| label as u32).zip(to_vec(&least)?).collect())
    }

    fn points(&self, features: &[f32]) -> Result<Tensor, NetworkError> {
        if !features.len().is_multiple_of(self.width) {
            let why = format!("is for features of {} values", self.width);
            return Err(NetworkError::Unfit { path: "the whitening".to_owned(), why });
        }
        let whitened = matrix(features, self.width)?.f_sub(&self.mean)?.f_matmul(&self.projection)?;
        let lengths = whitened.f_square()?.f_sum_dim_intlist([1_i64].as_slice(), true, Kind::Float)?.f_sqrt()?;
        Ok(whitened.f_div(&lengths.f_clamp_min(f64::from(f32::MIN_POSITIVE))?)?)
    }
}

impl Centroids {
    fn read(path: &Path, dims: usize) -> Result<Self, NetworkError> {
        let (shape, values) = npy::read_f32(path)?;
        if shape.len() != 2 || shape.first() == Some(&0) || shape.get(1) != Some(&dims) {
            return Err(NetworkError::unfit(path, format!("has shape {shape:?}, which does not fit a whitening to {dims}")));
        }
        let rows = matrix(&values, dims)?;
        let squares = rows.f_square()?.f_sum_dim_intlist([1_i64].as_slice(), false, Kind::Float)?;
        Ok(Self { columns: rows.f_transpose(0, 1)?.f_contiguous()?, squares })
    }
}

/// Features as they are once they have been stored. What f16 cannot hold becomes infinite.
///
/// # Errors
/// When libtorch is out of memory.
pub fn rounded(features: Vec<f32>, dtype: FeatureDtype) -> Result<Vec<f32>, NetworkError> {
    match dtype {
        FeatureDtype::F32 => Ok(features),
        FeatureDtype::F16 => {
            let _no_grad = tch::no_grad_guard();
            to_vec(&Tensor::f_from_slice(&features)?.f_totype(Kind::Half)?.f_totype(Kind::Float)?)
        }
    }
}

fn matrix(values: &[f32], width: usize) -> Result<Tensor, NetworkError> {
    Ok(Tensor::f_from_slice(values)?.f_view([(values.len() / width) as i64, width as i64])?)
}

fn to_vec(tensor: &Tensor) -> Result<Vec<f32>, NetworkError> {
    let tensor = tensor.f_contiguous()?;
    let mut values = vec![0.0; tensor.numel()];
    tensor.f_copy_data(&mut values, tensor.numel())?;
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use deepcluster_volume::tensors::F32Tensor;
    use std::collections::BTreeMap;

    const WIDTH: usize = 7;
    const DIMS: usize = 3;

    fn numbers(n: usize, seed: u32) -> Vec<f32> {
        (0..n as u32).map(|at| ((at + seed).wrapping_mul(2_654_435_761) >> 8) as f32 / 8_388_608.0 - 1.0).collect()
    }

    /// By the definition, in f64.
    fn whitened(row: &[f32], mean: &[f32], projection: &[f32]) -> Vec<f64> {
        let product = |of: &[f32]| {
            let terms = row.iter().zip(mean).zip(of);
            terms.map(|((x, mean), p)| (f64::from(*x) - f64::from(*mean)) * f64::from(*p)).sum::<f64>()
        };
        let values: Vec<f64> = projection.chunks_exact(WIDTH).map(product).collect();
        let length = values.iter().map(|value| value * value).sum::<f64>().sqrt();
        values.iter().map(|value| if length > 0.0 { value / length } else { 0.0 }).collect()
    }

    #[test]
    fn points_and_their_nearest_centroids_are_those_of_the_definition() {
        let folder = tempfile::tempdir().unwrap();
        let (whiten, at_centroids) = (folder.path().join("whiten.safetensors"), folder.path().join("centroids.npy"));
        let (mean, projection, centroids) = (numbers(WIDTH, 1), numbers(DIMS * WIDTH, 100), numbers(5 * DIMS, 1000));
        let tensor = |shape: &[usize], values: &[f32]| F32Tensor { shape: shape.to_vec(), values: values.to_vec() };
        let file = BTreeMap::from([("mean", tensor(&[WIDTH], &mean)), ("projection", tensor(&[DIMS, WIDTH], &projection))]);
        tensors::publish_f32(&whiten, &file).unwrap();
        npy::publish_f32(&at_centroids, &[5, DIMS], &centroids).unwrap();
        let assigning = Assigning::read(&whiten, Some(&at_centroids)).unwrap();
        assert_eq!((assigning.width(), assigning.dims()), (WIDTH, DIMS));

        // The last row is the mean, which has no direction.
        let features = [numbers(40 * WIDTH, 5000), mean.clone()].concat();
        let points = assigning.whitened(&features).unwrap();
        let nearest = assigning.nearest(&features).unwrap();
        assert_eq!((points.len(), nearest.len()), (41 * DIMS, 41));
        for ((row, point), (label, distance)) in features.chunks_exact(WIDTH).zip(points.chunks_exact(DIMS)).zip(nearest) {
            let expected = whitened(row, &mean, &projection);
            assert!(expected.iter().zip(point).all(|(a, b)| (a - f64::from(*b)).abs() < 1e-5), "{expected:?}, not {point:?}");
            let to = |centroid: &[f32]| expected.iter().zip(centroid).map(|(x, c)| (x - f64::from(*c)).powi(2)).sum::<f64>();
            let all: Vec<f64> = centroids.chunks_exact(DIMS).map(to).collect();
            let least = all.iter().copied().fold(f64::INFINITY, f64::min);
            assert!((all[label as usize] - least).abs() < 1e-5 && (f64::from(distance) - least).abs() < 1e-5, "{all:?}: {label}");
        }

        assert!(assigning.whitened(&features[1..]).is_err());
        npy::publish_f32(&at_centroids, &[DIMS, 5], &centroids).unwrap();
        assert!(Assigning::read(&whiten, Some(&at_centroids)).is_err_and(|error| error.is_callers_fault()));
        assert!(Assigning::read(&at_centroids, None).is_err());
    }

    #[test]
    fn features_are_rounded_as_they_are_stored() {
        let features = vec![1.000_1, -0.1, 70_000.0];
        assert_eq!(rounded(features.clone(), FeatureDtype::F32).unwrap(), features);
        assert_eq!(rounded(features, FeatureDtype::F16).unwrap(), [1.0, -0.099_975_586, f32::INFINITY]);
    }
}
