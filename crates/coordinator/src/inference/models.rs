//! By what images are embedded: the network and the clusters of an epoch, whose files were verified once.

use crate::actions::blocking;
use crate::inference::Kind;
use crate::run::Run;
use crate::runs::Runs;
use deepcluster_domain::{EpochId, RunId};
use deepcluster_proto::{network_of, v1};
use deepcluster_service::requests::{file_to_wire, volume_status};
use deepcluster_volume::records::{EpochManifest, read_record};
use deepcluster_volume::{FileRecord, Volume, VolumeError};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::OnceCell;
use tonic::Status;

/// Most models that are remembered; each is a few names.
const REMEMBERED: usize = 64;

/// Most images of a batch, whatever the run's own batches are.
const MOST_IMAGES: usize = 256;

/// Most pixels of all views of a batch together, as extractors have it.
const MOST_PIXELS: u64 = 1 << 28;

/// What an extractor must be told to embed images by an epoch of a run.
pub(crate) struct Model {
    pub(crate) run: RunId,
    pub(crate) epoch: EpochId,
    /// Images of a batch.
    pub(crate) batch: usize,
    network: v1::Network,
    seed: u64,
    feature_dtype: v1::FeatureDtype,
    /// Whitening and centroids, once the epoch is committed.
    clusters: Option<[v1::File; 2]>,
    /// A file of it turned out not to be what it was.
    stale: AtomicBool,
}

impl Model {
    /// What an extractor is asked.
    pub(crate) fn request(&self, kind: Kind, images: Vec<v1::InputImage>) -> v1::EmbedRequest {
        let [whiten, centroids] = match &self.clusters {
            Some([whiten, centroids]) => [Some(whiten.clone()), Some(centroids.clone())],
            None => [None, None],
        };
        v1::EmbedRequest {
            network: Some(self.network.clone()),
            seed: self.seed,
            images,
            feature_dtype: self.feature_dtype.into(),
            whiten: whiten.filter(|_| kind != Kind::Embedding),
            centroids: centroids.filter(|_| kind == Kind::Cluster),
        }
    }

    /// Its files must be verified anew before it is used again.
    pub(crate) fn distrust(&self) {
        self.stale.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
impl Model {
    /// One whose files nobody reads.
    pub(crate) fn of_batches(run: RunId, batch: usize) -> Self {
        Self {
            run,
            epoch: EpochId(0),
            batch,
            network: v1::Network::default(),
            seed: 0,
            feature_dtype: v1::FeatureDtype::default(),
            clusters: None,
            stale: AtomicBool::new(false),
        }
    }
}

/// The run, the epoch, and whether that was committed.
type Key = (RunId, EpochId, bool);

/// Models that were asked for.
#[derive(Default)]
pub(crate) struct Models(Mutex<BTreeMap<Key, Arc<OnceCell<Arc<Model>>>>>);

impl Models {
    /// The model of an epoch, or of the last one that is committed.
    ///
    /// # Errors
    /// INVALID_ARGUMENT or NOT_FOUND for the run, FAILED_PRECONDITION where the epoch is not or no longer on the volume,
    /// DATA_LOSS where its files are damaged.
    pub(crate) async fn get(&self, runs: &Runs, id: &str, epoch: Option<u32>, kind: Kind) -> Result<Arc<Model>, Status> {
        let run = runs.get(id)?;
        let done = run.record().epochs_done;
        let Some(epoch) = epoch.or(done.checked_sub(1)) else {
            return Err(Status::failed_precondition(format!("run {} has no committed epoch yet", run.id)));
        };
        let is_committed = epoch < done;
        // The network that comes into the next epoch is there, its clusters are not.
        if !is_committed && (epoch > done || kind != Kind::Embedding) {
            let why = format!("epoch {epoch} of run {} is not committed; {done} epochs are, from 0 on", run.id);
            return Err(Status::failed_precondition(why));
        }
        let cell = self.cell((run.id.clone(), EpochId(epoch), is_committed));
        let volume = runs.workshop.volume.clone();
        let verify = || blocking(move || verified(&volume, &run, EpochId(epoch), is_committed).map(Arc::new));
        cell.get_or_try_init(verify).await.cloned()
    }

    fn cell(&self, key: Key) -> Arc<OnceCell<Arc<Model>>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, cell| cell.get().is_none_or(|model| !model.stale.load(Ordering::Relaxed)));
        if all.len() >= REMEMBERED && !all.contains_key(&key) {
            all.clear();
        }
        Arc::clone(all.entry(key).or_default())
    }
}

/// A model, once all files that it names were found to be what the epochs' records say.
fn verified(volume: &Volume, run: &Run, epoch: EpochId, is_committed: bool) -> Result<Model, Status> {
    let clusters = match is_committed {
        false => None,
        true => {
            let gone = || format!("epoch {} of run {} is no longer on the volume", epoch.0, run.id);
            let manifest = manifest_of(run, epoch, gone)?;
            let whiten = verified_file(volume, &manifest.files.whiten, gone)?;
            Some([whiten, verified_file(volume, &manifest.files.centroids, gone)?])
        }
    };
    let checkpoint = match epoch.previous() {
        None => {
            let gone = || format!("the weights that run {} starts from are no longer on the volume", run.id);
            let init = run.record().resolved.init;
            init.map(|init| verified_file(volume, &init, gone)).transpose()?
        }
        Some(before) => {
            let gone = || {
                let (id, before) = (&run.id, before.0);
                format!(
                    "the network of epoch {} of run {id} is that of epoch {before}, which is no longer on the volume",
                    epoch.0
                )
            };
            let manifest = manifest_of(run, before, gone)?;
            Some(verified_file(volume, &manifest.files.checkpoint, gone)?)
        }
    };
    let spec = &run.spec;
    Ok(Model {
        run: run.id.clone(),
        epoch,
        batch: (spec.batch as usize).min((MOST_PIXELS / u64::from(spec.image_size).pow(2)) as usize).clamp(1, MOST_IMAGES),
        network: network_of(spec, checkpoint),
        seed: spec.seed,
        feature_dtype: v1::FeatureDtype::from(spec.feature_dtype),
        clusters,
        stale: AtomicBool::new(false),
    })
}

fn manifest_of(run: &Run, epoch: EpochId, gone: impl FnOnce() -> String) -> Result<EpochManifest, Status> {
    read_record(&run.folder.epoch(epoch).epoch_json()).map_err(|error| status(&error, gone))
}

fn verified_file(volume: &Volume, record: &FileRecord, gone: impl FnOnce() -> String) -> Result<v1::File, Status> {
    volume.verified(record).map_err(|error| status(&error, gone))?;
    Ok(file_to_wire(record))
}

fn status(error: &VolumeError, gone: impl FnOnce() -> String) -> Status {
    match error {
        VolumeError::Missing(_) => Status::failed_precondition(gone()),
        other => volume_status(other),
    }
}
