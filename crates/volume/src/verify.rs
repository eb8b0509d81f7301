//! Checking what lies on a volume against what its records promise, and dropping what cannot be trusted.

use crate::events::EventLog;
use crate::image_list::ImageEntry;
use crate::pixels::PixelsFile;
use crate::publish::{self, FileRecord, TEMPORARY};
use crate::records::{
    ClusteringRecord, DigestsRecord, EpochManifest, PendingEpoch, ResolvedRecord, RunRecord, RunState, SpecRecord, VERSION,
    publish_record, read_record,
};
use crate::{EpochFolder, RunFolder, Volume, VolumeError, image_list, npy};
use deepcluster_domain::{EpochId, RunId, RunSpec};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The manifest of an epoch, once all files that it names were found to be what it says.
///
/// # Errors
/// [`VolumeError::Missing`] when it is not committed, [`VolumeError::Corrupt`] when it is damaged.
pub fn verified_epoch(volume: &Volume, folder: &EpochFolder) -> Result<EpochManifest, VolumeError> {
    let manifest: EpochManifest = read_record(&folder.epoch_json())?;
    for file in manifest.files.all() {
        volume.verified(file)?;
    }
    Ok(manifest)
}

/// What was found out about a run.
#[derive(Debug, Default)]
pub struct Report {
    /// Files that are what their records say.
    pub n_files: usize,
    /// Committed epochs whose files all are.
    pub good_epochs: Vec<EpochId>,
    /// Committed epochs that cannot be trusted.
    pub damaged_epochs: Vec<EpochId>,
    /// What is wrong; each message names its file.
    pub damage: Vec<VolumeError>,
    /// What killed processes left behind. Nobody reads it, and it goes with the next commit.
    pub leftovers: Vec<PathBuf>,
}

/// Checks everything of a run.
///
/// # Errors
/// When the volume cannot be read; damage is no error, but part of the report.
pub fn verify_run(volume: &Volume, id: &RunId) -> Result<Report, VolumeError> {
    let folder = volume.run(id);
    let mut report = Report::default();
    find_leftovers(folder.path(), &mut report.leftovers)?;
    let record = report.note(read_record::<RunRecord>(&folder.run_json()))?;
    if let Some(record) = &record {
        let spec = RunSpec::try_from(record.spec.clone()).map_err(|error| VolumeError::corrupt(&folder.run_json(), error));
        report.note(spec.map(drop))?;
        if let Some(init) = &record.resolved.init {
            report.note(volume.verified(init))?;
        }
    }
    let images = report.note(read_images(&folder, record.as_ref()))?;
    report.note(EventLog::read(&folder.events_jsonl()).map(drop))?;
    for epoch in folder.epoch_ids()? {
        report.check_epoch(volume, &folder.epoch(epoch), epoch, record.as_ref())?;
    }
    if let Some(record) = &record {
        report.check_needed(&folder, record);
    }
    if let (Some(images), Some(record)) = (&images, &record) {
        report.note(check_labels(volume, &folder, images, record, &report.good_epochs))?;
    }
    let digests = folder.digests_json();
    if digests.try_exists().map_err(VolumeError::io(&digests))?
        && let Some(digests) = report.note(read_record::<DigestsRecord>(&digests))?
    {
        for file in digests.shards.values() {
            report.note(volume.verified(file))?;
        }
    }
    Ok(report)
}

