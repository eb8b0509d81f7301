//! Classification of images that may show several classes, from request to result: teaching it, and scores.

use crate::Place;
use crate::pictures::Pictures;
use crate::probe::{TEN, in_range, left_off, load, loaded, readable_rows, shuffled, skipped};
use crate::saver::Saver;
use crate::train::{drop_unreadable, status, tell};
use deepcluster_domain::{EpochId, Seeds};
use deepcluster_images::{Batch, Request, View};
use deepcluster_network::checkpoint::TrainingProgress;
use deepcluster_network::{FinetuneOptions, Finetuned, Finetuning, NetworkError, SgdOptions};
use deepcluster_proto::FieldError;
use deepcluster_proto::v1::{
    ClassifiedImages, Classifier, FinetuneRequest, FinetuneResult, PredictRequest, PredictResult, TrainSaved,
};
use deepcluster_service::JobContext;
use deepcluster_service::metrics::Waited;
use deepcluster_service::requests::{self, file_to_wire, volume_status};
use deepcluster_volume::npy;
use metrics::counter;
use std::collections::BTreeMap;
use std::sync::Arc;
use tonic::Status;
use tracing::info;

/// Images, and which of them can be read.
struct Shown {
    pictures: Pictures,
    rows: Vec<usize>,
}

impl Shown {
    fn of(place: &Place, images: Option<&ClassifiedImages>) -> Result<Self, Status> {
        let images = images.ok_or_else(|| FieldError::new("images", "is missing"))?;
        let pictures = Pictures::of(place, images.images.as_ref(), &images.digests, &images.cache)?;
        let rows: Vec<usize> = (0..pictures.entries.len()).filter(|row| pictures.entries[*row].skipped.is_none()).collect();
        if rows.is_empty() {
            return Err(FieldError::new("images", "none of them can be read").into());
        }
        Ok(Self { pictures, rows })
    }
}

/// What each image shows: `[images, n_classes]`.
fn labels(place: &Place, images: Option<&ClassifiedImages>, n: usize, n_classes: usize) -> Result<Vec<i32>, Status> {
    let file = images.and_then(|images| images.classes.as_ref());
    let path = requests::verified(&place.volume, "images.classes", file)?;
    let (shape, labels) = npy::read_i32_matrix(&path).map_err(|error| volume_status(&error))?;
    match shape == [n, n_classes] && labels.iter().all(|label| (-1..=1).contains(label)) {
        true => Ok(labels),
        false => Err(FieldError::new("images.classes", "are not those of these images and n_classes").into()),
    }
}

