//! Cluster and distance of images that took no part in a run.
//!
//! The images become a small list of their own, which goes through the last committed epoch's whitening and centroids by
//! the same workers and over the same kinds of files as an epoch. Its folder is gone afterwards. The network is the one
//! whose features that epoch clustered, not the one that it trained on the outcome: an image of the run gets its own label.

use crate::extraction::{Extraction, Shards};
use crate::run::Run;
use crate::runs::Runs;
use crate::workers::Workers;
use deepcluster_domain::{EpochId, RunId, ShardId};
use deepcluster_images::find::describe;
use deepcluster_proto::v1::{self, AssignImagesRequest, AssignImagesResponse, Assigned, Assignment, assignment::Outcome};
use deepcluster_proto::{FieldError, network_of};
use deepcluster_service::requests::{file_to_wire, record_of, volume_status};
use deepcluster_volume::image_list::{self, ImageEntry};
use deepcluster_volume::layout::resolve_below;
use deepcluster_volume::records::{EpochManifest, read_record};
use deepcluster_volume::{Volume, VolumeError, npy, publish};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// Answers one request; `stop` is cancelled when nobody waits for the answer any more.
pub(crate) async fn assign_images(
    runs: &Runs,
    request: AssignImagesRequest,
    stop: &CancellationToken,
) -> Result<AssignImagesResponse, Status> {
    let run = runs.get(&request.run_id)?;
    let Some(epoch) = EpochId(run.record().epochs_done).previous() else {
        return Err(Status::failed_precondition(format!("run {} has no committed epoch yet", run.id)));
    };
    let manifest: EpochManifest = read_record(&run.folder.epoch(epoch).epoch_json()).map_err(|error| volume_status(&error))?;
    let images = describe_all(&runs.images, &request.paths)?;
    let (volume, workers) = (&runs.workshop.volume, &runs.workshop.workers);
    let folder = Scratch::create(volume, &run.id)?;
    let network = match epoch.previous() {
        None => run.first_weights(),
        Some(before) => {
            let before: EpochManifest =
                read_record(&run.folder.epoch(before).epoch_json()).map_err(|error| volume_status(&error))?;
            Some(file_to_wire(&before.files.checkpoint))
        }
    };
    let network = network_of(&run.spec, network);
    let assignment = OneAssignment { volume, workers, run: &run, manifest, network, images, folder };
    let assignments = assignment.run(stop).await?;
    Ok(AssignImagesResponse { assignments, epoch: epoch.0 })
}

fn describe_all(root: &Path, paths: &[Vec<u8>]) -> Result<Vec<ImageEntry>, Status> {
    if paths.is_empty() {
        return Err(FieldError::new("paths", "names no image").into());
    }
    let describe = |path: &Vec<u8>| {
        let path = Path::new(OsStr::from_bytes(path));
        resolve_below(root, path).map_err(|error| FieldError::new("paths", error))?;
        Ok(describe(root, path))
    };
    paths.iter().map(describe).collect::<Result<_, FieldError>>().map_err(Status::from)
}

struct OneAssignment<'a> {
    volume: &'a Volume,
    workers: &'a Workers,
    run: &'a Run,
    manifest: EpochManifest,
    /// What computed the features that the epoch clustered.
    network: v1::Network,
    images: Vec<ImageEntry>,
    folder: Scratch,
}

