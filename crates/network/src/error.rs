//! What can go wrong with a network, by what the caller can do about it.

use deepcluster_volume::VolumeError;
use std::path::Path;
use tch::TchError;

/// A failure of the network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// libtorch refused: out of memory, a device that fell over. The first line of what it said.
    #[error("libtorch: {0}")]
    Torch(String),
    /// The device that was asked for is not there.
    #[error("device {0}")]
    Device(String),
    /// The checkpoint is not one of this network.
    #[error("checkpoint {path}: {why}")]
    Checkpoint {
        /// The file.
        path: String,
        /// The tensor, and what is wrong with it.
        why: String,
    },
    /// A file is not what it should be, or does not fit the others.
    #[error("{path}: {why}")]
    Unfit {
        /// The file.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// Training left the range of numbers.
    #[error("{what} not finite at step {step}; a lower --lr may help")]
    NotFinite {
        /// "the loss is", "the weights are" or "the features are".
        what: &'static str,
        /// The step, from 0.
        step: u64,
    },
    /// A file could not be read or written.
    #[error(transparent)]
    Volume(#[from] VolumeError),
}

impl From<TchError> for NetworkError {
    fn from(error: TchError) -> Self {
        let text = error.to_string();
        // The rest is a stack trace of libtorch.
        Self::Torch(text.lines().next().unwrap_or_default().to_owned())
    }
}

impl NetworkError {
    pub(crate) fn unfit(path: &Path, why: impl Into<String>) -> Self {
        Self::Unfit { path: path.display().to_string(), why: why.into() }
    }

    /// Whether the request asked for something that this machine or these numbers do not allow; trying again is no use.
    pub fn is_callers_fault(&self) -> bool {
        matches!(self, Self::Device(_) | Self::Checkpoint { .. } | Self::Unfit { .. })
    }
}
