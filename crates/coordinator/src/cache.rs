//! Decoded images on the volume: which are kept, for how long, and how much room they may take.
//!
//! 1. They are known by the list of images and the side that they were shrunk to, so that runs over the same images share them.
//! 2. At the beginning of an epoch it is settled how much there may be: the limit, and never so much that the run's own files
//!    would not fit. Caches that no unfinished run uses make room, those that were not used for longest first; where all together are
//!    beyond that bound, those of other runs go as well, then shards of this one.
//! 3. Shards that do not fit are decoded in every epoch. Nothing else depends on a cache: it may go at any time.

use crate::epoch::{Workshop, failed};
use crate::run::Run;
use deepcluster_domain::geometry::shrunk;
use deepcluster_domain::space::{SpaceNeeded, human};
use deepcluster_domain::{RunSpec, ShardId};
use deepcluster_images::decode::DECODERS;
use deepcluster_proto::v1::CachedShard;
use deepcluster_volume::events::{Severity, seconds_since_1970};
use deepcluster_volume::image_list::ImageEntry;
use deepcluster_volume::pixels::PixelsFile;
use deepcluster_volume::records::{CacheUse, VERSION, publish_record, read_record};
use deepcluster_volume::{CacheFolder, Volume, VolumeError, pixels, publish, space};
use serde_json::json;
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use tonic::Status;
use tracing::{info, warn};

/// The decoded images of a run.
pub(crate) struct Cache {
    folder: CacheFolder,
    /// Shards that are to be written where they are not there.
    planned: BTreeSet<ShardId>,
}

impl Cache {
    /// Makes what room there may be for a run; `others` are the keys of other runs that have not ended.
    ///
    /// # Errors
    /// When the volume cannot be read or written.
    pub(crate) fn open(workshop: &Workshop, run: &Run, images: &[ImageEntry], others: &[String]) -> Result<Self, VolumeError> {
        let volume = &workshop.volume;
        let key = key(&run.spec, images);
        let folder = volume.cache(&key);
        run.uses_cache(key);
        let sizes: Vec<u64> = images.chunks(run.spec.shard_images as usize).map(|shard| shard_bytes(shard, &run.spec)).collect();
        let mut cache = Self { folder, planned: (0..sizes.len() as u32).map(ShardId).collect() };
        let most = most(workshop, run)?;
        if volume.caches().is_dir() {
            publish::sweep(&volume.caches())?;
        }
        cache.drop_damaged()?;
        let mut used = space::used(&volume.caches());
        let others_may = most.saturating_sub(sizes.iter().sum::<u64>());
        let mut used_by_others = used - space::used(cache.folder.path());
        let all = oldest_first(volume, others)?;
        for (in_use, other) in all.into_iter().filter(|(_, other)| other.path() != cache.folder.path()) {
            // Two runs that do not both fit would otherwise make each other decode everything.
            if used_by_others <= others_may || (in_use && used <= most) {
                break;
            }
            let bytes = evict(run, &other)?;
            used = used.saturating_sub(bytes);
            used_by_others = used_by_others.saturating_sub(bytes);
        }
        used = cache.shed(used, most)?;
        cache.plan(&sizes, most.saturating_sub(used));
        cache.tell(run, sizes.iter().sum(), most, sizes.len())?;
        if most > 0 && !cache.planned.is_empty() {
            publish::create_folder(cache.folder.path())?;
            let (used, images) = (seconds_since_1970() as u64, run.spec.images.clone());
            publish_record(&cache.folder.used_json(), &CacheUse { version: VERSION, used, images })?;
        }
        Ok(cache)
    }

    /// Removes shards whose tables are damaged. What is damaged inside is found by whoever reads it.
    fn drop_damaged(&self) -> Result<(), VolumeError> {
        for path in self.planned.iter().map(|shard| self.folder.shard(*shard)) {
            match PixelsFile::open(&path) {
                Ok(_) | Err(VolumeError::Missing(_)) => {}
                Err(error) => {
                    warn!(%error, "decoded images are dropped");
                    publish::remove(&path)?;
                }
            }
        }
        Ok(())
    }

    /// Removes shards, the last one first, until all decoded images, which take `used`, take no more than `most`; what they
    /// take then.
    fn shed(&self, mut used: u64, most: u64) -> Result<u64, VolumeError> {
        for path in self.planned.iter().rev().map(|shard| self.folder.shard(*shard)) {
            if used <= most {
                break;
            }
            used = used.saturating_sub(path.metadata().map_or(0, |found| found.len()));
            publish::remove(&path)?;
        }
        Ok(used)
    }

    /// Plans the shards that are there, and of the others the first that fit.
    fn plan(&mut self, sizes: &[u64], mut room: u64) {
        let folder = &self.folder;
        self.planned.retain(|shard| {
            let size = sizes.get(shard.0 as usize).copied().unwrap_or(0);
            let is_there = folder.shard(*shard).is_file();
            if !is_there && size <= room {
                room -= size;
                return true;
            }
            is_there
        });
    }

