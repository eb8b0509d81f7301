//! One epoch: the loop over the state machine of `domain::epoch`, with `pending.json` as its memory.
//!
//! 1. What is done stands in `pending.json`; it is written anew after every shard and every phase.
//! 2. A coordinator that starts again reads it, drops what does not verify, and goes on.
//! 3. `epoch.json` is the commit; only then features and older epochs go.

use crate::extraction::Extraction;
use crate::images;
use crate::run::Run;
use crate::workers::{Call, Workers};
use deepcluster_domain::spec::{KMEANS_ITERATIONS, MOMENTUM};
use deepcluster_domain::{EpochId, EpochProgress, RunSpec, ShardId, Step, scores};
use deepcluster_images::folder_classes;
use deepcluster_proto::{network_of, v1};
use deepcluster_service::requests::{file_to_wire, record_of, volume_status};
use deepcluster_volume::image_list::{self, ImageEntry};
use deepcluster_volume::records::{
    ClusteringRecord, EpochFiles, EpochManifest, EpochScores, PendingEpoch, ShardRecord, TrainingRecord, VERSION, publish_record,
    read_record,
};
use deepcluster_volume::{EpochFolder, FileRecord, Volume, VolumeError, npy, publish};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tonic::Status;

/// Everything that one epoch of one run needs.
pub struct EpochRunner<'a> {
    volume: &'a Volume,
    workers: &'a Workers,
    run: &'a Run,
    spec: &'a RunSpec,
    epoch: EpochId,
    folder: EpochFolder,
    /// The manifest of the epoch before.
    last: Option<EpochManifest>,
    pending: PendingEpoch,
    images: Vec<ImageEntry>,
}

impl<'a> EpochRunner<'a> {
    /// Reads what is already done of the run's current epoch.
    pub fn open(volume: &'a Volume, workers: &'a Workers, run: &'a Run) -> Result<Self, Status> {
        let failed = |error: VolumeError| volume_status(&error);
        let epoch = EpochId(run.record().epochs_done);
        let folder = run.folder.epoch(epoch);
        publish::create_folder(&folder.features()).map_err(failed)?;
        publish::sweep(folder.path()).map_err(failed)?;
        let last = match epoch.previous() {
            Some(last) => Some(read_record(&run.folder.epoch(last).epoch_json()).map_err(failed)?),
            None => None,
        };
        let list = image_list::read(&run.folder.images_csv()).map_err(failed)?;
        let n_images = run.record().resolved.n_images;
        if list.len() != n_images {
            let why = format!("lists {} images, run.json says {n_images}", list.len());
            return Err(failed(VolumeError::corrupt(&run.folder.images_csv(), why)));
        }
        let pending = match read_record(&folder.pending_json()) {
            Ok(pending) => trusted(volume, pending),
            Err(_) => PendingEpoch::new(epoch.0),
        };
        let mut runner = Self { volume, workers, run, spec: &run.spec, epoch, folder, last, pending, images: list };
        // A crash may have come between a shard's record and images.csv.
        runner.note_skipped()?;
        Ok(runner)
    }

    /// Runs the epoch to its commit.
    pub async fn finish(mut self) -> Result<EpochScores, Status> {
        loop {
            let progress = EpochProgress {
                shards: (0..self.n_shards()).map(|shard| self.pending.shards.contains_key(&shard)).collect(),
                clustered: self.pending.clustering.is_some(),
                trained: self.pending.training.is_some(),
            };
            match progress.next() {
                Step::Extract(shards) => self.extract(&shards).await?,
                Step::Cluster => self.cluster().await?,
                Step::Train => self.train().await?,
                Step::Commit => return self.commit(),
            }
            publish_record(&self.folder.pending_json(), &self.pending).map_err(|error| volume_status(&error))?;
        }
    }

    fn n_shards(&self) -> u32 {
        self.images.len().div_ceil(self.spec.shard_images as usize) as u32
    }
}