impl Report {
    /// Keeps damage as a finding; what else goes wrong ends the check.
    fn note<T>(&mut self, outcome: Result<T, VolumeError>) -> Result<Option<T>, VolumeError> {
        match outcome {
            Ok(value) => {
                self.n_files += 1;
                Ok(Some(value))
            }
            Err(error @ (VolumeError::Corrupt { .. } | VolumeError::Missing(_) | VolumeError::Outside(_))) => {
                self.damage.push(error);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The last epoch that the record counts must be there, since the run goes on from it; of a finished run also the one
    /// before, whose network the last clusters belong to.
    fn check_needed(&mut self, folder: &RunFolder, record: &RunRecord) {
        let n_needed = if record.state == RunState::Finished { 2 } else { 1 };
        for needed in (record.epochs_done.saturating_sub(n_needed)..record.epochs_done).map(EpochId) {
            if !self.good_epochs.contains(&needed) && !self.damaged_epochs.contains(&needed) {
                self.damaged_epochs.push(needed);
                self.damage.push(VolumeError::Missing(folder.epoch(needed).epoch_json()));
            }
        }
    }

    fn check_epoch(
        &mut self,
        volume: &Volume,
        folder: &EpochFolder,
        epoch: EpochId,
        record: Option<&RunRecord>,
    ) -> Result<(), VolumeError> {
        let committed = folder.epoch_json();
        let counted = record.is_some_and(|record| epoch.0 < record.epochs_done);
        if !counted && !committed.try_exists().map_err(VolumeError::io(&committed))? {
            return self.check_pending(volume, folder);
        }
        let before = self.damage.len();
        if let Some(manifest) = self.note(read_record::<EpochManifest>(&committed))? {
            for file in manifest.files.all() {
                self.note(volume.verified(file))?;
            }
        }
        let list = if self.damage.len() == before { &mut self.good_epochs } else { &mut self.damaged_epochs };
        list.push(epoch);
        Ok(())
    }

    /// An epoch that is being made: what its record names must be there.
    fn check_pending(&mut self, volume: &Volume, folder: &EpochFolder) -> Result<(), VolumeError> {
        let path = folder.pending_json();
        if !path.try_exists().map_err(VolumeError::io(&path))? {
            return Ok(());
        }
        let Some(pending) = self.note(read_record::<PendingEpoch>(&path))? else { return Ok(()) };
        let shards = pending.shards.values().map(|shard| &shard.features);
        let clustering = pending.clustering.iter().flat_map(ClusteringRecord::files);
        let so_far = pending.clustering_so_far.whiten.iter().chain(&pending.clustering_so_far.centroids);
        let training = pending.training.iter().map(|training| &training.checkpoint);
        let training_so_far = pending.training_so_far.iter().map(|training| &training.file);
        for file in shards.chain(clustering).chain(so_far).chain(training).chain(training_so_far) {
            self.note(volume.verified(file))?;
        }
        Ok(())
    }
}

/// Checks all decoded images of a volume: how many files are good, and the others with what is wrong.
///
/// # Errors
/// When the volume cannot be read.
pub fn verify_caches(volume: &Volume) -> Result<(usize, Vec<(PathBuf, VolumeError)>), VolumeError> {
    let (mut n_good, mut damaged) = (0, Vec::new());
    let list = |folder: &Path| -> Result<Vec<PathBuf>, VolumeError> {
        let found: Result<Vec<_>, _> = fs::read_dir(folder).map_err(VolumeError::io(folder))?.collect();
        Ok(found.map_err(VolumeError::io(folder))?.iter().map(fs::DirEntry::path).collect())
    };
    if !volume.caches().is_dir() {
        return Ok((0, damaged));
    }
    for cache in list(&volume.caches())?.iter().filter(|path| path.is_dir()) {
        for path in list(cache)?.into_iter().filter(|path| path.extension().is_some_and(|ending| ending == "pixels")) {
            match PixelsFile::open(&path).and_then(|file| file.check()) {
                Ok(()) => n_good += 1,
                Err(error) => damaged.push((path, error)),
            }
        }
    }
    Ok((n_good, damaged))
}

/// Drops what a report found untrustworthy: damaged epochs go, and the run is set back to its last good one, from which
/// `resume` goes on; events that cannot be read go; leftovers go. What else tells the same is made anew: `labels.csv`, and
/// `run.json` but for its last state. The caller must own the volume.
///
/// # Errors
/// When the volume cannot be written.
pub fn repair_run(volume: &Volume, id: &RunId, report: &Report) -> Result<(), VolumeError> {
    let folder = volume.run(id);
    for epoch in &report.damaged_epochs {
        publish::remove(folder.epoch(*epoch).path())?;
    }
    for left in &report.leftovers {
        publish::remove(left)?;
    }
    if EventLog::read(&folder.events_jsonl()).is_err() {
        EventLog::salvage(&folder.events_jsonl())?;
    }
    if read_record::<RunRecord>(&folder.run_json()).is_err() {
        rebuild_record(&folder, id, report.good_epochs.last().map_or(0, |last| last.0 + 1))?;
    }
    let Ok(mut record) = read_record::<RunRecord>(&folder.run_json()) else { return Ok(()) };
    let finished = record.state == RunState::Finished;
    let last = report.good_epochs.last().map_or(0, |last| last.0 + 1);
    // Epochs after one that is needed and gone are made anew with it.
    let gone = report.damaged_epochs.iter().filter(|epoch| finished && epoch.0 + 2 >= record.epochs_done).min();
    let next = gone.map_or(last, |gone| gone.0.min(last));
    if next < record.epochs_done {
        for later in folder.epoch_ids()?.into_iter().filter(|epoch| epoch.0 >= next) {
            publish::remove(folder.epoch(later).path())?;
        }
        record.epochs_done = next;
        if record.state == RunState::Finished {
            record.state = RunState::Paused;
            "damaged epochs were dropped".clone_into(&mut record.message);
        }
        publish_record(&folder.run_json(), &record)?;
    }
    if let (Ok(images), Some(last)) = (read_images(&folder, Some(&record)), EpochId(record.epochs_done).previous())
        && let Some(good) = good_labels(volume, &folder, &images, last)?
        && check_labels(volume, &folder, &images, &record, &report.good_epochs).is_err()
    {
        publish::publish_bytes(&folder.labels_csv(), &good)?;
    }
    Ok(())
}

/// Makes `run.json` anew from the events, the list of images, and what is committed. Nothing is written where one of them
/// cannot tell.
fn rebuild_record(folder: &RunFolder, id: &RunId, epochs_done: u32) -> Result<(), VolumeError> {
    let events = EventLog::read(&folder.events_jsonl())?;
    let bodies = || events.iter().filter_map(|event| serde_json::from_str::<Value>(&event.json).ok());
    let created = bodies().next().and_then(|first| serde_json::from_value::<Created>(first).ok());
    // A run that was changed later has another spec since.
    let spec = bodies().rev().find_map(|body| serde_json::from_value::<SpecRecord>(body["spec"].clone()).ok());
    let created = created.map(|created: Created| match spec {
        Some(spec) => Created { spec, ..created },
        None => created,
    });
    let Some(created) = created.filter(|created| RunSpec::try_from(created.spec.clone()).is_ok()) else { return Ok(()) };
    // A list that no event tells of may be damaged, too.
    let checksums: Vec<String> = bodies().filter_map(|body| Some(body["images_csv"].as_str()?.to_owned())).collect();
    let Some(images) = image_list::read_known(&folder.images_csv(), &checksums).ok().filter(|_| !checksums.is_empty()) else {
        return Ok(());
    };
    let (_, checksum) = image_list::to_csv(&images).map_err(VolumeError::io(&folder.images_csv()))?;
    let n_skipped = images.iter().filter(|image| image.skipped.is_some()).count();
    let last = bodies().rfind(|body| body["event"] == "run");
    let state = last.and_then(|last| serde_json::from_value::<RunState>(last["state"].clone()).ok());
    let state = match state {
        Some(ended @ (RunState::Cancelled | RunState::Failed)) => ended,
        _ if epochs_done >= created.spec.epochs => RunState::Finished,
        _ => RunState::Paused,
    };
    let record = RunRecord {
        version: VERSION,
        run_id: id.to_string(),
        created: created.time as u64,
        state,
        resolved: ResolvedRecord {
            k: created.k,
            n_images: images.len(),
            n_skipped,
            n_remarks: images.iter().filter(|image| image.remark.is_some()).count(),
            passed_over: created.passed_over,
            decoders: created.decoders,
            classes_note: created.classes_note,
            images_csv: vec![checksum],
            init: created.init,
            init_note: created.init_note,
        },
        message: "run.json was damaged, and made anew from the events".to_owned(),
        epochs_done,
        request_id: created.request_id,
        priority: created.priority,
        labels: created.labels,
        note: created.note,
        traceparent: String::new(),
        spec: created.spec,
    };
    publish_record(&folder.run_json(), &record)
}

/// What the first event of a run tells of it.
#[derive(Deserialize)]
struct Created {
    spec: SpecRecord,
    k: u32,
    time: f64,
    request_id: String,
    priority: i32,
    labels: BTreeMap<String, String>,
    note: String,
    #[serde(default)]
    init: Option<FileRecord>,
    #[serde(default)]
    passed_over: String,
    #[serde(default)]
    decoders: u32,
    #[serde(default)]
    classes_note: String,
    #[serde(default)]
    init_note: String,
}

fn read_images(folder: &RunFolder, record: Option<&RunRecord>) -> Result<Vec<ImageEntry>, VolumeError> {
    let path = folder.images_csv();
    let checksums = record.map(|record| record.resolved.images_csv.as_slice()).unwrap_or_default();
    let images = image_list::read_known(&path, checksums)?;
    match record {
        Some(record) if record.resolved.n_images != images.len() => {
            let (n_images, should) = (images.len(), record.resolved.n_images);
            Err(VolumeError::corrupt(&path, format!("lists {n_images} images, run.json says {should}")))
        }
        _ => Ok(images),
    }
}

/// What `labels.csv` should be after an epoch; none when the epoch's own files do not tell.
fn good_labels(
    volume: &Volume,
    folder: &RunFolder,
    images: &[ImageEntry],
    epoch: EpochId,
) -> Result<Option<Vec<u8>>, VolumeError> {
    // Of these two alone: checkpoints are large, and not asked for here.
    let verified = |manifest: EpochManifest| -> Result<_, VolumeError> {
        Ok((volume.verified(&manifest.files.labels)?, volume.verified(&manifest.files.distances)?))
    };
    let Ok((labels, distances)) = read_record(&folder.epoch(epoch).epoch_json()).and_then(verified) else { return Ok(None) };
    let labels = npy::read_i32(&labels)?;
    let (_, distances) = npy::read_f32(&distances)?;
    let mut text = Vec::new();
    Ok(image_list::write_labels(&mut text, images, &labels, &distances).ok().map(|()| text))
}

/// `labels.csv` must be that of the last epoch that the record counts, or of one after it: it is written before an epoch counts.
fn check_labels(
    volume: &Volume,
    folder: &RunFolder,
    images: &[ImageEntry],
    record: &RunRecord,
    good_epochs: &[EpochId],
) -> Result<(), VolumeError> {
    let path = folder.labels_csv();
    let mut candidates = good_epochs.iter().filter(|epoch| epoch.0 + 1 >= record.epochs_done).peekable();
    if record.epochs_done == 0 || candidates.peek().is_none() {
        return Ok(());
    }
    let found = fs::read(&path).map_err(VolumeError::io(&path))?;
    for epoch in candidates {
        if good_labels(volume, folder, images, *epoch)?.is_none_or(|good| good == found) {
            return Ok(());
        }
    }
    Err(VolumeError::corrupt(&path, "is not what the last epoch's labels.npy says"))
}

fn find_leftovers(folder: &Path, found: &mut Vec<PathBuf>) -> Result<(), VolumeError> {
    for entry in fs::read_dir(folder).map_err(VolumeError::io(folder))? {
        let entry = entry.map_err(VolumeError::io(folder))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with('.') && name.ends_with(TEMPORARY) {
            found.push(entry.path());
        } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            find_leftovers(&entry.path(), found)?;
        }
    }
    Ok(())
}
