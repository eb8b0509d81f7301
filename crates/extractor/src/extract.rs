//! One shard, from request to result.

use crate::Place;
use crate::wanted::{Wanted, of_whole_image};
use deepcluster_domain::RunSpec;
use deepcluster_images::decode::{Expected, UNKNOWN};
use deepcluster_images::find::check_there;
use deepcluster_images::{Batch, BatchLoader, Cached, LoaderOptions, Reads, Request, Source, Unreadable, View};
use deepcluster_network::{Network, NetworkError, Runtime};
use deepcluster_proto::FieldError;
use deepcluster_proto::v1::{ExtractRequest, ExtractResult, FeatureDtype, File, Progress, SkippedImage};
use deepcluster_service::JobContext;
use deepcluster_service::metrics::Waited;
use deepcluster_service::requests::{self, file_to_wire, volume_status};
use deepcluster_volume::image_list::ImageEntry;
use deepcluster_volume::npy::{self, ArrayWriter};
use deepcluster_volume::pixels::PixelsWriter;
use metrics::counter;
use std::path::Path;
use tonic::Status;
use tracing::{info, warn};

/// Computes and publishes the features of one shard.
pub(crate) fn extract(place: &Place, request: &ExtractRequest, context: &JobContext) -> Result<ExtractResult, Status> {
    requests::run_and_epoch(&request.run_id, request.epoch)?;
    let spec = requests::network_spec(request.network.as_ref(), request.seed)?;
    let dtype = FeatureDtype::to_domain(request.feature_dtype)?;
    let output = requests::output(&place.volume, &request.output)?;
    if !(1..=65_536).contains(&request.batch) {
        return Err(FieldError::new("batch", "must lie between 1 and 65536").into());
    }
    let images = request.images.as_ref().ok_or_else(|| FieldError::new("images", "is missing"))?;
    let folder = requests::images_folder(&place.images, &images.root)?;
    let entries = place.list(images.list.as_ref())?;
    let shard = shard_of(&entries, request)?;
    let still_there = || check_there(&folder, &entries).map_err(|error| FieldError::new("images", error));
    still_there()?;

    progress(context, "load", 0, shard.len())?;
    let network = network_of(place, request, &spec)?;
    let wanted = Wanted::of(request, &network)?;
    let width = wanted.width(&network).map_err(network_status)?;
    if let Wanted::Regions(tap, side) = &wanted {
        let rows = |entry: &ImageEntry| of_whole_image(&network, tap, *side, &folder, entry);
        return extract_whole(place, request, shard, (&output, width), rows, context);
    }

    let mut reads = Reads::default();
    let mut batches = start_loading(place, request, &spec, shard, &folder, &mut reads)?;
    let shape = [shard.len(), width];
    let mut writer = ArrayWriter::create(&output, dtype.into(), &shape).map_err(|error| volume_status(&error))?;
    let (mut skipped, mut remarks) = (Vec::new(), Vec::new());
    let mut digests = Vec::with_capacity(shard.len());
    for mut batch in Waited(&mut batches) {
        digests.extend(&batch.digests);
        reads += std::mem::take(&mut batch.reads);
        let mut features = wanted.of_views(&network, &batch.pixels).map_err(network_status)?;
        skipped.extend(unread(&batch, request.first_image));
        remarks.extend(remarks_of(&batch, request.first_image));
        clear_unread(&mut features, width, &shard[batch.first..batch.first + batch.len], &batch);
        writer.push(&features).map_err(|error| volume_status(&error))?;
        counter!("deepcluster_images_total").increment(batch.len as u64);
        progress(context, "images", batch.first + batch.len, shard.len())?;
    }
    if !skipped.is_empty() {
        still_there()?;
    }
    let digest = writer.commit().map_err(|error| volume_status(&error))?;
    let record = place.volume.record(&output, digest).map_err(|error| volume_status(&error))?;
    let digests = publish_digests(place, request, &digests)?;
    let cache = cached_file(place, request, batches)?;
    let Reads { decoded, cached, unfit } = reads;
    info!(shard = request.shard, images = shard.len(), skipped = skipped.len(), decoded, cached, "shard extracted");
    let reads = Some(requests::reads_to_wire(&place.volume, decoded, cached, &unfit));
    Ok(ExtractResult { features: Some(file_to_wire(&record)), skipped, digests, reads, cache, remarks })
}

