//! Where things lie: paths of the volume, of a run and of an epoch, and records tied to real files.

use crate::publish::{self, Digest};
use crate::{FileRecord, VolumeError};
use deepcluster_domain::{EpochId, RunId, ShardId};
use std::fs;
use std::path::{Component, Path, PathBuf};

/// The root of a shared volume.
#[derive(Clone, Debug)]
pub struct Volume {
    root: PathBuf,
}

impl Volume {
    /// A volume at `root`. Nothing is touched.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Its root.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of a run.
    pub fn run(&self, run_id: &RunId) -> RunFolder {
        RunFolder { path: self.root.join("runs").join(run_id.as_str()) }
    }

    /// Ids of all runs, in order of their names: of folders with a `run.json`, or with events, which come after it. A folder
    /// with neither is what a crash left of a run that was being created.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub fn run_ids(&self) -> Result<Vec<RunId>, VolumeError> {
        let folder = self.root.join("runs");
        if !folder.try_exists().map_err(VolumeError::io(&folder))? {
            return Ok(Vec::new());
        }
        let mut ids = Vec::new();
        for entry in fs::read_dir(&folder).map_err(VolumeError::io(&folder))? {
            let entry = entry.map_err(VolumeError::io(&folder))?;
            let id = entry.file_name().to_str().and_then(|name| name.parse::<RunId>().ok());
            ids.extend(id.filter(|id| self.run(id).run_json().is_file() || self.run(id).events_jsonl().is_file()));
        }
        ids.sort();
        Ok(ids)
    }

    /// The folder of all decoded images.
    pub fn caches(&self) -> PathBuf {
        self.root.join("cache")
    }

    /// The folder of decoded images that are known by a key.
    pub fn cache(&self, key: &str) -> CacheFolder {
        CacheFolder { path: self.caches().join(key) }
    }

    /// The real place of a path from a request or a record.
    ///
    /// # Errors
    /// When the path is absolute, empty, or has a part that is not a plain name.
    pub fn resolve(&self, relative: &str) -> Result<PathBuf, VolumeError> {
        resolve_below(&self.root, Path::new(relative))
    }

    /// The name of a file of this volume in requests and records.
    ///
    /// # Errors
    /// When the file does not lie below the root, or its path is not UTF-8.
    pub fn relative(&self, path: &Path) -> Result<String, VolumeError> {
        let outside = || VolumeError::Outside(path.display().to_string());
        let relative = path.strip_prefix(&self.root).map_err(|_| outside())?;
        relative.to_str().map(str::to_owned).ok_or_else(outside)
    }

    /// The record of a file that was just published.
    ///
    /// # Errors
    /// When the file does not lie below the root.
    pub fn record(&self, path: &Path, digest: Digest) -> Result<FileRecord, VolumeError> {
        Ok(FileRecord { path: self.relative(path)?, bytes: digest.bytes, blake3: digest.blake3 })
    }

    /// The record of a file that is already there.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn record_existing(&self, path: &Path) -> Result<FileRecord, VolumeError> {
        self.record(path, publish::digest(path)?)
    }

    /// Gives a file that a worker has made under a temporary name its own; the record of what it is then.
    ///
    /// # Errors
    /// [`VolumeError::Corrupt`] or [`VolumeError::Missing`] when the file is not as long as the record says, or not there.
    pub fn adopt(&self, staged: &FileRecord, target: &Path) -> Result<FileRecord, VolumeError> {
        let path = self.resolve(&staged.path)?;
        let bytes = fs::metadata(&path).map_err(VolumeError::io(&path))?.len();
        if bytes != staged.bytes {
            return Err(VolumeError::corrupt(&path, format!("has {bytes} bytes, not {}", staged.bytes)));
        }
        let record = FileRecord { path: self.relative(target)?, ..staged.clone() };
        publish::adopt(&path, target)?;
        Ok(record)
    }

    /// The place of a recorded file, after its size and checksum were found right.
    ///
    /// # Errors
    /// [`VolumeError::Corrupt`] or [`VolumeError::Missing`] when the file is not what the record says.
    pub fn verified(&self, record: &FileRecord) -> Result<PathBuf, VolumeError> {
        let path = self.resolve(&record.path)?;
        let found = publish::digest(&path)?;
        if found.bytes != record.bytes {
            return Err(VolumeError::corrupt(&path, format!("has {} bytes, not {}", found.bytes, record.bytes)));
        }
        if found.blake3 != record.blake3 {
            return Err(VolumeError::corrupt(&path, "its checksum is not the recorded one"));
        }
        Ok(path)
    }
}

