//! What commands read of a run's folder, and the one that only prints it: `labels`.

use crate::eval::subject::manifest_of;
use crate::failure::Failure;
use deepcluster_domain::EpochId;
use deepcluster_volume::image_list::ImageEntry;
use deepcluster_volume::records::{EpochManifest, RunRecord, read_record};
use deepcluster_volume::{RunFolder, VolumeError, image_list, npy, publish};
use serde_json::json;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// A committed epoch of a run folder: the last one, unless another was asked for.
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
        check_run(run)?;
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

    /// The epoch of a number; without one, the last.
    ///
    /// # Errors
    /// As [`LastEpoch::of`].
    pub fn chosen(run: &RunFolder, number: Option<u32>) -> Result<Self, Failure> {
        let Some(number) = number else { return Self::of(run) };
        check_run(run)?;
        Ok(Self { manifest: manifest_of(run, number)?, folder: run.epoch(EpochId(number)).path().to_owned() })
    }

    /// The epoch whose network computed the features that this one clustered; none before the first.
    ///
    /// # Errors
    /// When it is not there any more, or damaged.
    pub fn before(&self, run: &RunFolder) -> Result<Option<Self>, Failure> {
        let Some(before) = EpochId(self.manifest.epoch).previous() else { return Ok(None) };
        let folder = run.epoch(before);
        if !folder.epoch_json().is_file() {
            let (epoch, path) = (self.manifest.epoch, folder.epoch_json());
            return Err(Failure::usage(format!(
                "the clusters of epoch {epoch} belong to the network of the epoch before, and {} does not exist",
                path.display()
            )));
        }
        let manifest = read_record(&folder.epoch_json()).map_err(damaged)?;
        Ok(Some(Self { folder: folder.path().to_owned(), manifest }))
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

fn check_run(run: &RunFolder) -> Result<(), Failure> {
    match run.run_json().is_file() || run.events_jsonl().is_file() {
        true => Ok(()),
        false => Err(Failure::usage(format!("{} is not the folder of a run", run.path().display()))),
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
    let (images, labels) = images_and_labels(&run, &record, &last)?;
    let (_, distances) = npy::read_f32(&last.verified("distances.npy")?)?;
    if images.len() != distances.len() {
        let (list, n) = (run.images_csv(), images.len());
        return Err(Failure::usage(format!("{} lists {n} images, the distances are {}", list.display(), distances.len())));
    }
    print_header(as_json)?;
    print_rows(&images, &labels, &distances, as_json)
}

/// The images of a run, and the cluster of each in an epoch.
///
/// # Errors
/// When they are not what their records say, or not as many.
pub fn images_and_labels(run: &RunFolder, record: &RunRecord, epoch: &LastEpoch) -> Result<(Vec<ImageEntry>, Vec<i32>), Failure> {
    let images = image_list::read_known(&run.images_csv(), &record.resolved.images_csv)?;
    let labels = npy::read_i32(&epoch.verified("labels.npy")?)?;
    match images.len() == labels.len() {
        true => Ok((images, labels)),
        false => {
            let (list, n) = (run.images_csv(), images.len());
            Err(Failure::usage(format!("{} lists {n} images, the labels are {}", list.display(), labels.len())))
        }
    }
}

/// Writes what stands above the rows of [`print_rows`] to standard output.
///
/// # Errors
/// When the output is closed.
pub fn print_header(as_json: bool) -> Result<(), Failure> {
    match as_json {
        true => Ok(()),
        false => image_list::write_labels_header(&mut std::io::stdout().lock()).map_err(Failure::output),
    }
}

/// Writes path, cluster and distance of images to standard output, a line each. Of one that was skipped, JSON tells why.
///
/// # Errors
/// When the output is closed.
pub fn print_rows(images: &[ImageEntry], labels: &[i32], distances: &[f32], as_json: bool) -> Result<(), Failure> {
    let mut out = BufWriter::new(std::io::stdout().lock());
    if !as_json {
        return image_list::write_label_rows(&mut out, images, labels, distances).map_err(Failure::output);
    }
    for ((image, label), distance) in images.iter().zip(labels).zip(distances) {
        let path = String::from_utf8_lossy(&image.path);
        let kept = *label >= 0;
        let line = json!({"path": path, "cluster": kept.then_some(label), "distance": kept.then_some(distance), "skipped": image.skipped});
        writeln!(out, "{line}").map_err(Failure::output)?;
    }
    out.flush().map_err(Failure::output)
}

/// Makes sure that --to names a file, or nothing yet. Publishing renames over its target, which would take the place of a device,
/// a folder or a link.
///
/// # Errors
/// When something other than a file is there.
pub fn check_target(to: &Path) -> Result<(), Failure> {
    match std::fs::symlink_metadata(to).is_ok_and(|found| !found.is_file()) {
        true => Err(Failure::usage(format!("--to {} is there already and is not a plain file", to.display()))),
        false => Ok(()),
    }
}