/// The network that a request names, for eval mode alone.
fn network_of(place: &Place, request: &ExtractRequest, spec: &RunSpec) -> Result<Network, Status> {
    let checkpoint = request.network.as_ref().and_then(|network| network.checkpoint.as_ref());
    let checkpoint = checkpoint.map(|file| requests::verified(&place.volume, "network.checkpoint", Some(file))).transpose()?;
    let runtime = Runtime::prepare(spec.device, spec.precision, place.threads).map_err(network_status)?;
    let network = Network::load(spec, runtime, checkpoint.as_deref()).and_then(|network| network.folded());
    network.map_err(network_status)
}

/// Images of a batch that could not be read.
fn unread(batch: &Batch, first_image: u64) -> impl Iterator<Item = SkippedImage> {
    let skipped = batch.unreadable.iter();
    skipped.map(move |(at, why)| SkippedImage { index: first_image + *at as u64, reason: why.to_string() })
}

/// What is to be said of images of a batch that were read.
fn remarks_of(batch: &Batch, first_image: u64) -> impl Iterator<Item = SkippedImage> {
    let remarks = batch.remarks.iter();
    remarks.map(move |(at, remark)| SkippedImage { index: first_image + *at as u64, reason: remark.clone() })
}

/// Rows of images that could not be read, now or when they were listed, are zero, whatever the network makes of black pixels.
fn clear_unread(features: &mut [f32], width: usize, entries: &[ImageEntry], batch: &Batch) {
    for (row, (features, entry)) in features.chunks_exact_mut(width).zip(entries).enumerate() {
        let at = batch.first + row;
        if entry.skipped.is_some() || batch.unreadable.iter().any(|(unread, _)| *unread == at) {
            features.fill(0.0);
        }
    }
}

/// The decoded images of a shard, where the cache has got them.
fn cached_file(place: &Place, request: &ExtractRequest, batches: BatchLoader) -> Result<Option<File>, Status> {
    let Some(digest) = batches.into_cached() else { return Ok(None) };
    let path = place.volume.resolve(&request.cache_output);
    let record = path.and_then(|path| place.volume.record(&path, digest)).map_err(|error| volume_status(&error))?;
    Ok(Some(file_to_wire(&record)))
}

/// Features of whole images, one image after the other, since each has a size of its own.
fn extract_whole(
    place: &Place,
    request: &ExtractRequest,
    shard: &[ImageEntry],
    (output, width): (&Path, usize),
    row: impl Fn(&ImageEntry) -> Result<Result<(Vec<f32>, i64), Unreadable>, NetworkError>,
    context: &JobContext,
) -> Result<ExtractResult, Status> {
    let dtype = FeatureDtype::to_domain(request.feature_dtype)?;
    let failed = |error| volume_status(&error);
    let mut writer = ArrayWriter::create(output, dtype.into(), &[shard.len(), width]).map_err(failed)?;
    let (mut skipped, mut digests) = (Vec::new(), Vec::with_capacity(shard.len()));
    for (at, entry) in shard.iter().enumerate() {
        let outcome = if entry.skipped.is_some() { None } else { Some(row(entry).map_err(network_status)?) };
        let (features, digest) = match outcome {
            Some(Ok(found)) => found,
            Some(Err(why)) => {
                skipped.push(SkippedImage { index: request.first_image + at as u64, reason: why.to_string() });
                (vec![0.0; width], UNKNOWN)
            }
            None => (vec![0.0; width], UNKNOWN),
        };
        writer.push(&features).map_err(failed)?;
        digests.push(digest);
        progress(context, "images", at + 1, shard.len())?;
    }
    let digest = writer.commit().map_err(failed)?;
    let record = place.volume.record(output, digest).map_err(failed)?;
    let decoded = digests.iter().filter(|digest| **digest != UNKNOWN).count() as u64;
    let digests = publish_digests(place, request, &digests)?;
    let reads = Some(requests::reads_to_wire(&place.volume, decoded, 0, &Reads::default().unfit));
    Ok(ExtractResult { features: Some(file_to_wire(&record)), skipped, digests, reads, cache: None, remarks: Vec::new() })
}

