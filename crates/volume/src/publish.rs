//! The one way files are written: temporary name beside the target, fsync, rename, fsync of the folder.

use crate::crash::step;
use crate::{VolumeError, lock};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Ending of files that are not published yet. Whoever finds one after a crash may delete it.
pub const TEMPORARY: &str = ".tmp";

/// Pieces of at least so many bytes are hashed by several threads, and while they are written.
const LARGE: usize = 8 << 20;

/// A published file: where it lies, how long it is and what it contains.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Relative to the volume's root, with `/` between its parts.
    pub path: String,
    /// Size in bytes.
    pub bytes: u64,
    /// BLAKE3 of the content in hexadecimal.
    pub blake3: String,
}

/// A file that comes into being all at once, or not at all.
///
/// 1. Bytes go to a temporary file in the target's folder, hashed on the way.
/// 2. [`AtomicFile::commit`] flushes, fsyncs, renames, and fsyncs the folder: now the file is there, whole, for good.
/// 3. Dropped before that, the temporary file is removed. Killed before that, it stays behind and nobody reads it.
pub struct AtomicFile {
    target: PathBuf,
    temporary: PathBuf,
    out: Option<BufWriter<File>>,
    hasher: blake3::Hasher,
    bytes: u64,
    published: bool,
}

impl AtomicFile {
    /// Starts a file that will appear at `target`, whose folder must be there: a worker that wakes up long after its work
    /// was given to another finds the folder gone, and must not bring it back.
    ///
    /// # Errors
    /// When the temporary file cannot be made. Errors name the target, the only name of the two that anybody knows.
    pub fn create(target: &Path) -> Result<Self, VolumeError> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let folder = parent(target);
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let unique = COUNTER.fetch_add(1, Ordering::Relaxed);
        let temporary = folder.join(format!(".{name}.{}-{unique}{TEMPORARY}", std::process::id()));
        #[expect(clippy::disallowed_methods, reason = "this is the one place that writes")]
        let file = File::create(&temporary).map_err(VolumeError::io(target))?;
        step("created", target);
        Ok(Self {
            target: target.to_owned(),
            temporary,
            out: Some(BufWriter::with_capacity(1 << 20, file)),
            hasher: blake3::Hasher::new(),
            bytes: 0,
            published: false,
        })
    }

    /// Publishes the file and returns its size and checksum.
    ///
    /// # Errors
    /// When a write, an fsync or the rename fails; the target is then as it was before.
    pub fn commit(self) -> Result<Digest, VolumeError> {
        self.finish(true)
    }

    /// Publishes the file without waiting for the disk, for what checks itself and may be lost: after a power failure it may
    /// be there and not be whole.
    ///
    /// # Errors
    /// As [`AtomicFile::commit`].
    pub fn commit_unsynced(self) -> Result<Digest, VolumeError> {
        self.finish(false)
    }

    fn finish(mut self, synced: bool) -> Result<Digest, VolumeError> {
        let target = self.target.clone();
        let failed = |error| VolumeError::io(&target)(error);
        if let Some(out) = self.out.take() {
            let file = out.into_inner().map_err(|error| failed(error.into_error()))?;
            step("written", &self.target);
            if synced {
                file.sync_all().map_err(failed)?;
            }
        }
        step("synced", &self.target);
        lock::check(&self.target)?;
        #[expect(clippy::disallowed_methods, reason = "this is the one place that renames")]
        fs::rename(&self.temporary, &self.target).map_err(VolumeError::io(&self.target))?;
        self.published = true;
        step("renamed", &self.target);
        if synced {
            sync_folder(parent(&self.target))?;
        }
        step("published", &self.target);
        Ok(Digest { bytes: self.bytes, blake3: self.hasher.finalize().to_hex().to_string() })
    }
}

impl Write for AtomicFile {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let Some(out) = self.out.as_mut() else {
            return Err(io::Error::other("the file is already published"));
        };
        if buffer.len() < LARGE {
            self.hasher.update(buffer);
            out.write_all(buffer)?;
        } else {
            let (written, _) = rayon::join(|| out.write_all(buffer), || self.hasher.update_rayon(buffer));
            written?;
        }
        self.bytes += buffer.len() as u64;
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.as_mut().map_or(Ok(()), Write::flush)
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.published {
            // Best effort: a temporary file that stays is never read.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Size and checksum of a content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest {
    /// Size in bytes.
    pub bytes: u64,
    /// BLAKE3 in hexadecimal.
    pub blake3: String,
}

/// The digest of some bytes.
pub fn digest_of(content: &[u8]) -> Digest {
    Digest { bytes: content.len() as u64, blake3: blake3::hash(content).to_hex().to_string() }
}

/// Publishes a small file in one go, making its folder if need be.
///
/// # Errors
/// As [`AtomicFile`].
pub fn publish_bytes(target: &Path, content: &[u8]) -> Result<Digest, VolumeError> {
    create_folder(parent(target))?;
    let mut file = AtomicFile::create(target)?;
    file.write_all(content).map_err(VolumeError::io(target))?;
    file.commit()
}

/// Gives a file that a worker has published under a temporary name the name by which it counts.
///
/// # Errors
/// When it is not there, or cannot be renamed.
pub fn adopt(staged: &Path, target: &Path) -> Result<(), VolumeError> {
    step("adopting", target);
    lock::check(target)?;
    #[expect(clippy::disallowed_methods, reason = "the second half of publishing")]
    fs::rename(staged, target).map_err(VolumeError::io(staged))?;
    step("adopted", target);
    sync_folder(parent(target))
}

/// Removes a file that a worker was to publish under a temporary name, and what a killed one has begun of it.
///
/// # Errors
/// When its folder cannot be listed or a file cannot be deleted.
pub fn discard(staged: &Path) -> Result<(), VolumeError> {
    let folder = parent(staged);
    let name = staged.file_name().unwrap_or_default().to_string_lossy();
    for entry in fs::read_dir(folder).map_err(VolumeError::io(folder))? {
        let entry = entry.map_err(VolumeError::io(folder))?;
        if entry.file_name().to_string_lossy().contains(&*name) {
            remove_any(&entry.path())?;
        }
    }
    Ok(())
}

/// Size and checksum of a file that is there.
///
/// # Errors
/// When it cannot be read.
pub fn digest(path: &Path) -> Result<Digest, VolumeError> {
    let mut file = File::open(path).map_err(VolumeError::io(path))?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; LARGE];
    let mut bytes = 0;
    loop {
        let n = file.read(&mut buffer).map_err(VolumeError::io(path))?;
        if n == 0 {
            return Ok(Digest { bytes, blake3: hasher.finalize().to_hex().to_string() });
        }
        hasher.update_rayon(&buffer[..n]);
        bytes += n as u64;
    }
}

