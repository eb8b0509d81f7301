//! One coordinator owns a volume: a lock for the living, a token against those who come back.
//!
//! 1. `.owner` names the owner and its token, which is larger than that of every owner before.
//! 2. The owner holds an advisory lock on that file and touches it every few seconds ([`VolumeLock::beat`]). A dead owner's
//!    lock is free, and the next one takes the volume at once.
//! 3. An owner that hangs holds its lock but does not touch the file. After a while somebody else puts a new file in its
//!    place and owns the volume from then on.
//! 4. Whoever publishes, appends or removes on a volume that this process took looks first whether the file is still its
//!    own ([`check`]): a coordinator that wakes up after another took over writes nothing more.

use crate::VolumeError;
use crate::events::seconds_since_1970;
use crate::publish::{create_folder, sync_folder};
use nix::sys::stat::futimens;
use nix::sys::time::TimeSpec;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How often an owner touches its file.
pub const BEAT: Duration = Duration::from_secs(1);

/// The volumes that this process owns.
static HELD: Mutex<Vec<Arc<Held>>> = Mutex::new(Vec::new());

/// Ownership of a volume. It ends with this value, or with its process however that dies.
pub struct VolumeLock {
    held: Arc<Held>,
    file: File,
}

struct Held {
    root: PathBuf,
    /// Device and inode of the owner's file; it stays open, so nobody else gets the same.
    identity: (u64, u64),
    token: u64,
}

/// What `.owner` says.
#[derive(Serialize, Deserialize)]
struct Owner {
    token: u64,
    host: String,
    pid: u32,
    /// Seconds since 1970.
    since: u64,
}

impl VolumeLock {
    /// Takes a volume, making its folder if need be. An owner that has not shown any sign of life for `patience` loses it.
    ///
    /// # Errors
    /// [`VolumeError::Owned`] with host and pid of the owner, and for how long, when it is taken; I/O errors when the volume
    /// cannot be written.
    pub fn take(root: &Path, patience: Duration) -> Result<Self, VolumeError> {
        create_folder(root)?;
        let path = owner_file(root);
        // One at a time, or two could take the place of the same owner. Where a folder cannot be locked, the later one wins.
        let turn = File::open(root).map_err(VolumeError::io(root))?;
        let _ = turn.lock();
        loop {
            let before = OpenOptions::new().create(true).append(true).read(true).open(&path).map_err(VolumeError::io(&path))?;
            let silent = match before.try_lock() {
                Ok(()) => patience,
                Err(TryLockError::WouldBlock) => silence(root, &before)?,
                Err(TryLockError::Error(error)) => return Err(VolumeError::io(&path)(error)),
            };
            if identity(&path)? != identity_of(&before, &path)? {
                // Somebody took it between our opening and locking.
                continue;
            }
            if silent < patience {
                return Err(VolumeError::Owned { path: root.to_owned(), owner: describe(&path) });
            }
            return Self::replace(root, &path);
        }
    }

    /// Puts a file of ours in the place of the last owner's.
    fn replace(root: &Path, path: &Path) -> Result<Self, VolumeError> {
        let last = fs::read(path).map_err(VolumeError::io(path))?;
        // What cannot be read was written by an older release, or damaged; the clock is larger than any count.
        let token = match serde_json::from_slice::<Owner>(&last) {
            Ok(last) => last.token + 1,
            Err(_) if last.is_empty() => 1,
            Err(_) => seconds_since_1970() as u64,
        };
        let owner = Owner { token, host: host(), pid: std::process::id(), since: seconds_since_1970() as u64 };
        let fresh = probe(root);
        #[expect(clippy::disallowed_methods, reason = "the lock must be held before the file gets its name")]
        let mut file = File::create(&fresh).map_err(VolumeError::io(&fresh))?;
        let mut text = serde_json::to_vec(&owner).map_err(|error| VolumeError::corrupt(path, error))?;
        text.push(b'\n');
        file.lock().and_then(|()| file.write_all(&text)).and_then(|()| file.sync_all()).map_err(VolumeError::io(&fresh))?;
        #[expect(clippy::disallowed_methods, reason = "as above")]
        fs::rename(&fresh, path).map_err(VolumeError::io(path))?;
        sync_folder(root)?;
        let held = Arc::new(Held { root: root.to_owned(), identity: identity_of(&file, path)?, token });
        held_here().push(Arc::clone(&held));
        Ok(Self { held, file })
    }

    /// Larger than that of every owner before.
    pub fn token(&self) -> u64 {
        self.held.token
    }

    /// Shows that the owner is alive; to be called every [`BEAT`].
    ///
    /// # Errors
    /// [`VolumeError::Lost`] when another has taken the volume.
    pub fn beat(&self) -> Result<(), VolumeError> {
        self.held.check()?;
        // Now by the clock of the volume, by which others judge it.
        let touched = futimens(&self.file, &TimeSpec::UTIME_OMIT, &TimeSpec::UTIME_NOW);
        touched.map_err(|error| VolumeError::io(&owner_file(&self.held.root))(error.into()))
    }
}