/// The place of `relative` below `root`.
///
/// # Errors
/// When `relative` is absolute or empty, or has a part that is not a plain name (`..` among them).
pub fn resolve_below(root: &Path, relative: &Path) -> Result<PathBuf, VolumeError> {
    let outside = || VolumeError::Outside(relative.display().to_string());
    let plain = |part: Component<'_>| matches!(part, Component::Normal(_));
    if relative.as_os_str().is_empty() || relative.as_os_str().as_encoded_bytes().contains(&0) {
        return Err(outside());
    }
    if !relative.components().all(plain) {
        return Err(outside());
    }
    Ok(root.join(relative))
}

/// The folder of one run.
#[derive(Clone, Debug)]
pub struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    /// A run folder given by its own path, as on the command line.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a run lies here.
    pub fn is_there(&self) -> bool {
        self.run_json().is_file() || self.events_jsonl().is_file()
    }

    /// The spec and state.
    pub fn run_json(&self) -> PathBuf {
        self.path.join("run.json")
    }

    /// The list of images.
    pub fn images_csv(&self) -> PathBuf {
        self.path.join("images.csv")
    }

    /// Which files hold the digests of the images.
    pub fn digests_json(&self) -> PathBuf {
        self.path.join("digests.json")
    }

    /// The folder of the digests of the images.
    pub fn all_digests(&self) -> PathBuf {
        self.path.join("digests")
    }

    /// The digests of the images of a shard.
    pub fn digests(&self, shard: ShardId) -> PathBuf {
        self.all_digests().join(format!("{shard}.npy"))
    }

    /// The events, one JSON object a line.
    pub fn events_jsonl(&self) -> PathBuf {
        self.path.join("events.jsonl")
    }

    /// The weights that the run starts from, where they are not drawn.
    pub fn init(&self) -> PathBuf {
        self.path.join("init.safetensors")
    }

    /// The folder of TensorBoard's files.
    pub fn tensorboard(&self) -> PathBuf {
        self.path.join("tensorboard")
    }

    /// Labels of the last committed epoch, for people.
    pub fn labels_csv(&self) -> PathBuf {
        self.path.join("labels.csv")
    }

    /// Folder of the assignments of new images that are going on; what an earlier coordinator left there is rubbish.
    pub fn assignments(&self) -> PathBuf {
        self.path.join("assign")
    }

    /// The folder of all epochs.
    pub fn epochs(&self) -> PathBuf {
        self.path.join("epochs")
    }

    /// The folder of one epoch.
    pub fn epoch(&self, epoch: EpochId) -> EpochFolder {
        EpochFolder { path: self.epochs().join(epoch.to_string()) }
    }

    /// Epochs that have a folder, committed or not, in order.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub fn epoch_ids(&self) -> Result<Vec<EpochId>, VolumeError> {
        let folder = self.epochs();
        if !folder.try_exists().map_err(VolumeError::io(&folder))? {
            return Ok(Vec::new());
        }
        let mut ids = Vec::new();
        for entry in fs::read_dir(&folder).map_err(VolumeError::io(&folder))? {
            let name = entry.map_err(VolumeError::io(&folder))?.file_name();
            ids.extend(name.to_str().and_then(|name| name.parse().ok()).map(EpochId));
        }
        ids.sort();
        Ok(ids)
    }
}

