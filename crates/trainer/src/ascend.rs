//! Pictures that excite filters, from request to result.

use crate::Place;
use crate::probe::{frozen, in_range};
use crate::train::{status, tell};
use deepcluster_domain::{EpochId, Precision, RunSpec, Seeds};
use deepcluster_network::Ascent;
use deepcluster_proto::FieldError;
use deepcluster_proto::v1::{AscendRequest, AscendResult};
use deepcluster_service::JobContext;
use deepcluster_service::requests::{self, file_to_wire, volume_status};
use deepcluster_volume::npy::{ArrayWriter, ElementType};
use tonic::Status;
use tracing::info;

/// Makes a picture of each filter and publishes them.
pub(crate) fn ascend(place: &Place, request: &AscendRequest, context: &JobContext) -> Result<AscendResult, Status> {
    let spec = requests::network_spec(request.network.as_ref(), request.seed)?;
    let output = requests::output(&place.volume, &request.output)?;
    in_range("filters", request.filters.len() as u64, 1, 100_000)?;
    in_range("steps", u64::from(request.steps), 1, 100_000)?;
    in_range("batch", u64::from(request.batch), 1, 4096)?;
    if !(request.learning_rate.is_finite() && request.learning_rate > 0.0) {
        return Err(FieldError::new("learning_rate", "is out of its range").into());
    }
    let total = request.filters.len() as u64 * u64::from(request.steps);
    tell(context, "load", 0, total, 0.0)?;
    // Gradients of pixels are too small for less.
    let spec = RunSpec { precision: Precision::F32, ..spec };
    let network = frozen(place, &spec, request.network.as_ref())?;
    let tap = network.plan.tap(&request.layer).map_err(|error| FieldError::new("layer", error))?;
    let n_filters = network.layer_shape(&tap).map_err(status)?.get(1).copied().unwrap_or(0);
    if let Some(filter) = request.filters.iter().find(|filter| i64::from(**filter) >= n_filters) {
        let why = format!("{} has {n_filters} filters, and so none of number {filter}, counted from 0", tap.name);
        return Err(FieldError::new("filters", why).into());
    }

    let seeds = Seeds::new(request.seed, EpochId(0));
    let side = network.plan.image_size as usize;
    let shape = [request.filters.len(), side, side, 3];
    let mut writer = ArrayWriter::create(&output, ElementType::F32, &shape).map_err(|error| volume_status(&error))?;
    let (mut before, mut after) = (Vec::new(), Vec::new());
    let mut done = 0;
    for filters in request.filters.chunks(request.batch as usize) {
        let mut ascent = Ascent::start(&network, &tap, filters, request.learning_rate, seeds).map_err(status)?;
        before.extend(ascent.activations().map_err(status)?);
        for _ in 0..request.steps {
            ascent.step().map_err(status)?;
            done += filters.len() as u64;
            tell(context, "ascent", done, total, 0.0)?;
        }
        after.extend(ascent.activations().map_err(status)?);
        let pixels: Vec<f32> = ascent.pixels().map_err(status)?.into_iter().map(f32::from).collect();
        writer.push(&pixels).map_err(|error| volume_status(&error))?;
    }
    let digest = writer.commit().map_err(|error| volume_status(&error))?;
    let record = place.volume.record(&output, digest).map_err(|error| volume_status(&error))?;
    info!(layer = tap.name, filters = request.filters.len(), "filters pictured");
    Ok(AscendResult { pictures: Some(file_to_wire(&record)), before, after })
}
