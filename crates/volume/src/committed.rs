//! A committed epoch of a run folder, for whoever only reads: no service, and no lock.

use crate::records::{EpochManifest, RunRecord, read_record};
use crate::{EpochFolder, RunFolder, VolumeError, publish};
use deepcluster_domain::EpochId;
use std::path::PathBuf;

/// An epoch with a manifest.
#[derive(Clone, Debug)]
pub struct CommittedEpoch {
    /// Its number.
    pub epoch: EpochId,
    /// What it consists of, and what it scored.
    pub manifest: EpochManifest,
    folder: EpochFolder,
}

impl CommittedEpoch {
    /// The last one of a run; none before the first commit.
    ///
    /// # Errors
    /// When the run's record or the epoch's manifest is damaged.
    pub fn last(run: &RunFolder) -> Result<Option<Self>, VolumeError> {
        let record: RunRecord = read_record(&run.run_json())?;
        // An epoch counts from its commit on, which a coordinator that died may not have noted in run.json.
        let committed = |epoch: &EpochId| run.epoch(*epoch).epoch_json().is_file();
        let newest = run.epoch_ids()?.into_iter().rev().find(committed);
        let counted = EpochId(record.epochs_done).previous();
        newest.max(counted).map(|epoch| Self::of(run, epoch)).transpose()
    }

    /// The one of a number.
    ///
    /// # Errors
    /// When it is not there, or its manifest is damaged.
    pub fn of(run: &RunFolder, epoch: EpochId) -> Result<Self, VolumeError> {
        let folder = run.epoch(epoch);
        let manifest = read_record(&folder.epoch_json()).map_err(with_remedy)?;
        Ok(Self { epoch, manifest, folder })
    }

    /// The epoch whose network computed the features that this one clustered; none before the first.
    ///
    /// # Errors
    /// As [`CommittedEpoch::of`].
    pub fn before(&self, run: &RunFolder) -> Result<Option<Self>, VolumeError> {
        self.epoch.previous().map(|epoch| Self::of(run, epoch)).transpose()
    }

    /// The place of a file of the epoch, given by its own name, after it was verified against the manifest.
    ///
    /// # Errors
    /// When it is not what the manifest says.
    pub fn verified(&self, name: &str) -> Result<PathBuf, VolumeError> {
        let path = self.folder.path().join(name);
        let promised = self.manifest.files.all().into_iter().find(|file| file.path.ends_with(&format!("/{name}")));
        let found = publish::digest(&path).map_err(with_remedy)?;
        match promised {
            Some(file) if file.blake3 == found.blake3 && file.bytes == found.bytes => Ok(path),
            _ => Err(with_remedy(VolumeError::corrupt(&path, "its checksum is not the recorded one"))),
        }
    }
}

/// Damage, with what helps against it.
fn with_remedy(error: VolumeError) -> VolumeError {
    let (path, why) = match error {
        VolumeError::Corrupt { path, why } => (path, why),
        VolumeError::Missing(path) => (path, "it does not exist".to_owned()),
        other => return other,
    };
    VolumeError::corrupt(&path, format!("{why}; `deepcluster resume` makes a damaged epoch anew"))
}
