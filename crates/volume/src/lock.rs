//! One coordinator owns a volume: an advisory lock on a file that names its owner.

use crate::VolumeError;
use crate::events::seconds_since_1970;
use crate::publish::create_folder;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Seek, Write};
use std::path::Path;

/// Ownership of a volume. The lock ends with this value, or with its process however that dies.
pub struct VolumeLock {
    _file: File,
}

impl VolumeLock {
    /// Takes a volume, making its folder if need be.
    ///
    /// # Errors
    /// [`VolumeError::Owned`] with host, pid and start of the owner when it is taken; I/O errors when the volume cannot be
    /// written.
    pub fn take(root: &Path) -> Result<Self, VolumeError> {
        create_folder(root)?;
        let path = root.join(".owner");
        let mut file =
            OpenOptions::new().create(true).read(true).write(true).truncate(false).open(&path).map_err(VolumeError::io(&path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let owner = fs::read_to_string(&path).map_err(VolumeError::io(&path))?;
                let owner = if owner.is_empty() { "another coordinator".to_owned() } else { owner.trim().to_owned() };
                return Err(VolumeError::Owned { path: root.to_owned(), owner });
            }
            Err(TryLockError::Error(error)) => return Err(VolumeError::io(&path)(error)),
        }
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let owner = format!(
            "host {}, process {}, since {} (seconds since 1970)\n",
            host.trim(),
            std::process::id(),
            seconds_since_1970() as u64
        );
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(owner.as_bytes()))
            .and_then(|()| file.sync_all())
            .map_err(VolumeError::io(&path))?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_owner_is_told_who_the_first_is() {
        let folder = tempfile::tempdir().unwrap();
        let lock = VolumeLock::take(folder.path()).unwrap();
        let sentence = VolumeLock::take(folder.path()).err().unwrap().to_string();
        assert!(sentence.contains("already owned by host"), "{sentence}");
        assert!(sentence.contains(&format!("process {}", std::process::id())), "{sentence}");
        drop(lock);
        VolumeLock::take(folder.path()).unwrap();
    }
}
