//! The whitened points, block by block: few stay in memory, many lie in a file.
//!
//! A point takes as much memory as a small image. Those of a large run are read anew in every iteration of k-means, from the
//! page cache where there is room, which costs little beside the distances to hundreds of centroids.

use crate::ClusteringError;
use deepcluster_domain::space::POINTS_IN_MEMORY;
use deepcluster_volume::npy::{ArrayFile, ArrayWriter, ElementType};
use deepcluster_volume::publish;
use std::path::{Path, PathBuf};

/// Points that are in memory at a time.
const BLOCK: usize = POINTS_IN_MEMORY;

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
