//! One clustering, from request to result.

use deepcluster_clustering::pic::{self, centroids_of};
use deepcluster_clustering::{Assigned, ClusteringError, Device, Features, Points, Whitening, kmeans};
use deepcluster_domain::{Clustering, EpochId, Seeds};
use deepcluster_proto::v1::cluster_saved::File as Saved;
use deepcluster_proto::v1::{self, AssignRequest, AssignResult, ClusterRequest, ClusterResult, File, Progress};
use deepcluster_proto::{FieldError, device_choice};
use deepcluster_service::JobContext;
use deepcluster_service::requests::{self, file_to_wire, volume_status};
use deepcluster_volume::image_list;
use deepcluster_volume::publish::Digest;
use deepcluster_volume::{Volume, VolumeError, npy};
use metrics::gauge;
use std::path::{Path, PathBuf};
use tonic::Status;
use tracing::info;

/// Where whitened points lie that are too many for the memory.
const POINTS: &str = "points.npy";

/// Label of an image that takes no part.
const SKIPPED: i32 = -1;

/// Clusters the features of an epoch and publishes what came out, phase by phase.
pub(crate) fn cluster(volume: &Volume, request: &ClusterRequest, context: &JobContext<Saved>) -> Result<ClusterResult, Status> {
    requests::run_and_epoch(&request.run_id, request.epoch)?;
    let output = Output { volume, folder: requests::output(volume, &request.output)? };
    let clustering = checked(request)?;
    let device = Device::find(device_choice(&request.device)?);
    let list = requests::verified(volume, "images", request.images.as_ref())?;
    let features = open(volume, &request.features, Some(readable(&list)?))?;
    let failed = |error| status(error, Some(&list));
    let mut tell = teller(context);

    let (whitening, whiten) = whitened_by(request, &features, &list, &output, context)?;
    let points = whitening.apply(&features, &output.folder.join(POINTS), &mut tell).map_err(failed)?;
    let (assigned, centroids, k) = match clustering {
        Clustering::KMeans => by_kmeans(request, &points, device, &output, context)?,
        // Its labels do not follow from centroids, so those that an earlier call has saved are no help.
        Clustering::Pic => {
            let (assigned, centroids, k) = by_power_iteration(&points, &mut tell).map_err(failed)?;
            let file = publish_centroids(k, points.dims(), &centroids, &output, context)?;
            (assigned, file, k)
        }
    };
    tell("write", 0, 0).map_err(failed)?;
    let objective = assigned.objective();
    let [labels, distances] = publish_rows(&assigned, &features, &output)?;
    let whitened = output.publish("whitened.npy", |path| points.publish(path, &features, &mut tell).map_err(failed))?;
    gauge!("deepcluster_kmeans_objective").set(objective);
    let dims = points.dims();
    info!(epoch = request.epoch, images = features.n_kept(), dims, objective, %device, "clustering finished");
    Ok(ClusterResult {
        labels: Some(labels),
        distances: Some(distances),
        whiten: Some(whiten),
        centroids: Some(centroids),
        objective,
        dims: dims as u32,
        k,
        whitened: Some(whitened),
    })
}

/// The clustering that a request wants, once its numbers are in their ranges.
fn checked(request: &ClusterRequest) -> Result<Clustering, Status> {
    let clustering = v1::Clustering::to_domain(request.clustering)?;
    for (field, value, most) in
        [("k", request.k, 10_000_000), ("pca", request.pca, 65_536), ("iterations", request.iterations, 10_000)]
    {
        if !(1..=most).contains(&value) && (clustering == Clustering::KMeans || field == "pca") {
            return Err(FieldError::new(field, format!("must lie between 1 and {most}")).into());
        }
    }
    if request.centroids.is_some() && request.whiten.is_none() {
        return Err(FieldError::new("whiten", "is missing, and the centroids are of no use without it").into());
    }
    Ok(clustering)
}

/// Which images of a list take part. Many images have long names; they are read again should one have to be named.
fn readable(list: &Path) -> Result<Vec<bool>, Status> {
    let entries = image_list::read(list).map_err(|error| volume_status(&error))?;
    Ok(entries.iter().map(|entry| entry.skipped.is_none()).collect())
}

