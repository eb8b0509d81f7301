//! One run as it is now, on a volume of its own: for commands that only read a run, while a coordinator works on its volume or
//! where that cannot be written.
//!
//! Its files are hard links, or symbolic ones where the snapshot lies on another file system; only the run's record is written anew.
//! With hard links an epoch stays readable when the run removes it.

use crate::failure::Failure;
use crate::local::volume_and_run;
use deepcluster_volume::committed::CommittedEpoch;
use deepcluster_volume::records::{RunRecord, RunState, publish_record, read_record};
use deepcluster_volume::{RunFolder, Volume, publish};
use nix::unistd::{AccessFlags, access};
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

/// How the folder of a snapshot is called, before the number of its process.
const PREFIX: &str = ".snapshot-";

/// How old a snapshot is at least whose process is taken for dead.
const ABANDONED: Duration = Duration::from_secs(24 * 60 * 60);

/// A temporary volume with one run; it goes with this value.
pub struct Snapshot {
    folder: TempDir,
    /// The run's name.
    pub run_id: String,
}

impl Snapshot {
    /// Of the run of a folder `VOLUME/runs/RUN`.
    ///
    /// # Errors
    /// When the folder is no run of a volume, or no epoch is committed; when no temporary folder can be made.
    pub fn take(run_dir: &Path) -> Result<Self, Failure> {
        let (root, run_id) = volume_and_run(run_dir)?;
        let run = RunFolder::at(root.join("runs").join(&run_id));
        let folder = temporary_folder(&root)?;
        let id = run_id.parse().map_err(|error| Failure::usage(format!("{run_id}: {error}")))?;
        let target = Volume::new(folder.path()).run(&id);
        let mut record: RunRecord = read_record(&run.run_json())?;
        publish::create_folder(target.path())?;
        link(&run.images_csv(), &target.images_csv())?;
        if record.resolved.init.is_some() {
            link(&run.init(), &target.init())?;
        }
        let mut last = 0;
        for epoch in run.epoch_ids()? {
            // One that is being made has no manifest; one that is being removed may lose it.
            if !run.epoch(epoch).epoch_json().is_file() || CommittedEpoch::of(&run, epoch).is_err() {
                continue;
            }
            publish::create_folder(target.epoch(epoch).path())?;
            match link_files(run.epoch(epoch).path(), target.epoch(epoch).path()) {
                Ok(()) => last = epoch.0 + 1,
                // The run has removed it meanwhile.
                Err(_) => publish::remove(target.epoch(epoch).path())?,
            }
        }
        (record.state, record.epochs_done, record.spec.epochs) = (RunState::Finished, last, last.max(1));
        publish_record(&target.run_json(), &record)?;
        Ok(Self { folder, run_id })
    }

    /// The volume.
    pub fn root(&self) -> &Path {
        self.folder.path()
    }
}

/// The volume of a run for a command that reads it and leaves temporary files beside: the run's own, or a snapshot where that
/// cannot be written.
///
/// # Errors
/// As [`Snapshot::take`].
pub fn writable_volume(run_dir: &Path) -> Result<(PathBuf, String, Option<Snapshot>), Failure> {
    let (root, run_id) = volume_and_run(run_dir)?;
    if access(&root, AccessFlags::W_OK).is_ok() && access(run_dir, AccessFlags::W_OK).is_ok() {
        return Ok((root, run_id, None));
    }
    let snapshot = Snapshot::take(run_dir)?;
    Ok((snapshot.root().to_owned(), run_id, Some(snapshot)))
}

/// On the volume, where links cost nothing, or else where temporary files go.
fn temporary_folder(root: &Path) -> Result<TempDir, Failure> {
    sweep_dead(root);
    let prefix = format!("{PREFIX}{}-", std::process::id());
    let on_volume = tempfile::Builder::new().prefix(&prefix).tempdir_in(root);
    on_volume.or_else(|_| tempfile::Builder::new().prefix(&prefix).tempdir()).map_err(|error| {
        Failure::usage(format!("neither {} nor {} can be written: {error}", root.display(), std::env::temp_dir().display()))
    })
}

/// Removes snapshots of processes that were killed.
fn sweep_dead(root: &Path) {
    let Ok(entries) = fs::read_dir(root) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('-').next()?.parse::<u32>().ok());
        // A process of another host is not to be seen here.
        let age = entry.metadata().and_then(|metadata| metadata.modified()).ok().and_then(|then| then.elapsed().ok());
        let is_old = age.is_some_and(|age| age > ABANDONED);
        if is_old && process.is_some_and(|process| !Path::new("/proc").join(process.to_string()).is_dir()) {
            let _ = publish::remove(&entry.path());
        }
    }
}

fn link_files(from: &Path, to: &Path) -> Result<(), Failure> {
    for entry in fs::read_dir(from).map_err(|error| failed(from, &error))? {
        let entry = entry.map_err(|error| failed(from, &error))?;
        if entry.path().is_file() {
            link(&entry.path(), &to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

fn link(from: &Path, to: &Path) -> Result<(), Failure> {
    fs::hard_link(from, to).or_else(|_| symlink(from, to)).map_err(|error| failed(from, &error))
}

fn failed(path: &Path, error: &io::Error) -> Failure {
    Failure::usage(format!("{}: {error}", path.display()))
}