/// Renames a file or folder out of the way, then deletes it: whoever looks sees all of it or nothing.
///
/// # Errors
/// When the rename or the deletion fails. What is not there is no error.
pub fn remove(path: &Path) -> Result<(), VolumeError> {
    lock::check(path)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let away = parent(path).join(format!(".{name}.removed{TEMPORARY}"));
    remove_any(&away)?;
    step("removing", path);
    #[expect(clippy::disallowed_methods, reason = "the counterpart of publishing")]
    match fs::rename(path, &away) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(VolumeError::io(path))?,
    }
    step("removed", path);
    remove_any(&away)
}

/// Deletes what earlier crashes left behind under temporary names, in this folder and all below.
///
/// # Errors
/// When a folder cannot be listed or a file cannot be deleted.
pub fn sweep(folder: &Path) -> Result<(), VolumeError> {
    for entry in fs::read_dir(folder).map_err(VolumeError::io(folder))? {
        let entry = entry.map_err(VolumeError::io(folder))?;
        let path = entry.path();
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with('.') && name.ends_with(TEMPORARY) {
            remove_any(&path)?;
        } else if entry.file_type().map_err(VolumeError::io(&path))?.is_dir() {
            sweep(&path)?;
        }
    }
    Ok(())
}

/// Makes a folder and all above it, durably.
///
/// # Errors
/// When that is not possible.
pub fn create_folder(folder: &Path) -> Result<(), VolumeError> {
    lock::check(folder)?;
    let failed = |source| VolumeError::Io { path: folder.to_owned(), source };
    let new: Vec<&Path> = folder.ancestors().take_while(|above| !above.is_dir()).collect();
    fs::create_dir_all(folder).map_err(failed)?;
    new.into_iter().try_for_each(|made| sync_folder(parent(made)))
}

fn remove_any(path: &Path) -> Result<(), VolumeError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(VolumeError::io(path)),
    }
}

pub(crate) fn sync_folder(folder: &Path) -> Result<(), VolumeError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(VolumeError::io(folder))
}

pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("deep/er/labels.npy");
        assert!(matches!(AtomicFile::create(&target), Err(VolumeError::Missing(_))));
        create_folder(parent(&target)).unwrap();
        let mut file = AtomicFile::create(&target).unwrap();
        file.write_all(b"half of").unwrap();
        drop(file);
        assert!(!target.try_exists().unwrap());
        assert_eq!(fs::read_dir(target.parent().unwrap()).unwrap().count(), 0);

        let published = publish_bytes(&target, b"all of it").unwrap();
        assert_eq!(published, digest(&target).unwrap());
        assert_eq!(published.blake3, blake3::hash(b"all of it").to_hex().to_string());
        assert_eq!(published.bytes, 9);
    }

    #[test]
    fn an_adopted_file_has_its_new_name_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (staged, target) = (folder.path().join(".a.7-1.tmp"), folder.path().join("a"));
        publish_bytes(&target, b"old").unwrap();
        publish_bytes(&staged, b"new").unwrap();
        discard(&folder.path().join(".a.7-2.tmp")).unwrap();
        adopt(&staged, &target).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"new");
        assert!(matches!(adopt(&staged, &target), Err(VolumeError::Missing(_))));
        std::mem::forget(AtomicFile::create(&staged).unwrap());
        discard(&staged).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn sweeping_takes_what_crashes_left_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        publish_bytes(&folder.path().join("epochs/0001/labels.npy"), b"kept").unwrap();
        let left = AtomicFile::create(&folder.path().join("epochs/0001/centroids.npy")).unwrap();
        std::mem::forget(left);
        sweep(folder.path()).unwrap();
        let names: Vec<_> = fs::read_dir(folder.path().join("epochs/0001")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["labels.npy"]);
        remove(&folder.path().join("epochs/0001")).unwrap();
        remove(&folder.path().join("epochs/0001")).unwrap();
        assert!(!folder.path().join("epochs/0001").try_exists().unwrap());
    }
}
