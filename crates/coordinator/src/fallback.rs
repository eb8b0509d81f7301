//! Committed epochs are verified before a run goes on from them; from damaged ones it steps back.

use crate::run::Run;
use deepcluster_domain::EpochId;
use deepcluster_volume::events::Severity;
use deepcluster_volume::verify::verified_epoch;
use deepcluster_volume::{Volume, VolumeError, publish};
use serde_json::json;

/// Where a run can go on, and why that is not where it stood, if so.
///
/// # Errors
/// When none of its epochs verifies, or the volume cannot be read.
pub(crate) fn last_good(volume: &Volume, run: &Run) -> Result<(EpochId, Option<VolumeError>), VolumeError> {
    let done = run.record().epochs_done;
    let mut next = EpochId(done);
    let mut why = None;
    // A run goes on from its last epoch; of one that is done, the epoch before is needed too, whose network the last
    // clusters belong to.
    let mut n_good = if done >= run.spec.epochs { 2 } else { 1 };
    let mut at = next;
    while let Some(last) = at.previous().filter(|_| n_good > 0) {
        at = last;
        match verified_epoch(volume, &run.folder.epoch(last)) {
            Ok(_) => n_good -= 1,
            // Older epochs are gone by design: starting all over again is for the user to say.
            Err(error) if done - last.0 > run.spec.keep_epochs.max(2) => return Err(why.unwrap_or(error)),
            Err(error @ (VolumeError::Corrupt { .. } | VolumeError::Missing(_))) => {
                why.get_or_insert(error);
                next = last;
                n_good = 1;
            }
            Err(error) => return Err(error),
        }
    }
    Ok((next, why))
}

/// Takes a run back to its last epoch that verifies. What is made anew is, from the same seed, the same.
///
/// # Errors
/// As [`last_good`]; when the volume cannot be written.
pub(crate) fn step_back(volume: &Volume, run: &Run) -> Result<(), VolumeError> {
    let (next, Some(why)) = last_good(volume, run)? else { return Ok(()) };
    let message = format!("{why}; going back to epoch {}", next.0);
    run.event("fault", Severity::Warning, json!({"epoch": next.0, "worker": "volume", "message": message}))?;
    // Damaged epochs go before the count does: a crash in between finds them missing, and comes here again.
    for damaged in run.folder.epoch_ids()?.into_iter().filter(|epoch| *epoch >= next) {
        publish::remove(run.folder.epoch(damaged).path())?;
    }
    run.update(|record| record.epochs_done = next.0)
}