impl OneAssignment<'_> {
    async fn run(self, stop: &CancellationToken) -> Result<Vec<Assignment>, Status> {
        let call = self.workers.call(stop, &|_| {}, &|_| {});
        let extracted = Mutex::new(BTreeMap::new());
        let done = |shard: ShardId, result: v1::ExtractResult| {
            extracted.lock().unwrap_or_else(PoisonError::into_inner).insert(shard, result);
            Ok(())
        };
        let requests = self.extract_requests()?;
        let request = |shard: ShardId| {
            requests.get(shard.0 as usize).cloned().ok_or_else(|| Status::internal(format!("there is no shard {shard}")))
        };
        let shards = Shards { request: &request, progress: &|_, _| {}, done: &done, failed: &|_| Ok(()) };
        Extraction::new((0..requests.len() as u32).map(ShardId), call, shards).run().await?;
        let extracted = extracted.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut reasons: Vec<Option<String>> = self.images.iter().map(|image| image.skipped.clone()).collect();
        for image in extracted.values().flat_map(|result| &result.skipped) {
            if let Some(reason) = reasons.get_mut(image.index as usize) {
                *reason = Some(image.reason.clone());
            }
        }
        let request = v1::AssignRequest {
            features: extracted.into_values().filter_map(|result| result.features).collect(),
            whiten: Some(file_to_wire(&self.manifest.files.whiten)),
            centroids: Some(file_to_wire(&self.manifest.files.centroids)),
            output: self.relative(&self.folder.0)?,
            device: self.run.spec.device.to_string(),
        };
        let result = call.assign(&request).await?;
        let labels = self.verified("labels", result.labels.as_ref(), npy::read_i32)?;
        let distances = self.verified("distances", result.distances.as_ref(), |path| Ok(npy::read_f32(path)?.1))?;
        if labels.len() != self.images.len() || distances.len() != self.images.len() {
            return Err(Status::internal("the clusterer assigned another number of images"));
        }
        let outcomes = reasons.into_iter().zip(labels).zip(distances).map(|((reason, label), distance)| match reason {
            Some(reason) => Outcome::Skipped(reason),
            None => Outcome::Assigned(Assigned { cluster: label.max(0) as u32, distance }),
        });
        Ok(outcomes.map(|outcome| Assignment { outcome: Some(outcome) }).collect())
    }

    /// One request for every shard of the images, as an epoch would have it.
    fn extract_requests(&self) -> Result<Vec<v1::ExtractRequest>, Status> {
        let spec = &self.run.spec;
        let list = self.folder.0.join("images.csv");
        let failed = |error: VolumeError| volume_status(&error);
        let (csv, _) = image_list::to_csv(&self.images).map_err(|error| failed(VolumeError::io(&list)(error)))?;
        publish::publish_bytes(&list, &csv).map_err(failed)?;
        let list = self.volume.record_existing(&list).map_err(|error| volume_status(&error))?;
        let shards = self.images.chunks(spec.shard_images as usize).enumerate();
        let request = |(shard, images): (usize, &[ImageEntry])| {
            Ok(v1::ExtractRequest {
                run_id: self.run.id.to_string(),
                epoch: self.manifest.epoch,
                shard: shard as u32,
                images: Some(v1::ImageList { root: String::new(), list: Some(file_to_wire(&list)) }),
                first_image: shard as u64 * u64::from(spec.shard_images),
                n_images: images.len() as u64,
                network: Some(self.network.clone()),
                seed: spec.seed,
                batch: spec.batch,
                feature_dtype: v1::FeatureDtype::from(spec.feature_dtype).into(),
                output: self.relative(&self.folder.0.join(format!("{shard:05}.npy")))?,
                ..v1::ExtractRequest::default()
            })
        };
        shards.map(request).collect()
    }

    fn relative(&self, path: &Path) -> Result<String, Status> {
        self.volume.relative(path).map_err(|error| volume_status(&error))
    }

    fn verified<T>(
        &self,
        field: &'static str,
        file: Option<&v1::File>,
        read: impl FnOnce(&Path) -> Result<T, VolumeError>,
    ) -> Result<T, Status> {
        let path = self.volume.verified(&record_of(field, file)?);
        path.and_then(|path| read(&path)).map_err(|error| volume_status(&error))
    }
}

/// A folder that goes when its assignment ends, however that is.
struct Scratch(PathBuf);

impl Scratch {
    fn create(volume: &Volume, run: &RunId) -> Result<Self, Status> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = volume.run(run).assignments().join(number.to_string());
        publish::create_folder(&path).map_err(|error| volume_status(&error))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = publish::remove(&self.0) {
            tracing::warn!(%error, "the folder of an assignment stays until the next start");
        }
    }
}
