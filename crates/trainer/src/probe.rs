//! Linear probes, from request to result: teaching them, and counting what they get right.

use crate::Place;
use crate::pictures::Pictures;
use crate::saver::Saver;
use crate::train::{drop_unreadable, status, tell};
use deepcluster_domain::{EpochId, Purpose, RunSpec, Seeds};
use deepcluster_images::{Batch, BatchLoader, LoaderOptions, Request, View};
use deepcluster_network::probes::Hits;
use deepcluster_network::{Network, ProbeOptions, Probes, Runtime};
use deepcluster_proto::FieldError;
use deepcluster_proto::v1::{
    self, ClassifiedImages, LayerHits, ProbeRequest, ProbeResult, ScoreRequest, ScoreResult, SkippedImage, TrainSaved,
};
use deepcluster_service::JobContext;
use deepcluster_service::metrics::Waited;
use deepcluster_service::requests::{self, file_to_wire, volume_status};
use deepcluster_volume::npy;
use metrics::counter;
use rand::seq::SliceRandom;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use tonic::Status;
use tracing::info;

/// Most weights of all probes together; beside them lies their momentum.
const MOST_NUMBERS: u64 = 1 << 30;

/// Views of one image with ten crops.
pub(crate) const TEN: usize = 10;

/// Images with true classes.
struct Classified {
    pictures: Pictures,
    classes: Vec<i32>,
    /// Rows that take part.
    rows: Vec<usize>,
}

impl Classified {
    fn of(place: &Place, images: Option<&ClassifiedImages>, n_classes: u32) -> Result<Self, Status> {
        let images = images.ok_or_else(|| FieldError::new("images", "is missing"))?;
        let pictures = Pictures::of(place, images.images.as_ref(), &images.digests, &images.cache)?;
        let classes = requests::verified(&place.volume, "images.classes", images.classes.as_ref())?;
        let classes = npy::read_i32(&classes).map_err(|error| volume_status(&error))?;
        if classes.len() != pictures.entries.len() || classes.iter().any(|class| *class >= n_classes as i32) {
            return Err(FieldError::new("images.classes", "are not those of these images and n_classes").into());
        }
        let takes_part = |row: &usize| pictures.entries[*row].skipped.is_none() && classes[*row] >= 0;
        let rows: Vec<usize> = (0..classes.len()).filter(takes_part).collect();
        if rows.is_empty() {
            return Err(FieldError::new("images", "none of them can be read").into());
        }
        Ok(Self { pictures, classes, rows })
    }
}

/// Teaches probes and publishes them.
pub(crate) fn probe(place: &Place, request: &ProbeRequest, context: &JobContext<TrainSaved>) -> Result<ProbeResult, Status> {
    let spec = requests::network_spec(request.network.as_ref(), request.seed)?;
    let output = requests::output(&place.volume, &request.output)?;
    let (layers, options) = options(request.probes.as_ref())?;
    in_range("batch", u64::from(request.batch), 2, 65_536)?;
    in_range("epochs", u64::from(request.epochs), 1, 100_000)?;
    let mut saver = Saver::of(&place.volume, &request.save_every, &request.save_to)?;
    let images = Arc::new(Classified::of(place, request.images.as_ref(), options.n_classes)?);
    images.pictures.check_there()?;
    let total = images.rows.len() as u64 * u64::from(request.epochs);
    tell(context, "load", 0, total, 0.0)?;
    let saved = left_off(place, request.saved.as_ref())?;
    let network = frozen(place, &spec, request.network.as_ref())?;
    let taps = taps(&network, layers)?;
    let seeds = Seeds::new(request.seed, EpochId(0));
    let (mut probes, mut progress) = Probes::new(network, taps, options, seeds, saved.as_deref()).map_err(status)?;

    let batch = request.batch as usize;
    let steps_an_epoch = images.rows.len().div_ceil(batch) as u64;
    let first_epoch = (progress.steps / steps_an_epoch) as u32;
    for epoch in first_epoch..request.epochs {
        let seeds = Seeds::new(request.seed, EpochId(epoch));
        let order = shuffled(&images.rows, seeds);
        let skip = (progress.steps - u64::from(epoch) * steps_an_epoch) as usize;
        let request_of = shifted(Arc::clone(&images), order.clone(), seeds);
        for mut batch in Waited(load(place, &spec, order.len(), batch, skip, request_of)?) {
            let done = u64::from(epoch) * order.len() as u64 + (batch.first + batch.len) as u64;
            let classes = seen_classes(&mut batch, &order, &images, &mut progress.skipped);
            // The statistics of one image are none.
            if classes.len() >= 2 {
                let losses = probes.step(&batch.pixels, &classes, progress.steps).map_err(status)?;
                progress.add(losses.iter().sum::<f64>() / losses.len().max(1) as f64, classes.len());
                counter!("deepcluster_images_total").increment(classes.len() as u64);
            }
            progress.steps += 1;
            tell(context, "images", done, total, progress.loss())?;
            if done < total {
                saver.save_if_due(progress.steps, context, |path| probes.publish(path, &progress))?;
            }
        }
        if progress.steps < u64::from(epoch + 1) * steps_an_epoch {
            return Err(Status::internal("the images ended before the epoch did; see the log of the trainer"));
        }
    }
    if progress.n_images == 0 {
        return Err(Status::invalid_argument("there was nothing to learn from: none of the images could be read"));
    }
    let digest = probes.publish(&output, &progress).map_err(status)?;
    let record = place.volume.record(&output, digest).map_err(|error| volume_status(&error))?;
    info!(epochs = request.epochs, images = progress.n_images, "probes taught");
    let skipped = skipped(progress.skipped);
    Ok(ProbeResult { probes: Some(file_to_wire(&record)), n_images: progress.n_images, skipped })
}

