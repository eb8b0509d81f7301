//! The figures of a run, from its record and its events.

use deepcluster_domain::geometry::embedding_width;
use deepcluster_domain::health::{self, Figures, Warning};
use deepcluster_domain::trend::{EpochPoint, best_epoch, trend_warnings};
use deepcluster_domain::{Architecture, Clustering};
use deepcluster_volume::events::{Event, EventLog};
use deepcluster_volume::records::{EpochScores, RunRecord, read_record};
use deepcluster_volume::{RunFolder, VolumeError};
use serde_json::Value;
use std::collections::BTreeMap;

/// Something that the run had to tell: a warning about training, or a fault that was survived.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Notice {
    /// The epoch that it happened in.
    pub epoch: u32,
    /// Of a warning its kind, as "stuck-loss", "collapse" or "not-finite"; empty for a fault.
    pub kind: String,
    /// Of a fault who failed, as the coordinator names it; empty for a warning.
    pub worker: String,
    /// What is the matter, with figures.
    pub message: String,
    /// What to do about it; empty for a fault.
    pub remedy: String,
}

impl Notice {
    fn of(event: &Event) -> Option<Self> {
        let value: Value = serde_json::from_str(&event.json).ok()?;
        let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
        let epoch = value["epoch"].as_u64().and_then(|epoch| u32::try_from(epoch).ok()).unwrap_or_default();
        let (kind, worker) = (text("kind"), text("worker"));
        Some(Self { epoch, kind, worker, message: text("message"), remedy: text("remedy") })
    }
}

/// What the figures of a run say.
#[derive(Clone, Debug, PartialEq)]
pub struct RunView {
    /// The run's name.
    pub run_id: String,
    /// Where it stands: "queued", "running", "paused", "finished", "cancelled" or "failed".
    pub state: String,
    /// Why, where there is something to say; empty otherwise.
    pub message: String,
    /// How features become pseudo-labels.
    pub clustering: Clustering,
    /// Number of clusters; of power iteration clustering, that of the last epoch.
    pub k: u32,
    /// Dimensions that whitening is to keep.
    pub dims: u32,
    /// Images of a training step.
    pub batch: u32,
    /// Images found.
    pub n_images: usize,
    /// Images that cannot be read, of those.
    pub n_skipped: usize,
    /// Epochs that were asked for.
    pub epochs: u32,
    /// What each committed epoch scored, in order.
    pub scores: Vec<EpochScores>,
    /// Warnings about training, oldest first.
    pub warnings: Vec<Notice>,
    /// Faults that were survived, oldest first.
    pub faults: Vec<Notice>,
}

impl RunView {
    /// Reads run.json and events.jsonl of a run folder, without touching it.
    ///
    /// # Errors
    /// When one of them cannot be read or is damaged.
    pub fn read(run: &RunFolder) -> Result<Self, VolumeError> {
        let record: RunRecord = read_record(&run.run_json())?;
        Ok(Self::of(&record, &EventLog::read(&run.events_jsonl())?))
    }

    /// The same from parts that are in memory already.
    pub fn of(record: &RunRecord, events: &[Event]) -> Self {
        let mut scores: BTreeMap<u32, EpochScores> = BTreeMap::new();
        let (mut warnings, mut faults) = (Vec::new(), Vec::new());
        for event in events {
            match event.kind.as_str() {
                "epoch" => scores.extend(serde_json::from_str(&event.json).ok().map(|s: EpochScores| (s.epoch, s))),
                "warning" => warnings.extend(Notice::of(event)),
                "fault" => faults.extend(Notice::of(event)),
                _ => {}
            }
        }
        // Epochs that were damaged and gone back from have events, but are not there until they are made anew. One more than
        // the record counts may be committed.
        scores.retain(|epoch, _| *epoch <= record.epochs_done);
        // Power iteration clustering has no other number of clusters than what came out last.
        let found = || scores.last_key_value().map_or(0, |(_, scores)| scores.nonempty as u32);
        let k = if record.resolved.k == 0 { found() } else { record.resolved.k };
        Self {
            run_id: record.run_id.clone(),
            state: record.state.to_string(),
            message: record.message.clone(),
            // What cannot be read is older than the choice, or of a version to come; k-means is the recipe's.
            clustering: record.spec.clustering.parse().unwrap_or(Clustering::KMeans),
            k,
            dims: match record.spec.arch.parse::<Architecture>() {
                Ok(architecture) => record.spec.pca.min(embedding_width(architecture)),
                Err(_) => record.spec.pca,
            },
            batch: record.spec.batch,
            n_images: record.resolved.n_images,
            n_skipped: record.resolved.n_skipped,
            epochs: record.spec.epochs,
            scores: scores.into_values().collect(),
            warnings,
            faults,
        }
    }