impl Drop for VolumeLock {
    fn drop(&mut self) {
        held_here().retain(|held| !Arc::ptr_eq(held, &self.held));
    }
}

impl Held {
    fn check(&self) -> Result<(), VolumeError> {
        let path = owner_file(&self.root);
        if identity(&path)? == self.identity {
            return Ok(());
        }
        Err(VolumeError::Lost { path: self.root.clone(), owner: describe(&path) })
    }
}

/// To be asked before anything at `target` is changed.
///
/// Between this look and the change lies an instant in which the process may still be stopped. What is published then is
/// what the new owner would publish from the same seed, but for `run.json`, whose owner writes it from memory.
///
/// # Errors
/// [`VolumeError::Lost`] when this process owned the volume of `target`, and another has taken it.
pub(crate) fn check(target: &Path) -> Result<(), VolumeError> {
    held_here().iter().filter(|held| target.starts_with(&held.root)).try_for_each(|held| held.check())
}

fn held_here() -> MutexGuard<'static, Vec<Arc<Held>>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

fn owner_file(root: &Path) -> PathBuf {
    root.join(".owner")
}

fn probe(root: &Path) -> PathBuf {
    root.join(format!(".owner.{}.{}.tmp", host(), std::process::id()))
}

/// How long the owner has not touched its file, by the clock of the volume and not by ours.
fn silence(root: &Path, owner: &File) -> Result<Duration, VolumeError> {
    let path = probe(root);
    #[expect(clippy::disallowed_methods, reason = "an empty file that tells the volume's time")]
    let now = File::create(&path).and_then(|probe| probe.metadata()?.modified()).map_err(VolumeError::io(&path));
    let _ = fs::remove_file(&path);
    let touched = owner.metadata().and_then(|metadata| metadata.modified()).map_err(VolumeError::io(&owner_file(root)))?;
    Ok(now?.duration_since(touched).unwrap_or_default())
}

fn identity(path: &Path) -> Result<(u64, u64), VolumeError> {
    fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino())).map_err(VolumeError::io(path))
}

fn identity_of(file: &File, path: &Path) -> Result<(u64, u64), VolumeError> {
    file.metadata().map(|metadata| (metadata.dev(), metadata.ino())).map_err(VolumeError::io(path))
}

fn host() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

/// The owner in a few words.
fn describe(path: &Path) -> String {
    let owner = fs::read(path).ok().and_then(|text| serde_json::from_slice::<Owner>(&text).ok());
    match owner {
        Some(Owner { host, pid, since, .. }) => {
            let held = (seconds_since_1970() as u64).saturating_sub(since);
            format!("host {host}, process {pid}, for {}", span(held))
        }
        None => "another coordinator".to_owned(),
    }
}

/// A span of time in its two largest units, as everywhere: "45 s", "3 min 20 s", "2 h 5 min", "3 d 4 h".
fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::publish_bytes;
    use std::time::SystemTime;

    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn a_second_owner_is_told_who_the_first_is() {
        let folder = tempfile::tempdir().unwrap();
        let lock = VolumeLock::take(folder.path(), PATIENCE).unwrap();
        let sentence = VolumeLock::take(folder.path(), PATIENCE).err().unwrap().to_string();
        assert!(sentence.contains("already owned by host"), "{sentence}");
        assert!(sentence.contains(&format!("process {}", std::process::id())), "{sentence}");
        let held = sentence.rsplit_once(", for ").unwrap().1;
        assert!(held.ends_with(" s") && held.len() < 5, "a moment: {sentence}");
        assert_eq!([45, 200, 7_500, 273_600].map(span), ["45 s", "3 min 20 s", "2 h 5 min", "3 d 4 h"]);
        let token = lock.token();
        drop(lock);
        assert_eq!(VolumeLock::take(folder.path(), PATIENCE).unwrap().token(), token + 1);
        let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, [".owner"]);
    }

    #[test]
    fn a_silent_owner_loses_the_volume_and_writes_nothing_more() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("runs/run.json");
        let hung = VolumeLock::take(folder.path(), PATIENCE).unwrap();
        hung.beat().unwrap();
        publish_bytes(&target, b"mine").unwrap();
        assert!(VolumeLock::take(folder.path(), Duration::from_secs(10)).is_err());
        hung.file.set_modified(SystemTime::now() - Duration::from_secs(11)).unwrap();
        let new = VolumeLock::take(folder.path(), Duration::from_secs(10)).unwrap();
        assert_eq!(new.token(), hung.token() + 1);
        assert!(matches!(hung.beat(), Err(VolumeError::Lost { .. })));
        assert!(matches!(publish_bytes(&target, b"late"), Err(VolumeError::Lost { .. })));
        assert!(matches!(crate::publish::remove(&target), Err(VolumeError::Lost { .. })));
        drop(hung);
        new.beat().unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"mine");
        publish_bytes(&target, b"new").unwrap();
    }

    #[test]
    fn what_an_older_release_left_is_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        publish_bytes(&folder.path().join(".owner"), b"host a, process 7, since 1\n").unwrap();
        assert!(VolumeLock::take(folder.path(), PATIENCE).unwrap().token() > 1_000_000);
    }
}
