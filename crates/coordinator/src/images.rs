//! The images of a run: listed when it is created, looked at again when it is resumed, and how many may be unreadable.

use crate::run::Run;
use deepcluster_domain::{AutoChoice, RunSpec};
use deepcluster_images::decode::{self, DECODERS, Expected, REPLACED, UNKNOWN};
use deepcluster_images::find::describe;
use deepcluster_images::{Decoded, FindOptions, ImageSearch, class_level, find_images};
use deepcluster_service::requests::{images_folder, volume_status};
use deepcluster_volume::events::Severity;
use deepcluster_volume::image_list::{ImageEntry, TRUNCATED};
use deepcluster_volume::records::{ResolvedRecord, RunState};
use deepcluster_volume::{Volume, VolumeError, publish};
use serde_json::json;
use std::collections::HashMap;
use std::path::Path;
use tonic::Status;

/// Finds the images of a spec and settles what follows from their number.
///
/// # Errors
/// INVALID_ARGUMENT when the folder or k do not do, or too many images are unreadable.
pub(crate) fn list(
    root: &Path,
    volume: &Volume,
    spec: &mut RunSpec,
) -> Result<(Vec<ImageEntry>, ResolvedRecord, Vec<AutoChoice>), Status> {
    let ImageSearch { images, passed_over } = find(&images_folder(root, &spec.images)?, volume, spec)?;
    let (mut resolved, choices) = resolve(spec, &images)?;
    resolved.passed_over = passed_over.sentence().unwrap_or_default();
    resolved.classes_note = match class_level(&images, spec.classes_from) {
        Some(level) if level > 1 => format!("classes are the folders of level {level} (--classes-from)"),
        _ => String::new(),
    };
    Ok((images, resolved, choices))
}

fn find(folder: &Path, volume: &Volume, spec: &RunSpec) -> Result<ImageSearch, Status> {
    let options = FindOptions { include_hidden: spec.include_hidden, volume: Some(volume.root()) };
    find_images(folder, options).map_err(|error| Status::invalid_argument(error.to_string()))
}

fn resolve(spec: &mut RunSpec, images: &[ImageEntry]) -> Result<(ResolvedRecord, Vec<AutoChoice>), Status> {
    check_skipped(spec, images).map_err(Status::invalid_argument)?;
    let n_skipped = n_skipped(images);
    let resolved = spec.resolve(images.len() - n_skipped);
    let (k, choices) = resolved.map_err(|error| Status::invalid_argument(error.to_string()))?;
    let resolved = ResolvedRecord { k, n_images: images.len(), n_skipped, decoders: DECODERS, ..ResolvedRecord::default() };
    Ok((resolved, choices))
}

/// Looks again at the images of a run that is to go on, since what kept them from being read may be over: a share that was
/// away, a file that has been mended. Before the first commit of a failed run the whole folder is listed anew. Where
/// anything changed, the epoch that had begun starts again.
///
/// # Errors
/// As [`list`]; when the volume cannot be written.
pub(crate) fn look_again(root: &Path, volume: &Volume, run: &Run) -> Result<(), Status> {
    let failed = |error: VolumeError| volume_status(&error);
    note_decoders(run).map_err(failed)?;
    let record = run.record();
    let before = run.images().map_err(failed)?;
    let folder = images_folder(root, &run.spec.images)?;
    let anew = record.epochs_done == 0 && record.state == RunState::Failed;
    let mut images = if anew { list_all(&folder, volume, &run.spec, &before)? } else { before.clone() };
    let mut content = Vec::new();
    for image in images.iter_mut() {
        let Some(why) = &image.skipped else { continue };
        // Labels that the run has given belong to the file that was there before; a list made anew has given none.
        if why.starts_with(REPLACED) && !anew {
            continue;
        }
        *image = describe(&folder, image.as_path());
        let expected = Expected { bytes: image.bytes, digest: UNKNOWN };
        let path = folder.join(image.as_path());
        let read = decode::read(&path, Some(expected), &mut content).and_then(|_| decode::decode(&content));
        image.skipped = None;
        match read {
            Ok(Decoded { remark: Some(remark), .. }) => note_remark(&run.spec, image, &remark),
            Ok(_) => {}
            Err(why) => image.skipped = Some(why.to_string()),
        }
    }
    let resolved = match anew {
        // The options that were chosen stay: only k follows the new list.
        true => {
            let ResolvedRecord { k, n_images, n_skipped, .. } = resolve(&mut run.spec.clone(), &images)?.0;
            ResolvedRecord { k, n_images, n_skipped, n_remarks: 0, images_csv: Vec::new(), ..record.resolved }
        }
        // The list and k stay; too few readable images are noticed where they always are.
        false => ResolvedRecord { n_skipped: n_skipped(&images), n_remarks: n_remarks(&images), ..record.resolved },
    };
    let statuses = |images: &[ImageEntry]| images.iter().map(|image| image.skipped.is_some()).collect::<Vec<_>>();
    let same_files = images.iter().map(|image| &image.path).eq(before.iter().map(|image| &image.path));
    // Files that were replaced before anything was committed are the run's images from now on, whatever their size was.
    let unchanged = if anew { images == before } else { same_files && statuses(&images) == statuses(&before) };
    if unchanged {
        return Ok(());
    }
    publish::remove(&run.folder.epoch(deepcluster_domain::EpochId(record.epochs_done)).pending_json()).map_err(failed)?;
    if anew {
        publish::remove(&run.folder.digests_json()).map_err(failed)?;
    }
    let checksum = run.publish_images(&images, |known| *known = resolved.clone()).map_err(failed)?;
    let body = json!({"epoch": record.epochs_done, "images": resolved.n_images, "skipped_in_all": resolved.n_skipped, "images_csv": checksum});
    run.event("images", Severity::Info, body).map_err(failed)
}

