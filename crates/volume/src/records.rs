//! What stands in `run.json`, `pending.json` and `epoch.json`. Persisted types are their own, with a version, so that
//! the domain may change without breaking a volume.

use crate::FileRecord;
use crate::record_file::Versioned;
pub use crate::record_file::{publish_record, read_record};
pub use crate::spec_record::SpecRecord;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The version that this program writes and the newest that it reads.
pub const VERSION: u32 = 1;

/// `run.json`: the spec, as given and as resolved, and where the run stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// [`VERSION`].
    pub version: u32,
    /// The run's name, also that of its folder.
    pub run_id: String,
    /// When it was created, seconds since 1970.
    pub created: u64,
    /// The spec with all defaults filled in.
    pub spec: SpecRecord,
    /// What was found out about it.
    pub resolved: ResolvedRecord,
    /// Where it stands.
    pub state: RunState,
    /// Why, where there is something to say; empty otherwise.
    pub message: String,
    /// Number of committed epochs, and so the number of the current one.
    pub epochs_done: u32,
    /// The id that its creator gave the request; empty for none.
    #[serde(default)]
    pub request_id: String,
    /// Runs of a higher one take all turns before those of a lower one.
    #[serde(default)]
    pub priority: i32,
    /// What the user calls it.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Free text of the user.
    #[serde(default)]
    pub note: String,
    /// The W3C trace context that its epochs belong to; empty for none.
    #[serde(default)]
    pub traceparent: String,
}

/// What a spec turned into once the images were seen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ResolvedRecord {
    /// Number of clusters.
    pub k: u32,
    /// Images found.
    pub n_images: usize,
    /// Images that cannot be read, of those.
    pub n_skipped: usize,
    /// Images that are read and of which something is to be said, as that rows are missing.
    #[serde(default)]
    pub n_remarks: usize,
    /// What the search for images passed over, in a sentence; empty for nothing.
    #[serde(default)]
    pub passed_over: String,
    /// By which decoders the images were last read, as `images::decode::DECODERS` counts them.
    #[serde(default = "first_decoders")]
    pub decoders: u32,
    /// Where classes come from, in a sentence; empty where they are the first folders, or there are none.
    #[serde(default)]
    pub classes_note: String,
    /// BLAKE3 of images.csv. Two while one list takes the place of another; none in runs that are older than this.
    #[serde(default)]
    pub images_csv: Vec<String>,
    /// The weights that the run starts from; none where they are drawn from its seed.
    #[serde(default)]
    pub init: Option<FileRecord>,
    /// How those weights were found in their file, in a sentence; empty where there is nothing to say.
    #[serde(default)]
    pub init_note: String,
}

/// Those of runs that are older than this figure.
fn first_decoders() -> u32 {
    1
}

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunState {
    /// Waits for its turn.
    Queued,
    /// Its epochs are being made.
    Running,
    /// Waits for `unpause`.
    Paused,
    /// All epochs are committed.
    Finished,
    /// Ended on request.
    Cancelled,
    /// Ended by an error.
    Failed,
}

impl RunState {
    /// Nothing will happen to it any more, unless somebody resumes a failed one.
    pub fn has_ended(self) -> bool {
        matches!(self, Self::Finished | Self::Cancelled | Self::Failed)
    }
}

impl std::fmt::Display for RunState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Finished => "finished",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
        })
    }
}

/// `pending.json`: what of an epoch is durably done. Written anew after every shard and every phase.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PendingEpoch {
    /// [`VERSION`].
    pub version: u32,
    /// The epoch's number.
    pub epoch: u32,
    /// Finished shards.
    pub shards: BTreeMap<u32, ShardRecord>,
    /// Seconds that extraction took so far.
    pub extract_s: f64,
    /// The clustering, once it is there.
    pub clustering: Option<ClusteringRecord>,
    /// The training, once it is there.
    pub training: Option<TrainingRecord>,
    /// What of the clustering is there before all of it is.
    #[serde(default)]
    pub clustering_so_far: ClusteringSoFar,
    /// Where training stood when it last saved itself.
    #[serde(default)]
    pub training_so_far: Option<TrainingSoFar>,
    /// How often training began anew with other random numbers, because numbers were no longer finite.
    #[serde(default)]
    pub retries: u32,
    /// How images were read so far.
    #[serde(default)]
    pub reads: ReadsRecord,
}

/// How the images of an epoch were read, extraction and training together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadsRecord {
    /// Images that were decoded, repetitions counted.
    pub decoded: u64,
    /// Images that came from the cache, repetitions counted.
    pub cached: u64,
}

/// `used.json`: when decoded images were last used, by which it is settled which go first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CacheUse {
    /// [`VERSION`].
    pub version: u32,
    /// Seconds since 1970.
    pub used: u64,
    /// Folder of the images, relative to the images root of the services.
    pub images: String,
}

impl PendingEpoch {
    /// An epoch of which nothing is done.
    pub fn new(epoch: u32) -> Self {
        Self {
            version: VERSION,
            epoch,
            shards: BTreeMap::new(),
            extract_s: 0.0,
            clustering: None,
            training: None,
            clustering_so_far: ClusteringSoFar::default(),
            training_so_far: None,
            retries: 0,
            reads: ReadsRecord::default(),
        }
    }
}

/// A finished shard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShardRecord {
    /// Its features.
    pub features: FileRecord,
    /// Rows of images.csv that could not be read, and why.
    pub skipped: Vec<(u64, String)>,
    /// Rows of images.csv that were read, and what is to be said of how.
    #[serde(default)]
    pub remarks: Vec<(u64, String)>,
}

