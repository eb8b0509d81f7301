//! A run's form on the wire.

use crate::run::Run;
use deepcluster_proto::{run_spec_to_wire, v1};
use deepcluster_volume::records::RunState;

impl Run {
    /// Its form on the wire.
    pub fn to_wire(&self) -> v1::Run {
        let record = self.record();
        v1::Run {
            run_id: self.id.to_string(),
            spec: Some(run_spec_to_wire(&self.spec)),
            state: wire_state(record.state).into(),
            message: record.message,
            epochs_done: record.epochs_done,
            k: record.resolved.k,
            n_images: record.resolved.n_images as u64,
            n_skipped: record.resolved.n_skipped as u64,
            folder: format!("runs/{}", self.id),
            priority: record.priority,
            labels: record.labels.into_iter().collect(),
            note: record.note,
            request_id: record.request_id,
            created: record.created,
            batch: self.spec.batch,
            learning_rate: self.spec.learning_rate,
            pca: self.spec.pca,
        }
    }
}

pub(crate) fn wire_state(state: RunState) -> v1::RunState {
    match state {
        RunState::Queued => v1::RunState::Queued,
        RunState::Running => v1::RunState::Running,
        RunState::Paused => v1::RunState::Paused,
        RunState::Finished => v1::RunState::Finished,
        RunState::Cancelled => v1::RunState::Cancelled,
        RunState::Failed => v1::RunState::Failed,
    }
}
