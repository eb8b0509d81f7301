//! How much room a volume has, and a little that is kept for the word that it has none.

use crate::VolumeError;
use crate::publish::{publish_bytes, remove};
use std::fs;
use std::path::{Path, PathBuf};

/// Enough for a run's record and many events.
const RESERVE: usize = 1 << 20;

/// Bytes that may still be written below a folder.
///
/// # Errors
/// When the file system does not say.
pub fn available(folder: &Path) -> Result<u64, VolumeError> {
    let found = nix::sys::statvfs::statvfs(folder).map_err(|error| VolumeError::io(folder)(error.into()))?;
    Ok(found.blocks_available() * found.fragment_size())
}

/// Bytes of all files below a folder; 0 when it is not there.
pub fn used(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let of = |entry: fs::DirEntry| match entry.metadata() {
        Ok(found) if found.is_dir() => used(&entry.path()),
        found => found.map_or(0, |found| found.len()),
    };
    entries.map(of).sum()
}

/// Sets the reserve aside, unless it is.
///
/// # Errors
/// When there is no room for it.
pub fn set_reserve_aside(root: &Path) -> Result<(), VolumeError> {
    let path = reserve(root);
    if path.metadata().is_ok_and(|found| found.len() == RESERVE as u64) {
        return Ok(());
    }
    // Not zeros: those may take no room.
    let filling: Vec<u8> = (0..RESERVE).map(|n| (n.wrapping_mul(0x9E37_79B1) >> 11) as u8).collect();
    publish_bytes(&path, &filling).map(drop)
}

/// Gives the reserve up, so that there is room for a few words.
///
/// # Errors
/// When it cannot be removed.
pub fn give_reserve_up(root: &Path) -> Result<(), VolumeError> {
    remove(&reserve(root))
}

fn reserve(root: &Path) -> PathBuf {
    root.join(".reserve")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_there_once_and_goes() {
        let folder = tempfile::tempdir().unwrap();
        assert!(available(folder.path()).unwrap() > 0);
        assert!(available(&folder.path().join("none")).is_err());
        assert_eq!(used(folder.path()), 0);
        set_reserve_aside(folder.path()).unwrap();
        assert_eq!(used(folder.path()), RESERVE as u64);
        set_reserve_aside(folder.path()).unwrap();
        assert_eq!(reserve(folder.path()).metadata().unwrap().len(), RESERVE as u64);
        give_reserve_up(folder.path()).unwrap();
        give_reserve_up(folder.path()).unwrap();
        assert!(!reserve(folder.path()).try_exists().unwrap());
    }
}
