//! The features of all shards as one tall matrix that is read a block at a time.

use crate::ClusteringError;
use deepcluster_volume::npy::ArrayFile;
use std::ops::Range;
use std::path::PathBuf;

/// Rows that are in memory at a time: enough for matrix products at full speed, little enough to forget.
pub const BLOCK_ROWS: usize = 2048;

/// The features of a run's images, without those that were skipped.
pub struct Features {
    shards: Vec<ArrayFile>,
    width: usize,
    /// Which rows take part.
    kept: Vec<bool>,
    n_kept: usize,
}

/// Consecutive rows that take part.
pub struct Block<'a> {
    /// Their numbers in images.csv.
    pub rows: &'a [usize],
    /// Their features, `[rows, width]`.
    pub values: &'a [f32],
}

impl Features {
    /// Opens shards, in order of their rows. `kept` has one entry a row; None keeps all.
    ///
    /// # Errors
    /// When a file is no matrix, widths differ, or the rows are not as many as `kept` has.
    pub fn open(paths: &[PathBuf], kept: Option<Vec<bool>>) -> Result<Self, ClusteringError> {
        let shards: Vec<ArrayFile> = paths.iter().map(|path| ArrayFile::open(path)).collect::<Result<_, _>>()?;
        let width = shards.first().map_or(0, ArrayFile::width);
        if shards.iter().any(|shard| shard.shape().len() != 2 || shard.width() != width) || width == 0 {
            return Err(ClusteringError::Unusable("the shards are not matrices of one width".to_owned()));
        }
        let n: usize = shards.iter().map(ArrayFile::rows).sum();
        let kept = kept.unwrap_or_else(|| vec![true; n]);
        if kept.len() != n {
            return Err(ClusteringError::Unusable(format!("there are features of {n} images, not of {}", kept.len())));
        }
        let n_kept = kept.iter().filter(|kept| **kept).count();
        Ok(Self { shards, width, kept, n_kept })
    }

    /// Values of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// All rows, also those that take no part.
    pub fn n_rows(&self) -> usize {
        self.kept.len()
    }

    /// Rows that take part.
    pub fn n_kept(&self) -> usize {
        self.n_kept
    }

    /// Numbers of the rows that take part.
    pub fn kept_rows(&self) -> impl Iterator<Item = usize> + '_ {
        self.kept.iter().enumerate().filter(|(_, kept)| **kept).map(|(row, _)| row)
    }

    /// Shows every block of rows that take part, in order.
    ///
    /// # Errors
    /// When a shard cannot be read, a value is not finite, or `visit` says so.
    pub fn for_each_block(&self, visit: impl FnMut(Block<'_>) -> Result<(), ClusteringError>) -> Result<(), ClusteringError> {
        self.for_each_block_of(0..self.n_rows(), visit)
    }

    /// The same of some consecutive rows.
    ///
    /// # Errors
    /// As there.
    pub fn for_each_block_of(
        &self,
        wanted: Range<usize>,
        mut visit: impl FnMut(Block<'_>) -> Result<(), ClusteringError>,
    ) -> Result<(), ClusteringError> {
        let mut values = Vec::new();
        let mut rows = Vec::with_capacity(BLOCK_ROWS);
        let mut shard_start = 0;
        for shard in &self.shards {
            let begin = wanted.start.saturating_sub(shard_start);
            let end = wanted.end.saturating_sub(shard_start).min(shard.rows());
            for first in (begin..end).step_by(BLOCK_ROWS) {
                let n = BLOCK_ROWS.min(end - first);
                shard.read_f32_rows(first, n, &mut values)?;
                rows.clear();
                for offset in 0..n {
                    let row = shard_start + first + offset;
                    if !self.kept[row] {
                        continue;
                    }
                    let range = offset * self.width..(offset + 1) * self.width;
                    if !values[range.clone()].iter().all(|value| value.is_finite()) {
                        return Err(ClusteringError::NotFinite { row });
                    }
                    values.copy_within(range, rows.len() * self.width);
                    rows.push(row);
                }
                if !rows.is_empty() {
                    visit(Block { rows: &rows, values: &values[..rows.len() * self.width] })?;
                }
            }
            shard_start += shard.rows();
        }
        Ok(())
    }
}