/// The three phases.
impl EpochRunner<'_> {
    async fn extract(&mut self, shards: &[ShardId]) -> Result<(), Status> {
        self.run.event("phase", json!({"epoch": self.epoch.0, "phase": "extract", "shards": shards.len()})).map_err(failed)?;
        let start = Instant::now();
        let list = self.image_list()?;
        let requests = shards.iter().map(|shard| self.extract_request(*shard, list.clone())).collect::<Result<_, _>>()?;
        let under_way = Mutex::new(BTreeMap::new());
        let pending = Mutex::new(self.pending.clone());
        let progress = |shard: u32, progress: v1::Progress| {
            lock(&under_way).insert(shard, progress.done);
            let done: u64 = lock(&pending).shards.keys().map(|shard| self.shard_rows(ShardId(*shard)).1).sum();
            let done = done + lock(&under_way).values().sum::<u64>();
            let total = self.images.len() as u64;
            self.tell("extract", v1::Progress { phase: "images".into(), done, total, loss: 0.0 });
        };
        let done = |shard: u32, result: v1::ExtractResult| {
            let features = record_of("features", result.features.as_ref())?;
            let skipped = result.skipped.into_iter().map(|image| (image.index, image.reason)).collect();
            lock(&under_way).remove(&shard);
            let mut pending = lock(&pending);
            pending.shards.insert(shard, ShardRecord { features, skipped });
            pending.extract_s = self.pending.extract_s + start.elapsed().as_secs_f64();
            publish_record(&self.folder.pending_json(), &*pending).map_err(failed)
        };
        let stop = self.run.stop_token();
        let call = Call { stop: &stop, progress: &|_| {}, fault: &|status| self.fault("extractor", status) };
        Extraction::new(requests, call, &progress, &done).run(self.workers).await?;
        self.pending = pending.into_inner().unwrap_or_else(PoisonError::into_inner);
        self.note_skipped()
    }

    async fn cluster(&mut self) -> Result<(), Status> {
        let k = self.run.record().resolved.k;
        self.run.event("phase", json!({"epoch": self.epoch.0, "phase": "cluster", "k": k})).map_err(failed)?;
        let start = Instant::now();
        let request = v1::ClusterRequest {
            run_id: self.run.id.to_string(),
            epoch: self.epoch.0,
            images: self.image_list()?.list,
            features: self.pending.shards.values().map(|shard| file_to_wire(&shard.features)).collect(),
            k,
            pca: self.spec.pca,
            iterations: KMEANS_ITERATIONS,
            seed: self.spec.seed,
            output: self.volume.relative(self.folder.path()).map_err(failed)?,
        };
        let stop = self.run.stop_token();
        let call = Call {
            stop: &stop,
            progress: &|progress| self.tell("cluster", progress),
            fault: &|status| self.fault("clusterer", status),
        };
        let result = call.cluster(&self.workers.clusterer, &request).await?;
        self.pending.training = None;
        self.pending.clustering = Some(ClusteringRecord {
            labels: record_of("labels", result.labels.as_ref())?,
            distances: record_of("distances", result.distances.as_ref())?,
            whiten: record_of("whiten", result.whiten.as_ref())?,
            centroids: record_of("centroids", result.centroids.as_ref())?,
            objective: result.objective,
            dims: result.dims,
            seconds: start.elapsed().as_secs_f64(),
        });
        Ok(())
    }

    async fn train(&mut self) -> Result<(), Status> {
        self.run.event("phase", json!({"epoch": self.epoch.0, "phase": "train"})).map_err(failed)?;
        let start = Instant::now();
        let clustering = self.pending.clustering.as_ref().ok_or_else(|| Status::internal("training before clustering"))?;
        let request = v1::TrainRequest {
            run_id: self.run.id.to_string(),
            epoch: self.epoch.0,
            images: Some(self.image_list()?),
            labels: Some(file_to_wire(&clustering.labels)),
            k: self.run.record().resolved.k,
            network: Some(self.network()),
            seed: self.spec.seed,
            batch: self.spec.batch,
            learning_rate: self.spec.learning_rate,
            momentum: MOMENTUM,
            weight_decay: self.spec.weight_decay,
            reassign: self.spec.reassign,
            output: self.volume.relative(&self.folder.checkpoint()).map_err(failed)?,
        };
        let stop = self.run.stop_token();
        let call = Call {
            stop: &stop,
            progress: &|progress| self.tell("train", progress),
            fault: &|status| self.fault("trainer", status),
        };
        let result = call.train(&self.workers.trainer, &request).await?;
        self.check_unread(&result)?;
        self.pending.training = Some(TrainingRecord {
            checkpoint: record_of("checkpoint", result.checkpoint.as_ref())?,
            loss: result.loss,
            n_images: result.n_images,
            seconds: start.elapsed().as_secs_f64(),
        });
        Ok(())
    }

    /// Scores the epoch, writes its manifest, then everything that follows from it.
    fn commit(self) -> Result<EpochScores, Status> {
        let (Some(clustering), Some(training)) = (&self.pending.clustering, &self.pending.training) else {
            return Err(Status::internal("commit of an unfinished epoch"));
        };
        let read_labels =
            |record: &FileRecord| self.volume.verified(record).and_then(|path| npy::read_i32(&path)).map_err(failed);
        let labels = read_labels(&clustering.labels)?;
        let last = self.last.as_ref().map(|last| read_labels(&last.files.labels)).transpose()?;
        let classes = folder_classes(&self.images);
        let occupancy = scores::occupancy(&labels);
        let scores = EpochScores {
            epoch: self.epoch.0,
            images: labels.iter().filter(|label| **label >= 0).count(),
            loss: training.loss,
            kmeans_objective: clustering.objective,
            nonempty: occupancy.nonempty,
            largest_share: occupancy.largest_share,
            nmi_last: last.map(|last| scores::nmi(&last, &labels)),
            nmi_classes: classes.as_ref().map(|classes| scores::nmi(classes, &labels)),
            ami_classes: classes.as_ref().map(|classes| scores::ami(classes, &labels)),
            extract_s: self.pending.extract_s,
            cluster_s: clustering.seconds,
            train_s: training.seconds,
        };
        let files = EpochFiles {
            labels: clustering.labels.clone(),
            distances: clustering.distances.clone(),
            whiten: clustering.whiten.clone(),
            centroids: clustering.centroids.clone(),
            checkpoint: training.checkpoint.clone(),
        };
        let manifest = EpochManifest { version: VERSION, epoch: self.epoch.0, files, scores: scores.clone() };
        publish_record(&self.folder.epoch_json(), &manifest).map_err(failed)?;
        Ok(scores)
    }
}

