//! What the buttons of a run's page do.

use super::Shared;
use super::html::Failure;
use crate::actions;
use crate::run::Run;
use axum::extract::{Path, State};
use axum::response::Redirect;

/// POST /runs/{id}/pause.
pub(crate) async fn pause(State(app): Shared, Path(id): Path<String>) -> Result<Redirect, Failure> {
    let run = actions::pause(&app.runs, &id).await?;
    Ok(back_to(&run))
}

/// POST /runs/{id}/resume.
pub(crate) async fn resume(State(app): Shared, Path(id): Path<String>) -> Result<Redirect, Failure> {
    let run = actions::resume(&app.runs, &id).await?;
    Ok(back_to(&run))
}

/// POST /runs/{id}/cancel.
pub(crate) async fn cancel(State(app): Shared, Path(id): Path<String>) -> Result<Redirect, Failure> {
    let run = actions::cancel(&app.runs, &id).await?;
    Ok(back_to(&run))
}

/// The page where the button was.
fn back_to(run: &Run) -> Redirect {
    Redirect::to(&format!("/runs/{}", run.id))
}
