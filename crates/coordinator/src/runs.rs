//! All runs of the volume, and the loop that gives their epochs turns.

use crate::cache;
use crate::commit::after_commit;
use crate::epoch::{EpochRunner, Workshop};
use crate::fallback::{last_good, step_back};
use crate::images;
use crate::run::Run;
use crate::tensorboard;
use deepcluster_domain::space::{SpaceNeeded, human};
use deepcluster_domain::{EpochId, RunId};
use deepcluster_service::limits::Limits;
use deepcluster_service::requests::{is_no_room, volume_status};
use deepcluster_service::telemetry;
use deepcluster_volume::events::Severity;
use deepcluster_volume::records::RunState;
use deepcluster_volume::verify::verified_epoch;
use deepcluster_volume::{VolumeError, space};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tracing::{Instrument, error, info_span, warn};

/// Pause before an epoch is tried again whose failure could not even be written down.
const UNRECORDED_PAUSE: Duration = Duration::from_secs(5);

/// The runs of a volume.
pub struct Runs {
    /// Where their epochs are made.
    pub workshop: Workshop,
    /// The root of all folders of images.
    pub images: PathBuf,
    runs: Mutex<BTreeMap<RunId, Arc<Run>>>,
    /// Held by who creates a run. The runs themselves are not held meanwhile, or one slow disk would silence every answer.
    pub(crate) creating: Mutex<()>,
    wake: Notify,
    /// Held by who writes files for TensorBoard.
    tensorboard: Arc<tokio::sync::Mutex<()>>,
    /// How much it takes on.
    pub limits: Limits,
}

impl Runs {
    /// Reads all runs. Those that were going on wait for their turn, or for `unpause` when `paused` is set.
    ///
    /// A run that cannot be read is left out with a warning; it must not keep the others from going on.
    ///
    /// # Errors
    /// When the volume cannot be read or written.
    pub fn open(workshop: Workshop, images: PathBuf, paused: bool, limits: Limits) -> Result<Self, VolumeError> {
        let volume = &workshop.volume;
        if let Err(error) = space::set_reserve_aside(volume.root()) {
            warn!(%error, "no reserve could be set aside");
        }
        let mut runs = BTreeMap::new();
        for id in volume.run_ids()? {
            let run = match Run::open(volume, id.clone()) {
                Ok(run) => run,
                Err(error) => {
                    warn!(run_id = %id, %error, "left out: the run cannot be read");
                    continue;
                }
            };
            match run.record().state {
                RunState::Running | RunState::Queued if paused => {
                    run.enter(&[RunState::Running, RunState::Queued], RunState::Paused, "interrupted")?
                }
                RunState::Running => run.enter(&[RunState::Running], RunState::Queued, "interrupted")?,
                _ => false,
            };
            runs.insert(id, Arc::new(run));
        }
        let (runs, creating, wake, tensorboard) = (Mutex::new(runs), Mutex::default(), Notify::new(), Arc::default());
        Ok(Self { workshop, images, runs, creating, wake, tensorboard, limits })
    }

    /// One run.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for a text that is no id, NOT_FOUND for an unknown one.
    pub fn get(&self, id: &str) -> Result<Arc<Run>, Status> {
        let id: RunId = id.parse().map_err(|error| Status::invalid_argument(format!("run_id: {error}")))?;
        self.lock().get(&id).cloned().ok_or_else(|| Status::not_found(format!("there is no run {id}")))
    }

    /// All runs, oldest first.
    pub fn all(&self) -> Vec<Arc<Run>> {
        let mut runs: Vec<_> = self.lock().values().cloned().collect();
        runs.sort_by_key(|run| (run.record().created, run.id.clone()));
        runs
    }

