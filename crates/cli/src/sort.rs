//! `sort`: the images of a run in one folder a cluster, as links or copies.
//!
//! All of it is made in a folder beside (`.NAME.PID.tmp`), which gets its name when it is whole. One that stays behind belongs to
//! a command that was killed, and may be removed.

use crate::failure::{Failure, say};
use crate::local::{chosen_epoch, images_and_labels};
use deepcluster_images::find::check_there;
use deepcluster_volume::image_list::ImageEntry;
use deepcluster_volume::layout::resolve_below;
use deepcluster_volume::names;
use deepcluster_volume::publish::{self, TEMPORARY};
use deepcluster_volume::records::{RunRecord, read_record};
use deepcluster_volume::{RunFolder, VolumeError};
use serde_json::json;
use std::collections::{BTreeMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// Longest name in bytes, of the 255 that file systems take: a number may have to be added.
const LONGEST: usize = 240;

/// Lost images that are named to people; machines are told all.
const NAMED: usize = 20;

/// What is laid out, and how.
#[derive(clap::Args)]
pub struct SortArgs {
    /// Folder of the run
    run_dir: PathBuf,
    /// Where the folders go: a new folder, or an empty one
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// Make symbolic links to the images; this is the default
    #[arg(long, conflicts_with = "copy")]
    link: bool,
    /// Copy the images
    #[arg(long)]
    copy: bool,
    /// Take the clusters of this epoch instead of the last one
    #[arg(long, value_name = "N")]
    epoch: Option<u32>,
    /// Where the images lie now, if not where the run found them
    #[arg(long, value_name = "FOLDER")]
    images: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What was laid out.
#[derive(Debug, Default, PartialEq)]
struct Sorted {
    /// Images in folders.
    n_images: usize,
    /// Folders.
    n_clusters: usize,
    /// Images that take no part in the run.
    n_skipped: usize,
    /// Images that are no longer there, as the run calls them.
    gone: Vec<PathBuf>,
    /// Images in whose place another file lies: one that has not the size that the run has listed.
    others: Vec<PathBuf>,
}

impl SortArgs {
    /// Lays the images out and says how many there are.
    ///
    /// # Errors
    /// When the run cannot be read, the images are not there or none is the run's, or the folder is in use or cannot be written.
    pub fn run(&self) -> Result<(), Failure> {
        let run = RunFolder::at(&self.run_dir);
        let epoch = chosen_epoch(&run, self.epoch)?;
        let record: RunRecord = read_record(&run.run_json())?;
        let (images, labels) = images_and_labels(&run, &record, &epoch)?;
        let root = self.images.clone().unwrap_or_else(|| Path::new("/").join(&record.spec.images));
        let why =
            |error: &dyn std::fmt::Display| Failure::usage(format!("{error} (--images FOLDER says where the images lie now)"));
        let root = fs::canonicalize(&root).map_err(|error| why(&format!("{}: {error}", root.display())))?;
        check_there(&root, &images).map_err(|error| why(&error))?;
        check_free(&self.to)?;
        let name = self.to.file_name().ok_or_else(|| Failure::usage(format!("--to {} has no name", self.to.display())))?;
        let staged = self.to.with_file_name(staged_name(name));
        let copy = self.copy && !self.link;
        let outcome = lay_out(&images, &labels, &root, &staged, copy).map_err(Failure::from).and_then(|sorted| {
            sorted.check_any(&root).map_err(|error| why(&error))?;
            sync(&staged)?;
            publish::adopt(&staged, &self.to)?;
            Ok(sorted)
        });
        match outcome {
            Ok(sorted) => self.print(epoch.manifest.epoch, &sorted),
            Err(error) => {
                publish::remove(&staged)?;
                Err(error)
            }
        }
    }

    fn print(&self, epoch: u32, sorted: &Sorted) -> Result<(), Failure> {
        let Sorted { n_images, n_clusters, n_skipped, gone, others } = sorted;
        if self.json {
            let [gone, others] = [gone, others]
                .map(|paths| paths.iter().map(|path| names::escape(path.as_os_str().as_bytes())).collect::<Vec<_>>());
            let to = self.to.to_string_lossy();
            return say(json!({
                "folder": to, "epoch": epoch, "images": n_images, "clusters": n_clusters, "skipped": n_skipped, "gone": gone,
                "others": others,
            }));
        }
        let to = self.to.display();
        say(format!("epoch {epoch}: {n_images} images in {n_clusters} folders of {to}; {n_skipped} skipped ones left out"))?;
        if let Some(first) = others.first() {
            let (n, first) = (others.len(), first.display());
            say(format!("{n} left out that are not the run's images, since their sizes differ; the first: {first}"))?;
        }
        for path in gone.iter().take(NAMED) {
            say(format!("gone: {}", path.display()))?;
        }
        match gone.len().saturating_sub(NAMED) {
            0 => Ok(()),
            more => say(format!("gone: {more} more, which --json names")),
        }
    }
}

impl Sorted {
    /// Makes sure that some image was the run's.
    ///
    /// # Errors
    /// When each file is another one.
    fn check_any(&self, root: &Path) -> Result<(), String> {
        match self.others.first() {
            Some(first) if self.n_images == 0 => Err(format!(
                "{} holds none of the run's images: {} of them are other files, of other sizes; the first: {}",
                root.display(),
                self.others.len(),
                first.display()
            )),
            _ => Ok(()),
        }
    }
}

/// A folder that does not exist or is empty: nothing of anybody's may be mixed with what is laid out.
///
/// # Errors
/// When it is another thing, holds something, or cannot be looked into.
pub fn check_free(folder: &Path) -> Result<(), Failure> {
    let named = |error: io::Error| Failure::usage(format!("--to {}: {error}", folder.display()));
    match fs::symlink_metadata(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(named(error)),
        Ok(found) if !found.is_dir() => Err(Failure::usage(format!("--to {} is there and is no folder", folder.display()))),
        Ok(_) => match fs::read_dir(folder).map_err(named)?.next() {
            None => Ok(()),
            Some(_) => Err(Failure::usage(format!("--to {} is not empty", folder.display()))),
        },
    }
}

/// `.NAME.PID.tmp`.
pub fn staged_name(name: &OsStr) -> OsString {
    let mut staged = OsString::from(".");
    staged.push(name);
    staged.push(format!(".{}{TEMPORARY}", std::process::id()));
    staged
}

/// Waits until all that was written is on the disk, at once rather than file by file.
fn sync(folder: &Path) -> Result<(), VolumeError> {
    let file = fs::File::open(folder).map_err(VolumeError::io(folder))?;
    nix::unistd::syncfs(&file).map_err(|error| VolumeError::io(folder)(error.into()))
}

/// Makes a folder for each cluster that has images, and puts them there.
fn lay_out(images: &[ImageEntry], labels: &[i32], root: &Path, to: &Path, copy: bool) -> Result<Sorted, VolumeError> {
    publish::create_folder(to)?;
    let mut sorted = Sorted::default();
    let mut taken: BTreeMap<i32, HashSet<Vec<u8>>> = BTreeMap::new();
    for (image, label) in images.iter().zip(labels) {
        if *label < 0 {
            sorted.n_skipped += 1;
            continue;
        }
        let from = resolve_below(root, image.as_path())?;
        let Some(found) = fs::metadata(&from).ok().filter(fs::Metadata::is_file) else {
            sorted.gone.push(image.as_path().to_owned());
            continue;
        };
        // As the workers do, which would skip it.
        if found.len() != image.bytes {
            sorted.others.push(image.as_path().to_owned());
            continue;
        }
        let folder = to.join(format!("{label:04}"));
        let names = taken.entry(*label).or_default();
        if names.is_empty() {
            fs::create_dir(&folder).map_err(VolumeError::io(&folder))?;
        }
        let target = folder.join(OsString::from_vec(unique(&image.path, names)));
        match copy {
            true => fs::copy(&from, &target).map(drop).map_err(VolumeError::io(&from))?,
            false => symlink(&from, &target).map_err(VolumeError::io(&target))?,
        }
        sorted.n_images += 1;
    }
    sorted.n_clusters = taken.len();
    Ok(sorted)
}

/// A name that says where an image came from and that no other in the folder has.
fn unique(path: &[u8], taken: &mut HashSet<Vec<u8>>) -> Vec<u8> {
    let flat = flattened(path);
    let dot = flat.iter().rposition(|byte| *byte == b'.').unwrap_or(flat.len());
    let (stem, ending) = flat.split_at(dot);
    let numbered = (2..).map(|number: u32| [stem, format!("-{number}").as_bytes(), ending].concat());
    for name in std::iter::once(flat.clone()).chain(numbered) {
        if taken.insert(name.clone()) {
            return name;
        }
    }
    flat
}

/// A path as a single name, of which the end stays where it is too long.
fn flattened(path: &[u8]) -> Vec<u8> {
    let mut flat = Vec::with_capacity(path.len());
    for byte in path {
        match byte {
            b'/' => flat.extend_from_slice(b"__"),
            other => flat.push(*other),
        }
    }
    let mut first = flat.len().saturating_sub(LONGEST);
    // Not in the middle of a letter of UTF-8.
    while first > 0 && flat.get(first).is_some_and(|byte| byte & 0b1100_0000 == 0b1000_0000) {
        first += 1;
    }
    flat.split_off(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use deepcluster_volume::publish::publish_bytes;
    use std::os::unix::ffi::OsStrExt;

    fn image(path: &[u8]) -> ImageEntry {
        ImageEntry { path: path.to_vec(), bytes: path.len() as u64, width: 1, height: 1, skipped: None, remark: None }
    }

    #[test]
    fn each_image_stands_once_in_the_folder_of_its_cluster() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("images");
        let paths: [&[u8]; 7] =
            [b"a/b.png", b"a__b.png", b"a__b-2.png", b"caf\xe9.png", b"gone.png", b"skipped.png", b"other.png"];
        let images: Vec<ImageEntry> = paths.iter().map(|path| image(path)).collect();
        for image in images.iter().filter(|image| !image.path.starts_with(b"gone")) {
            publish_bytes(&root.join(image.as_path()), &image.path).unwrap();
        }
        publish_bytes(&root.join("other.png"), b"longer than its name").unwrap();
        let labels = [3, 3, 3, 12345, 0, -1, 1];
        for copy in [false, true] {
            let to = folder.path().join(format!("sorted-{copy}"));
            let sorted = lay_out(&images, &labels, &root, &to, copy).unwrap();
            let [gone, others] = ["gone.png", "other.png"].map(|name| vec![PathBuf::from(name)]);
            assert_eq!(sorted, Sorted { n_images: 4, n_clusters: 2, n_skipped: 1, gone, others });
            sorted.check_any(&root).unwrap();
            assert!(Sorted { n_images: 0, ..sorted }.check_any(&root).unwrap_err().contains("the first: other.png"));
            let names: [(&[u8], &[u8]); 4] = [
                (b"0003/a__b.png", b"a/b.png"),
                (b"0003/a__b-2.png", b"a__b.png"),
                (b"0003/a__b-2-2.png", b"a__b-2.png"),
                (b"12345/caf\xe9.png", b"caf\xe9.png"),
            ];
            for (name, content) in names {
                let path = to.join(OsStr::from_bytes(name));
                assert_eq!(fs::read(&path).unwrap(), content);
                let target = fs::read_link(&path).ok();
                assert_eq!(target, (!copy).then(|| root.join(OsStr::from_bytes(content))));
            }
            assert_eq!(fs::read_dir(to.join("0003")).unwrap().count(), 3);
            assert_eq!(fs::read_dir(&to).unwrap().count(), 2);
        }
    }

    #[test]
    fn long_paths_keep_their_end_and_whole_letters() {
        let long = ["ordner/", &"ä".repeat(200), ".png"].concat();
        let name = String::from_utf8(unique(long.as_bytes(), &mut HashSet::new())).unwrap();
        assert!((LONGEST - 1..=LONGEST).contains(&name.len()) && name.ends_with("ä.png"), "{name}");
    }

    #[test]
    fn only_new_and_empty_folders_are_written_to() {
        let folder = tempfile::tempdir().unwrap();
        check_free(folder.path()).unwrap();
        check_free(&folder.path().join("new")).unwrap();
        publish_bytes(&folder.path().join("file"), b"").unwrap();
        assert!(check_free(folder.path()).unwrap_err().message.contains("not empty"));
        assert!(check_free(&folder.path().join("file")).unwrap_err().message.contains("no folder"));
        assert_eq!(staged_name(OsStr::new("sorted")).to_string_lossy(), format!(".sorted.{}.tmp", std::process::id()));
    }
}
