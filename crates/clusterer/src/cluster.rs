//! One clustering, from request to result.

use deepcluster_clustering::{ClusteringError, Features, Whitening, kmeans};
use deepcluster_domain::{EpochId, Seeds};
use deepcluster_proto::FieldError;
use deepcluster_proto::v1::{AssignRequest, AssignResult, ClusterRequest, ClusterResult, File, Progress};
use deepcluster_service::JobContext;
use deepcluster_service::requests::{self, file_to_wire, volume_status};
use deepcluster_volume::image_list::{self, ImageEntry};
use deepcluster_volume::publish::Digest;
use deepcluster_volume::{Volume, VolumeError, npy};
use std::path::{Path, PathBuf};
use tonic::Status;
use tracing::info;

/// Label of an image that takes no part.
const SKIPPED: i32 = -1;

/// Clusters the features of an epoch and publishes what came out.
pub(crate) fn cluster(volume: &Volume, request: &ClusterRequest, context: &JobContext) -> Result<ClusterResult, Status> {
    requests::run_and_epoch(&request.run_id, request.epoch)?;
    let output = requests::output(volume, &request.output)?;
    for (field, value, most) in
        [("k", request.k, 10_000_000), ("pca", request.pca, 65_536), ("iterations", request.iterations, 10_000)]
    {
        if !(1..=most).contains(&value) {
            return Err(FieldError::new(field, format!("must lie between 1 and {most}")).into());
        }
    }
    let list = requests::verified(volume, "images", request.images.as_ref())?;
    let entries = image_list::read(&list).map_err(|error| volume_status(&error))?;
    let features = open(volume, &request.features, Some(entries.iter().map(|entry| entry.skipped.is_none()).collect()))?;
    let seeds = Seeds::new(request.seed, EpochId(request.epoch));
    let failed = |error| status(error, &entries);
    let mut tell = teller(context);

    let whitening = Whitening::fit(&features, request.pca as usize, seeds, &mut tell).map_err(failed)?;
    let points = whitening.apply(&features, &mut tell).map_err(failed)?;
    let dims = whitening.dims();
    let clusters =
        kmeans::kmeans(&points, dims, request.k, request.iterations, kmeans::seed(seeds), &mut tell).map_err(failed)?;
    tell("write", 0, 0).map_err(failed)?;
    let objective = clusters.objective();
    let mut labels = vec![SKIPPED; features.n_rows()];
    let mut distances = vec![f32::NAN; features.n_rows()];
    for (row, (label, distance)) in features.kept_rows().zip(clusters.labels.iter().zip(&clusters.distances)) {
        labels[row] = *label;
        distances[row] = *distance;
    }
    let record = |path: PathBuf, digest: Digest| volume.record(&path, digest).map(|record| file_to_wire(&record));
    let publish = || -> Result<[File; 3], VolumeError> {
        let [at_labels, at_distances, at_centroids] =
            ["labels.npy", "distances.npy", "centroids.npy"].map(|name| output.join(name));
        let labels = npy::publish_i32(&at_labels, &labels)?;
        let distances = npy::publish_f32(&at_distances, &[distances.len()], &distances)?;
        let centroids = npy::publish_f32(&at_centroids, &[request.k as usize, dims], &clusters.centroids)?;
        Ok([record(at_labels, labels)?, record(at_distances, distances)?, record(at_centroids, centroids)?])
    };
    let [labels, distances, centroids] = publish().map_err(|error| volume_status(&error))?;
    let at_whiten = output.join("whiten.safetensors");
    let whiten = whitening.publish(&at_whiten).map_err(failed)?;
    let whiten = record(at_whiten, whiten).map_err(|error| volume_status(&error))?;
    info!(epoch = request.epoch, images = features.n_kept(), dims, objective, "clustering finished");
    Ok(ClusterResult {
        labels: Some(labels),
        distances: Some(distances),
        whiten: Some(whiten),
        centroids: Some(centroids),
        objective,
        dims: dims as u32,
    })
}

/// Assigns features to stored clusters and publishes what came out.
pub(crate) fn assign(volume: &Volume, request: &AssignRequest, context: &JobContext) -> Result<AssignResult, Status> {
    let output = requests::output(volume, &request.output)?;
    let whiten = requests::verified(volume, "whiten", request.whiten.as_ref())?;
    let centroids = requests::verified(volume, "centroids", request.centroids.as_ref())?;
    let features = open(volume, &request.features, None)?;
    let mut tell = teller(context);
    let failed = |error| status(error, &[]);
    let whitening = Whitening::read(&whiten).map_err(failed)?;
    let (shape, centroids) = npy::read_f32(&centroids).map_err(|error| volume_status(&error))?;
    if shape.get(1) != Some(&whitening.dims()) {
        return Err(FieldError::new("centroids", "do not fit the whitening").into());
    }
    let points = whitening.apply(&features, &mut tell).map_err(failed)?;
    let (labels, distances) = kmeans::assign(&points, &centroids, whitening.dims(), &mut tell).map_err(failed)?;
    let publish = |name: &str, write: &dyn Fn(&Path) -> Result<Digest, VolumeError>| {
        let path = output.join(name);
        let digest = write(&path)?;
        volume.record(&path, digest).map(|record| file_to_wire(&record))
    };
    let labels = publish("labels.npy", &|path| npy::publish_i32(path, &labels)).map_err(|error| volume_status(&error))?;
    let distances = publish("distances.npy", &|path| npy::publish_f32(path, &[distances.len()], &distances))
        .map_err(|error| volume_status(&error))?;
    Ok(AssignResult { labels: Some(labels), distances: Some(distances) })
}

fn open(volume: &Volume, files: &[File], kept: Option<Vec<bool>>) -> Result<Features, Status> {
    let paths = files.iter().map(|file| requests::verified(volume, "features", Some(file))).collect::<Result<Vec<_>, _>>()?;
    Features::open(&paths, kept).map_err(|error| status(error, &[]))
}

fn teller(context: &JobContext) -> impl FnMut(&str, u64, u64) -> Result<(), ClusteringError> + '_ {
    |phase, done, total| {
        let progress = Progress { phase: phase.to_owned(), done, total, loss: 0.0 };
        context.progress(progress).map_err(|_| ClusteringError::Cancelled)
    }
}

fn status(error: ClusteringError, entries: &[ImageEntry]) -> Status {
    match &error {
        ClusteringError::NotFinite { row } => {
            let name = entries.get(*row).map(|entry| format!(" ('{}')", entry.as_path().display()));
            let name = name.unwrap_or_default();
            Status::invalid_argument(format!("{error}{name}; try --feature-dtype f32 or a lower learning rate"))
        }
        ClusteringError::Unusable(_) => Status::invalid_argument(error.to_string()),
        ClusteringError::Volume(error) => volume_status(error),
        ClusteringError::Cancelled => Status::cancelled(error.to_string()),
        ClusteringError::Faiss(_) | ClusteringError::Eigen(_) => Status::internal(error.to_string()),
    }
}
