//! One epoch: the loop over the state machine of `domain::epoch`, with `pending.json` as its memory.
//!
//! 1. What is done stands in `pending.json`; it is written anew after every shard, every phase, and whatever else a worker
//!    has saved on its way.
//! 2. A coordinator that starts again reads it, drops what does not verify, and goes on.
//! 3. Workers write under temporary names, another for every try. What counts gets its own name here, so that the late
//!    files of a worker that was given up change nothing.
//! 4. `epoch.json` is the commit; only then features and older epochs go.

use crate::cache::Cache;
use crate::images;
use crate::run::Run;
use crate::workers::{Call, Workers};
use deepcluster_domain::space::CacheLimit;
use deepcluster_domain::{EpochId, EpochProgress, RunSpec, ShardId, Step};
use deepcluster_proto::{network_of, v1};
use deepcluster_service::requests::{file_to_wire, volume_status};
use deepcluster_volume::events::Severity;
use deepcluster_volume::image_list::ImageEntry;
use deepcluster_volume::publish::TEMPORARY;
use deepcluster_volume::records::{
    DigestsRecord, EpochManifest, EpochScores, PendingEpoch, ResolvedRecord, publish_record, read_record,
};
use deepcluster_volume::{EpochFolder, FileRecord, Volume, VolumeError, publish};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// Where epochs are made.
pub struct Workshop {
    /// The volume that this coordinator owns.
    pub volume: Volume,
    /// Who computes.
    pub workers: Workers,
    /// The owner's token, of which no other owner has the same.
    pub token: u64,
    /// How much room decoded images may take.
    pub cache_limit: CacheLimit,
    /// Whether runs write files for TensorBoard.
    pub tensorboard: bool,
    n_tries: AtomicU64,
}

impl Workshop {
    /// Of an owner of a volume.
    pub fn new(volume: Volume, workers: Workers, token: u64, cache_limit: CacheLimit, tensorboard: bool) -> Self {
        Self { volume, workers, token, cache_limit, tensorboard, n_tries: AtomicU64::new(0) }
    }

    /// A place beside `target` that no other try has ever had or will have.
    fn staged(&self, target: &Path) -> PathBuf {
        let name = target.file_name().unwrap_or_default().display();
        let number = self.n_tries.fetch_add(1, Ordering::Relaxed);
        target.with_file_name(format!(".{name}.{}-{number}{TEMPORARY}", self.token))
    }
}

/// Everything that one epoch of one run needs.
pub struct EpochRunner<'a> {
    pub(crate) workshop: &'a Workshop,
    pub(crate) run: &'a Run,
    pub(crate) spec: &'a RunSpec,
    pub(crate) epoch: EpochId,
    pub(crate) folder: EpochFolder,
    /// The manifest of the epoch before.
    pub(crate) last: Option<EpochManifest>,
    pub(crate) images: Vec<ImageEntry>,
    pub(crate) cache: Cache,
    pending: Mutex<PendingEpoch>,
    digests: Mutex<DigestsRecord>,
}

impl<'a> EpochRunner<'a> {
    /// Reads what is already done of the run's current epoch; `others` are the keys of the decoded images of other runs.
    pub fn open(workshop: &'a Workshop, run: &'a Run, others: &[String]) -> Result<Self, Status> {
        let epoch = EpochId(run.record().epochs_done);
        let folder = run.folder.epoch(epoch);
        publish::create_folder(&folder.features()).map_err(failed)?;
        publish::sweep(folder.path()).map_err(failed)?;
        publish::create_folder(&run.folder.all_digests()).map_err(failed)?;
        publish::sweep(&run.folder.all_digests()).map_err(failed)?;
        let last = match epoch.previous() {
            Some(last) => Some(read_record(&run.folder.epoch(last).epoch_json()).map_err(failed)?),
            None => None,
        };
        let list = run.images().map_err(failed)?;
        let n_images = run.record().resolved.n_images;
        if list.len() != n_images {
            let why = format!("lists {} images, run.json says {n_images}", list.len());
            return Err(failed(VolumeError::corrupt(&run.folder.images_csv(), why)));
        }
        let pending = match read_record(&folder.pending_json()) {
            Ok(pending) => trusted(&workshop.volume, pending),
            Err(_) => PendingEpoch::new(epoch.0),
        };
        let (digests, lost) = trusted_digests(&workshop.volume, &run.folder.digests_json());
        let (pending, digests) = (Mutex::new(pending), Mutex::new(digests));
        let cache = Cache::open(workshop, run, &list, others).map_err(failed)?;
        let mut runner = Self { workshop, run, spec: &run.spec, epoch, folder, last, images: list, cache, pending, digests };
        for damage in lost {
            let message = format!("{damage}; the files that it is about are taken for the run's images as they are now");
            runner.fault("volume", &Status::data_loss(message));
        }
        // A crash may have come between a shard's record and images.csv.
        runner.note_skipped()?;
        Ok(runner)
    }