    /// The states from which this run may go on now; its images are looked at again.
    ///
    /// A finished run may go on when one of its last epochs is damaged: it is made anew.
    ///
    /// # Errors
    /// When too many images cannot be read, or the volume cannot.
    pub fn may_resume(&self, run: &Run) -> Result<&'static [RunState], Status> {
        space::set_reserve_aside(self.workshop.volume.root()).map_err(|error| volume_status(&error))?;
        match run.record().state {
            RunState::Paused | RunState::Failed => {
                images::look_again(&self.images, &self.workshop.volume, run)?;
                Ok(&[RunState::Paused, RunState::Failed])
            }
            RunState::Finished => match last_good(&self.workshop.volume, run).map_err(|error| volume_status(&error))? {
                (_, Some(_)) => Ok(&[RunState::Finished]),
                (_, None) => Ok(&[]),
            },
            RunState::Queued | RunState::Running | RunState::Cancelled => Ok(&[]),
        }
    }

    /// Something may be runnable now.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// Gives the epochs of all runnable runs their turns, until shutdown.
    pub async fn run_epochs(&self, shutdown: &CancellationToken) {
        let mut last: Option<RunId> = None;
        while !shutdown.is_cancelled() {
            let Some(run) = self.next_run(last.as_ref()) else {
                tokio::select! {
                    () = self.wake.notified() => continue,
                    () = shutdown.cancelled() => return,
                }
            };
            last = Some(run.id.clone());
            let record = run.record();
            let span = info_span!("epoch", run = %run.id, epoch = record.epochs_done);
            telemetry::continue_traceparent(&span, &record.traceparent);
            let outcome = tokio::select! {
                outcome = self.one_epoch(&run).instrument(span) => outcome,
                // The run stays as it is on the volume; whoever starts next goes on with it.
                () = shutdown.cancelled() => return,
            };
            if let Err(status) = outcome
                && let Err(error) = self.stop(&run, &status)
            {
                error!(run_id = %run.id, %error, "the failure could not be recorded");
                tokio::time::sleep(UNRECORDED_PAUSE).await;
            }
        }
    }

    /// What becomes of a run whose epoch could not be finished.
    fn stop(&self, run: &Run, status: &Status) -> Result<(), VolumeError> {
        if is_no_room(status) {
            if cache::give_up(&self.workshop.volume, run)? {
                return run.enter(&[RunState::Running], RunState::Queued, "decoded images were removed to make room").map(drop);
            }
            return run.pause_for_room(&self.no_room(run, status.message()));
        }
        match status.code() {
            // Workers are asked again for as long as it takes; only a pause or a cancel ends a call as CANCELLED.
            tonic::Code::Cancelled => Ok(()),
            // Opened anew, the run drops what does not verify, or goes back to an epoch that does.
            tonic::Code::DataLoss if run.may_begin_anew() => {
                let body = json!({"epoch": run.record().epochs_done, "worker": "volume", "message": status.message()});
                run.event("fault", Severity::Warning, body)?;
                run.enter(&[RunState::Running], RunState::Queued, "damaged files").map(drop)
            }
            code => run.fail(status.message(), code == tonic::Code::InvalidArgument),
        }
    }

    /// How much is missing where there is no room.
    fn no_room(&self, run: &Run, message: &str) -> String {
        let record = run.record();
        let (volume, epoch) = (&self.workshop.volume, EpochId(record.epochs_done));
        let needed = SpaceNeeded::of(&run.spec, record.resolved.n_images, record.resolved.k).one_epoch();
        let needed = needed.saturating_sub(space::used(run.folder.epoch(epoch).path()));
        let free = space::available(volume.root()).unwrap_or(0);
        let (missing, needed, free) = (human(needed.saturating_sub(free)), human(needed), human(free));
        format!(
            "{message}; epoch {} needs up to {needed} more, and {free} are free: make room for {missing}, then unpause the run",
            epoch.0
        )
    }

    /// The runnable run whose turn comes after `last`: of those with the highest priority, the next one.
    fn next_run(&self, last: Option<&RunId>) -> Option<Arc<Run>> {
        let mut runnable: Vec<_> =
            self.all().into_iter().filter(|run| matches!(run.record().state, RunState::Queued | RunState::Running)).collect();
        let highest = runnable.iter().map(|run| run.record().priority).max()?;
        runnable.retain(|run| run.record().priority == highest);
        let after = runnable.iter().position(|run| Some(&run.id) == last).map_or(0, |at| at + 1);
        runnable.get(after).or_else(|| runnable.first()).cloned()
    }

    async fn one_epoch(&self, run: &Arc<Run>) -> Result<(), Status> {
        let failed = |error: VolumeError| volume_status(&error);
        if run.enter(&[RunState::Queued], RunState::Running, "").map_err(failed)? {
            step_back(&self.workshop.volume, run).map_err(failed)?;
        }
        let epochs_done = run.record().epochs_done;
        if epochs_done >= run.spec.epochs {
            // The crash came between the last count and the end.
            return run.enter(&[RunState::Running], RunState::Finished, "").map(drop).map_err(failed);
        }
        // An epoch may be committed and not yet counted, when a crash came between the two.
        let epoch = EpochId(epochs_done);
        let scores = match verified_epoch(&self.workshop.volume, &run.folder.epoch(epoch)) {
            Ok(manifest) => manifest.scores,
            Err(_) => {
                let others: Vec<String> =
                    self.all().iter().filter(|other| other.id != run.id).filter_map(|other| other.used_cache()).collect();
                EpochRunner::open(&self.workshop, run, &others)?.finish().await?
            }
        };
        let beside = async {
            if self.workshop.tensorboard {
                tensorboard::write(&self.tensorboard, run, &self.images, epoch).await;
            }
        };
        after_commit(&self.workshop.volume, run, epoch, &scores, beside).await.map_err(failed)
    }

    pub(crate) fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<RunId, Arc<Run>>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