/// Teaches what images show and publishes what has learned.
pub(crate) fn finetune(
    place: &Place,
    request: &FinetuneRequest,
    context: &JobContext<TrainSaved>,
) -> Result<FinetuneResult, Status> {
    let spec = requests::network_spec(request.network.as_ref(), request.seed)?;
    let output = requests::output(&place.volume, &request.output)?;
    let options = options(request)?;
    in_range("batch", u64::from(request.batch), 1, 65_536)?;
    in_range("steps", request.steps, 1, 100_000_000)?;
    let mut saver = Saver::of(&place.volume, &request.save_every, &request.save_to)?;
    let images = Arc::new(Shown::of(place, request.images.as_ref())?);
    let n_classes = options.n_classes as usize;
    let labels = labels(place, request.images.as_ref(), images.pictures.entries.len(), n_classes)?;
    images.pictures.check_there()?;
    tell(context, "load", 0, request.steps, 0.0)?;
    let saved = left_off(place, request.saved.as_ref())?;
    let network = loaded(place, &spec, request.network.as_ref())?;
    let seeds = Seeds::new(request.seed, EpochId(0));
    let (mut pupil, mut progress) = Finetuning::new(network, options, seeds, saved.as_deref()).map_err(status)?;

    let batch = request.batch as usize;
    let steps_a_pass = images.rows.len().div_ceil(batch) as u64;
    while progress.steps < request.steps {
        let pass = progress.steps / steps_a_pass;
        let end = request.steps.min((pass + 1) * steps_a_pass);
        let seeds = Seeds::new(request.seed, EpochId(pass as u32));
        let mut order = shuffled(&images.rows, seeds);
        order.truncate((end - pass * steps_a_pass) as usize * batch);
        let skip = (progress.steps - pass * steps_a_pass) as usize;
        let request_of = squares(Arc::clone(&images), order.clone(), seeds);
        for mut batch in Waited(load(place, &spec, order.len(), batch, skip, request_of)?) {
            let seen = seen_labels(&mut batch, &order, &labels, n_classes, &mut progress.skipped);
            if !seen.is_empty() {
                learn(&mut pupil, &batch.pixels, &seen, n_classes, &mut progress)?;
            }
            progress.steps += 1;
            tell(context, "images", progress.steps, request.steps, progress.loss())?;
            if progress.steps < request.steps {
                saver.save_if_due(progress.steps, context, |path| pupil.publish(path, &progress))?;
            }
        }
        if progress.steps < end {
            return Err(Status::internal("the images ended before the pass did; see the log of the trainer"));
        }
    }
    if progress.n_images == 0 {
        return Err(Status::invalid_argument("there was nothing to learn from: none of the images could be read"));
    }
    let digest = pupil.publish(&output, &progress).map_err(status)?;
    let record = place.volume.record(&output, digest).map_err(|error| volume_status(&error))?;
    let (loss, n_images) = (progress.loss(), progress.n_images);
    info!(steps = progress.steps, images = n_images, loss, "network finetuned");
    Ok(FinetuneResult { trained: Some(file_to_wire(&record)), loss, n_images, skipped: skipped(progress.skipped) })
}

/// Which image is shown at which place of an order, and how.
fn squares(images: Arc<Shown>, order: Vec<usize>, seeds: Seeds) -> impl Fn(usize) -> Request + Send + 'static {
    move |step| Request { source: Some(images.pictures.source(order[step])), view: View::Square { seeds, step: step as u64 } }
}

/// What the images of a batch show, `[images, n_classes]`, but for those that could not be read: these go to `skipped`, and out of
/// the batch.
fn seen_labels(
    batch: &mut Batch,
    order: &[usize],
    labels: &[i32],
    n_classes: usize,
    skipped: &mut BTreeMap<u64, String>,
) -> Vec<i32> {
    let drawn = &order[batch.first..batch.first + batch.len];
    let unreadable: BTreeMap<usize, String> = batch.unreadable.iter().map(|(at, why)| (order[*at], why.to_string())).collect();
    drop_unreadable(batch, &mut Vec::new());
    let read = drawn.iter().filter(|row| !unreadable.contains_key(*row));
    let seen = read.flat_map(|row| &labels[row * n_classes..(row + 1) * n_classes]).copied().collect();
    for (row, why) in unreadable {
        skipped.entry(row as u64).or_insert(why);
    }
    seen
}

/// One step of SGD, and its loss.
fn learn(
    pupil: &mut Finetuning,
    pixels: &[u8],
    seen: &[i32],
    n_classes: usize,
    progress: &mut TrainingProgress,
) -> Result<(), Status> {
    let (step, n_images) = (progress.steps, seen.len() / n_classes);
    let loss = pupil.step(pixels, seen, step).map_err(status)?;
    if !loss.is_finite() {
        return Err(status(NetworkError::NotFinite { what: "the loss is", step }));
    }
    progress.add(loss, n_images);
    counter!("deepcluster_images_total").increment(n_images as u64);
    Ok(())
}

/// Most scores of a request, which are in memory together.
const MOST_SCORES: u64 = 1 << 28;

