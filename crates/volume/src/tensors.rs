//! `.safetensors` files: named arrays, read and written one at a time, since all of a large network's together would take its
//! size in memory once more.

use crate::VolumeError;
use crate::publish::{AtomicFile, Digest};
use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Bytes of the number that tells how long the header is.
const PREFIX: u64 = 8;

/// Longest header, as the safetensors crate has it.
const MAX_HEADER: u64 = 100_000_000;

/// A tensor of f32 in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct F32Tensor {
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its values in C order.
    pub values: Vec<f32>,
}

/// What a file says about a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// Its name.
    pub name: String,
    /// Type of its elements.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
}

/// Types of numbers that become f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElementKind {
    /// As they are.
    F32,
    /// Halves.
    F16,
    /// Halves with the range of f32.
    Bf16,
    /// Doubles, which are rounded.
    F64,
}

impl ElementKind {
    /// That of a tensor; none for one that holds no numbers of these types.
    pub fn of(tensor: &Described) -> Option<Self> {
        match tensor.dtype {
            Dtype::F32 => Some(Self::F32),
            Dtype::F16 => Some(Self::F16),
            Dtype::BF16 => Some(Self::Bf16),
            Dtype::F64 => Some(Self::F64),
            _ => None,
        }
    }
}

impl Described {
    /// A tensor of f32.
    pub fn f32(name: &str, shape: &[usize]) -> Self {
        Self { name: name.to_owned(), dtype: Dtype::F32, shape: shape.to_vec() }
    }

    fn bytes(&self) -> Option<usize> {
        let numbers = self.shape.iter().try_fold(1_usize, |product, n| product.checked_mul(*n))?;
        Some(numbers.checked_mul(self.dtype.bitsize())? / 8)
    }
}

/// An open file whose header and length were found consistent.
pub struct TensorsFile {
    path: PathBuf,
    file: File,
    data_at: u64,
    tensors: BTreeMap<String, (Described, u64)>,
}

impl TensorsFile {
    /// Opens a file.
    ///
    /// # Errors
    /// When it is missing, no safetensors, or cut short.
    pub fn open(path: &Path) -> Result<Self, VolumeError> {
        let file = File::open(path).map_err(VolumeError::io(path))?;
        let size = file.metadata().map_err(VolumeError::io(path))?.len();
        let corrupt = |why: &dyn std::fmt::Display| VolumeError::corrupt(path, why);
        let read = |at: u64, buffer: &mut [u8]| file.read_exact_at(buffer, at).map_err(|error| corrupt(&error));
        if size < PREFIX {
            return Err(corrupt(&format!("it has {size} bytes, fewer than any safetensors file")));
        }
        let mut prefix = [0; PREFIX as usize];
        read(0, &mut prefix)?;
        let length = u64::from_le_bytes(prefix);
        if length > MAX_HEADER.min(size.saturating_sub(PREFIX)) {
            return Err(corrupt(&"it does not begin as safetensors files do, or is cut short"));
        }
        let mut header = vec![0; length as usize];
        read(PREFIX, &mut header)?;
        let metadata: Metadata = serde_json::from_slice(&header).map_err(|error| corrupt(&error))?;
        let data_at = PREFIX + length;
        let mut tensors = BTreeMap::new();
        let mut end = 0;
        for name in metadata.offset_keys() {
            let Some(TensorInfo { dtype, shape, data_offsets: (from, to) }) = metadata.info(&name) else { continue };
            let described = Described { name: name.clone(), dtype: *dtype, shape: shape.clone() };
            // One behind the other, without gaps.
            if *from != end || to.checked_sub(*from) != described.bytes() {
                return Err(corrupt(&format!("tensor {name} is not as long as its shape")));
            }
            end = *to;
            tensors.insert(name, (described, *from as u64));
        }
        if data_at.checked_add(end as u64) != Some(size) {
            return Err(corrupt(&format!("has {size} bytes, which do not fit its header")));
        }
        Ok(Self { path: path.to_owned(), file, data_at, tensors })
    }

    /// What the file holds, in order of the names.
    pub fn tensors(&self) -> impl Iterator<Item = &Described> {
        self.tensors.values().map(|(described, _)| described)
    }

    /// One of them.
    pub fn find(&self, name: &str) -> Option<&Described> {
        self.tensors.get(name).map(|(described, _)| described)
    }

    /// Reads a tensor of f32, in C order.
    ///
    /// # Errors
    /// When there is none of that name, it is of another type, or it cannot be read.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, VolumeError> {
        if self.find(name).is_some_and(|described| described.dtype != Dtype::F32) {
            return Err(VolumeError::corrupt(&self.path, format!("tensor {name} is not of f32")));
        }
        let mut bytes = Vec::new();
        self.read(name, &mut bytes)?;
        Ok(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }

    /// Reads the bytes of a tensor, little-endian and in C order, in the place of what `out` held.
    ///
    /// # Errors
    /// When there is none of that name, or it cannot be read.
    pub fn read(&self, name: &str, out: &mut Vec<u8>) -> Result<(), VolumeError> {
        let found = self.tensors.get(name).and_then(|(described, at)| Some((described.bytes()?, at)));
        let (bytes, at) = found.ok_or_else(|| VolumeError::corrupt(&self.path, format!("has no tensor {name}")))?;
        out.resize(bytes, 0);
        self.file.read_exact_at(out, self.data_at + at).map_err(|error| VolumeError::corrupt(&self.path, error))
    }
}

