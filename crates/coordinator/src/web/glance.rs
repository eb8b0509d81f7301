//! A run at a moment: what pages show of it, and what the script keeps up to date on them.

use super::App;
use super::html::{percent, span};
use crate::run::Run;
use deepcluster_proto::v1;
use deepcluster_report::RunView;
use deepcluster_volume::records::{RunRecord, RunState};
use serde_json::{Map, Value};
use std::sync::Arc;

/// A run at a moment.
pub(crate) struct Glance {
    pub(crate) id: String,
    pub(crate) record: RunRecord,
    /// Epochs that it shall have.
    pub(crate) epochs: u32,
    /// What its events say.
    pub(crate) view: Arc<RunView>,
    /// Events so far.
    n_events: u64,
    /// The step that is under way.
    progress: Option<v1::RunProgress>,
    /// Seconds until that is done.
    step_left: Option<f64>,
}

impl App {
    /// How a run is now.
    pub(crate) fn glance(&self, run: &Run) -> Glance {
        let news = run.news().borrow().clone();
        let record = run.record();
        let progress = news.progress.filter(|_| record.state == RunState::Running);
        let step_left = progress
            .as_ref()
            .and_then(|progress| news.pace.zip(progress.progress.as_ref()))
            .and_then(|(pace, now)| pace.seconds_left(now));
        let (id, epochs, view) = (run.id.to_string(), run.spec.epochs, self.view(run));
        Glance { id, record, epochs, view, n_events: news.n_events, progress, step_left }
    }
}

impl Glance {
    /// The key under which the script knows something of this run.
    pub(crate) fn key(&self, what: &str) -> String {
        format!("{}.{what}", self.id)
    }

    /// Parts of a hundred of the epochs.
    pub(crate) fn percent(&self) -> String {
        percent(self.record.epochs_done.into(), self.epochs.into())
    }

    /// What is under way, in words; empty when nothing is.
    pub(crate) fn step(&self) -> String {
        let Some(progress) = &self.progress else { return String::new() };
        let inner = progress.progress.clone().unwrap_or_default();
        let how_far = match inner.total {
            0 => String::new(),
            total => format!(" {} of {total}", inner.done),
        };
        let loss = if inner.loss > 0.0 { format!(", loss {:.3}", inner.loss) } else { String::new() };
        format!("epoch {}, {}: {}{how_far}{loss}", progress.epoch, progress.phase, inner.phase)
    }

    /// Parts of a hundred of that; empty when nobody can tell.
    pub(crate) fn step_percent(&self) -> String {
        let inner = self.progress.as_ref().and_then(|progress| progress.progress.as_ref());
        inner.map_or_else(String::new, |inner| percent(inner.done, inner.total))
    }

    /// Time until that is done; empty when nobody can tell.
    pub(crate) fn step_left(&self) -> String {
        self.step_left.map_or_else(String::new, |seconds| format!("about {} left in this step", span(seconds)))
    }

    /// Time that the epochs take that are left, by those that are done; empty when nobody can tell.
    pub(crate) fn run_left(&self) -> String {
        let scores = &self.view.scores;
        let left = self.epochs.saturating_sub(self.record.epochs_done);
        if scores.is_empty() || left == 0 || !matches!(self.record.state, RunState::Queued | RunState::Running) {
            return String::new();
        }
        let seconds: f64 = scores.iter().map(|epoch| epoch.extract_s + epoch.cluster_s + epoch.train_s).sum();
        format!("about {} left", span(seconds / scores.len() as f64 * f64::from(left)))
    }

    /// All texts and bars that the script keeps up to date.
    pub(crate) fn values(&self, into: &mut Map<String, Value>) {
        for (what, text) in [
            ("state", self.record.state.to_string()),
            ("epochs_done", self.record.epochs_done.to_string()),
            ("bar", self.percent()),
            ("step", self.step()),
            ("step_bar", self.step_percent()),
            ("step_left", self.step_left()),
            ("run_left", self.run_left()),
        ] {
            into.insert(self.key(what), Value::String(text));
        }
    }

    /// What changes when a list of runs must be made anew.
    pub(crate) fn outline(&self) -> String {
        let record = &self.record;
        format!("{} {} {} {:?} {:?} {}", self.id, record.state, record.priority, record.labels, record.note, record.epochs_done)
    }

    /// What changes when the run's own page must be made anew.
    pub(crate) fn detail(&self) -> String {
        format!("{} {} {}", self.outline(), self.n_events, self.record.resolved.n_skipped)
    }

    /// What somebody who listens to the page is told after a change; nothing of what is small.
    pub(crate) fn news_since(&self, before: &Self) -> Option<String> {
        let (now, then) = (&self.record, &before.record);
        if now.state != then.state {
            return Some(format!("{} is {}", self.id, now.state));
        }
        if now.epochs_done != then.epochs_done {
            return Some(format!("{}: {} of {} epochs are done", self.id, now.epochs_done, self.epochs));
        }
        None
    }
}
