//! TensorBoard's files of a run, one more after every epoch. They follow from the run and may be deleted at any time.

use crate::run::Run;
use deepcluster_domain::EpochId;
use deepcluster_report::tensorboard::{event_file, event_file_name, projection};
use deepcluster_report::{ReportError, RunView};
use deepcluster_service::requests::images_folder;
use deepcluster_volume::events::Event;
use deepcluster_volume::publish;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use tracing::warn;

/// Writes what there is to say after an epoch. What cannot be written is no reason for the run to stop.
pub(crate) fn write(run: &Run, images_root: &Path, epoch: EpochId) {
    if let Err(error) = files(run, images_root, epoch) {
        warn!(%error, run_id = %run.id, epoch = epoch.0, "TensorBoard's files are not complete");
    }
}

fn files(run: &Run, images_root: &Path, epoch: EpochId) -> Result<(), ReportError> {
    let Ok(images) = images_folder(images_root, &run.spec.images) else { return Ok(()) };
    let folder = run.folder.tensorboard();
    publish::create_folder(&folder)?;
    let record = run.record();
    // Epochs from before they were wished for, or over whose files a coordinator has died, have their scores at least.
    let events = run.events_from(0, usize::MAX);
    // When each epoch was committed, so that a file that is written again is the same.
    let times: BTreeMap<u64, f64> = events.iter().filter(|event| event.kind == "epoch").filter_map(time_of).collect();
    for scores in RunView::of(&record, &events).scores {
        let path = folder.join(event_file_name(&record, EpochId(scores.epoch)));
        let is_new = scores.epoch == epoch.0;
        if is_new || !path.is_file() {
            let time = times.get(&u64::from(scores.epoch)).copied().unwrap_or_default();
            let file = event_file(&run.folder, &images, &scores, time, is_new)?;
            publish::publish_bytes(&path, &file)?;
        }
    }
    for (name, bytes) in projection(&run.folder, &images)?.unwrap_or_default() {
        publish::publish_bytes(&folder.join(name), &bytes)?;
    }
    Ok(())
}

/// Number and time of the epoch that an event tells of.
fn time_of(event: &Event) -> Option<(u64, f64)> {
    let event: Value = serde_json::from_str(&event.json).ok()?;
    Some((event["epoch"].as_u64()?, event["time"].as_f64()?))
}