/// Scores images for each class and publishes the scores.
pub(crate) fn predict(place: &Place, request: &PredictRequest, context: &JobContext) -> Result<PredictResult, Status> {
    let spec = requests::network_spec(request.network.as_ref(), request.seed)?;
    let output = requests::output(&place.volume, &request.output)?;
    let classifier = classifier(request.classifier.as_ref())?;
    in_range("batch", u64::from(request.batch), 1, 65_536)?;
    let images = Arc::new(Shown::of(place, request.images.as_ref())?);
    images.pictures.check_there()?;
    let total = images.rows.len() as u64;
    tell(context, "load", 0, total, 0.0)?;
    let trained = requests::verified(&place.volume, "trained", request.trained.as_ref())?;
    let network = loaded(place, &spec, request.network.as_ref())?;
    let network = Finetuned::load(network, classifier.n_classes, classifier.all_layers, &trained).map_err(status)?;

    let batch = (request.batch as usize / TEN).max(1) * TEN;
    let (shown, ten_crops) = (Arc::clone(&images), request.ten_crops);
    let seeds = Seeds::new(request.seed, EpochId(0));
    let request_of = move |at: usize| {
        let view = if ten_crops { View::TenCrop((at % TEN) as u8) } else { View::Square { seeds, step: at as u64 } };
        Request { source: Some(shown.pictures.source(shown.rows[at / TEN])), view }
    };
    let n_classes = classifier.n_classes as usize;
    let n_images = images.pictures.entries.len();
    if n_images as u64 * n_classes as u64 > MOST_SCORES {
        let why = format!("{n_classes} for each of {n_images} images are more than {MOST_SCORES} scores");
        return Err(FieldError::new("classifier.n_classes", why).into());
    }
    let mut scores = vec![0.0_f32; n_images * n_classes];
    let mut unread = BTreeMap::new();
    let mut n_seen = 0;
    for mut batch in Waited(load(place, &spec, images.rows.len() * TEN, batch, 0, request_of)?) {
        n_seen += batch.len / TEN;
        let rows = readable_rows(&mut batch, &images.rows, TEN, &mut unread);
        if !rows.is_empty() {
            let found = network.scores(&batch.pixels, TEN).map_err(status)?;
            for (row, found) in rows.iter().zip(found.chunks_exact(n_classes)) {
                scores[row * n_classes..(row + 1) * n_classes].copy_from_slice(found);
            }
        }
        tell(context, "images", n_seen as u64, total, 0.0)?;
    }
    if n_seen < images.rows.len() {
        return Err(Status::internal("the images ended too early; see the log of the trainer"));
    }
    let published = npy::publish_f32(&output, &[n_images, n_classes], &scores);
    let record = published.and_then(|digest| place.volume.record(&output, digest)).map_err(|error| volume_status(&error))?;
    Ok(PredictResult { scores: Some(file_to_wire(&record)), skipped: skipped(unread) })
}

fn classifier(classifier: Option<&Classifier>) -> Result<Classifier, Status> {
    let classifier = classifier.ok_or_else(|| FieldError::new("classifier", "is missing"))?;
    in_range("classifier.n_classes", u64::from(classifier.n_classes), 1, 10_000)?;
    Ok(*classifier)
}

fn options(request: &FinetuneRequest) -> Result<FinetuneOptions, Status> {
    let Classifier { n_classes, all_layers } = classifier(request.classifier.as_ref())?;
    in_range("halve_every", request.halve_every, 1, u64::MAX)?;
    let rules = [
        ("learning_rate", request.learning_rate.is_finite() && request.learning_rate > 0.0),
        ("momentum", (0.0..1.0).contains(&request.momentum)),
        ("weight_decay", request.weight_decay.is_finite() && request.weight_decay >= 0.0),
    ];
    if let Some((field, _)) = rules.into_iter().find(|(_, holds)| !holds) {
        return Err(FieldError::new(field, "is out of its range").into());
    }
    let FinetuneRequest { learning_rate, momentum, weight_decay, halve_every, .. } = *request;
    Ok(FinetuneOptions { n_classes, all_layers, sgd: SgdOptions { learning_rate, momentum, weight_decay }, halve_every })
}
