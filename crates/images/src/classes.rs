//! True classes, where the folders of the images tell them.

use deepcluster_volume::image_list::ImageEntry;
use std::collections::{BTreeMap, BTreeSet};

/// Names of folders that divide a set for learning and testing, and are no classes.
const PARTS: [&str; 9] = ["train", "training", "val", "valid", "validation", "test", "testing", "unlabeled", "images"];

/// The class of each image: the number of its folder of a level, in order of their names, as torchvision's ImageFolder has it of
/// the first level. `classes_from` is the level, from 1 on, or 0 for the first that is not just a division into `train`, `val`
/// and the like.
///
/// None when some image lies in no folder of that level, or all lie in one: then folders tell nothing.
pub fn folder_classes(images: &[ImageEntry], classes_from: u32) -> Option<Vec<i32>> {
    let level = class_level(images, classes_from)?;
    let folders: Vec<&[u8]> = images.iter().map(|image| folder(&image.path, level)).collect::<Option<_>>()?;
    let mut numbers: BTreeMap<&[u8], i32> = folders.iter().map(|folder| (*folder, 0)).collect();
    if numbers.len() < 2 {
        return None;
    }
    for (number, slot) in (0..).zip(numbers.values_mut()) {
        *slot = number;
    }
    Some(folders.iter().map(|folder| numbers[folder]).collect())
}

/// The level of folders that are the classes, from 1 on. None where some image lies in no folder of it.
pub fn class_level(images: &[ImageEntry], classes_from: u32) -> Option<u32> {
    let names = |level: u32| images.iter().map(|image| folder(&image.path, level)).collect::<Option<BTreeSet<&[u8]>>>();
    if classes_from > 0 {
        return names(classes_from).map(|_| classes_from);
    }
    let mut level = 1;
    let mut found = names(level)?;
    while found.iter().all(|name| is_part(name)) {
        let Some(deeper) = names(level + 1) else { break };
        (level, found) = (level + 1, deeper);
    }
    Some(level)
}

fn is_part(name: &[u8]) -> bool {
    std::str::from_utf8(name).is_ok_and(|name| PARTS.contains(&name.to_ascii_lowercase().as_str()))
}

/// The name of each image's class: its first folder. None when some image lies in no folder.
pub fn class_names(images: &[ImageEntry]) -> Option<Vec<String>> {
    let name = |image: &ImageEntry| folder(&image.path, 1).map(|name| String::from_utf8_lossy(name).into_owned());
    images.iter().map(name).collect()
}

/// The folder of a level, from 1 on, that a path goes through.
pub fn folder(path: &[u8], level: u32) -> Option<&[u8]> {
    let mut folders = path.split(|byte| *byte == b'/').rev().skip(1).collect::<Vec<_>>();
    folders.reverse();
    folders.get(level.checked_sub(1)? as usize).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images(paths: &[&str]) -> Vec<ImageEntry> {
        let entry = |path: &&str| ImageEntry {
            path: path.as_bytes().to_vec(),
            bytes: 1,
            width: 1,
            height: 1,
            skipped: None,
            remark: None,
        };
        paths.iter().map(entry).collect()
    }

    #[test]
    fn classes_are_the_first_folders() {
        assert_eq!(folder_classes(&images(&["cat/1.jpg", "dog/x/1.jpg", "cat/y/2.jpg"]), 0), Some(vec![0, 1, 0]));
        assert_eq!(folder_classes(&images(&["cat/1.jpg", "2.jpg"]), 0), None);
        assert_eq!(folder_classes(&images(&["cat/1.jpg", "cat/2.jpg"]), 0), None);
    }

    #[test]
    fn divisions_for_learning_and_testing_are_no_classes() {
        let split = images(&["train/cat/1.jpg", "train/dog/2.jpg", "val/cat/3.jpg"]);
        assert_eq!((folder_classes(&split, 0), class_level(&split, 0)), (Some(vec![0, 1, 0]), Some(2)));
        assert_eq!(folder_classes(&split, 1), Some(vec![0, 0, 1]));
        assert_eq!(folder_classes(&split, 3), None);
        // Where there is nothing below, they are all that there is.
        assert_eq!(folder_classes(&images(&["train/1.jpg", "val/2.jpg"]), 0), Some(vec![0, 1]));
        // A class may be called so beside others.
        assert_eq!(folder_classes(&images(&["train/a/1.jpg", "plane/b/2.jpg"]), 0), Some(vec![1, 0]));
    }
}
