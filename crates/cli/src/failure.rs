//! How a command fails: one sentence, and exit code 2 for bad usage or input or 1 for anything else.

use deepcluster_volume::VolumeError;
use std::io;

/// A failed command.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// One sentence that names the flag, file or value.
    pub message: String,
    /// Exit code.
    pub code: u8,
}

impl Failure {
    /// Bad usage or bad input.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: 2 }
    }

    /// Anything else.
    pub fn other(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: 1 }
    }

    /// Standard output that cannot be written.
    pub fn output(error: io::Error) -> Self {
        Self::other(format!("standard output: {error}"))
    }
}

impl From<VolumeError> for Failure {
    fn from(error: VolumeError) -> Self {
        Self::usage(error.to_string())
    }
}
