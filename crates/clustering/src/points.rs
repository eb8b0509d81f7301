//! The whitened points, block by block: few stay in memory, many lie in a file.
//!
//! A point takes as much memory as a small image. Those of a large run are read anew in every iteration of k-means, from the
//! page cache where there is room, which costs little beside the distances to hundreds of centroids.

use crate::{ClusteringError, Features, Progress};
use deepcluster_domain::space::POINTS_IN_MEMORY;
use deepcluster_volume::VolumeError;
use deepcluster_volume::npy::{ArrayFile, ArrayWriter, ElementType};
use deepcluster_volume::publish::{self, Digest};
use std::path::{Path, PathBuf};

/// Points that are in memory at a time.
const BLOCK: usize = POINTS_IN_MEMORY;

/// Values that are published at a time.
const PUBLISHED_AT_ONCE: usize = 1 << 19;

/// After so many published points it is told how many there are.
const TOLD_EVERY: usize = 2048;

/// Points `[n, dims]`.
pub struct Points {
    dims: usize,
    n: usize,
    place: Place,
}

enum Place {
    Memory(Vec<f32>),
    File(ArrayFile, PathBuf),
}

impl Points {
    /// Points that are in memory.
    pub fn of(values: Vec<f32>, dims: usize) -> Self {
        Self { dims, n: values.len() / dims, place: Place::Memory(values) }
    }

    /// Numbers of a point.
    pub fn dims(&self) -> usize {
        self.dims
    }

    /// How many there are.
    pub fn n(&self) -> usize {
        self.n
    }

    /// How many blocks there are.
    pub fn n_blocks(&self) -> usize {
        self.n.div_ceil(BLOCK)
    }

    /// Shows every block of points, in order: the number of its first point, and its points `[block, dims]`.
    ///
    /// # Errors
    /// When the file cannot be read, or `visit` says so.
    pub fn for_each_block(
        &self,
        mut visit: impl FnMut(usize, &[f32]) -> Result<(), ClusteringError>,
    ) -> Result<(), ClusteringError> {
        match &self.place {
            Place::Memory(values) => {
                let blocks = values.chunks(BLOCK * self.dims);
                blocks.enumerate().try_for_each(|(number, block)| visit(number * BLOCK, block))
            }
            Place::File(file, _) => {
                let mut block = Vec::new();
                for first in (0..self.n).step_by(BLOCK) {
                    file.read_f32_rows(first, BLOCK.min(self.n - first), &mut block)?;
                    visit(first, &block)?;
                }
                Ok(())
            }
        }
    }

    /// Publishes them as f16, each in the row of its image, `[rows of features, dims]`: the row of an image that takes no part is
    /// zero.
    ///
    /// # Errors
    /// When they are not as many as the images that take part, the file cannot be read or written, or `progress` says so.
    pub fn publish(&self, path: &Path, features: &Features, progress: &mut Progress<'_>) -> Result<Digest, ClusteringError> {
        let (dims, n_rows) = (self.dims, features.n_rows());
        if self.n != features.n_kept() {
            return Err(ClusteringError::Unusable(format!("{} points are not those of {} images", self.n, features.n_kept())));
        }
        let mut rows = Rows { writer: ArrayWriter::create(path, ElementType::F16, &[n_rows, dims])?, waiting: Vec::new() };
        let nothing = vec![0.0; dims];
        let mut kept = features.kept_rows();
        let mut n_done = 0;
        self.for_each_block(|_, block| {
            for (point, row) in block.chunks_exact(dims).zip(kept.by_ref()) {
                for _ in n_done..row {
                    rows.push(&nothing)?;
                }
                rows.push(point)?;
                n_done = row + 1;
                if n_done.is_multiple_of(TOLD_EVERY) {
                    progress("write", n_done as u64, n_rows as u64)?;
                }
            }
            Ok(())
        })?;
        for _ in n_done..n_rows {
            rows.push(&nothing)?;
        }
        progress("write", n_rows as u64, n_rows as u64)?;
        Ok(rows.commit()?)
    }

