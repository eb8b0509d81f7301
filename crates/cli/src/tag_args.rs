//! The flags that say something about a run, and those that look for it.

use crate::client::state_of;
use crate::failure::Failure;
use deepcluster_proto::tags_of;
use deepcluster_proto::v1::{CreateRunRequest, Labels, ListRunsRequest, RunSpec, UpdateRunRequest};
use std::collections::HashMap;

/// What a user says about a run.
#[derive(Clone, Debug, clap::Args)]
pub struct TagArgs {
    /// Runs of a higher priority take all turns before those of a lower one; from -1000 to 1000
    #[arg(long, value_name = "N")]
    priority: Option<i32>,
    /// A label, as KEY=VALUE; may be given many times
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
    /// A note
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
}

impl TagArgs {
    /// The request for a new run.
    ///
    /// # Errors
    /// One sentence that names the flag.
    pub fn create(self, spec: RunSpec, request_id: String) -> Result<CreateRunRequest, Failure> {
        let (priority, labels, note) = (self.priority.unwrap_or(0), labels(&self.labels)?, self.note.unwrap_or_default());
        check(priority, &labels, &note)?;
        Ok(CreateRunRequest { spec: Some(spec), request_id, priority, labels, note })
    }

    /// The request to change what is said about a run; labels take the place of those that it has.
    ///
    /// # Errors
    /// One sentence that names the flag.
    pub fn update(self, run_id: String) -> Result<UpdateRunRequest, Failure> {
        let found = labels(&self.labels)?;
        check(self.priority.unwrap_or(0), &found, self.note.as_deref().unwrap_or_default())?;
        let labels = (!self.labels.is_empty()).then_some(Labels { labels: found });
        Ok(UpdateRunRequest { run_id, priority: self.priority, labels, note: self.note })
    }

    /// Whether there is anything to change.
    pub fn is_empty(&self) -> bool {
        self.priority.is_none() && self.labels.is_empty() && self.note.is_none()
    }
}

/// Which runs.
#[derive(Clone, Debug, clap::Args)]
pub struct FilterArgs {
    /// Only runs in this state: queued, running, paused, finished, cancelled or failed; may be given many times
    #[arg(long = "state", value_name = "STATE")]
    states: Vec<String>,
    /// Only runs with this label, as KEY=VALUE; may be given many times
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
}

impl FilterArgs {
    /// The request for their list.
    ///
    /// # Errors
    /// One sentence that names the flag.
    pub fn list(&self) -> Result<ListRunsRequest, Failure> {
        let state =
            |name: &String| state_of(name).map(i32::from).ok_or_else(|| Failure::usage(format!("--state '{name}' is no state")));
        let states = self.states.iter().map(state).collect::<Result<_, _>>()?;
        Ok(ListRunsRequest { states, labels: labels(&self.labels)?, ..ListRunsRequest::default() })
    }
}

fn labels(given: &[String]) -> Result<HashMap<String, String>, Failure> {
    let label = |text: &String| {
        let (key, value) = text.split_once('=').ok_or_else(|| Failure::usage(format!("--label '{text}' is not KEY=VALUE")))?;
        Ok((key.to_owned(), value.to_owned()))
    };
    given.iter().map(label).collect()
}

fn check(priority: i32, labels: &HashMap<String, String>, note: &str) -> Result<(), Failure> {
    tags_of(priority, labels.clone(), note.to_owned()).map(drop).map_err(|error| Failure::usage(format!("--{error}")))
}
