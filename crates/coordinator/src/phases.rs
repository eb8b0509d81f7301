//! The three phases of an epoch: what is asked of whom, and what becomes of the answers.

use crate::epoch::{EpochRunner, failed};
use crate::extraction::{Extraction, Shards};
use crate::images;
use deepcluster_domain::ShardId;
use deepcluster_domain::spec::{KMEANS_ITERATIONS, MOMENTUM};
use deepcluster_proto::v1;
use deepcluster_proto::v1::cluster_saved::File as Phase;
use deepcluster_service::requests::{file_to_wire, record_of};
use deepcluster_volume::events::Severity;
use deepcluster_volume::publish;
use deepcluster_volume::records::{ClusteringRecord, PendingEpoch, ShardRecord, TrainingRecord, TrainingSoFar};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;
use tonic::{Code, Status};
use tracing::warn;

/// How often an epoch may begin its training anew because numbers were no longer finite.
const MOST_RETRIES: u32 = 1;

impl EpochRunner<'_> {
    pub(crate) async fn extract(&mut self, shards: &[ShardId]) -> Result<(), Status> {
        self.phase("extract", json!({"shards": shards.len()}))?;
        let (start, seconds_before) = (Instant::now(), self.pending().extract_s);
        let list = self.image_list()?;
        let under_way = Mutex::new(BTreeMap::new());
        let under_way = || under_way.lock().unwrap_or_else(PoisonError::into_inner);
        let progress = |shard: ShardId, progress: v1::Progress| {
            under_way().insert(shard, progress.done);
            let done: u64 = self.pending().shards.keys().map(|shard| self.shard_rows(ShardId(*shard)).1).sum();
            let done = done + under_way().values().sum::<u64>();
            let total = self.images.len() as u64;
            self.tell("extract", v1::Progress { phase: "images".into(), done, total, loss: 0.0 });
        };
        let done = |shard: ShardId, result: v1::ExtractResult| {
            self.drop_unfit(result.reads.as_ref());
            let staged = record_of("features", result.features.as_ref())?;
            let features = self.adopt(&staged, &self.folder.shard(shard))?;
            if let Some(digests) = &result.digests {
                self.note_digests(shard, &record_of("digests", Some(digests))?)?;
            }
            self.keep_decoded(shard, result.cache.as_ref());
            let rows = |images: Vec<v1::SkippedImage>| images.into_iter().map(|image| (image.index, image.reason)).collect();
            let (skipped, remarks) = (rows(result.skipped), rows(result.remarks));
            under_way().remove(&shard);
            self.note(|pending| {
                pending.shards.insert(shard.0, ShardRecord { features, skipped, remarks });
                add_reads(pending, result.reads.as_ref());
                pending.extract_s = seconds_before + start.elapsed().as_secs_f64();
            })
        };
        let failed_try = |request: &v1::ExtractRequest| {
            self.discard(&[&request.output, &request.digests_output])?;
            // Without a folder there is nothing to discard.
            self.discard(&[&request.cache_output]).or(Ok(()))
        };
        let request = |shard: ShardId| self.extract_request(shard, list.clone());
        let (stop, fault) = (self.run.stop_token(), |status: &Status| self.fault("extractor", status));
        let call = self.call(&stop, &|_| {}, &fault);
        let shards = Extraction::new(
            shards.to_vec(),
            call,
            Shards { request: &request, progress: &progress, done: &done, failed: &failed_try },
        );
        shards.run().await?;
        self.note_skipped()
    }

    pub(crate) async fn cluster(&mut self) -> Result<(), Status> {
        let k = self.run.record().resolved.k;
        self.phase("cluster", json!({"k": k}))?;
        let (start, seconds_before) = (Instant::now(), self.pending().clustering_so_far.seconds);
        let seconds = || seconds_before + start.elapsed().as_secs_f64();
        let saved = |saved: v1::ClusterSaved| match saved.file {
            Some(Phase::Whiten(file)) => {
                let whiten = self.adopt(&record_of("whiten", Some(&file))?, &self.folder.whiten())?;
                self.note(|pending| {
                    pending.clustering_so_far.whiten = Some(whiten);
                    pending.clustering_so_far.seconds = seconds();
                })
            }
            Some(Phase::Centroids(file)) => {
                let centroids = self.adopt(&record_of("centroids", Some(&file))?, &self.folder.centroids())?;
                self.note(|pending| {
                    pending.clustering_so_far.centroids = Some(centroids);
                    pending.clustering_so_far.seconds = seconds();
                })
            }
            None => Err(Status::internal("the clusterer saved nothing")),
        };
        let (stop, fault) = (self.run.stop_token(), |status: &Status| self.fault("clusterer", status));
        let told = |progress| self.tell("cluster", progress);
        let call = self.call(&stop, &told, &fault);
        let result = call.cluster(&|| self.cluster_request(k), &saved).await?;
        let so_far = self.pending().clustering_so_far;
        let (Some(whiten), Some(centroids)) = (so_far.whiten, so_far.centroids) else {
            return Err(Status::internal("the clusterer ended without whitening or centroids"));
        };
        let labels = self.adopt(&record_of("labels", result.labels.as_ref())?, &self.folder.labels())?;
        let distances = self.adopt(&record_of("distances", result.distances.as_ref())?, &self.folder.distances())?;
        let k = if result.k == 0 { k } else { result.k };
        let lineage = Some(self.name_clusters(&labels, k)?);
        // A clusterer that is older than this file makes none.
        let adopt_whitened = |file| self.adopt(&record_of("whitened", Some(file))?, &self.folder.whitened());
        let whitened = result.whitened.as_ref().map(adopt_whitened).transpose()?;
        let (objective, dims, k, seconds) = (result.objective, result.dims, Some(k), seconds());
        let files = ClusteringRecord { labels, distances, whiten, centroids, objective, dims, k, lineage, seconds, whitened };
        self.note(|pending| {
            pending.training = None;
            pending.training_so_far = None;
            pending.clustering = Some(files);
        })
    }

    pub(crate) async fn train(&mut self) -> Result<(), Status> {
        let before = self.pending().training_so_far;
        self.phase("train", json!({"from_step": before.as_ref().map_or(0, |before| before.steps)}))?;
        let (start, seconds_before) = (Instant::now(), before.map_or(0.0, |before| before.seconds));
        let seconds = || seconds_before + start.elapsed().as_secs_f64();
        let saved = |saved: v1::TrainSaved| {
            let steps = saved.steps;
            let file = self.adopt(&record_of("saved", saved.file.as_ref())?, &self.folder.training(steps))?;
            let before = self.pending().training_so_far.filter(|before| before.steps != steps);
            self.note(|pending| pending.training_so_far = Some(TrainingSoFar { file, steps, seconds: seconds() }))?;
            // Only now: a crash in between finds the one that the record names.
            before.map_or(Ok(()), |before| publish::remove(&self.folder.training(before.steps)).map_err(failed))
        };
        let (stop, fault) = (self.run.stop_token(), |status: &Status| self.fault("trainer", status));
        let told = |progress| self.tell("train", progress);
        let call = self.call(&stop, &told, &fault);
        let result = call.train(&|| self.train_request(), &saved).await;
        let result = match result {
            Err(status) if status.code() == Code::OutOfRange => return self.begin_anew(&status),
            // No image could be read: as with too many of them, what was saved has missed them.
            Err(status) if status.code() == Code::InvalidArgument => {
                self.note(|pending| pending.training_so_far = None)?;
                return Err(status);
            }
            other => other?,
        };
        self.check_unread(&result)?;
        self.drop_unfit(result.reads.as_ref());
        let checkpoint = self.adopt(&record_of("checkpoint", result.checkpoint.as_ref())?, &self.folder.checkpoint())?;
        let (loss, n_images) = (result.loss, result.n_images);
        let training = TrainingRecord { checkpoint, loss, n_images, seconds: seconds() };
        self.note(|pending| {
            pending.training = Some(training);
            add_reads(pending, result.reads.as_ref());
        })
    }

    /// Gives decoded images their name. Where that cannot be, the next epoch decodes them again.
    fn keep_decoded(&self, shard: ShardId, staged: Option<&v1::File>) {
        let (Some(target), Some(staged)) = (self.cache.target(shard), staged) else { return };
        let adopted = record_of("cache", Some(staged)).map_err(Status::from).and_then(|staged| self.adopt(&staged, &target));
        if let Err(status) = adopted {
            warn!(message = status.message(), "decoded images are not kept");
        }
    }

    fn drop_unfit(&self, reads: Option<&v1::Reads>) {
        if let Some(reads) = reads {
            self.cache.drop_unfit(&self.workshop.volume, &reads.unfit);
        }
    }

    /// Numbers are no longer finite: training goes back to where the epoch began and draws other random numbers, once.
    fn begin_anew(&self, status: &Status) -> Result<(), Status> {
        let pending = self.pending();
        if pending.retries >= MOST_RETRIES {
            let message = format!("training came to numbers that are not finite twice; the last time, {}", status.message());
            return Err(Status::invalid_argument(message));
        }
        let message = format!("{}; going back to where the epoch began, with other random numbers", status.message());
        let body = json!({
            "epoch": self.epoch.0, "kind": "not-finite", "message": message,
            "remedy": "lower --lr; look for images of one colour, or train with --precision f32",
        });
        self.run.event("warning", Severity::Warning, body).map_err(failed)?;
        self.note(|pending| {
            pending.retries += 1;
            pending.training_so_far = None;
        })?;
        pending.training_so_far.map_or(Ok(()), |saved| publish::remove(&self.folder.training(saved.steps)).map_err(failed))
    }

    /// Images that were lost between extraction and training count like those that were never readable.
    fn check_unread(&self, result: &v1::TrainResult) -> Result<(), Status> {
        let Some(first) = result.skipped.first() else { return Ok(()) };
        let n_unread = result.skipped.len();
        let image = self.images.get(first.index as usize);
        let example = image.map(|image| images::example(image, &first.reason)).unwrap_or_default();
        let body = json!({"epoch": self.epoch.0, "unread_in_training": n_unread, "example": example});
        self.run.event("images", Severity::Warning, body).map_err(failed)?;
        let n_skipped = images::n_skipped(&self.images) + n_unread;
        images::check_number(self.spec, self.images.len(), n_skipped, &example).map_err(|sentence| {
            // What was saved has missed them too; whoever resumes the run has brought them back.
            match self.note(|pending| pending.training_so_far = None) {
                Ok(()) => Status::invalid_argument(sentence),
                Err(status) => status,
            }
        })
    }
}

