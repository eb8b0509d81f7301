//! What can go wrong while a report is made.

use deepcluster_tensorboard::ProjectionError;
use deepcluster_volume::VolumeError;
use std::path::PathBuf;

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// A file cannot be read, or is not what its record says.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The folder holds something else.
    #[error("{0} is not the folder of a run")]
    NotARun(PathBuf),
    /// There are no clusters to show before the first commit.
    #[error("{0} has no committed epoch yet")]
    NothingYet(PathBuf),
    /// A thumbnail cannot be made.
    #[error("a picture cannot be encoded: {0}")]
    Image(#[from] image::ImageError),
    /// The centroids cannot be shown by the projector.
    #[error(transparent)]
    Projection(#[from] ProjectionError),
}