impl TensorsFile {
    /// Reads the numbers of a tensor of any of the [`ElementKind`]s as f32 in C order, in the place of what `out` held.
    ///
    /// # Errors
    /// When there is none of that name, it holds others, or it cannot be read.
    pub fn read_as_f32(&self, name: &str, out: &mut Vec<f32>) -> Result<(), VolumeError> {
        let kind = self.find(name).and_then(ElementKind::of);
        let kind = kind.ok_or_else(|| VolumeError::corrupt(&self.path, format!("has no numbers named {name}")))?;
        let mut bytes = Vec::new();
        self.read(name, &mut bytes)?;
        out.clear();
        match kind {
            ElementKind::F32 => out.extend(bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes))),
            ElementKind::F16 => out.extend(bytes.as_chunks::<2>().0.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32())),
            ElementKind::Bf16 => out.extend(bytes.as_chunks::<2>().0.iter().map(|bytes| bf16::from_le_bytes(*bytes).to_f32())),
            ElementKind::F64 => out.extend(bytes.as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes) as f32)),
        }
        Ok(())
    }
}

/// Publishes tensors, whose bytes `content` puts into an empty buffer, one after the other.
///
/// # Errors
/// What `content` says; when it gives another number of bytes than the shape has, or the file cannot be written.
pub fn publish<E: From<VolumeError>>(
    path: &Path,
    mut tensors: Vec<Described>,
    mut content: impl FnMut(&str, &mut Vec<u8>) -> Result<(), E>,
) -> Result<Digest, E> {
    let corrupt = |why: &dyn std::fmt::Display| VolumeError::corrupt(path, why);
    // Large elements first keep all of them aligned.
    tensors.sort_by(|a, b| b.dtype.cmp(&a.dtype).then_with(|| a.name.cmp(&b.name)));
    let mut end = 0;
    let infos = tensors.iter().map(|tensor| {
        let bytes = tensor.bytes().ok_or_else(|| corrupt(&format!("tensor {} is too large", tensor.name)))?;
        let data_offsets = (end, end + bytes);
        end += bytes;
        Ok((tensor.name.clone(), TensorInfo { dtype: tensor.dtype, shape: tensor.shape.clone(), data_offsets }))
    });
    let infos = infos.collect::<Result<Vec<_>, VolumeError>>()?;
    let metadata = Metadata::new(None, infos).map_err(|error| corrupt(&error))?;
    let mut header = serde_json::to_vec(&metadata).map_err(|error| corrupt(&error))?;
    header.resize(header.len().next_multiple_of(PREFIX as usize), b' ');

    let mut file = AtomicFile::create(path)?;
    let mut write = |bytes: &[u8]| file.write_all(bytes).map_err(VolumeError::io(path));
    write(&(header.len() as u64).to_le_bytes())?;
    write(&header)?;
    let mut bytes = Vec::new();
    for tensor in &tensors {
        bytes.clear();
        content(&tensor.name, &mut bytes)?;
        if Some(bytes.len()) != tensor.bytes() {
            return Err(corrupt(&format!("tensor {} is not as long as its shape", tensor.name)).into());
        }
        write(&bytes)?;
    }
    Ok(file.commit()?)
}

/// Publishes tensors of f32 by name.
///
/// # Errors
/// When a shape is not that of its values, or the file cannot be written.
pub fn publish_f32(path: &Path, tensors: &BTreeMap<&str, F32Tensor>) -> Result<Digest, VolumeError> {
    let described = |(name, tensor): (&&str, &F32Tensor)| Described {
        name: (*name).to_owned(),
        dtype: Dtype::F32,
        shape: tensor.shape.clone(),
    };
    publish(path, tensors.iter().map(described).collect(), |name, out| {
        out.extend_from_slice(bytemuck::cast_slice(&tensors[name].values));
        Ok(())
    })
}

/// Reads all tensors of a file, which must be of f32.
///
/// # Errors
/// When the file is missing, no safetensors, or holds another type.
pub fn read_f32(path: &Path) -> Result<BTreeMap<String, F32Tensor>, VolumeError> {
    let file = TensorsFile::open(path)?;
    let mut named = BTreeMap::new();
    for Described { name, shape, .. } in file.tensors() {
        named.insert(name.clone(), F32Tensor { shape: shape.clone(), values: file.read_f32(name)? });
    }
    Ok(named)
}

/// Copies the tensors whose names `keep` accepts into a new file, byte for byte.
///
/// # Errors
/// When the source is no safetensors or the target cannot be written.
pub fn copy_some(from: &Path, to: &Path, keep: impl Fn(&str) -> bool) -> Result<Digest, VolumeError> {
    let file = TensorsFile::open(from)?;
    let kept = file.tensors().filter(|tensor| keep(&tensor.name)).cloned().collect();
    publish(to, kept, |name, out| file.read(name, out))
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