/// The whitening that an earlier call has saved, or that of the features, which is saved then.
fn whitened_by(
    request: &ClusterRequest,
    features: &Features,
    list: &Path,
    output: &Output<'_>,
    context: &JobContext<Saved>,
) -> Result<(Whitening, File), Status> {
    let failed = |error| status(error, Some(list));
    if let Some(file) = &request.whiten {
        let path = requests::verified(output.volume, "whiten", Some(file))?;
        return Ok((Whitening::read(&path).map_err(failed)?, file.clone()));
    }
    let seeds = Seeds::new(request.seed, EpochId(request.epoch));
    let whitening = Whitening::fit(features, request.pca as usize, seeds, &mut teller(context)).map_err(failed)?;
    let file = output.publish("whiten.safetensors", |path| whitening.publish(path).map_err(failed))?;
    context.saved(Saved::Whiten(file.clone()))?;
    Ok((whitening, file))
}

/// Labels by k-means, the file of its centroids, which an earlier call may have saved, and how many there are.
fn by_kmeans(
    request: &ClusterRequest,
    points: &Points,
    device: Device,
    output: &Output<'_>,
    context: &JobContext<Saved>,
) -> Result<(Assigned, File, u32), Status> {
    let (k, dims) = (request.k, points.dims());
    let failed = |error| status(error, None);
    let mut tell = teller(context);
    let (centroids, file) = match &request.centroids {
        Some(file) => (read_centroids(output.volume, file, k, dims)?, file.clone()),
        None => {
            let seed = kmeans::seed(Seeds::new(request.seed, EpochId(request.epoch)));
            let centroids = kmeans::kmeans(points, k, request.iterations, seed, device, &mut tell).map_err(failed)?;
            let file = publish_centroids(k, dims, &centroids, output, context)?;
            (centroids, file)
        }
    };
    Ok((kmeans::assign(points, &centroids, device, &mut tell).map_err(failed)?, file, k))
}

/// Publishes centroids `[k, dims]`, so that a call after this one may go on from them.
fn publish_centroids(
    k: u32,
    dims: usize,
    centroids: &[f32],
    output: &Output<'_>,
    context: &JobContext<Saved>,
) -> Result<File, Status> {
    let shape = [k as usize, dims];
    let publish = |path: &Path| npy::publish_f32(path, &shape, centroids).map_err(|error| volume_status(&error));
    let file = output.publish("centroids.npy", publish)?;
    context.saved(Saved::Centroids(file.clone()))?;
    Ok(file)
}

/// Publishes labels and distances of all images; those that take no part have neither.
fn publish_rows(assigned: &Assigned, features: &Features, output: &Output<'_>) -> Result<[File; 2], Status> {
    let mut labels = vec![SKIPPED; features.n_rows()];
    let mut distances = vec![f32::NAN; features.n_rows()];
    for (row, (label, distance)) in features.kept_rows().zip(assigned.labels.iter().zip(&assigned.distances)) {
        labels[row] = *label;
        distances[row] = *distance;
    }
    output.labels_and_distances(&labels, &distances)
}

/// Labels by power iteration clustering, the means of its clusters, and how many there are.
fn by_power_iteration(
    points: &Points,
    tell: &mut deepcluster_clustering::Progress<'_>,
) -> Result<(Assigned, Vec<f32>, u32), ClusteringError> {
    let labels = pic::pic(points, pic::SIGMA, pic::NEIGHBOURS, pic::ITERATIONS, tell)?;
    let k = labels.iter().max().map_or(0, |largest| *largest as u32 + 1);
    let centroids = centroids_of(points, &labels, k)?;
    let mut distances = vec![0.0; labels.len()];
    let dims = points.dims();
    points.for_each_block(|first, block| {
        for (point, at) in block.chunks_exact(dims).zip(first..) {
            let own = &centroids[labels[at] as usize * dims..][..dims];
            distances[at] = point.iter().zip(own).map(|(x, c)| (x - c) * (x - c)).sum();
        }
        Ok(())
    })?;
    Ok((Assigned { labels, distances }, centroids, k))
}