    /// Everything that should worry about the last epoch, by itself and after those before it.
    pub fn assess(&self) -> Vec<Warning> {
        let Some(last) = self.scores.last() else { return Vec::new() };
        let figures = Figures {
            clustering: self.clustering,
            images: last.images,
            dims: self.dims,
            batch: self.batch,
            loss: last.loss,
            last_loss: self.scores.iter().rev().nth(1).map(|before| before.loss),
            k: self.k_of(last),
            largest_share: last.largest_share,
            effective_clusters: last.effective_clusters.unwrap_or(f64::INFINITY),
        };
        let mut warnings = health::warnings(&figures);
        warnings.extend(trend_warnings(self.clustering, &self.points()));
        warnings
    }

    /// The epoch whose clusters agree best with the classes, and its NMI with them; none where no classes are known.
    pub fn best(&self) -> Option<(u32, f64)> {
        best_epoch(&self.points())
    }

    fn points(&self) -> Vec<EpochPoint> {
        let point = |scores: &EpochScores| EpochPoint {
            epoch: scores.epoch,
            loss: scores.loss,
            objective: scores.kmeans_objective,
            nmi_last: scores.nmi_last,
            nmi_classes: scores.nmi_classes,
            nmi_chance: scores.nmi_chance,
        };
        self.scores.iter().map(point).collect()
    }

    /// Number of clusters of an epoch: that which was asked for, or which power iteration clustering found in it.
    pub fn k_of(&self, scores: &EpochScores) -> u32 {
        match self.clustering {
            Clustering::KMeans => self.k,
            Clustering::Pic => scores.nonempty as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{made_up_run, scores};
    use deepcluster_volume::events::Severity;
    use serde_json::json;

    #[test]
    fn the_last_word_on_an_epoch_counts_and_warnings_are_told_from_faults() {
        let folder = tempfile::tempdir().unwrap();
        let made = made_up_run(folder.path());
        let (mut log, _) = EventLog::open(&made.run.events_jsonl()).unwrap();
        let again = EpochScores { loss: 0.25, ..scores(0) };
        log.append("epoch", Severity::Info, serde_json::to_value(again).unwrap()).unwrap();
        log.append("epoch", Severity::Info, serde_json::to_value(scores(9)).unwrap()).unwrap();
        let warning = json!({"epoch": 0, "kind": "collapse", "message": "all in one", "remedy": "raise --k"});
        log.append("warning", Severity::Warning, warning).unwrap();
        log.append("fault", Severity::Warning, json!({"epoch": 1, "worker": "trainer", "message": "gone"})).unwrap();
        let view = RunView::read(&made.run).unwrap();
        assert_eq!(view.scores.iter().map(|s| (s.epoch, s.loss)).collect::<Vec<_>>(), [(0, 0.25), (1, 1.0)]);
        assert_eq!((view.warnings.len(), view.warnings[0].kind.as_str()), (1, "collapse"));
        assert_eq!((view.faults.len(), view.faults[0].worker.as_str(), view.faults[0].epoch), (1, "trainer", 1));
        assert_eq!((view.state.as_str(), view.k), ("finished", 4));
    }
}
