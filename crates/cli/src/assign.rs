//! `assign`: clusters of images that took no part in a run, by the services on this machine.
//!
//! Images go to the coordinator a few thousand at a time, and come out in the order in which they were named; while the
//! answers of some are printed, the next ones are on their way.

use crate::client::Client;
use crate::embedded::ServicesArgs;
use crate::failure::Failure;
use crate::local::{last_epoch, print_header, print_rows};
use crate::snapshot::Snapshot;
use crate::train::with_services;
use deepcluster_images::{FindOptions, find_images};
use deepcluster_proto::v1::Assignment;
use deepcluster_proto::v1::assignment::Outcome;
use deepcluster_volume::RunFolder;
use deepcluster_volume::image_list::ImageEntry;
use std::collections::VecDeque;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use tokio::task::JoinHandle;

/// Most images of a request.
const MOST_IMAGES: usize = 4096;

/// Most bytes of their paths, of the 4 MiB that a request may have.
const MOST_BYTES: usize = 2 << 20;

/// Requests under way: while one is in the clusterer, the next is in the extractor.
const UNDER_WAY: usize = 2;

/// An image as it was named.
struct Image {
    /// As it is printed.
    shown: PathBuf,
    /// Below the images root of the services, which is `/`.
    below_root: Vec<u8>,
    /// Named by itself, not found in a folder.
    named: bool,
}

/// Prints cluster and distance of every image, as `labels` does; of a folder, of every image below it.
///
/// # Errors
/// When the folder is no run of a volume, an image or folder is not there, or an image that was named by itself cannot be read.
pub async fn assign(run_dir: &Path, images: &[PathBuf], as_json: bool) -> Result<(), Failure> {
    last_epoch(&RunFolder::at(run_dir))?;
    let mut all = Vec::new();
    for image in images {
        all.extend(find(image)?);
    }
    // A coordinator may own the run's volume, and is not to be waited for.
    let snapshot = Snapshot::take(run_dir)?;
    let unreadable = with_services(snapshot.root(), &ServicesArgs::ONE_EACH, "", async |client, _| {
        print_header(as_json)?;
        assign_all(client, &snapshot.run_id, all, as_json).await
    })
    .await?;
    match unreadable {
        None => Ok(()),
        Some((path, reason)) => Err(Failure::usage(format!("{}: {reason}", path.display()))),
    }
}

/// The image of a path, or those of a folder.
fn find(path: &Path) -> Result<Vec<Image>, Failure> {
    let real = fs::canonicalize(path).map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?;
    let below_root = |path: &Path| {
        let bytes = path.as_os_str().as_bytes();
        bytes.strip_prefix(b"/").unwrap_or(bytes).to_vec()
    };
    if !real.is_dir() {
        return Ok(vec![Image { shown: path.to_owned(), below_root: below_root(&real), named: true }]);
    }
    let found = find_images(&real, FindOptions::default()).map_err(|error| Failure::usage(error.to_string()))?.images;
    let image = |entry: &ImageEntry| Image {
        shown: path.join(entry.as_path()),
        below_root: below_root(&real.join(entry.as_path())),
        named: false,
    };
    Ok(found.iter().map(image).collect())
}

/// Has images assigned and prints them; the first that was named by itself and could not be read, and why.
async fn assign_all(client: &Client, run_id: &str, all: Vec<Image>, as_json: bool) -> Result<Option<(PathBuf, String)>, Failure> {
    let mut under_way: VecDeque<(Vec<Image>, Asked)> = VecDeque::new();
    let mut unreadable = None;
    let mut rest = all.into_iter().peekable();
    loop {
        while under_way.len() < UNDER_WAY && rest.peek().is_some() {
            let (mut images, mut bytes) = (Vec::new(), 0);
            while images.len() < MOST_IMAGES && bytes < MOST_BYTES {
                let Some(image) = rest.next() else { break };
                bytes += image.below_root.len();
                images.push(image);
            }
            let paths = images.iter().map(|image| image.below_root.clone()).collect();
            let (mut client, run_id) = (client.clone(), run_id.to_owned());
            let asked = tokio::spawn(async move { client.assign(run_id, paths).await });
            under_way.push_back((images, Asked(asked)));
        }
        let Some((images, mut asked)) = under_way.pop_front() else { return Ok(unreadable) };
        let assignments = (&mut asked.0).await.map_err(|error| Failure::other(error.to_string()))??;
        let first = print_some(images, assignments, as_json)?;
        unreadable = unreadable.or(first);
    }
}

/// A request under way, which ends when this is dropped.
struct Asked(JoinHandle<Result<Vec<Assignment>, Failure>>);

impl Drop for Asked {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Prints a row for each image; the first that was named by itself and could not be read, and why.
fn print_some(images: Vec<Image>, assignments: Vec<Assignment>, as_json: bool) -> Result<Option<(PathBuf, String)>, Failure> {
    if assignments.len() != images.len() {
        return Err(Failure::other("the coordinator assigned another number of images"));
    }
    let mut entries = Vec::with_capacity(images.len());
    let (mut labels, mut distances) = (Vec::new(), Vec::new());
    let mut unreadable = None;
    for (image, assignment) in images.into_iter().zip(assignments) {
        let (label, distance, skipped) = match assignment.outcome {
            Some(Outcome::Assigned(assigned)) => (assigned.cluster as i32, assigned.distance, None),
            Some(Outcome::Skipped(reason)) => (-1, f32::NAN, Some(reason)),
            None => return Err(Failure::other("the coordinator sent an empty assignment")),
        };
        if let Some(reason) = skipped.as_ref().filter(|_| image.named && unreadable.is_none()) {
            unreadable = Some((image.shown.clone(), reason.clone()));
        }
        let path = image.shown.as_os_str().as_bytes().to_vec();
        entries.push(ImageEntry { path, bytes: 0, width: 0, height: 0, skipped, remark: None });
        labels.push(label);
        distances.push(distance);
    }
    print_rows(&entries, &labels, &distances, as_json)?;
    Ok(unreadable)
}
