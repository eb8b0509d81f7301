//! Finding the images below a folder.

use crate::decode::probe;
use crate::passed_over::{PassedOver, is_of_machines};
use deepcluster_volume::image_list::ImageEntry;
use rayon::prelude::*;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Endings of files that are taken for images, in any case.
const EXTENSIONS: [&str; 11] = ["jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "dib", "tif", "tiff", "gif"];

/// A folder that cannot be searched.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// It cannot be listed.
    #[error("{0}: {1}")]
    Io(PathBuf, io::Error),
    /// It is something else.
    #[error("{0} is not a folder")]
    NotAFolder(PathBuf),
    /// There is nothing in it.
    #[error("{0} contains no images (looked for {known}){rest}", known = EXTENSIONS.join(", "), rest = after_semicolon(.1))]
    NoImages(PathBuf, String),
    /// Another folder was meant.
    #[error("{0} holds none of the run's images; is it mounted?")]
    NotThere(PathBuf),
}

/// What a search takes and leaves out.
#[derive(Clone, Copy, Debug, Default)]
pub struct FindOptions<'a> {
    /// Whether hidden files and folders are taken, and those that machines make beside pictures.
    pub include_hidden: bool,
    /// A folder that is left out wherever it lies: the volume, which holds pictures of its own.
    pub volume: Option<&'a Path>,
}

/// The outcome of a search.
#[derive(Clone, Debug)]
pub struct ImageSearch {
    /// The images.
    pub images: Vec<ImageEntry>,
    /// What else there was.
    pub passed_over: PassedOver,
}

/// All images below `root`, sorted by the bytes of their paths, with their sizes; those whose header cannot be read are
/// listed with the reason. Symlinks are followed; each folder is entered once, by its own path rather than by a link. Folders
/// that cannot be listed are passed over.
///
/// # Errors
/// When `root` cannot be listed, or there is not one image.
pub fn find_images(root: &Path, options: FindOptions) -> Result<ImageSearch, FindError> {
    let metadata = fs::metadata(root).map_err(|error| FindError::Io(root.to_owned(), error))?;
    if !metadata.is_dir() {
        return Err(FindError::NotAFolder(root.to_owned()));
    }
    let mut walk = Walk { include_hidden: options.include_hidden, ..Walk::default() };
    walk.volume = options.volume.and_then(|volume| fs::metadata(volume).ok()).map(|metadata| (metadata.dev(), metadata.ino()));
    walk.enter(root, Path::new(""))?;
    walk.follow_links(root)?;
    let mut paths = walk.images;
    if paths.is_empty() {
        return Err(FindError::NoImages(root.to_owned(), walk.passed_over.sentence().unwrap_or_default()));
    }
    paths.sort_by(|a, b| a.as_os_str().as_bytes().cmp(b.as_os_str().as_bytes()));
    let images = paths.par_iter().map(|path| describe(root, path)).collect();
    Ok(ImageSearch { images, passed_over: walk.passed_over })
}

/// Makes sure that `root` is where a list of images was made, as far as a look at some of them tells: the images of a folder
/// that is not mounted are not to be taken for deleted ones.
///
/// # Errors
/// When none of them is there.
pub fn check_there(root: &Path, images: &[ImageEntry]) -> Result<(), FindError> {
    const LOOKED_AT: usize = 64;
    let wanted = || images.iter().filter(|image| image.skipped.is_none());
    let n_wanted = wanted().count();
    let step = n_wanted.div_ceil(LOOKED_AT).max(1);
    match n_wanted == 0 || wanted().step_by(step).any(|image| fs::metadata(root.join(image.as_path())).is_ok()) {
        true => Ok(()),
        false => Err(FindError::NotThere(root.to_owned())),
    }
}

/// One image as the list has it: its size, or why its header cannot be read.
pub fn describe(root: &Path, relative: &Path) -> ImageEntry {
    let path = relative.as_os_str().as_bytes().to_vec();
    match probe(&root.join(relative)) {
        Ok((bytes, width, height)) => ImageEntry { path, bytes, width, height, skipped: None, remark: None },
        Err(why) => {
            let bytes = fs::metadata(root.join(relative)).map_or(0, |metadata| metadata.len());
            ImageEntry { path, bytes, width: 0, height: 0, skipped: Some(why.to_string()), remark: None }
        }
    }
}

fn after_semicolon(sentence: &str) -> String {
    if sentence.is_empty() { String::new() } else { format!("; {sentence}") }
}

/// What was found on the way, and what was seen of the folders.
#[derive(Default)]
struct Walk {
    images: Vec<PathBuf>,
    passed_over: PassedOver,
    include_hidden: bool,
    /// Device and inode of the folder that is left out.
    volume: Option<(u64, u64)>,
    /// Links to folders, which are followed once all real folders were entered.
    links: Vec<PathBuf>,
    /// Folders that were entered, by device and inode: each is entered once, however many links lead there.
    entered: HashSet<(u64, u64)>,
}

