//! The end of an epoch: its scores, its manifest, and everything that follows from a commit.

use crate::epoch::{EpochRunner, failed};
use crate::run::Run;
use deepcluster_domain::{EpochId, health, scores};
use deepcluster_images::folder_classes;
use deepcluster_report::view::RunView;
use deepcluster_volume::events::Severity;
use deepcluster_volume::records::{EpochFiles, EpochManifest, EpochScores, RunState, VERSION, publish_record, read_record};
use deepcluster_volume::{FileRecord, Volume, VolumeError, image_list, npy, publish};
use metrics::{counter, gauge};
use serde_json::json;
use tonic::Status;
use tracing::info;

impl EpochRunner<'_> {
    /// Scores the epoch and writes its manifest, once every file of it was verified.
    pub(crate) fn commit(self) -> Result<EpochScores, Status> {
        let pending = self.pending();
        let (Some(clustering), Some(training)) = (&pending.clustering, &pending.training) else {
            return Err(Status::internal("commit of an unfinished epoch"));
        };
        let volume = &self.workshop.volume;
        let read_labels = |record: &FileRecord| volume.verified(record).and_then(|path| npy::read_i32(&path)).map_err(failed);
        let labels = read_labels(&clustering.labels)?;
        let last = self.last.as_ref().map(|last| read_labels(&last.files.labels)).transpose()?;
        let classes = folder_classes(&self.images, self.spec.classes_from);
        let occupancy = scores::occupancy(&labels);
        let scores = EpochScores {
            epoch: self.epoch.0,
            images: labels.iter().filter(|label| **label >= 0).count(),
            loss: training.loss,
            kmeans_objective: clustering.objective,
            nonempty: occupancy.nonempty,
            largest_share: occupancy.largest_share,
            effective_clusters: Some(occupancy.effective),
            nmi_last: last.map(|last| scores::nmi(&last, &labels)),
            nmi_classes: classes.as_ref().map(|classes| scores::nmi(classes, &labels)),
            ami_classes: classes.as_ref().map(|classes| scores::ami(classes, &labels)),
            nmi_chance: classes.as_ref().map(|classes| scores::nmi_chance(classes, &labels)),
            extract_s: pending.extract_s,
            cluster_s: clustering.seconds,
            train_s: training.seconds,
            reads: pending.reads,
        };
        let files = EpochFiles {
            labels: clustering.labels.clone(),
            distances: clustering.distances.clone(),
            whiten: clustering.whiten.clone(),
            centroids: clustering.centroids.clone(),
            checkpoint: training.checkpoint.clone(),
            lineage: clustering.lineage.clone(),
            whitened: clustering.whitened.clone(),
        };
        for file in files.all() {
            volume.verified(file).map_err(failed)?;
        }
        let manifest = EpochManifest { version: VERSION, epoch: self.epoch.0, files, scores: scores.clone() };
        publish_record(&self.folder.epoch_json(), &manifest).map_err(failed)?;
        Ok(scores)
    }
}

/// Everything that follows from a commit; each part may be repeated. `beside` is done before the epoch counts, and with the last one
/// the run has ended.
///
/// # Errors
/// When the volume cannot be read or written.
pub(crate) async fn after_commit(
    volume: &Volume,
    run: &Run,
    epoch: EpochId,
    scores: &EpochScores,
    beside: impl Future<Output = ()>,
) -> Result<(), VolumeError> {
    let folder = run.folder.epoch(epoch);
    let manifest: EpochManifest = read_record(&folder.epoch_json())?;
    let images = run.images()?;
    let labels = npy::read_i32(&volume.verified(&manifest.files.labels)?)?;
    let (_, distances) = npy::read_f32(&volume.verified(&manifest.files.distances)?)?;
    image_list::publish_labels(&run.folder.labels_csv(), &images, &labels, &distances)?;
    let body = serde_json::to_value(scores).map_err(|error| VolumeError::corrupt(&folder.epoch_json(), error))?;
    run.event_of_epoch(epoch, "epoch", Severity::Info, body)?;
    let view = RunView::of(&run.record(), &run.events_from(0, usize::MAX));
    warn_of(run, epoch, &view)?;
    tell(run, scores);
    beside.await;
    info!(run_id = %run.id, epoch = epoch.0, loss = scores.loss, "epoch committed");
    publish::remove(&folder.features())?;
    folder.trainings()?.iter().try_for_each(|saved| publish::remove(saved))?;
    publish::remove(&folder.pending_json())?;
    // What a killed worker had begun to write.
    publish::sweep(folder.path())?;
    remove_old_epochs(run, epoch, &view)?;
    // What a crash left of epochs that were being removed.
    publish::sweep(&run.folder.epochs())?;
    // Counted last: until then, a coordinator that starts again repeats all of the above.
    run.count_epoch(epoch)?;
    if epoch.0 + 1 >= run.spec.epochs {
        run.enter(&[RunState::Running], RunState::Finished, "")?;
    }
    Ok(())
}

/// Tells Prometheus what an epoch scored.
fn tell(run: &Run, scores: &EpochScores) {
    let run = run.id.to_string();
    counter!("deepcluster_epochs_total").increment(1);
    gauge!("deepcluster_run_loss", "run" => run.clone()).set(scores.loss);
    gauge!("deepcluster_run_kmeans_objective", "run" => run.clone()).set(scores.kmeans_objective);
    if let Some(nmi) = scores.nmi_last {
        gauge!("deepcluster_run_nmi_last", "run" => run).set(nmi);
    }
}

/// Says what should worry about the last epoch of a run; what cannot change within the run, once.
fn warn_of(run: &Run, epoch: EpochId, view: &RunView) -> Result<(), VolumeError> {
    for warning in view.assess() {
        let is_known = view.warnings.iter().any(|known| known.kind == warning.kind && known.epoch < epoch.0);
        if is_known && health::CONSTANT_KINDS.contains(&warning.kind) {
            continue;
        }
        let body = json!({"epoch": epoch.0, "kind": warning.kind, "message": warning.message, "remedy": warning.remedy});
        run.event_of_epoch(epoch, "warning", Severity::Warning, body)?;
    }
    Ok(())
}

/// Removes epochs that are neither among the last ones that stay nor the best one or that before it, whose network made its
/// clusters.
fn remove_old_epochs(run: &Run, epoch: EpochId, view: &RunView) -> Result<(), VolumeError> {
    // The last epoch's clusters belong to the network of the epoch before it, so two epochs stay in any case.
    let n_kept = run.spec.keep_epochs.max(2);
    let best = view.best().filter(|_| run.spec.keep_best).map(|(best, _)| best);
    for old in run.folder.epoch_ids()? {
        let is_new = epoch.0.saturating_sub(old.0) < n_kept;
        let is_best = best.is_some_and(|best| old.0 == best || old.0 + 1 == best);
        if !is_new && !is_best {
            publish::remove(run.folder.epoch(old).path())?;
        }
    }
    Ok(())
}
