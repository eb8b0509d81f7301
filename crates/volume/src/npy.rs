//! `.npy` files: features, labels, distances and centroids, little-endian and in C order.
//!
//! Files are read by position into buffers of the caller, not mapped: memory stays bounded by the block that is being
//! worked on, and a file that another process cuts short gives an error, where a map would kill the process (SIGBUS).

use crate::VolumeError;
use crate::publish::{AtomicFile, Digest};
use deepcluster_domain::FeatureDtype;
use half::f16;
use half::slice::HalfFloatSliceExt;
use npyz::{DType, NpyHeader, WriterBuilder};
use std::fs::File;
use std::io::{BufReader, Read, Seek, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Element types that occur on a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElementType {
    /// IEEE half precision.
    F16,
    /// Single precision.
    F32,
    /// 32-bit integer.
    I32,
    /// 64-bit integer.
    I64,
}

impl ElementType {
    fn descr(self) -> &'static str {
        match self {
            Self::F16 => "<f2",
            Self::F32 => "<f4",
            Self::I32 => "<i4",
            Self::I64 => "<i8",
        }
    }

    fn size(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 | Self::I32 => 4,
            Self::I64 => 8,
        }
    }
}

impl From<FeatureDtype> for ElementType {
    fn from(dtype: FeatureDtype) -> Self {
        match dtype {
            FeatureDtype::F16 => Self::F16,
            FeatureDtype::F32 => Self::F32,
        }
    }
}

/// An open array whose header and length were found consistent.
pub struct ArrayFile {
    path: PathBuf,
    file: File,
    element: ElementType,
    shape: Vec<usize>,
    data_at: u64,
}

impl ArrayFile {
    /// Opens an array.
    ///
    /// # Errors
    /// When it is missing, no `.npy`, of another element type or order, or its size is not what its header promises.
    pub fn open(path: &Path) -> Result<Self, VolumeError> {
        let file = File::open(path).map_err(VolumeError::io(path))?;
        let size = file.metadata().map_err(VolumeError::io(path))?.len();
        let mut reader = BufReader::new((&file).take(1 << 20));
        let header = NpyHeader::from_reader(&mut reader).map_err(|error| VolumeError::corrupt(path, error))?;
        let buffered = reader.buffer().len() as u64;
        drop(reader);
        let data_at = (&file).stream_position().map_err(VolumeError::io(path))? - buffered;
        let corrupt = |why: String| VolumeError::corrupt(path, why);
        let descr = match header.dtype() {
            DType::Plain(descr) => descr.to_string(),
            other => other.descr(),
        };
        let known = [ElementType::F16, ElementType::F32, ElementType::I32, ElementType::I64];
        let element = known.into_iter().find(|element| element.descr() == descr);
        let element = element.ok_or_else(|| corrupt(format!("has elements of type {descr}")))?;
        if header.order() != npyz::Order::C {
            return Err(corrupt("is in Fortran order".to_owned()));
        }
        let expected = header.shape().iter().try_fold(element.size() as u64, |product, n| product.checked_mul(*n));
        if expected.and_then(|bytes| bytes.checked_add(data_at)) != Some(size) {
            return Err(corrupt(format!("has {size} bytes, which do not fit its shape {:?}", header.shape())));
        }
        let shape = header.shape().iter().map(|n| *n as usize).collect();
        Ok(Self { path: path.to_owned(), file, element, shape, data_at })
    }

    /// Its shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Rows of a matrix, or elements of a vector.
    pub fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    /// Elements of a row.
    pub fn width(&self) -> usize {
        self.shape.iter().skip(1).product()
    }

    /// Reads rows `first .. first + rows` as f32 into `out`, replacing what it held.
    ///
    /// # Errors
    /// When the rows are not there or the file holds integers.
    pub fn read_f32_rows(&self, first: usize, rows: usize, out: &mut Vec<f32>) -> Result<(), VolumeError> {
        let n = rows * self.width();
        out.clear();
        match self.element {
            ElementType::F32 => {
                out.resize(n, 0.0);
                self.read_at(first, bytemuck::cast_slice_mut(out))
            }
            ElementType::F16 => {
                let mut halves = vec![f16::ZERO; n];
                self.read_at(first, bytemuck::cast_slice_mut(&mut halves))?;
                out.resize(n, 0.0);
                halves.convert_to_f32_slice(out);
                Ok(())
            }
            ElementType::I32 | ElementType::I64 => Err(VolumeError::corrupt(&self.path, "holds integers, not numbers")),
        }
    }

