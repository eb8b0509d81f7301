//! TensorBoard's files of a run, one more after every epoch. They follow from the run and may be deleted at any time.

use crate::run::Run;
use deepcluster_domain::EpochId;
use deepcluster_report::tensorboard::{event_file, event_file_name, projection};
use deepcluster_report::{ReportError, RunView};
use deepcluster_service::requests::images_folder;
use deepcluster_volume::events::seconds_since_1970;
use deepcluster_volume::publish;
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
    for scores in RunView::of(&record, &run.events_from(0, usize::MAX)).scores {
        let path = folder.join(event_file_name(&record, EpochId(scores.epoch)));
        let is_new = scores.epoch == epoch.0;
        if is_new || !path.is_file() {
            let file = event_file(&run.folder, &images, &scores, seconds_since_1970(), is_new)?;
            publish::publish_bytes(&path, &file)?;
        }
    }
    for (name, bytes) in projection(&run.folder, &images)?.unwrap_or_default() {
        publish::publish_bytes(&folder.join(name), &bytes)?;
    }
    Ok(())
}