/// Starts to read the images of a shard: from the cache where they are there, which gets those that are not, if that is wished.
fn start_loading(
    place: &Place,
    request: &ExtractRequest,
    spec: &RunSpec,
    shard: &[ImageEntry],
    folder: &Path,
    reads: &mut Reads,
) -> Result<BatchLoader, Status> {
    let resolve = |path: &str| place.volume.resolve(path).map_err(|error| FieldError::new("cache", error));
    let cache = request.cache.as_ref().map(|cache| resolve(&cache.path)).transpose()?.and_then(|path| reads.open(&path));
    let known = known_digests(place, request)?;
    let wanted = shard.iter().zip(known).enumerate().map(|(index, (entry, digest))| {
        let cached = cache.clone().map(|file| Cached { file, index });
        let expected = Expected { bytes: entry.bytes, digest };
        let source = Source { path: folder.join(entry.as_path()), expected, cached };
        Request { source: entry.skipped.is_none().then_some(source), view: View::Center }
    });
    let wanted: Vec<Request> = wanted.collect();
    let output = match request.cache_output.as_str() {
        "" => None,
        path => PixelsWriter::create(&resolve(path)?)
            .inspect_err(|error| warn!(%error, "the images of this shard do not go to the cache"))
            .ok(),
    };
    let (batch, threads) = (request.batch as usize, place.threads);
    let options = LoaderOptions { batch, size: spec.image_size, cache_side: spec.cache_side, threads, skip: 0 };
    BatchLoader::start(wanted.len(), move |at| wanted[at].clone(), options, output)
        .map_err(|error| Status::resource_exhausted(error.to_string()))
}

/// What the files should contain.
fn known_digests(place: &Place, request: &ExtractRequest) -> Result<Vec<i64>, Status> {
    let Some(file) = &request.digests else { return Ok(vec![UNKNOWN; request.n_images as usize]) };
    let path = requests::verified(&place.volume, "digests", Some(file))?;
    let digests = npy::read_i64(&path).map_err(|error| volume_status(&error))?;
    if digests.len() as u64 != request.n_images {
        return Err(FieldError::new("digests", format!("are of {} images, not of {}", digests.len(), request.n_images)).into());
    }
    Ok(digests)
}

fn publish_digests(place: &Place, request: &ExtractRequest, digests: &[i64]) -> Result<Option<File>, Status> {
    if request.digests_output.is_empty() {
        return Ok(None);
    }
    let path = place.volume.resolve(&request.digests_output).map_err(|error| FieldError::new("digests_output", error))?;
    let digest = npy::publish_i64(&path, digests).map_err(|error| volume_status(&error))?;
    let record = place.volume.record(&path, digest).map_err(|error| volume_status(&error))?;
    Ok(Some(file_to_wire(&record)))
}

fn shard_of<'a>(entries: &'a [ImageEntry], request: &ExtractRequest) -> Result<&'a [ImageEntry], Status> {
    let end = request.first_image.checked_add(request.n_images);
    let range = request.first_image as usize..end.unwrap_or(u64::MAX) as usize;
    match entries.get(range) {
        Some(shard) if !shard.is_empty() => Ok(shard),
        _ => Err(FieldError::new("n_images", format!("the shard is no part of the {} images", entries.len())).into()),
    }
}

fn progress(context: &JobContext, phase: &str, done: usize, total: usize) -> Result<(), Status> {
    context.progress(Progress { phase: phase.to_owned(), done: done as u64, total: total as u64, loss: 0.0 })
}

pub(crate) fn network_status(error: NetworkError) -> Status {
    requests::work_status(&error, error.is_callers_fault())
}
