//! `.safetensors` files as named arrays of f32 or of bytes that somebody else understands.

use crate::VolumeError;
use crate::publish::{AtomicFile, Digest};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;

/// A tensor of f32 in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct F32Tensor {
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its values in C order.
    pub values: Vec<f32>,
}

/// Publishes tensors of f32 by name.
///
/// # Errors
/// When a shape is not that of its values, or the file cannot be written.
pub fn publish_f32(path: &Path, tensors: &BTreeMap<&str, F32Tensor>) -> Result<Digest, VolumeError> {
    let view = |tensor: &'_ F32Tensor| -> Result<Vec<u8>, VolumeError> { Ok(bytemuck::cast_slice(&tensor.values).to_vec()) };
    let bytes: BTreeMap<&str, Vec<u8>> =
        tensors.iter().map(|(name, tensor)| Ok((*name, view(tensor)?))).collect::<Result<_, VolumeError>>()?;
    let views = tensors
        .iter()
        .map(|(name, tensor)| Ok((*name, TensorView::new(Dtype::F32, tensor.shape.clone(), &bytes[name])?)))
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
        .map_err(|error| VolumeError::corrupt(path, error))?;
    publish_views(path, views)
}

/// Publishes tensors that are given as views.
///
/// # Errors
/// When the file cannot be written.
pub fn publish_views<N: AsRef<str> + Ord + std::fmt::Display>(
    path: &Path,
    views: Vec<(N, TensorView<'_>)>,
) -> Result<Digest, VolumeError> {
    let content = safetensors::serialize(views, None).map_err(|error| VolumeError::corrupt(path, error))?;
    let mut file = AtomicFile::create(path)?;
    file.write_all(&content).map_err(VolumeError::io(path))?;
    file.commit()
}

/// Reads all tensors of a file, which must be of f32.
///
/// # Errors
/// When the file is missing, no safetensors, or holds another type.
pub fn read_f32(path: &Path) -> Result<BTreeMap<String, F32Tensor>, VolumeError> {
    let content = fs::read(path).map_err(VolumeError::io(path))?;
    let tensors = SafeTensors::deserialize(&content).map_err(|error| VolumeError::corrupt(path, error))?;
    let mut named = BTreeMap::new();
    for (name, view) in tensors.iter() {
        if view.dtype() != Dtype::F32 {
            return Err(VolumeError::corrupt(path, format!("tensor {name} is not of f32")));
        }
        let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        named.insert(name.to_owned(), F32Tensor { shape: view.shape().to_vec(), values });
    }
    Ok(named)
}

/// Copies the tensors whose names `keep` accepts into a new file, byte for byte.
///
/// # Errors
/// When the source is no safetensors or the target cannot be written.
pub fn copy_some(from: &Path, to: &Path, keep: impl Fn(&str) -> bool) -> Result<Digest, VolumeError> {
    let content = fs::read(from).map_err(VolumeError::io(from))?;
    let tensors = SafeTensors::deserialize(&content).map_err(|error| VolumeError::corrupt(from, error))?;
    let mut views: Vec<_> = tensors.iter().filter(|(name, _)| keep(name)).collect();
    views.sort_by(|a, b| a.0.cmp(b.0));
    publish_views(to, views)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_survive_and_can_be_picked() {
        let folder = tempfile::tempdir().unwrap();
        let (all, some) = (folder.path().join("all.safetensors"), folder.path().join("some.safetensors"));
        let tensor = |shape: &[usize], values: &[f32]| F32Tensor { shape: shape.to_vec(), values: values.to_vec() };
        let tensors = BTreeMap::from([("mean", tensor(&[2], &[1.0, -2.5])), ("optimizer.x", tensor(&[1, 1], &[3.0]))]);
        publish_f32(&all, &tensors).unwrap();
        let read = read_f32(&all).unwrap();
        assert_eq!(read["mean"], tensors["mean"]);
        copy_some(&all, &some, |name| !name.starts_with("optimizer.")).unwrap();
        assert_eq!(read_f32(&some).unwrap().into_keys().collect::<Vec<_>>(), ["mean"]);
        crate::publish::publish_bytes(&all, b"\xff\xff\xff\xff\xff\xff\xff\xff").unwrap();
        assert!(matches!(read_f32(&all), Err(VolumeError::Corrupt { .. })));
    }
}