    fn read_at(&self, first_row: usize, buffer: &mut [u8]) -> Result<(), VolumeError> {
        let at = self.data_at + (first_row * self.width() * self.element.size()) as u64;
        self.file.read_exact_at(buffer, at).map_err(|error| VolumeError::corrupt(&self.path, error))
    }
}

/// Reads a whole array of f16 or f32 as f32, with its shape.
///
/// # Errors
/// As [`ArrayFile::open`].
pub fn read_f32(path: &Path) -> Result<(Vec<usize>, Vec<f32>), VolumeError> {
    let array = ArrayFile::open(path)?;
    let mut values = Vec::new();
    array.read_f32_rows(0, array.rows(), &mut values)?;
    Ok((array.shape, values))
}

/// Reads a vector of 32-bit integers, as labels are.
///
/// # Errors
/// As [`ArrayFile::open`], and when it is no vector of int32.
pub fn read_i32(path: &Path) -> Result<Vec<i32>, VolumeError> {
    read_vector(path, ElementType::I32)
}

/// Reads a vector of 64-bit integers, as digests of files are.
///
/// # Errors
/// As [`ArrayFile::open`], and when it is no vector of int64.
pub fn read_i64(path: &Path) -> Result<Vec<i64>, VolumeError> {
    read_vector(path, ElementType::I64)
}

/// Reads a matrix of 32-bit integers, with its shape.
///
/// # Errors
/// As [`ArrayFile::open`], and when it is no matrix of int32.
pub fn read_i32_matrix(path: &Path) -> Result<([usize; 2], Vec<i32>), VolumeError> {
    let (shape, values) = read_integers(path, ElementType::I32)?;
    let shape = shape.try_into().map_err(|_| VolumeError::corrupt(path, "is no matrix"))?;
    Ok((shape, values))
}

fn read_vector<T: bytemuck::Pod>(path: &Path, element: ElementType) -> Result<Vec<T>, VolumeError> {
    match read_integers(path, element)? {
        (shape, values) if shape.len() == 1 => Ok(values),
        _ => Err(VolumeError::corrupt(path, format!("is no vector of {}", element.descr()))),
    }
}

fn read_integers<T: bytemuck::Pod>(path: &Path, element: ElementType) -> Result<(Vec<usize>, Vec<T>), VolumeError> {
    let array = ArrayFile::open(path)?;
    if array.element != element {
        return Err(VolumeError::corrupt(path, format!("holds no {}", element.descr())));
    }
    let mut values = vec![T::zeroed(); array.shape.iter().product()];
    array.read_at(0, bytemuck::cast_slice_mut(&mut values))?;
    Ok((array.shape, values))
}

/// Publishes a vector of 32-bit integers.
///
/// # Errors
/// When it cannot be written.
pub fn publish_i32(path: &Path, values: &[i32]) -> Result<Digest, VolumeError> {
    publish_vector(path, ElementType::I32, values)
}

/// Publishes a vector of 64-bit integers.
///
/// # Errors
/// When it cannot be written.
pub fn publish_i64(path: &Path, values: &[i64]) -> Result<Digest, VolumeError> {
    publish_vector(path, ElementType::I64, values)
}

/// Publishes a matrix of int32.
///
/// # Errors
/// When it cannot be written, or the shape is not that of the values.
pub fn publish_i32_matrix(path: &Path, shape: &[usize], values: &[i32]) -> Result<Digest, VolumeError> {
    let mut writer = ArrayWriter::create(path, ElementType::I32, shape)?;
    writer.write_raw(bytemuck::cast_slice(values))?;
    writer.commit()
}

fn publish_vector<T: bytemuck::Pod>(path: &Path, element: ElementType, values: &[T]) -> Result<Digest, VolumeError> {
    let mut writer = ArrayWriter::create(path, element, &[values.len()])?;
    writer.write_raw(bytemuck::cast_slice(values))?;
    writer.commit()
}

/// Publishes an array of f32.
///
/// # Errors
/// When it cannot be written, or the shape is not that of the values.
pub fn publish_f32(path: &Path, shape: &[usize], values: &[f32]) -> Result<Digest, VolumeError> {
    let mut writer = ArrayWriter::create(path, ElementType::F32, shape)?;
    writer.push(values)?;
    writer.commit()
}

/// An array that is written a few rows at a time and appears all at once.
pub struct ArrayWriter {
    path: PathBuf,
    file: AtomicFile,
    element: ElementType,
    missing_bytes: usize,
}