/// Assigns features to stored clusters and publishes what came out.
pub(crate) fn assign(volume: &Volume, request: &AssignRequest, context: &JobContext) -> Result<AssignResult, Status> {
    let output = Output { volume, folder: requests::output(volume, &request.output)? };
    let device = Device::find(device_choice(&request.device)?);
    let whiten = requests::verified(volume, "whiten", request.whiten.as_ref())?;
    let centroids = requests::verified(volume, "centroids", request.centroids.as_ref())?;
    let features = open(volume, &request.features, None)?;
    let mut tell = teller(context);
    let failed = |error| status(error, None);
    let whitening = Whitening::read(&whiten).map_err(failed)?;
    let (shape, centroids) = npy::read_f32(&centroids).map_err(|error| volume_status(&error))?;
    if shape.len() != 2 || shape[0] == 0 || shape[1] != whitening.dims() {
        return Err(FieldError::new("centroids", "do not fit the whitening").into());
    }
    let points = whitening.apply(&features, &output.folder.join(POINTS), &mut tell).map_err(failed)?;
    let assigned = kmeans::assign(&points, &centroids, device, &mut tell).map_err(failed)?;
    let [labels, distances] = output.labels_and_distances(&assigned.labels, &assigned.distances)?;
    Ok(AssignResult { labels: Some(labels), distances: Some(distances) })
}

/// The folder of the results.
pub(crate) struct Output<'a> {
    pub(crate) volume: &'a Volume,
    pub(crate) folder: PathBuf,
}

impl Output<'_> {
    pub(crate) fn publish(&self, name: &str, write: impl FnOnce(&Path) -> Result<Digest, Status>) -> Result<File, Status> {
        let path = self.folder.join(name);
        let digest = write(&path)?;
        self.volume.record(&path, digest).map(|record| file_to_wire(&record)).map_err(|error| volume_status(&error))
    }

    fn labels_and_distances(&self, labels: &[i32], distances: &[f32]) -> Result<[File; 2], Status> {
        let failed = |error: VolumeError| volume_status(&error);
        Ok([
            self.publish("labels.npy", |path| npy::publish_i32(path, labels).map_err(failed))?,
            self.publish("distances.npy", |path| npy::publish_f32(path, &[distances.len()], distances).map_err(failed))?,
        ])
    }
}

/// Centroids that an earlier call saved.
fn read_centroids(volume: &Volume, file: &File, k: u32, dims: usize) -> Result<Vec<f32>, Status> {
    let path = requests::verified(volume, "centroids", Some(file))?;
    let (shape, centroids) = npy::read_f32(&path).map_err(|error| volume_status(&error))?;
    if shape != [k as usize, dims] {
        return Err(FieldError::new("centroids", format!("are of shape {shape:?}, not [{k}, {dims}]")).into());
    }
    Ok(centroids)
}

pub(crate) fn open(volume: &Volume, files: &[File], kept: Option<Vec<bool>>) -> Result<Features, Status> {
    let paths = files.iter().map(|file| requests::verified(volume, "features", Some(file))).collect::<Result<Vec<_>, _>>()?;
    Features::open(&paths, kept).map_err(|error| status(error, None))
}

pub(crate) fn teller<S>(context: &JobContext<S>) -> impl FnMut(&str, u64, u64) -> Result<(), ClusteringError> + '_ {
    |phase, done, total| {
        let progress = Progress { phase: phase.to_owned(), done, total, loss: 0.0 };
        context.progress(progress).map_err(|_| ClusteringError::Cancelled)
    }
}

pub(crate) fn status(error: ClusteringError, list: Option<&Path>) -> Status {
    match &error {
        ClusteringError::NotFinite { row } => {
            let entry = list.and_then(|list| image_list::read(list).ok()?.into_iter().nth(*row));
            let name = entry.map(|entry| format!(" ('{}')", entry.as_path().display()));
            let name = name.unwrap_or_default();
            Status::invalid_argument(format!("{error}{name}; try --feature-dtype f32 or a lower learning rate"))
        }
        ClusteringError::Unusable(_) => Status::invalid_argument(error.to_string()),
        ClusteringError::Volume(error) => volume_status(error),
        ClusteringError::Cancelled => Status::cancelled(error.to_string()),
        ClusteringError::Faiss(_) | ClusteringError::Eigen(_) => Status::internal(error.to_string()),
    }
}