    /// Runs the epoch to its commit.
    pub async fn finish(mut self) -> Result<EpochScores, Status> {
        loop {
            match self.progress().next() {
                Step::Extract(shards) => self.extract(&shards).await?,
                Step::Cluster => self.cluster().await?,
                Step::Train => self.train().await?,
                Step::Commit => return self.commit(),
            }
        }
    }

    fn progress(&self) -> EpochProgress {
        let pending = self.pending();
        EpochProgress {
            shards: (0..self.n_shards()).map(|shard| pending.shards.contains_key(&shard)).collect(),
            clustered: pending.clustering.is_some(),
            trained: pending.training.is_some(),
        }
    }

    fn n_shards(&self) -> u32 {
        self.images.len().div_ceil(self.spec.shard_images as usize) as u32
    }
}

/// What the phases share.
impl EpochRunner<'_> {
    /// A copy of what is done.
    pub(crate) fn pending(&self) -> PendingEpoch {
        self.lock().clone()
    }

    /// Notes durably that something is done.
    pub(crate) fn note(&self, change: impl FnOnce(&mut PendingEpoch)) -> Result<(), Status> {
        let mut pending = self.lock();
        let mut changed = pending.clone();
        change(&mut changed);
        publish_record(&self.folder.pending_json(), &changed).map_err(failed)?;
        *pending = changed;
        Ok(())
    }

    /// What the files of a shard contained when they were first read, if they were.
    pub(crate) fn digests(&self, shard: ShardId) -> Option<FileRecord> {
        self.digests.lock().unwrap_or_else(PoisonError::into_inner).shards.get(&shard.0).cloned()
    }

    /// Notes durably what the files of a shard contain.
    pub(crate) fn note_digests(&self, shard: ShardId, staged: &FileRecord) -> Result<(), Status> {
        let file = self.adopt(staged, &self.run.folder.digests(shard))?;
        let mut digests = self.digests.lock().unwrap_or_else(PoisonError::into_inner);
        digests.shards.insert(shard.0, file);
        publish_record(&self.run.folder.digests_json(), &*digests).map_err(failed)
    }

    /// A place for the result of a try, relative to the volume's root.
    pub(crate) fn staged(&self, target: &Path) -> Result<String, Status> {
        self.workshop.volume.relative(&self.workshop.staged(target)).map_err(failed)
    }

    /// Gives a worker's result its own name.
    pub(crate) fn adopt(&self, staged: &FileRecord, target: &Path) -> Result<FileRecord, Status> {
        self.workshop.volume.adopt(staged, target).map_err(failed)
    }

    /// Removes what a try that failed has made under the names that its request gave.
    pub(crate) fn discard(&self, staged: &[&str]) -> Result<(), Status> {
        let volume = &self.workshop.volume;
        let named = staged.iter().filter(|name| !name.is_empty());
        named.map(|name| volume.resolve(name)).try_for_each(|path| publish::discard(&path?)).map_err(failed)
    }

    pub(crate) fn network(&self) -> v1::Network {
        let last = self.last.as_ref().map(|last| file_to_wire(&last.files.checkpoint));
        network_of(self.spec, last.or_else(|| self.run.first_weights()))
    }

    pub(crate) fn image_list(&self) -> Result<v1::ImageList, Status> {
        let list = self.workshop.volume.record_existing(&self.run.folder.images_csv()).map_err(failed)?;
        Ok(v1::ImageList { root: self.spec.images.clone(), list: Some(file_to_wire(&list)) })
    }

    /// First row of a shard and how many it has.
    pub(crate) fn shard_rows(&self, shard: ShardId) -> (u64, u64) {
        let size = u64::from(self.spec.shard_images);
        let first = u64::from(shard.0) * size;
        (first, (self.images.len() as u64).saturating_sub(first).min(size))
    }

    /// Takes images that turned out unreadable out of the run, and ends it when they are too many.
    pub(crate) fn note_skipped(&mut self) -> Result<(), Status> {
        let pending = self.pending();
        for (index, reason) in pending.shards.values().flat_map(|shard| &shard.skipped) {
            if let Some(image) = self.images.get_mut(*index as usize)
                && image.skipped.is_none()
            {
                image.skipped = Some(reason.clone());
            }
        }
        for (index, remark) in pending.shards.values().flat_map(|shard| &shard.remarks) {
            if let Some(image) = self.images.get_mut(*index as usize) {
                images::note_remark(self.spec, image, remark);
            }
        }
        let (n_skipped, n_remarks) = (images::n_skipped(&self.images), images::n_remarks(&self.images));
        // Not those new in the list: a crash may have come between the list and what run.json says of it.
        let known = self.run.record().resolved;
        let (n_new, n_new_remarks) = (n_skipped.saturating_sub(known.n_skipped), n_remarks.saturating_sub(known.n_remarks));
        if n_new > 0 || n_new_remarks > 0 {
            let change = |known: &mut ResolvedRecord| (known.n_skipped, known.n_remarks) = (n_skipped, n_remarks);
            let checksum = self.run.publish_images(&self.images, change).map_err(failed)?;
            let example = images::first_example(&self.images).unwrap_or_default();
            let body = json!({
                "epoch": self.epoch.0, "skipped": n_new, "skipped_in_all": n_skipped, "example": example,
                "remarks": n_new_remarks, "remarks_in_all": n_remarks,
                "remark_example": images::first_remark(&self.images).unwrap_or_default(), "images_csv": checksum,
            });
            self.run.event("images", Severity::Warning, body).map_err(failed)?;
        }
        images::check_skipped(self.spec, &self.images).map_err(Status::invalid_argument)
    }

    pub(crate) fn phase(&self, phase: &str, figures: serde_json::Value) -> Result<(), Status> {
        let mut body = json!({"epoch": self.epoch.0, "phase": phase});
        if let (Some(body), serde_json::Value::Object(figures)) = (body.as_object_mut(), figures) {
            body.extend(figures);
        }
        self.run.event("phase", Severity::Info, body).map_err(failed)
    }

    /// A call to a worker; `told` gets its progress, and faults become events.
    pub(crate) fn call<'c>(
        &'c self,
        stop: &'c CancellationToken,
        told: &'c (dyn Fn(v1::Progress) + Sync),
        fault: &'c (dyn Fn(&Status) + Sync),
    ) -> Call<'c> {
        self.workshop.workers.call(stop, told, fault)
    }

    pub(crate) fn tell(&self, phase: &str, progress: v1::Progress) {
        self.run.progress(v1::RunProgress { epoch: self.epoch.0, phase: phase.to_owned(), progress: Some(progress) });
    }

    pub(crate) fn fault(&self, worker: &str, status: &Status) {
        let body = json!({"epoch": self.epoch.0, "worker": worker, "message": status.message()});
        if let Err(error) = self.run.event("fault", Severity::Warning, body) {
            tracing::warn!(%error, "the fault could not be noted");
        }
    }

    fn lock(&self) -> MutexGuard<'_, PendingEpoch> {
        // A panic while it was held would have left what was there before.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) fn failed(error: VolumeError) -> Status {
    volume_status(&error)
}

