//! What can go wrong in clustering, by what the caller can do about it.

use deepcluster_volume::VolumeError;

/// A failure of the clustering.
#[derive(Debug, thiserror::Error)]
pub enum ClusteringError {
    /// A feature is infinite or not a number. Store features as f32, or look at the training.
    #[error("the features of image {row} are not finite")]
    NotFinite {
        /// Row of the image in images.csv.
        row: usize,
    },
    /// The features do not allow what is asked for; one sentence that says why.
    #[error("{0}")]
    Unusable(String),
    /// faiss refused.
    #[error("faiss: {0}")]
    Faiss(String),
    /// The eigenvector solver gave up.
    #[error("eigenvectors of the covariance: {0}")]
    Eigen(String),
    /// A file could not be read or written.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// Whoever asked does not want it any more.
    #[error("cancelled")]
    Cancelled,
}

impl From<faiss::error::Error> for ClusteringError {
    fn from(error: faiss::error::Error) -> Self {
        Self::Faiss(error.to_string())
    }
}