/// The file from which a call goes on that was interrupted before.
pub(crate) fn left_off(place: &Place, saved: Option<&v1::File>) -> Result<Option<PathBuf>, Status> {
    saved.map(|file| requests::verified(&place.volume, "saved", Some(file))).transpose()
}

/// Rows in the order of a pass.
pub(crate) fn shuffled(rows: &[usize], seeds: Seeds) -> Vec<usize> {
    let mut order = rows.to_vec();
    order.shuffle(&mut seeds.rng(Purpose::Sampling, 0));
    order
}

/// Which image is shown at which place of an order, and how.
fn shifted(images: Arc<Classified>, order: Vec<usize>, seeds: Seeds) -> impl Fn(usize) -> Request + Send + 'static {
    move |step| Request { source: Some(images.pictures.source(order[step])), view: View::Shifted { seeds, step: step as u64 } }
}

/// Classes of the images of a batch, but for those that could not be read: these go to `skipped`, and out of the batch.
fn seen_classes(batch: &mut Batch, order: &[usize], images: &Classified, skipped: &mut BTreeMap<u64, String>) -> Vec<i64> {
    let drawn = &order[batch.first..batch.first + batch.len];
    let mut classes: Vec<i64> = drawn.iter().map(|row| i64::from(images.classes[*row])).collect();
    for (at, why) in &batch.unreadable {
        skipped.entry(order[*at] as u64).or_insert_with(|| why.to_string());
    }
    drop_unreadable(batch, &mut classes);
    classes
}

/// Counts what probes get right.
pub(crate) fn score(place: &Place, request: &ScoreRequest, context: &JobContext) -> Result<ScoreResult, Status> {
    let spec = requests::network_spec(request.network.as_ref(), request.seed)?;
    let (layers, options) = options(request.probes.as_ref())?;
    in_range("batch", u64::from(request.batch), 1, 65_536)?;
    let images = Arc::new(Classified::of(place, request.images.as_ref(), options.n_classes)?);
    images.pictures.check_there()?;
    let total = images.rows.len() as u64;
    tell(context, "load", 0, total, 0.0)?;
    let trained = requests::verified(&place.volume, "trained", request.trained.as_ref())?;
    let network = frozen(place, &spec, request.network.as_ref())?;
    let taps = taps(&network, layers)?;
    let seeds = Seeds::new(request.seed, EpochId(0));
    let (probes, _) = Probes::new(network, taps, options, seeds, Some(&trained)).map_err(status)?;

    let crops = if request.ten_crops { TEN } else { 1 };
    let batch = (request.batch as usize / crops).max(1) * crops;
    let pupil = Arc::clone(&images);
    let request_of = move |at: usize| {
        let view = if crops == 1 { View::Center } else { View::TenCrop((at % crops) as u8) };
        Request { source: Some(pupil.pictures.source(pupil.rows[at / crops])), view }
    };
    let batches = load(place, &spec, images.rows.len() * crops, batch, 0, request_of)?;
    let mut sums = vec![Hits::default(); probes.layers().len()];
    let mut unread = BTreeMap::new();
    let mut n_seen = 0;
    for mut batch in Waited(batches) {
        n_seen += batch.len / crops;
        let rows = readable_rows(&mut batch, &images.rows, crops, &mut unread);
        let classes: Vec<i64> = rows.iter().map(|row| i64::from(images.classes[*row])).collect();
        if !classes.is_empty() {
            let hits = probes.hits(&batch.pixels, &classes, crops).map_err(status)?;
            for (sum, hits) in sums.iter_mut().zip(hits) {
                *sum = Hits { top1: sum.top1 + hits.top1, top5: sum.top5 + hits.top5, n: sum.n + hits.n };
            }
        }
        tell(context, "images", n_seen as u64, total, 0.0)?;
    }
    if n_seen < images.rows.len() {
        return Err(Status::internal("the images ended too early; see the log of the trainer"));
    }
    let hits = probes.layers().into_iter().zip(sums);
    let layers = hits.map(|(layer, Hits { top1, top5, n })| LayerHits { layer, top1, top5, n }).collect();
    Ok(ScoreResult { layers, skipped: skipped(unread) })
}

