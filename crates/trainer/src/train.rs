//! One epoch of training, from request to result.

use crate::Place;
use deepcluster_domain::{EpochId, Seeds};
use deepcluster_images::{Batch, BatchLoader, Request, View, sampler};
use deepcluster_network::{Network, NetworkError, Runtime, SgdOptions, TrainingPass};
use deepcluster_proto::FieldError;
use deepcluster_proto::v1::{Progress, SkippedImage, TrainRequest, TrainResult};
use deepcluster_service::JobContext;
use deepcluster_service::requests::{self, file_to_wire, volume_status};
use deepcluster_volume::{image_list, npy};
use std::collections::{BTreeMap, HashSet};
use tonic::Status;
use tracing::info;

/// Trains one epoch and publishes its checkpoint.
pub(crate) fn train(place: &Place, request: &TrainRequest, context: &JobContext) -> Result<TrainResult, Status> {
    requests::run_and_epoch(&request.run_id, request.epoch)?;
    let spec = requests::network_spec(request.network.as_ref(), request.seed)?;
    let output = requests::output(&place.volume, &request.output)?;
    let sgd = sgd_of(request)?;
    let images = request.images.as_ref().ok_or_else(|| FieldError::new("images", "is missing"))?;
    let folder = requests::images_folder(&place.images, &images.root)?;
    let list = requests::verified(&place.volume, "images.list", images.list.as_ref())?;
    let entries = image_list::read(&list).map_err(|error| volume_status(&error))?;
    let labels = requests::verified(&place.volume, "labels", request.labels.as_ref())?;
    let labels = npy::read_i32(&labels).map_err(|error| volume_status(&error))?;
    if labels.len() != entries.len() || labels.iter().any(|label| *label >= request.k as i32) {
        return Err(FieldError::new("labels", "are not those of these images and k").into());
    }
    let seeds = Seeds::new(request.seed, EpochId(request.epoch));
    let order = sampler::uniform_over_clusters(&labels, request.reassign, seeds);
    let total = order.len() as u64;
    tell(context, "load", 0, total, 0.0)?;

    let checkpoint = request.network.as_ref().and_then(|network| network.checkpoint.as_ref());
    let checkpoint = checkpoint.map(|file| requests::verified(&place.volume, "network.checkpoint", Some(file))).transpose()?;
    let runtime = Runtime::prepare(spec.device, spec.precision, place.threads).map_err(status)?;
    let network = Network::load(&spec, runtime, checkpoint.as_deref()).map_err(status)?;
    let mut pass = TrainingPass::start(network, request.k, sgd, seeds, checkpoint.as_deref()).map_err(status)?;
    let wanted = order.iter().enumerate().map(|(step, image)| Request {
        path: Some(folder.join(entries[*image].as_path())),
        view: View::Random { seeds, step: step as u64 },
    });
    let batches = BatchLoader::start(wanted.collect(), request.batch as usize, spec.image_size, place.threads)
        .map_err(|error| Status::resource_exhausted(error.to_string()))?;

    let mut skipped = BTreeMap::new();
    let (mut loss_sum, mut n_images) = (0.0, 0_u64);
    for (step, mut batch) in (0_u64..).zip(batches) {
        let mut targets: Vec<i64> =
            order[batch.first..batch.first + batch.len].iter().map(|image| i64::from(labels[*image])).collect();
        // An image may be drawn many times.
        for (at, why) in &batch.unreadable {
            skipped.entry(order[*at]).or_insert_with(|| why.to_string());
        }
        drop_unreadable(&mut batch, &mut targets);
        // Batch norm cannot learn from one image.
        if targets.len() >= 2 {
            let loss = pass.step(&batch.pixels, &targets, step).map_err(status)?;
            if !loss.is_finite() {
                return Err(status(NetworkError::NotFinite { step }));
            }
            loss_sum += loss * targets.len() as f64;
            n_images += targets.len() as u64;
        }
        tell(context, "images", (batch.first + batch.len) as u64, total, loss_sum / n_images.max(1) as f64)?;
    }
    if n_images == 0 {
        return Err(Status::failed_precondition("there was nothing to train on: of the images drawn, none could be read"));
    }
    tell(context, "write", total, total, loss_sum / n_images as f64)?;
    let digest = pass.publish(&output).map_err(status)?;
    let record = place.volume.record(&output, digest).map_err(|error| volume_status(&error))?;
    let loss = loss_sum / n_images as f64;
    info!(epoch = request.epoch, images = n_images, loss, "epoch trained");
    let skipped = skipped.into_iter().map(|(index, reason)| SkippedImage { index: index as u64, reason }).collect();
    Ok(TrainResult { checkpoint: Some(file_to_wire(&record)), loss, n_images, skipped })
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
fn drop_unreadable(batch: &mut Batch, targets: &mut Vec<i64>) {
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

fn tell(context: &JobContext, phase: &str, done: u64, total: u64, loss: f64) -> Result<(), Status> {
    context.progress(Progress { phase: phase.to_owned(), done, total, loss })
}

fn status(error: NetworkError) -> Status {
    if let NetworkError::Volume(error) = &error {
        return volume_status(error);
    }
    requests::work_status(&error, error.is_callers_fault())
}