impl Walk {
    fn enter(&mut self, root: &Path, relative: &Path) -> Result<(), FindError> {
        let folder = root.join(relative);
        let failed = |error| FindError::Io(folder.clone(), error);
        let metadata = fs::metadata(&folder).map_err(failed)?;
        let number = (metadata.dev(), metadata.ino());
        if self.volume == Some(number) && !relative.as_os_str().is_empty() {
            self.passed_over.volume = true;
            return Ok(());
        }
        if !self.entered.insert(number) {
            return Ok(());
        }
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if relative.as_os_str().is_empty() => return Err(failed(error)),
            Err(error) => {
                self.passed_over.unreadable.push((relative.to_owned(), error.to_string()));
                return Ok(());
            }
        };
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            if name.as_bytes().starts_with(b".") && !self.include_hidden {
                continue;
            }
            let child = relative.join(&name);
            let is_link = entry.file_type().map_err(failed)?.is_symlink();
            // A dangling link or a loop of links has no metadata: it is listed if its name says image, and skipped later.
            let is_folder = fs::metadata(root.join(&child)).is_ok_and(|metadata| metadata.is_dir());
            match (is_folder, is_link) {
                (true, _) if is_of_machines(&name) && !self.include_hidden => self.passed_over.folders += 1,
                (true, true) => self.links.push(child),
                (true, false) => self.enter(root, &child)?,
                (false, _) if has_image_extension(&child) => self.images.push(child),
                (false, _) => self.passed_over.add_file(&child),
            }
        }
        Ok(())
    }

    /// Follows the links, in the order of their names, and those that they lead to.
    fn follow_links(&mut self, root: &Path) -> Result<(), FindError> {
        while !self.links.is_empty() {
            let mut links = std::mem::take(&mut self.links);
            links.sort();
            links.iter().try_for_each(|link| self.enter(root, link))?;
        }
        Ok(())
    }
}

fn has_image_extension(path: &Path) -> bool {
    let extension = path.extension().and_then(OsStr::to_str).map(str::to_ascii_lowercase);
    extension.is_some_and(|extension| EXTENSIONS.contains(&extension.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::os::unix::fs::symlink;

    #[test]
    fn nested_folders_links_and_odd_names_are_found_once() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let image = image::RgbImage::new(3, 2);
        fs::create_dir_all(root.join("b/c")).unwrap();
        image.save(root.join("b/c/one.PNG")).unwrap();
        let odd = root.join(OsStr::from_bytes(b"caf\xe9.png"));
        fs::copy(root.join("b/c/one.PNG"), &odd).unwrap();
        symlink(root.join("b/c/one.PNG"), root.join("a-link.png")).unwrap();
        symlink(root, root.join("b/loop")).unwrap();
        symlink("nowhere", root.join("dangling.jpg")).unwrap();
        // Folders that link to each other have as many paths as there are orders of them.
        symlink(root.join("b"), root.join("another-b")).unwrap();
        symlink(root.join("b/c"), root.join("b/another-c")).unwrap();
        symlink(root.join("b"), root.join("b/c/back")).unwrap();
        fs::copy(root.join("b/c/one.PNG"), root.join("notes.txt")).unwrap();
        fs::create_dir(root.join("folder.jpg")).unwrap();
        let found = find_images(root, FindOptions::default()).unwrap();
        assert_eq!(found.passed_over.files, BTreeMap::from([("txt".to_owned(), 1)]));
        let found = found.images;
        let names: Vec<&[u8]> = found.iter().map(|entry| entry.path.as_slice()).collect();
        assert_eq!(names, [b"a-link.png".as_slice(), b"b/c/one.PNG", b"caf\xe9.png", b"dangling.jpg"]);
        assert_eq!((found[1].width, found[1].height), (3, 2));
        assert!(found[1].skipped.is_none());
        assert!(found[3].skipped.as_ref().unwrap().contains("No such file"));
    }

    #[test]
    fn what_machines_make_and_the_volume_are_passed_over_and_said() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let image = image::RgbImage::new(3, 2);
        for place in ["a", "a/@eaDir/x.jpg", "#recycle", "__MACOSX/a", ".hidden", "vol/filters"] {
            fs::create_dir_all(root.join(place)).unwrap();
            image.save(root.join(place).join("one.png")).unwrap();
        }
        fs::copy(root.join("a/one.png"), root.join("photo.HEIC")).unwrap();
        let names =
            |found: &ImageSearch| found.images.iter().map(|image| image.as_path().display().to_string()).collect::<Vec<_>>();
        let volume = root.join("vol");
        let options = FindOptions { volume: Some(&volume), ..FindOptions::default() };
        let found = find_images(root, options).unwrap();
        assert_eq!(names(&found), ["a/one.png"]);
        assert_eq!((found.passed_over.folders, found.passed_over.volume), (3, true));
        assert!(found.passed_over.sentence().unwrap().contains("1 .heic"), "{:?}", found.passed_over);
        let found = find_images(root, FindOptions { include_hidden: true, ..options }).unwrap();
        assert_eq!(found.images.len(), 5);
        assert_eq!(find_images(root, FindOptions::default()).unwrap().images.len(), 2);
    }

    #[test]
    fn empty_folders_and_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(find_images(folder.path(), FindOptions::default()), Err(FindError::NoImages(..))));
        assert!(matches!(find_images(&folder.path().join("none"), FindOptions::default()), Err(FindError::Io(..))));
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(find_images(file.path(), FindOptions::default()), Err(FindError::NotAFolder(_))));
    }
}