/// What the phases share.
impl EpochRunner<'_> {
    fn network(&self) -> v1::Network {
        network_of(self.spec, self.last.as_ref().map(|last| file_to_wire(&last.files.checkpoint)))
    }

    fn image_list(&self) -> Result<v1::ImageList, Status> {
        let list = self.volume.record_existing(&self.run.folder.images_csv()).map_err(failed)?;
        Ok(v1::ImageList { root: self.spec.images.clone(), list: Some(file_to_wire(&list)) })
    }

    /// First row of a shard and how many it has.
    fn shard_rows(&self, shard: ShardId) -> (u64, u64) {
        let size = u64::from(self.spec.shard_images);
        let first = u64::from(shard.0) * size;
        (first, (self.images.len() as u64).saturating_sub(first).min(size))
    }

    fn extract_request(&self, shard: ShardId, images: v1::ImageList) -> Result<v1::ExtractRequest, Status> {
        let (first_image, n_images) = self.shard_rows(shard);
        Ok(v1::ExtractRequest {
            run_id: self.run.id.to_string(),
            epoch: self.epoch.0,
            shard: shard.0,
            images: Some(images),
            first_image,
            n_images,
            network: Some(self.network()),
            seed: self.spec.seed,
            batch: self.spec.batch,
            feature_dtype: v1::FeatureDtype::from(self.spec.feature_dtype).into(),
            output: self.volume.relative(&self.folder.shard(shard)).map_err(failed)?,
        })
    }

    /// Takes images that turned out unreadable out of the run, and ends it when they are too many.
    fn note_skipped(&mut self) -> Result<(), Status> {
        let mut n_new = 0;
        for (index, reason) in self.pending.shards.values().flat_map(|shard| &shard.skipped) {
            if let Some(image) = self.images.get_mut(*index as usize)
                && image.skipped.is_none()
            {
                image.skipped = Some(reason.clone());
                n_new += 1;
            }
        }
        let n_skipped = images::n_skipped(&self.images);
        if n_new > 0 {
            image_list::publish(&self.run.folder.images_csv(), &self.images).map_err(failed)?;
            self.run.update(|record| record.resolved.n_skipped = n_skipped).map_err(failed)?;
            self.run
                .event("images", json!({"epoch": self.epoch.0, "skipped": n_new, "skipped_in_all": n_skipped}))
                .map_err(failed)?;
        }
        images::check_skipped(self.spec, &self.images).map_err(Status::invalid_argument)
    }

    /// Images that were lost between extraction and training count like those that were never readable.
    fn check_unread(&self, result: &v1::TrainResult) -> Result<(), Status> {
        let Some(first) = result.skipped.first() else { return Ok(()) };
        let n_unread = result.skipped.len();
        let image = self.images.get(first.index as usize);
        let example = image.map(|image| images::example(image, &first.reason)).unwrap_or_default();
        self.run
            .event("images", json!({"epoch": self.epoch.0, "unread_in_training": n_unread, "example": example}))
            .map_err(failed)?;
        let n_skipped = images::n_skipped(&self.images) + n_unread;
        images::check_number(self.spec, self.images.len(), n_skipped, &example).map_err(Status::invalid_argument)
    }

    fn tell(&self, phase: &str, progress: v1::Progress) {
        self.run.progress(v1::RunProgress { epoch: self.epoch.0, phase: phase.to_owned(), progress: Some(progress) });
    }

    fn fault(&self, worker: &str, status: &Status) {
        let body = json!({"epoch": self.epoch.0, "worker": worker, "message": status.message()});
        if let Err(error) = self.run.event("fault", body) {
            tracing::warn!(%error, "the fault could not be noted");
        }
    }
}

fn failed(error: VolumeError) -> Status {
    volume_status(&error)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is left of a pending epoch once every file that it names was verified.
fn trusted(volume: &Volume, mut pending: PendingEpoch) -> PendingEpoch {
    let good = |record: &FileRecord| volume.verified(record).is_ok();
    pending.shards.retain(|_, shard| good(&shard.features));
    pending.clustering = pending.clustering.filter(|c| [&c.labels, &c.distances, &c.whiten, &c.centroids].into_iter().all(good));
    // What was learned from labels that are gone is not what the new ones teach.
    let labelled = pending.clustering.is_some();
    pending.training = pending.training.filter(|training| labelled && good(&training.checkpoint));
    pending
}
