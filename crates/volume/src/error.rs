//! What can go wrong on a volume, by what the caller can do about it.

use std::io;
use std::path::{Path, PathBuf};

/// A failure on the volume. Every message names the file.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The operating system refused: no permission, no space, a device that fails.
    #[error("{path}: {source}")]
    Io {
        /// What was being read or written.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The content is not what was promised. Fall back to an older epoch, or make the file anew.
    #[error("{path}: {why}")]
    Corrupt {
        /// The file that cannot be trusted.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Nothing there under that name.
    #[error("{0} does not exist")]
    Missing(PathBuf),
    /// A path from a request that is absolute, empty, or leaves its root.
    #[error(
        "path '{0}' is not a plain path below its root: name it relative to the services' --images or --volume, without '..'"
    )]
    Outside(String),
    /// This process owned the volume and was taken for dead; nothing more may be written.
    #[error("{path} was taken over by {owner}")]
    Lost {
        /// The volume.
        path: PathBuf,
        /// Host and process of the new owner, and for how long.
        owner: String,
    },
    /// Another coordinator owns the volume.
    #[error("{path} is already owned by {owner}")]
    Owned {
        /// The volume.
        path: PathBuf,
        /// Host and process of the owner, and for how long.
        owner: String,
    },
}

impl VolumeError {
    /// For `map_err`: ties an I/O error to its file.
    pub fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| match source.kind() {
            io::ErrorKind::NotFound => Self::Missing(path.to_owned()),
            _ => Self::Io { path: path.to_owned(), source },
        }
    }

    /// Whether the volume has no room left.
    pub fn is_full(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        matches!(self, Self::Io { source, .. } if matches!(source.kind(), StorageFull | QuotaExceeded))
    }

    /// A file whose content is wrong.
    pub fn corrupt(path: &Path, why: impl std::fmt::Display) -> Self {
        Self::Corrupt { path: path.to_owned(), why: why.to_string() }
    }
}
