//! What `resume` changes of a run before it goes on: where its images lie now, and how many epochs it is to have.

use crate::failure::Failure;
use crate::train::images_below_root;
use deepcluster_domain::{RunId, RunSpec};
use deepcluster_images::decode::{self, Expected, UNKNOWN};
use deepcluster_images::find::check_there;
use deepcluster_volume::digests::known_digests;
use deepcluster_volume::events::{EventLog, Severity};
use deepcluster_volume::image_list::{self, ImageEntry};
use deepcluster_volume::lock::VolumeLock;
use deepcluster_volume::records::{RunRecord, RunState, publish_record, read_record};
use deepcluster_volume::{RunFolder, Volume};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Images whose content is compared with what the run has read.
const COMPARED: usize = 64;

/// How long an owner of the volume may have been silent before its run is changed under it.
const PATIENCE: Duration = Duration::from_secs(15);

/// Changes to a run.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct RunChanges {
    /// Where the images of the run lie now, if they were moved
    #[arg(long, value_name = "FOLDER")]
    images: Option<PathBuf>,
    /// How many epochs the run is to have in all; a finished run goes on
    #[arg(long, value_name = "N")]
    epochs: Option<u32>,
}

impl RunChanges {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.images.is_none() && self.epochs.is_none()
    }

    /// Changes a run of a volume that no coordinator owns; without a name, the only one.
    ///
    /// # Errors
    /// When the volume is in use, the run is not there or has so many epochs already, or the images are others.
    pub fn apply(&self, volume: &Volume, run: Option<&str>) -> Result<RunId, Failure> {
        let ids = volume.run_ids()?;
        let id = match (run, ids.as_slice()) {
            (Some(name), _) => ids.iter().find(|id| id.as_str() == name),
            (None, [only]) => Some(only),
            (None, _) => return Err(Failure::usage(format!("{} has several runs; name one", volume.root().display()))),
        };
        let id = id.ok_or_else(|| Failure::usage(format!("{} has no such run", volume.root().display())))?;
        let _owned = VolumeLock::take(volume.root(), PATIENCE)?;
        let folder = volume.run(id);
        let mut record: RunRecord = read_record(&folder.run_json())?;
        if record.state == RunState::Cancelled {
            return Err(Failure::usage(format!("{id} is cancelled, and does not go on")));
        }
        let mut message = Vec::new();
        if let Some(images) = &self.images {
            check_same(&folder, &record, images)?;
            record.spec.images = images_below_root(images)?;
            message.push(format!("the images lie in {} now", images.display()));
        }
        if let Some(epochs) = self.epochs {
            if epochs <= record.epochs_done {
                return Err(Failure::usage(format!("--epochs {epochs}: {id} has {} epochs already", record.epochs_done)));
            }
            message.push(format!("{epochs} epochs in all, instead of {}", record.spec.epochs));
            record.spec.epochs = epochs;
        }
        if record.state == RunState::Finished && record.spec.epochs > record.epochs_done {
            record.state = RunState::Paused;
        }
        RunSpec::try_from(record.spec.clone()).map_err(|error| Failure::usage(error.to_string()))?;
        record.message = message.join("; ");
        publish_record(&folder.run_json(), &record)?;
        let (mut log, _) = EventLog::open(&folder.events_jsonl())?;
        log.append("run", Severity::Info, json!({"state": record.state, "message": record.message, "spec": record.spec}))?;
        Ok(id.clone())
    }
}

/// Makes sure that a folder holds the images of a run: that some of them are there, and with the content that the run has read.
fn check_same(folder: &RunFolder, record: &RunRecord, images: &Path) -> Result<(), Failure> {
    let wrong = |why: String| Failure::usage(format!("--images {why}"));
    let entries = image_list::read_known(&folder.images_csv(), &record.resolved.images_csv)?;
    check_there(images, &entries).map_err(|error| wrong(error.to_string()))?;
    let digests = known_digests(folder, record.spec.shard_images as usize, entries.len());
    let takes_part = |row: &usize| entries[*row].skipped.is_none();
    let rows: Vec<usize> = (0..entries.len()).filter(takes_part).collect();
    let mut content = Vec::new();
    for row in rows.iter().step_by(rows.len().div_ceil(COMPARED).max(1)) {
        let entry: &ImageEntry = &entries[*row];
        let expected = Expected { bytes: entry.bytes, digest: digests.get(*row).copied().unwrap_or(UNKNOWN) };
        let path = images.join(entry.as_path());
        decode::read(&path, Some(expected), &mut content).map_err(|why| wrong(format!("{}: {why}", path.display())))?;
    }
    Ok(())
}