/// What is left of the digests once every file that they name was verified, and what is wrong with the others.
fn trusted_digests(volume: &Volume, path: &Path) -> (DigestsRecord, Vec<VolumeError>) {
    let mut damage = Vec::new();
    let mut digests = match read_record::<DigestsRecord>(path) {
        Ok(digests) => digests,
        Err(VolumeError::Missing(_)) => DigestsRecord::new(),
        Err(error) => {
            damage.push(error);
            DigestsRecord::new()
        }
    };
    digests.shards.retain(|_, file| volume.verified(file).map_err(|error| damage.push(error)).is_ok());
    (digests, damage)
}

/// What is left of a pending epoch once every file that it names was verified.
fn trusted(volume: &Volume, mut pending: PendingEpoch) -> PendingEpoch {
    let good = |record: &FileRecord| volume.verified(record).is_ok();
    pending.shards.retain(|_, shard| good(&shard.features));
    pending.clustering = pending.clustering.filter(|clustering| clustering.files().into_iter().all(good));
    pending.clustering_so_far.whiten = pending.clustering_so_far.whiten.filter(good);
    let whitened = pending.clustering_so_far.whiten.is_some();
    pending.clustering_so_far.centroids = pending.clustering_so_far.centroids.filter(|file| whitened && good(file));
    // What was learned from labels that are gone is not what the new ones teach.
    let labelled = pending.clustering.is_some();
    pending.training = pending.training.filter(|training| labelled && good(&training.checkpoint));
    pending.training_so_far = pending.training_so_far.filter(|training| labelled && good(&training.file));
    pending
}