/// What is asked of the workers.
impl EpochRunner<'_> {
    fn extract_request(&self, shard: ShardId, images: v1::ImageList) -> Result<v1::ExtractRequest, Status> {
        let (first_image, n_images) = self.shard_rows(shard);
        let digests = self.digests(shard);
        let digests_output = match &digests {
            None => self.staged(&self.run.folder.digests(shard))?,
            Some(_) => String::new(),
        };
        let cache_output = self.cache.target(shard).map(|path| self.staged(&path)).transpose()?.unwrap_or_default();
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
            output: self.staged(&self.folder.shard(shard))?,
            digests: digests.as_ref().map(file_to_wire),
            digests_output,
            cache: self.cache.there(&self.workshop.volume, shard, first_image)?,
            cache_output,
            ..v1::ExtractRequest::default()
        })
    }

    fn cluster_request(&self, k: u32) -> Result<v1::ClusterRequest, Status> {
        // What an earlier try has begun, whose worker may have died over it, would only take room.
        publish::sweep(self.folder.path()).map_err(failed)?;
        let output = self.staged(&self.folder.path().join("cluster"))?;
        publish::create_folder(&self.workshop.volume.resolve(&output).map_err(failed)?).map_err(failed)?;
        let pending = self.pending();
        Ok(v1::ClusterRequest {
            run_id: self.run.id.to_string(),
            epoch: self.epoch.0,
            images: self.image_list()?.list,
            features: pending.shards.values().map(|shard| file_to_wire(&shard.features)).collect(),
            k,
            pca: self.spec.pca,
            iterations: KMEANS_ITERATIONS,
            seed: self.spec.seed,
            output,
            whiten: pending.clustering_so_far.whiten.as_ref().map(file_to_wire),
            centroids: pending.clustering_so_far.centroids.as_ref().map(file_to_wire),
            device: self.spec.device.to_string(),
            clustering: v1::Clustering::from(self.spec.clustering).into(),
        })
    }

    fn train_request(&self) -> Result<v1::TrainRequest, Status> {
        publish::sweep(self.folder.path()).map_err(failed)?;
        let pending = self.pending();
        let clustering = pending.clustering.as_ref().ok_or_else(|| Status::internal("training before clustering"))?;
        let shards = || pending.shards.keys().map(|shard| (ShardId(*shard), self.shard_rows(ShardId(*shard)).0));
        let cached = |(shard, first_image)| self.cache.there(&self.workshop.volume, shard, first_image).transpose();
        let digests = |(shard, first_image)| {
            let file = self.digests(shard)?;
            Some(v1::DigestsOfShard { file: Some(file_to_wire(&file)), first_image })
        };
        Ok(v1::TrainRequest {
            run_id: self.run.id.to_string(),
            epoch: self.epoch.0,
            images: Some(self.image_list()?),
            labels: Some(file_to_wire(&clustering.labels)),
            k: clustering.k.unwrap_or(self.run.record().resolved.k),
            network: Some(self.network()),
            seed: self.spec.seed,
            batch: self.spec.batch,
            learning_rate: self.spec.learning_rate,
            momentum: MOMENTUM,
            weight_decay: self.spec.weight_decay,
            reassign: self.spec.reassign,
            output: self.staged(&self.folder.checkpoint())?,
            save_every: self.spec.checkpoint_every.to_string(),
            save_to: self.staged(&self.folder.path().join("training"))?,
            saved: pending.training_so_far.as_ref().map(|saved| file_to_wire(&saved.file)),
            retry: pending.retries,
            cache: shards().filter_map(cached).collect::<Result<_, _>>()?,
            digests: shards().filter_map(digests).collect(),
            // In the first epoch there is no top layer to keep anything of.
            lineage: clustering.lineage.as_ref().filter(|_| self.spec.match_labels && self.last.is_some()).map(file_to_wire),
        })
    }
}

fn add_reads(pending: &mut PendingEpoch, reads: Option<&v1::Reads>) {
    if let Some(reads) = reads {
        pending.reads.decoded += reads.decoded;
        pending.reads.cached += reads.cached;
    }
}