impl ArrayWriter {
    /// Starts an array of a known shape.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn create(path: &Path, element: ElementType, shape: &[usize]) -> Result<Self, VolumeError> {
        let mut file = AtomicFile::create(path)?;
        let shape64: Vec<u64> = shape.iter().map(|n| *n as u64).collect();
        let descr = element.descr().parse().map_err(|error| VolumeError::corrupt(path, error))?;
        npyz::WriteOptions::new_header_only()
            .dtype(DType::Plain(descr))
            .shape(&shape64)
            .writer(&mut file)
            .write_header_only()
            .map_err(VolumeError::io(path))?;
        let missing_bytes = shape.iter().product::<usize>() * element.size();
        Ok(Self { path: path.to_owned(), file, element, missing_bytes })
    }

    /// Adds values in C order, rounded to the array's element type.
    ///
    /// # Errors
    /// When they cannot be written or are more than the shape holds.
    pub fn push(&mut self, values: &[f32]) -> Result<(), VolumeError> {
        match self.element {
            ElementType::F32 => self.write_raw(bytemuck::cast_slice(values)),
            ElementType::F16 => {
                let mut halves = vec![f16::ZERO; values.len()];
                halves.convert_from_f32_slice(values);
                self.write_raw(bytemuck::cast_slice(&halves))
            }
            ElementType::I32 | ElementType::I64 => {
                Err(VolumeError::corrupt(&self.path, "numbers do not go into an array of integers"))
            }
        }
    }

    /// Publishes the array.
    ///
    /// # Errors
    /// When values are missing, or the file cannot be published.
    pub fn commit(self) -> Result<Digest, VolumeError> {
        self.check_whole()?;
        self.file.commit()
    }

    /// Publishes the array without waiting for the disk, for what nobody needs after a crash.
    ///
    /// # Errors
    /// As [`ArrayWriter::commit`].
    pub fn commit_unsynced(self) -> Result<Digest, VolumeError> {
        self.check_whole()?;
        self.file.commit_unsynced()
    }

    fn check_whole(&self) -> Result<(), VolumeError> {
        match self.missing_bytes {
            0 => Ok(()),
            missing => Err(VolumeError::corrupt(&self.path, format!("{missing} bytes were never written"))),
        }
    }

    fn write_raw(&mut self, bytes: &[u8]) -> Result<(), VolumeError> {
        let missing = self.missing_bytes.checked_sub(bytes.len());
        self.missing_bytes = missing.ok_or_else(|| VolumeError::corrupt(&self.path, "more values than its shape holds"))?;
        self.file.write_all(bytes).map_err(VolumeError::io(&self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_survive_in_each_element_type() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npy");
        publish_i32(&path, &[3, -1, i32::MAX]).unwrap();
        assert_eq!(read_i32(&path).unwrap(), [3, -1, i32::MAX]);
        assert!(read_i64(&path).is_err());
        publish_i64(&path, &[3, i64::MIN]).unwrap();
        assert_eq!(read_i64(&path).unwrap(), [3, i64::MIN]);
        publish_f32(&path, &[2, 2], &[1.0, f32::NAN, -0.1, 4.0]).unwrap();
        let (shape, values) = read_f32(&path).unwrap();
        assert_eq!(shape, [2, 2]);
        assert!(values[1].is_nan() && values[2] == -0.1);

        let mut writer = ArrayWriter::create(&path, ElementType::F16, &[3, 2]).unwrap();
        writer.push(&[0.1, 70000.0]).unwrap();
        assert!(matches!(writer.push(&[0.0; 5]), Err(VolumeError::Corrupt { .. })));
        writer.push(&[1.0, 2.0, 3.0, 4.0]).unwrap();
        writer.commit().unwrap();
        let array = ArrayFile::open(&path).unwrap();
        let mut rows = vec![9.0; 1];
        array.read_f32_rows(1, 2, &mut rows).unwrap();
        assert_eq!(rows, [1.0, 2.0, 3.0, 4.0]);
        array.read_f32_rows(0, 1, &mut rows).unwrap();
        assert_eq!(rows, [f16::from_f32(0.1).to_f32(), f32::INFINITY]);
    }

    #[test]
    fn an_unfinished_array_is_not_published() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npy");
        let writer = ArrayWriter::create(&path, ElementType::F32, &[1]).unwrap();
        assert!(writer.commit().is_err());
        assert!(!path.try_exists().unwrap());
    }

    #[test]
    fn truncated_and_foreign_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npy");
        publish_f32(&path, &[4], &[1.0; 4]).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for damaged in [&whole[..whole.len() - 1], &whole[..20], b"no array at all".as_slice(), b""] {
            crate::publish::publish_bytes(&path, damaged).unwrap();
            assert!(matches!(ArrayFile::open(&path), Err(VolumeError::Corrupt { .. })));
        }
        assert!(matches!(ArrayFile::open(&folder.path().join("none")), Err(VolumeError::Missing(_))));
    }
}