/// A finished clustering.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClusteringRecord {
    /// Pseudo-labels.
    pub labels: FileRecord,
    /// Squared distances to the own centroid.
    pub distances: FileRecord,
    /// Mean and projection.
    pub whiten: FileRecord,
    /// Centroids in the whitened space.
    pub centroids: FileRecord,
    /// Sum of the squared distances.
    pub objective: f64,
    /// Dimensions that had variance.
    pub dims: u32,
    /// Number of clusters; none in records that are older than a number that may differ from the run's.
    #[serde(default)]
    pub k: Option<u32>,
    /// The lasting names of the clusters; none in records that are older than names.
    #[serde(default)]
    pub lineage: Option<FileRecord>,
    /// Seconds that it took.
    pub seconds: f64,
    /// Whitened features; none in clusterings that are older than this file.
    #[serde(default)]
    pub whitened: Option<FileRecord>,
}

impl ClusteringRecord {
    /// All files that it names.
    pub fn files(&self) -> Vec<&FileRecord> {
        [&self.labels, &self.distances, &self.whiten, &self.centroids]
            .into_iter()
            .chain(&self.lineage)
            .chain(&self.whitened)
            .collect()
    }
}

/// The finished phases of a clustering.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClusteringSoFar {
    /// Mean and projection.
    pub whiten: Option<FileRecord>,
    /// Centroids in the whitened space.
    pub centroids: Option<FileRecord>,
    /// Seconds that they took.
    pub seconds: f64,
}

/// Training inside an epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainingSoFar {
    /// Everything that it goes on from.
    pub file: FileRecord,
    /// Steps done.
    pub steps: u64,
    /// Seconds that they took.
    pub seconds: f64,
}

/// A finished training pass.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainingRecord {
    /// Weights and optimizer state.
    pub checkpoint: FileRecord,
    /// Mean cross-entropy.
    pub loss: f64,
    /// Images trained on, repetitions counted.
    pub n_images: u64,
    /// Seconds that it took.
    pub seconds: f64,
}

/// `digests.json`: what the image files contained when they were first read, by which a file is known that was replaced.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DigestsRecord {
    /// [`VERSION`].
    pub version: u32,
    /// For each shard npy, int64 [shard rows]: the first eight bytes of BLAKE3; 0 for an image that could not be read.
    pub shards: BTreeMap<u32, FileRecord>,
}

impl DigestsRecord {
    /// No shard was read yet.
    pub fn new() -> Self {
        Self { version: VERSION, shards: BTreeMap::new() }
    }
}

impl Default for DigestsRecord {
    fn default() -> Self {
        Self::new()
    }
}

/// `epoch.json`: the commit point of an epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochManifest {
    /// [`VERSION`].
    pub version: u32,
    /// The epoch's number.
    pub epoch: u32,
    /// Every file of the epoch.
    pub files: EpochFiles,
    /// What it scored.
    pub scores: EpochScores,
}

/// The files of a committed epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochFiles {
    /// npy, int32 [N].
    pub labels: FileRecord,
    /// npy, f32 [N].
    pub distances: FileRecord,
    /// safetensors: mean, projection.
    pub whiten: FileRecord,
    /// npy, f32 [k, dims].
    pub centroids: FileRecord,
    /// safetensors: the network and its optimizer.
    pub checkpoint: FileRecord,
    /// JSON: the lasting names of the clusters; none in epochs that are older than names.
    #[serde(default)]
    pub lineage: Option<FileRecord>,
    /// npy, f16 [N, dims]: whitened features, a row of zeros for a skipped image; none in epochs that are older than this file.
    #[serde(default)]
    pub whitened: Option<FileRecord>,
}

impl EpochFiles {
    /// All of them that are there.
    pub fn all(&self) -> Vec<&FileRecord> {
        let always = [&self.labels, &self.distances, &self.whiten, &self.centroids, &self.checkpoint];
        always.into_iter().chain(&self.lineage).chain(&self.whitened).collect()
    }
}

/// What an epoch scored (recipe, step 7) and how long its phases took. Also the body of its event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochScores {
    /// The epoch's number.
    pub epoch: u32,
    /// Images that took part.
    pub images: usize,
    /// Mean cross-entropy of the training pass.
    pub loss: f64,
    /// Sum of squared distances to the own centroid.
    pub kmeans_objective: f64,
    /// Clusters with at least one image.
    pub nonempty: usize,
    /// Share of the largest cluster.
    pub largest_share: f64,
    /// exp of the entropy of the cluster sizes; none in epochs that are older than this figure.
    #[serde(default)]
    pub effective_clusters: Option<f64>,
    /// NMI with the labels of the epoch before; none in the first.
    pub nmi_last: Option<f64>,
    /// NMI with the folder classes; none when the images lie in no class folders.
    pub nmi_classes: Option<f64>,
    /// AMI with the folder classes, likewise.
    pub ami_classes: Option<f64>,
    /// What random clusters of the same sizes have of NMI with the classes; none in epochs that are older than this figure.
    #[serde(default)]
    pub nmi_chance: Option<f64>,
    /// Seconds of extraction.
    pub extract_s: f64,
    /// Seconds of clustering.
    pub cluster_s: f64,
    /// Seconds of training.
    pub train_s: f64,
    /// How images were read; nothing in epochs that are older than these figures.
    #[serde(default)]
    pub reads: ReadsRecord,
}

macro_rules! versioned {
    ($($name:ty),+) => { $(impl Versioned for $name { fn version(&self) -> u32 { self.version } })+ };
}
versioned!(RunRecord, PendingEpoch, DigestsRecord, CacheUse, EpochManifest);
