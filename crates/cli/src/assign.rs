//! `assign`: clusters of images that took no part in a run, by the services on this machine.

use crate::embedded::ServicesArgs;
use crate::failure::Failure;
use crate::local::{LastEpoch, print_labels};
use crate::train::with_services;
use deepcluster_proto::v1::assignment::Outcome;
use deepcluster_volume::RunFolder;
use deepcluster_volume::image_list::ImageEntry;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Prints cluster and distance of every image, as `labels` does.
///
/// # Errors
/// When the folder is no run of a volume, or an image is not there or cannot be read.
pub async fn assign(run_dir: &Path, images: &[PathBuf], as_json: bool) -> Result<(), Failure> {
    LastEpoch::of(&RunFolder::at(run_dir))?;
    let (volume, run_id) = volume_and_run(run_dir)?;
    let below_root = |image: &PathBuf| {
        let path = fs::canonicalize(image).map_err(|error| Failure::usage(format!("{}: {error}", image.display())))?;
        let bytes = path.as_os_str().as_bytes();
        Ok(bytes.strip_prefix(b"/").unwrap_or(bytes).to_vec())
    };
    let paths = images.iter().map(below_root).collect::<Result<Vec<_>, Failure>>()?;
    let assignments =
        with_services(&volume, &ServicesArgs::ONE_EACH, "", async |client, _| client.assign(run_id, paths).await).await?;
    let mut entries = Vec::new();
    let (mut labels, mut distances) = (Vec::new(), Vec::new());
    for (image, assignment) in images.iter().zip(assignments) {
        let (label, distance, skipped) = match assignment.outcome {
            Some(Outcome::Assigned(assigned)) => (assigned.cluster as i32, assigned.distance, None),
            Some(Outcome::Skipped(reason)) => (-1, f32::NAN, Some(reason)),
            None => return Err(Failure::other("the coordinator sent an empty assignment")),
        };
        let path = image.as_os_str().as_bytes().to_vec();
        entries.push(ImageEntry { path, bytes: 0, width: 0, height: 0, skipped });
        labels.push(label);
        distances.push(distance);
    }
    print_labels(&entries, &labels, &distances, as_json)?;
    match entries.iter().find_map(|entry| entry.skipped.as_ref().map(|reason| (entry, reason))) {
        None => Ok(()),
        Some((entry, reason)) => Err(Failure::usage(format!("{}: {reason}", entry.as_path().display()))),
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
