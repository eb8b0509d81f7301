//! What commands read of a run's folder, and the one that only prints it: `labels`.

use crate::failure::Failure;
use deepcluster_domain::EpochId;
use deepcluster_volume::committed::CommittedEpoch;
use deepcluster_volume::image_list::ImageEntry;
use deepcluster_volume::names;
use deepcluster_volume::records::{RunRecord, read_record};
use deepcluster_volume::{RunFolder, image_list, npy};
use serde_json::json;
use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// The last committed epoch of a run.
///
/// # Errors
/// When the folder is no run, nothing is committed yet, or what was committed last is damaged.
pub fn last_epoch(run: &RunFolder) -> Result<CommittedEpoch, Failure> {
    check_run(run)?;
    let none = || Failure::usage(format!("{} has no committed epoch yet", run.path().display()));
    CommittedEpoch::last(run)?.ok_or_else(none)
}

/// The epoch of a number; without one, the last.
///
/// # Errors
/// As [`last_epoch`]; when the volume does not have that epoch.
pub fn chosen_epoch(run: &RunFolder, number: Option<u32>) -> Result<CommittedEpoch, Failure> {
    let Some(number) = number else { return last_epoch(run) };
    check_run(run)?;
    if !run.epoch(EpochId(number)).epoch_json().is_file() {
        let kept = run.epoch_ids()?.iter().map(EpochId::to_string).collect::<Vec<_>>().join(", ");
        let why = format!("--epoch {number} is not on the volume, which has {kept}; `train --keep-epochs` says how many stay");
        return Err(Failure::usage(why));
    }
    Ok(CommittedEpoch::of(run, EpochId(number))?)
}

/// The epoch whose network computed the features that another one clustered; none before the first.
///
/// # Errors
/// When it is not there any more, or damaged.
pub fn epoch_before(run: &RunFolder, epoch: &CommittedEpoch) -> Result<Option<CommittedEpoch>, Failure> {
    epoch.before(run).map_err(|error| {
        let number = epoch.epoch.0;
        Failure::usage(format!("the clusters of epoch {number} belong to the network of the epoch before: {error}"))
    })
}

fn check_run(run: &RunFolder) -> Result<(), Failure> {
    match run.is_there() {
        true => Ok(()),
        false => Err(Failure::usage(format!("{} is not the folder of a run", run.path().display()))),
    }
}

/// Writes path, cluster and distance of every image to standard output.
///
/// # Errors
/// When the run cannot be read or the output is closed.
pub fn labels(run: &Path, as_json: bool) -> Result<(), Failure> {
    let run = RunFolder::at(run);
    let last = last_epoch(&run)?;
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
pub fn images_and_labels(
    run: &RunFolder,
    record: &RunRecord,
    epoch: &CommittedEpoch,
) -> Result<(Vec<ImageEntry>, Vec<i32>), Failure> {
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
        let path = names::escape(&image.path);
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
        true => Err(Failure::usage(format!("{} is there already and is not a plain file", to.display()))),
        false => Ok(()),
    }
}

/// The volume and the name of a run, whose folder is `VOLUME/runs/RUN`.
///
/// # Errors
/// When the folder lies elsewhere.
pub fn volume_and_run(run_dir: &Path) -> Result<(PathBuf, String), Failure> {
    let misplaced = || Failure::usage(format!("{} does not lie in the runs of a volume", run_dir.display()));
    let real = fs::canonicalize(run_dir).map_err(|error| Failure::usage(format!("{}: {error}", run_dir.display())))?;
    let run_id = real.file_name().and_then(|name| name.to_str()).ok_or_else(misplaced)?;
    let runs = real.parent().filter(|runs| runs.ends_with("runs")).ok_or_else(misplaced)?;
    Ok((runs.parent().ok_or_else(misplaced)?.to_owned(), run_id.to_owned()))
}