/// The folder of the decoded images of one list, at one side.
#[derive(Clone, Debug)]
pub struct CacheFolder {
    path: PathBuf,
}

impl CacheFolder {
    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// When it was last used.
    pub fn used_json(&self) -> PathBuf {
        self.path.join("used.json")
    }

    /// The images of one shard.
    pub fn shard(&self, shard: ShardId) -> PathBuf {
        self.path.join(format!("{shard}.pixels"))
    }
}

/// The folder of one epoch.
#[derive(Clone, Debug)]
pub struct EpochFolder {
    path: PathBuf,
}

impl EpochFolder {
    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder of the features of all shards.
    pub fn features(&self) -> PathBuf {
        self.path.join("features")
    }

    /// The features of one shard.
    pub fn shard(&self, shard: ShardId) -> PathBuf {
        self.features().join(format!("{shard}.npy"))
    }

    /// What of the epoch is done so far.
    pub fn pending_json(&self) -> PathBuf {
        self.path.join("pending.json")
    }

    /// The commit point.
    pub fn epoch_json(&self) -> PathBuf {
        self.path.join("epoch.json")
    }

    /// Pseudo-labels.
    pub fn labels(&self) -> PathBuf {
        self.path.join("labels.npy")
    }

    /// Squared distances to the own centroid.
    pub fn distances(&self) -> PathBuf {
        self.path.join("distances.npy")
    }

    /// Centroids in the whitened space.
    pub fn centroids(&self) -> PathBuf {
        self.path.join("centroids.npy")
    }

    /// Mean and projection of the whitening.
    pub fn whiten(&self) -> PathBuf {
        self.path.join("whiten.safetensors")
    }

    /// The lasting names of the clusters.
    pub fn lineage_json(&self) -> PathBuf {
        self.path.join("lineage.json")
    }

    /// Whitened features of all images.
    pub fn whitened(&self) -> PathBuf {
        self.path.join("whitened.npy")
    }

    /// Where training stood after so many steps of the epoch.
    pub fn training(&self, steps: u64) -> PathBuf {
        self.path.join(format!("training-{steps:08}.safetensors"))
    }

    /// Everything that training saved on its way.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub fn trainings(&self) -> Result<Vec<PathBuf>, VolumeError> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(VolumeError::io(&self.path))? {
            let entry = entry.map_err(VolumeError::io(&self.path))?;
            found.extend(entry.file_name().to_str().is_some_and(|name| name.starts_with("training-")).then(|| entry.path()));
        }
        Ok(found)
    }

    /// Weights and optimizer state.
    pub fn checkpoint(&self) -> PathBuf {
        self.path.join("checkpoint.safetensors")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_never_leave_their_root() {
        let volume = Volume::new("/volume");
        assert_eq!(volume.resolve("runs/a/x.npy").unwrap(), Path::new("/volume/runs/a/x.npy"));
        for bad in ["", "/etc/passwd", "../x", "runs/../../x", "./x", "a\0b"] {
            assert!(matches!(volume.resolve(bad), Err(VolumeError::Outside(_))), "{bad:?} passed");
        }
    }

    #[test]
    fn a_changed_file_is_not_trusted() {
        let folder = tempfile::tempdir().unwrap();
        let volume = Volume::new(folder.path());
        let path = folder.path().join("runs/r/labels.npy");
        let record = volume.record(&path, publish::publish_bytes(&path, b"abc").unwrap()).unwrap();
        assert_eq!(record, volume.record_existing(&path).unwrap());
        assert_eq!(volume.verified(&record).unwrap(), path);
        publish::publish_bytes(&path, b"abd").unwrap();
        assert!(matches!(volume.verified(&record), Err(VolumeError::Corrupt { .. })));
        publish::publish_bytes(&path, b"ab").unwrap();
        assert!(volume.verified(&record).unwrap_err().to_string().contains("has 2 bytes, not 3"));
        publish::remove(&path).unwrap();
        assert!(matches!(volume.verified(&record), Err(VolumeError::Missing(_))));
    }
}