/// Says once that a run goes on with other decoders than it began with.
fn note_decoders(run: &Run) -> Result<(), VolumeError> {
    let record = run.record();
    if record.resolved.decoders == DECODERS || record.epochs_done >= record.spec.epochs {
        return Ok(());
    }
    run.update(|record| record.resolved.decoders = DECODERS)?;
    let message = "this version decodes JPEGs by another library than the run began with: some pixels differ by a few levels, and so \
                   will the run's last bytes";
    run.event("images", Severity::Warning, json!({"epoch": record.epochs_done, "message": message}))
}

/// The folder as it is now; what is known to be unreadable keeps its reason, as headers alone do not tell.
fn list_all(folder: &Path, volume: &Volume, spec: &RunSpec, before: &[ImageEntry]) -> Result<Vec<ImageEntry>, Status> {
    let mut images = find(folder, volume, spec)?.images;
    let known: HashMap<&[u8], &String> =
        before.iter().filter_map(|image| Some((image.path.as_slice(), image.skipped.as_ref()?))).collect();
    for image in &mut images {
        if let Some(why) = known.get(image.path.as_slice()) {
            image.skipped.get_or_insert_with(|| (*why).clone());
        }
    }
    Ok(images)
}

/// Whether few enough images are unreadable.
///
/// # Errors
/// One sentence with the figures and an example.
pub(crate) fn check_skipped(spec: &RunSpec, images: &[ImageEntry]) -> Result<(), String> {
    check_number(spec, images.len(), n_skipped(images), &first_example(images).unwrap_or_default())
}

/// The same for a number of images.
///
/// # Errors
/// One sentence with the figures and the example.
pub(crate) fn check_number(spec: &RunSpec, n_images: usize, n_skipped: usize, example: &str) -> Result<(), String> {
    if n_skipped as f64 <= spec.max_skipped * n_images as f64 {
        return Ok(());
    }
    let most = spec.max_skipped * 100.0;
    Err(format!("{n_skipped} of {n_images} images cannot be read, more than {most} % (--max-skipped), as {example}"))
}

/// The first image that takes no part, and why.
pub(crate) fn first_example(images: &[ImageEntry]) -> Option<String> {
    images.iter().find_map(|image| Some(example(image, image.skipped.as_ref()?)))
}

/// An image and what is wrong with it.
pub(crate) fn example(image: &ImageEntry, why: &str) -> String {
    format!("'{}': {why}", image.as_path().display())
}

/// Notes what was noticed when an image was read; with it, the spec may leave it out.
pub(crate) fn note_remark(spec: &RunSpec, image: &mut ImageEntry, remark: &str) {
    if image.skipped.is_some() {
        return;
    }
    if spec.skip_truncated && remark.starts_with(TRUNCATED) {
        // Without the word that images.csv has for those that take part.
        image.skipped = Some(format!("the file is cut off: {}", remark.trim_start_matches(TRUNCATED)));
        image.remark = None;
    } else {
        image.remark = Some(remark.to_owned());
    }
}

/// The first image of which something is to be said, and what.
pub(crate) fn first_remark(images: &[ImageEntry]) -> Option<String> {
    images.iter().find_map(|image| Some(example(image, image.remark.as_ref()?)))
}

pub(crate) fn n_remarks(images: &[ImageEntry]) -> usize {
    images.iter().filter(|image| image.remark.is_some()).count()
}

pub(crate) fn n_skipped(images: &[ImageEntry]) -> usize {
    images.iter().filter(|image| image.skipped.is_some()).count()
}
