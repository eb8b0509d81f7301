//! What users do to a run, over the API or on the live page.

use crate::run::Run;
use crate::runs::Runs;
use deepcluster_service::requests::volume_status;
use deepcluster_volume::records::RunState;
use std::sync::Arc;
use tonic::Status;

/// Stops a run at once; its current epoch keeps what it has got.
///
/// # Errors
/// As [`Runs::get`]; FAILED_PRECONDITION in another state than queued and running.
pub(crate) async fn pause(runs: &Runs, id: &str) -> Result<Arc<Run>, Status> {
    let run = runs.get(id)?;
    blocking(move || change(run, &[RunState::Queued, RunState::Running], RunState::Paused)).await
}

/// Lets a run go on.
///
/// # Errors
/// As [`Runs::get`] and [`Runs::may_resume`]; FAILED_PRECONDITION when there is nothing to go on with.
pub(crate) async fn resume(runs: &Arc<Runs>, id: &str) -> Result<Arc<Run>, Status> {
    let run = runs.get(id)?;
    let all = Arc::clone(runs);
    let run = blocking(move || {
        let from = all.may_resume(&run)?;
        change(run, from, RunState::Queued)
    })
    .await?;
    runs.wake();
    Ok(run)
}

/// Ends a run for good.
///
/// # Errors
/// As [`Runs::get`]; FAILED_PRECONDITION when it is finished already. Of one that is cancelled already this is all that was wanted.
pub(crate) async fn cancel(runs: &Runs, id: &str) -> Result<Arc<Run>, Status> {
    let from = &[RunState::Queued, RunState::Running, RunState::Paused, RunState::Failed];
    let run = runs.get(id)?;
    blocking(move || match run.record().state {
        RunState::Cancelled => Ok(run),
        _ => change(run, from, RunState::Cancelled),
    })
    .await
}

/// Work that reads and writes files must not hold up the answers to other clients.
pub(crate) async fn blocking<R: Send + 'static>(work: impl FnOnce() -> Result<R, Status> + Send + 'static) -> Result<R, Status> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Status::internal(error.to_string()))?
}

fn change(run: Arc<Run>, from: &[RunState], to: RunState) -> Result<Arc<Run>, Status> {
    if run.enter(from, to, "").map_err(|error| volume_status(&error))? {
        Ok(run)
    } else {
        Err(Status::failed_precondition(format!("{} is {}", run.id, run.record().state)))
    }
}