    /// Some of them, one behind the other.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn some(&self, wanted: &[usize]) -> Result<Vec<f32>, ClusteringError> {
        let mut found = Vec::with_capacity(wanted.len() * self.dims);
        let mut row = Vec::new();
        for at in wanted {
            match &self.place {
                Place::Memory(values) => found.extend_from_slice(&values[at * self.dims..(at + 1) * self.dims]),
                Place::File(file, _) => {
                    file.read_f32_rows(*at, 1, &mut row)?;
                    found.extend_from_slice(&row);
                }
            }
        }
        Ok(found)
    }
}

impl Drop for Points {
    fn drop(&mut self) {
        if let Place::File(_, path) = &self.place
            && let Err(error) = publish::remove(path)
        {
            tracing::warn!(%error, "whitened points stay until the folder of the epoch is swept");
        }
    }
}

/// Rows on their way into an array, which takes many at a time.
struct Rows {
    writer: ArrayWriter,
    waiting: Vec<f32>,
}

impl Rows {
    fn push(&mut self, row: &[f32]) -> Result<(), VolumeError> {
        self.waiting.extend_from_slice(row);
        if self.waiting.len() >= PUBLISHED_AT_ONCE {
            self.writer.push(&self.waiting)?;
            self.waiting.clear();
        }
        Ok(())
    }

    fn commit(mut self) -> Result<Digest, VolumeError> {
        self.writer.push(&self.waiting)?;
        self.writer.commit()
    }
}

/// Collects points whose number is known.
pub(crate) struct PointsWriter {
    dims: usize,
    n: usize,
    place: Gathered,
}

enum Gathered {
    Memory(Vec<f32>),
    File(Box<ArrayWriter>, PathBuf),
}

impl PointsWriter {
    /// For `n` points; those that are too many for memory go to a file, which is removed with them.
    pub(crate) fn new(n: usize, dims: usize, file: &Path) -> Result<Self, ClusteringError> {
        let place = match n <= BLOCK {
            true => Gathered::Memory(Vec::with_capacity(n * dims)),
            false => Gathered::File(Box::new(ArrayWriter::create(file, ElementType::F32, &[n, dims])?), file.to_owned()),
        };
        Ok(Self { dims, n, place })
    }

    pub(crate) fn push(&mut self, points: &[f32]) -> Result<(), ClusteringError> {
        match &mut self.place {
            Gathered::Memory(values) => values.extend_from_slice(points),
            Gathered::File(writer, _) => writer.push(points)?,
        }
        Ok(())
    }

    pub(crate) fn finish(self) -> Result<Points, ClusteringError> {
        let (dims, n) = (self.dims, self.n);
        let place = match self.place {
            Gathered::Memory(values) => Place::Memory(values),
            Gathered::File(writer, path) => {
                // Nobody needs it after a crash.
                writer.commit_unsynced()?;
                Place::File(ArrayFile::open(&path)?, path)
            }
        };
        Ok(Points { dims, n, place })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use deepcluster_volume::npy;

    /// Images 0, 3 and the last do not take part, in few points and in so many that they lie in a file.
    #[test]
    fn published_points_stand_in_the_rows_of_their_images() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for n in [6, BLOCK + 5] {
            npy::publish_f32(&at("features.npy"), &[n, 1], &vec![1.0; n]).unwrap();
            let skipped = [0, 3, n - 1];
            let kept: Vec<bool> = (0..n).map(|row| !skipped.contains(&row)).collect();
            let features = Features::open(&[at("features.npy")], Some(kept)).unwrap();
            let mut writer = PointsWriter::new(features.n_kept(), 2, &at("points.npy")).unwrap();
            for row in features.kept_rows() {
                writer.push(&[(row % 1000) as f32, 0.1]).unwrap();
            }
            let points = writer.finish().unwrap();
            let mut told = 0;
            let published = points.publish(&at("whitened.npy"), &features, &mut |_, done, _| {
                told = done as usize;
                Ok(())
            });
            published.unwrap();
            assert_eq!(told, n);
            let (shape, values) = npy::read_f32(&at("whitened.npy")).unwrap();
            assert_eq!(shape, [n, 2]);
            for (row, point) in values.chunks_exact(2).enumerate() {
                let expected = if skipped.contains(&row) { [0.0, 0.0] } else { [(row % 1000) as f32, 0.099_975_586] };
                assert_eq!(point, expected, "row {row} of {n}");
            }
        }
    }
}
