//! One epoch of training, from request to result.

use crate::Place;
use crate::pictures::Pictures;
use crate::probe::{load, skipped};
use crate::saver::Saver;
use deepcluster_domain::{EpochId, RunSpec, Seeds};
use deepcluster_images::{Batch, Request, View, sampler};
use deepcluster_network::checkpoint::TrainingProgress;
use deepcluster_network::{Network, NetworkError, Runtime, SgdOptions, TrainingPass};
use deepcluster_proto::FieldError;
use deepcluster_proto::v1::{File, Progress, TrainRequest, TrainResult, TrainSaved};
use deepcluster_service::JobContext;
use deepcluster_service::metrics::Waited;
use deepcluster_service::requests::{self, file_to_wire, volume_status};
use deepcluster_volume::lineage_record::LineageRecord;
use deepcluster_volume::npy;
use deepcluster_volume::records::read_record;
use metrics::{counter, gauge, histogram};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Instant;
use tonic::Status;
use tracing::info;

/// Trains one epoch and publishes its checkpoint.
pub(crate) fn train(place: &Place, request: &TrainRequest, context: &JobContext<TrainSaved>) -> Result<TrainResult, Status> {
    requests::run_and_epoch(&request.run_id, request.epoch)?;
    let spec = requests::network_spec(request.network.as_ref(), request.seed)?;
    let output = requests::output(&place.volume, &request.output)?;
    let sgd = sgd_of(request)?;
    let mut saver = Saver::of(&place.volume, &request.save_every, &request.save_to)?;
    let lesson = Arc::new(Lesson::of(place, request)?);
    lesson.pictures.check_there()?;
    let total = lesson.order.len() as u64;
    tell(context, "load", 0, total, 0.0)?;

    let (mut pass, mut progress) = begin(place, request, &spec, sgd, lesson.seeds)?;
    let (n_drawn, batch, pupil) = (lesson.order.len(), request.batch as usize, Arc::clone(&lesson));
    let batches = load(place, &spec, n_drawn, batch, progress.steps as usize, move |step| pupil.request(step))?;
    let mut reads = lesson.pictures.unfit.clone();
    for (step, mut batch) in (progress.steps..).zip(Waited(batches)) {
        reads += std::mem::take(&mut batch.reads);
        let done = (batch.first + batch.len) as u64;
        let targets = lesson.targets(&mut batch, &mut progress.skipped);
        // Batch norm cannot learn from one image.
        if targets.len() >= 2 {
            learn(&mut pass, &batch.pixels, &targets, step, &mut progress)?;
            if done >= total {
                pass.check_features(&batch.pixels).map_err(status)?;
            }
        }
        progress.steps = step + 1;
        gauge!("deepcluster_loss").set(progress.loss());
        tell(context, "images", done, total, progress.loss())?;
        if done < total {
            saver.save_if_due(progress.steps, context, |path| pass.save(path, &progress))?;
        }
    }
    lesson.check_taught(&progress, request.batch)?;
    let loss = progress.loss();
    tell(context, "write", total, total, loss)?;
    let digest = pass.publish(&output).map_err(status)?;
    let record = place.volume.record(&output, digest).map_err(|error| volume_status(&error))?;
    info!(epoch = request.epoch, images = progress.n_images, loss, "epoch trained");
    let reads = Some(requests::reads_to_wire(&place.volume, reads.decoded, reads.cached, &reads.unfit));
    let (n_images, skipped) = (progress.n_images, skipped(progress.skipped));
    Ok(TrainResult { checkpoint: Some(file_to_wire(&record)), loss, n_images, skipped, reads })
}

/// One step of SGD, and its loss.
fn learn(
    pass: &mut TrainingPass,
    pixels: &[u8],
    targets: &[i64],
    step: u64,
    progress: &mut TrainingProgress,
) -> Result<(), Status> {
    let start = Instant::now();
    let loss = pass.step(pixels, targets, step).map_err(status)?;
    histogram!("deepcluster_step_seconds").record(start.elapsed());
    counter!("deepcluster_images_total").increment(targets.len() as u64);
    if !loss.is_finite() {
        return Err(status(NetworkError::NotFinite { what: "the loss is", step }));
    }
    progress.add(loss, targets.len());
    Ok(())
}

/// The network and its optimizer as the epoch finds them, or as an interrupted call has left them, and how far that was.
fn begin(
    place: &Place,
    request: &TrainRequest,
    spec: &RunSpec,
    sgd: SgdOptions,
    seeds: Seeds,
) -> Result<(TrainingPass, TrainingProgress), Status> {
    let verified = |field, file: Option<&File>| file.map(|file| requests::verified(&place.volume, field, Some(file))).transpose();
    let checkpoint = verified("network.checkpoint", request.network.as_ref().and_then(|network| network.checkpoint.as_ref()))?;
    let saved = verified("saved", request.saved.as_ref())?;
    let runtime = Runtime::prepare(spec.device, spec.precision, place.threads).map_err(status)?;
    let network = Network::load(spec, runtime, saved.as_deref().or(checkpoint.as_deref())).map_err(status)?;
    match &saved {
        Some(saved) => TrainingPass::go_on(network, request.k, sgd, seeds, saved).map_err(status),
        None => {
            let kept = kept_rows(place, request)?;
            let pass = TrainingPass::start(network, request.k, sgd, seeds, checkpoint.as_deref(), &kept).map_err(status)?;
            Ok((pass, TrainingProgress::default()))
        }
    }
}

