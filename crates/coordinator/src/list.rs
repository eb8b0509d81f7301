//! Which runs a client asks for, and a page of them.

use crate::run::Run;
use crate::run_wire::wire_state;
use deepcluster_domain::RunId;
use deepcluster_proto::FieldError;
use deepcluster_proto::v1::{ListRunsRequest, ListRunsResponse, RunState};
use std::sync::Arc;

/// Runs of a page when the client does not say, and the most that it gets.
const PAGE: (usize, usize) = (100, 1000);

/// The page that is asked for, of all runs in the order in which they were created.
///
/// # Errors
/// INVALID_ARGUMENT for a state that means nothing, or a token that no answer has given.
pub(crate) fn page(all: &[Arc<Run>], request: &ListRunsRequest) -> Result<ListRunsResponse, FieldError> {
    let known = |state: &i32| RunState::try_from(*state).is_ok_and(|state| state != RunState::Unspecified);
    if let Some(unknown) = request.states.iter().find(|state| !known(state)) {
        return Err(FieldError::new("states", format!("unknown value {unknown}")));
    }
    let first = match request.page_token.as_str() {
        "" => 0,
        token => 1 + after(all, token).ok_or_else(|| FieldError::new("page_token", "is none that an answer has given"))?,
    };
    let size = match request.page_size as usize {
        0 => PAGE.0,
        size => size.min(PAGE.1),
    };
    let mut found = all.iter().skip(first).filter(|run| passes(run, request));
    let runs: Vec<_> = found.by_ref().take(size).collect();
    let next_page_token = match (runs.last(), found.next()) {
        (Some(last), Some(_)) => last.id.to_string(),
        _ => String::new(),
    };
    Ok(ListRunsResponse { runs: runs.into_iter().map(|run| run.to_wire()).collect(), next_page_token })
}

/// Where the run is with which the page before ended.
fn after(all: &[Arc<Run>], token: &str) -> Option<usize> {
    let id: RunId = token.parse().ok()?;
    all.iter().position(|run| run.id == id)
}

fn passes(run: &Run, request: &ListRunsRequest) -> bool {
    let record = run.record();
    let in_state = request.states.is_empty() || request.states.contains(&wire_state(record.state).into());
    in_state && request.labels.iter().all(|(key, value)| record.labels.get(key) == Some(value))
}