    /// Says what is kept where that is not everything.
    fn tell(&self, run: &Run, wanted: u64, most: u64, n_shards: usize) -> Result<(), VolumeError> {
        let n_kept = self.planned.len();
        if n_kept == n_shards || most == 0 {
            return Ok(());
        }
        let message = format!(
            "the decoded images take {}, and the cache may hold {}: those of {n_kept} of {n_shards} shards are kept, the others are decoded in every epoch (--cache-limit)",
            human(wanted),
            human(most)
        );
        run.event_once("cache", Severity::Warning, json!({"epoch": run.record().epochs_done, "message": message}))
    }

    /// Where the images of a shard are, if they are there.
    pub(crate) fn there(&self, volume: &Volume, shard: ShardId, first_image: u64) -> Result<Option<CachedShard>, Status> {
        let path = self.folder.shard(shard);
        if !path.is_file() {
            return Ok(None);
        }
        Ok(Some(CachedShard { path: volume.relative(&path).map_err(failed)?, first_image }))
    }

    /// Where the images of a shard are to go, if they are to be kept.
    pub(crate) fn target(&self, shard: ShardId) -> Option<PathBuf> {
        let path = self.folder.shard(shard);
        (self.planned.contains(&shard) && !path.is_file()).then_some(path)
    }

    /// Removes shards, by their paths on the volume, that turned out to be of no use; the next epoch writes them anew.
    pub(crate) fn drop_unfit(&self, volume: &Volume, unfit: &[String]) {
        for path in unfit {
            let removed = volume.resolve(path).and_then(|path| match path.parent() == Some(self.folder.path()) {
                true => publish::remove(&path),
                false => Ok(()),
            });
            match removed {
                Ok(()) => warn!(path, "decoded images did not fit their files, and were dropped"),
                Err(error) => warn!(path, %error, "decoded images that do not fit their files stay for now"),
            }
        }
    }
}

/// Removes all decoded images, to make room for what cannot be made again so easily. True when there were any.
///
/// # Errors
/// When they cannot be removed.
pub(crate) fn give_up(volume: &Volume, run: &Run) -> Result<bool, VolumeError> {
    let bytes = space::used(&volume.caches());
    if bytes == 0 {
        return Ok(false);
    }
    oldest_first(volume, &[])?.iter().try_for_each(|(_, cache)| publish::remove(cache.path()))?;
    let message = format!("the volume is full: decoded images were removed, {}", human(bytes));
    run.event("cache", Severity::Warning, json!({"epoch": run.record().epochs_done, "message": message}))?;
    Ok(true)
}

/// The most that all decoded images may take, in bytes.
fn most(workshop: &Workshop, run: &Run) -> Result<u64, VolumeError> {
    let volume = &workshop.volume;
    let resolved = run.record().resolved;
    let free = space::available(volume.root())? + space::used(&volume.caches());
    let needed = SpaceNeeded::of(&run.spec, resolved.n_images, resolved.k).whole_run();
    Ok(workshop.cache_limit.room(free, needed.saturating_sub(space::used(run.folder.path()))))
}

/// By what the decoded images of a run are known: who decoded them, where they lie, how they are listed and shrunk.
fn key(spec: &RunSpec, images: &[ImageEntry]) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut add = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    add(&DECODERS.to_le_bytes());
    add(spec.images.as_bytes());
    add(&spec.cache_side.to_le_bytes());
    add(&spec.shard_images.to_le_bytes());
    for image in images {
        add(&image.path);
        add(&image.bytes.to_le_bytes());
    }
    hasher.finalize().to_hex()[..16].to_owned()
}

/// The most that the decoded images of a shard take.
fn shard_bytes(images: &[ImageEntry], spec: &RunSpec) -> u64 {
    let pixels = |image: &ImageEntry| {
        let (width, height) = shrunk(image.width, image.height, spec.cache_side);
        u64::from(width) * u64::from(height) * 3 + pixels::ENTRY
    };
    images.iter().map(pixels).sum()
}

/// All caches, and whether somebody uses them: first those that nobody does, in order of their last use.
fn oldest_first(volume: &Volume, in_use: &[String]) -> Result<Vec<(bool, CacheFolder)>, VolumeError> {
    let folder = volume.caches();
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(&folder).map_err(VolumeError::io(&folder))? {
        let name = entry.map_err(VolumeError::io(&folder))?.file_name().to_string_lossy().into_owned();
        let cache = volume.cache(&name);
        // One whose record is damaged goes before all others.
        let used = read_record::<CacheUse>(&cache.used_json()).map_or(0, |found| found.used);
        found.push((in_use.contains(&name), used, name, cache));
    }
    found.sort_by(|a, b| (a.0, a.1, &a.2).cmp(&(b.0, b.1, &b.2)));
    Ok(found.into_iter().map(|(in_use, _, _, cache)| (in_use, cache)).collect())
}

/// Removes a cache; how many bytes it had.
fn evict(run: &Run, cache: &CacheFolder) -> Result<u64, VolumeError> {
    let of = read_record::<CacheUse>(&cache.used_json()).map(|found| found.images).unwrap_or_default();
    let bytes = space::used(cache.path());
    publish::remove(cache.path())?;
    info!(path = %cache.path().display(), "decoded images evicted");
    let message = format!("decoded images of '{of}' were removed to make room, {}", human(bytes));
    run.event("cache", Severity::Info, json!({"epoch": run.record().epochs_done, "message": message}))?;
    Ok(bytes)
}