/// Rows of the images in a batch of views, `crops` of each, but of those that could not be read: these go to `unread`, and their
/// views out of the batch.
pub(crate) fn readable_rows(batch: &mut Batch, rows: &[usize], crops: usize, unread: &mut BTreeMap<u64, String>) -> Vec<usize> {
    let first = batch.first / crops;
    let own = &rows[first..first + batch.len / crops];
    let broken = batch.unreadable.iter().map(|(at, why)| (at / crops - first, why.to_string()));
    let broken: BTreeMap<usize, String> = broken.collect();
    // Every view of an image that cannot be read is missing.
    drop_unreadable(batch, &mut Vec::new());
    let kept = own.iter().enumerate().filter(|(at, _)| !broken.contains_key(at)).map(|(_, row)| *row).collect();
    unread.extend(broken.into_iter().map(|(at, why)| (own[at] as u64, why)));
    kept
}

/// The network for eval mode alone.
pub(crate) fn frozen(place: &Place, spec: &RunSpec, network: Option<&v1::Network>) -> Result<Network, Status> {
    loaded(place, spec, network)?.folded().map_err(status)
}

/// The network that a request names.
pub(crate) fn loaded(place: &Place, spec: &RunSpec, network: Option<&v1::Network>) -> Result<Network, Status> {
    let checkpoint = network.and_then(|network| network.checkpoint.as_ref());
    let checkpoint = checkpoint.map(|file| requests::verified(&place.volume, "network.checkpoint", Some(file))).transpose()?;
    let runtime = Runtime::prepare(spec.device, spec.precision, place.threads).map_err(status)?;
    Network::load(spec, runtime, checkpoint.as_deref()).map_err(status)
}

fn taps(network: &Network, layers: &[String]) -> Result<Vec<deepcluster_domain::Tap>, Status> {
    let tap = |name: &String| network.plan.tap(name).map_err(|error| FieldError::new("probes.layers", error).into());
    layers.iter().map(tap).collect()
}

pub(crate) fn load(
    place: &Place,
    spec: &RunSpec,
    n: usize,
    batch: usize,
    skip: usize,
    request: impl Fn(usize) -> Request + Send + 'static,
) -> Result<BatchLoader, Status> {
    let options = LoaderOptions { batch, size: spec.image_size, cache_side: spec.cache_side, threads: place.threads, skip };
    BatchLoader::start(n, request, options, None).map_err(|error| Status::resource_exhausted(error.to_string()))
}

fn options(probes: Option<&v1::Probes>) -> Result<(&[String], ProbeOptions), Status> {
    let probes = probes.ok_or_else(|| FieldError::new("probes", "is missing"))?;
    in_range("probes.n_classes", u64::from(probes.n_classes), 2, 1_000_000)?;
    in_range("probes.layers", probes.layers.len() as u64, 1, 100)?;
    in_range("probes.values", u64::from(probes.values), 1, 1_000_000)?;
    let numbers = u64::from(probes.n_classes) * u64::from(probes.values) * probes.layers.len() as u64;
    if numbers > MOST_NUMBERS {
        let why = format!("makes {numbers} weights with values and layers, more than {MOST_NUMBERS}");
        return Err(FieldError::new("probes.n_classes", why).into());
    }
    let rules = [
        ("probes.learning_rate", probes.learning_rate.is_finite() && probes.learning_rate > 0.0),
        ("probes.momentum", (0.0..1.0).contains(&probes.momentum)),
        ("probes.weight_decay", probes.weight_decay.is_finite() && probes.weight_decay >= 0.0),
    ];
    if let Some((field, _)) = rules.into_iter().find(|(_, holds)| !holds) {
        return Err(FieldError::new(field, "is out of its range").into());
    }
    let options = ProbeOptions {
        n_classes: probes.n_classes,
        values: probes.values,
        standardise: probes.standardise,
        learning_rate: probes.learning_rate,
        momentum: probes.momentum,
        weight_decay: probes.weight_decay,
    };
    Ok((&probes.layers, options))
}

pub(crate) fn in_range(field: &'static str, value: u64, least: u64, most: u64) -> Result<(), FieldError> {
    match (least..=most).contains(&value) {
        true => Ok(()),
        false => Err(FieldError::new(field, format!("must lie between {least} and {most}"))),
    }
}

pub(crate) fn skipped(skipped: BTreeMap<u64, String>) -> Vec<SkippedImage> {
    skipped.into_iter().map(|(index, reason)| SkippedImage { index, reason }).collect()
}