/// For each cluster the one of the epoch before whose row of the top layer it takes over; nothing when all are drawn anew.
fn kept_rows(place: &Place, request: &TrainRequest) -> Result<Vec<Option<u32>>, Status> {
    let Some(file) = &request.lineage else { return Ok(Vec::new()) };
    let path = requests::verified(&place.volume, "lineage", Some(file))?;
    let lineage: LineageRecord = read_record(&path).map_err(|error| volume_status(&error))?;
    if lineage.clusters.len() != request.k as usize {
        return Err(FieldError::new("lineage", format!("is of {} clusters, not of k", lineage.clusters.len())).into());
    }
    Ok(lineage.clusters.into_iter().map(|cluster| cluster.from).collect())
}

/// Which images are shown in which order, and as what.
struct Lesson {
    pictures: Pictures,
    labels: Vec<i32>,
    /// Rows of the images.
    order: Vec<usize>,
    seeds: Seeds,
}

impl Lesson {
    fn of(place: &Place, request: &TrainRequest) -> Result<Self, Status> {
        let pictures = Pictures::of(place, request.images.as_ref(), &request.digests, &request.cache)?;
        let labels = requests::verified(&place.volume, "labels", request.labels.as_ref())?;
        let labels = npy::read_i32(&labels).map_err(|error| volume_status(&error))?;
        if labels.len() != pictures.entries.len() || labels.iter().any(|label| *label >= request.k as i32) {
            return Err(FieldError::new("labels", "are not those of these images and k").into());
        }
        let seeds = Seeds::new(request.seed, EpochId(request.epoch)).retried(request.retry);
        let order = sampler::uniform_over_clusters(&labels, request.reassign, seeds);
        Ok(Self { pictures, labels, order, seeds })
    }

    /// The image that is shown at a place of the order.
    fn request(&self, step: usize) -> Request {
        let source = self.pictures.source(self.order[step]);
        Request { source: Some(source), view: View::Random { seeds: self.seeds, step: step as u64 } }
    }

    /// Labels of a batch, but for images that could not be read: these go to `skipped`, and out of the batch.
    fn targets(&self, batch: &mut Batch, skipped: &mut BTreeMap<u64, String>) -> Vec<i64> {
        let drawn = &self.order[batch.first..batch.first + batch.len];
        let mut targets: Vec<i64> = drawn.iter().map(|image| i64::from(self.labels[*image])).collect();
        // An image may be drawn many times.
        for (at, why) in &batch.unreadable {
            skipped.entry(self.order[*at] as u64).or_insert_with(|| why.to_string());
        }
        drop_unreadable(batch, &mut targets);
        targets
    }

    /// Whether everything was shown, and something learned.
    fn check_taught(&self, progress: &TrainingProgress, batch: u32) -> Result<(), Status> {
        if progress.steps < self.order.len().div_ceil(batch as usize) as u64 {
            return Err(Status::internal("the images ended before the epoch did; see the log of the trainer"));
        }
        if !progress.skipped.is_empty() {
            self.pictures.check_there()?;
        }
        if progress.n_images == 0 {
            return Err(Status::invalid_argument("there was nothing to train on: of the images drawn, none could be read"));
        }
        Ok(())
    }
}

fn sgd_of(request: &TrainRequest) -> Result<SgdOptions, FieldError> {
    let rules = [
        ("k", (1..=10_000_000).contains(&request.k)),
        ("batch", (2..=65_536).contains(&request.batch)),
        ("learning_rate", request.learning_rate.is_finite() && request.learning_rate > 0.0),
        ("momentum", (0.0..1.0).contains(&request.momentum)),
        ("weight_decay", request.weight_decay.is_finite() && request.weight_decay >= 0.0),
        ("reassign", request.reassign > 0.0 && request.reassign <= 100.0),
    ];
    if let Some((field, _)) = rules.into_iter().find(|(_, holds)| !holds) {
        return Err(FieldError::new(field, "is out of its range"));
    }
    Ok(SgdOptions { learning_rate: request.learning_rate, momentum: request.momentum, weight_decay: request.weight_decay })
}

/// Closes the gaps that unreadable images leave in a batch.
pub(crate) fn drop_unreadable(batch: &mut Batch, targets: &mut Vec<i64>) {
    if batch.unreadable.is_empty() {
        return;
    }
    let gone: HashSet<usize> = batch.unreadable.iter().map(|(at, _)| at - batch.first).collect();
    let image_bytes = batch.pixels.len() / batch.len;
    let images = batch.pixels.chunks_exact(image_bytes).enumerate().filter(|(row, _)| !gone.contains(row));
    batch.pixels = images.flat_map(|(_, pixels)| pixels.iter().copied()).collect();
    let mut row = 0;
    targets.retain(|_| {
        row += 1;
        !gone.contains(&(row - 1))
    });
}

pub(crate) fn tell<S>(context: &JobContext<S>, phase: &str, done: u64, total: u64, loss: f64) -> Result<(), Status> {
    context.progress(Progress { phase: phase.to_owned(), done, total, loss })
}

pub(crate) fn status(error: NetworkError) -> Status {
    match &error {
        NetworkError::Volume(error) => volume_status(error),
        NetworkError::NotFinite { .. } => Status::out_of_range(error.to_string()),
        _ => requests::work_status(&error, error.is_callers_fault()),
    }
}
