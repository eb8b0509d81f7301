//! Commands that only read a run's folder: `labels` and `export`.

use crate::failure::{Failure, say};
use deepcluster_domain::EpochId;
use deepcluster_volume::image_list::ImageEntry;
use deepcluster_volume::records::{EpochManifest, RunRecord, read_record};
use deepcluster_volume::{RunFolder, VolumeError, image_list, npy, publish, tensors};
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The last committed epoch of a run folder.
pub struct LastEpoch {
    folder: PathBuf,
    /// Its manifest.
    pub manifest: EpochManifest,
}

impl LastEpoch {
    /// Finds it.
    ///
    /// # Errors
    /// When the folder is no run, nothing is committed yet, or what was committed last is damaged.
    pub fn of(run: &RunFolder) -> Result<Self, Failure> {
        if !run.run_json().is_file() && !run.events_jsonl().is_file() {
            return Err(Failure::usage(format!("{} is not the folder of a run", run.path().display())));
        }
        let record: RunRecord = read_record(&run.run_json())?;
        // An epoch counts from its commit on, which a coordinator that died may not have noted in run.json.
        let committed = |epoch: &EpochId| run.epoch(*epoch).epoch_json().is_file();
        let newest = run.epoch_ids()?.into_iter().rev().find(committed);
        let counted = EpochId(record.epochs_done).previous();
        let Some(epoch) = newest.max(counted) else {
            return Err(Failure::usage(format!("{} has no committed epoch yet", run.path().display())));
        };
        let folder = run.epoch(epoch);
        let manifest = read_record(&folder.epoch_json()).map_err(damaged)?;
        Ok(Self { folder: folder.path().to_owned(), manifest })
    }

    /// A file of the epoch by its own name, after it was verified against the manifest.
    ///
    /// # Errors
    /// When it is not what the manifest says.
    pub fn verified(&self, name: &str) -> Result<PathBuf, Failure> {
        let path = self.folder.join(name);
        let promised = self.manifest.files.all().into_iter().find(|file| file.path.ends_with(&format!("/{name}")));
        let found = publish::digest(&path).map_err(damaged)?;
        if promised.is_some_and(|file| file.blake3 == found.blake3) {
            Ok(path)
        } else {
            Err(damaged(VolumeError::corrupt(&path, "its checksum is not the recorded one")))
        }
    }
}

fn damaged(error: VolumeError) -> Failure {
    Failure::usage(format!("{error}; `deepcluster resume` makes a damaged epoch anew"))
}

/// Writes path, cluster and distance of every image to standard output.
///
/// # Errors
/// When the run cannot be read or the output is closed.
pub fn labels(run: &Path, as_json: bool) -> Result<(), Failure> {
    let run = RunFolder::at(run);
    let last = LastEpoch::of(&run)?;
    let record: RunRecord = read_record(&run.run_json())?;
    let images = image_list::read_known(&run.images_csv(), &record.resolved.images_csv)?;
    let labels = npy::read_i32(&last.verified("labels.npy")?)?;
    let (_, distances) = npy::read_f32(&last.verified("distances.npy")?)?;
    if images.len() != labels.len() || images.len() != distances.len() {
        let (list, n) = (run.images_csv(), images.len());
        return Err(Failure::usage(format!("{} lists {n} images, the labels are {}", list.display(), labels.len())));
    }
    print_labels(&images, &labels, &distances, as_json)
}

/// Writes path, cluster and distance of images to standard output.
///
/// # Errors
/// When the output is closed.
pub fn print_labels(images: &[ImageEntry], labels: &[i32], distances: &[f32], as_json: bool) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    if !as_json {
        return image_list::write_labels(&mut out, images, labels, distances).map_err(Failure::output);
    }
    for ((image, label), distance) in images.iter().zip(labels).zip(distances) {
        let path = String::from_utf8_lossy(&image.path);
        let kept = *label >= 0;
        let line = json!({"path": path, "cluster": kept.then_some(label), "distance": kept.then_some(distance), "skipped": image.skipped});
        writeln!(out, "{line}").map_err(Failure::output)?;
    }
    Ok(())
}

/// Writes the weights of the last committed epoch under the official names, without the optimizer's state.
///
/// # Errors
/// When the run cannot be read, the file cannot be written, or something other than a file is there.
pub fn export(run: &Path, to: &Path, as_json: bool) -> Result<(), Failure> {
    // Publishing renames over its target, which would take the place of a device, a folder or a link.
    if std::fs::symlink_metadata(to).is_ok_and(|found| !found.is_file()) {
        return Err(Failure::usage(format!("--to {} is there already and is not a plain file", to.display())));
    }
    let last = LastEpoch::of(&RunFolder::at(run))?;
    let written = tensors::copy_some(&last.verified("checkpoint.safetensors")?, to, |name| !name.starts_with("optimizer."))?;
    let epoch = last.manifest.epoch;
    if as_json {
        return say(json!({"file": to, "epoch": epoch, "bytes": written.bytes, "blake3": written.blake3}));
    }
    say(format!("wrote the weights of epoch {epoch} to {} ({} bytes)", to.display(), written.bytes))
}
