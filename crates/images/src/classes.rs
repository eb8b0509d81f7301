//! True classes, where the folders of the images tell them.

use deepcluster_volume::image_list::ImageEntry;
use std::collections::BTreeMap;

/// The class of each image: the number of its first folder, in order of their names, as torchvision's ImageFolder has it.
///
/// None when some image lies in no folder, or all lie in one: then folders tell nothing.
pub fn folder_classes(images: &[ImageEntry]) -> Option<Vec<i32>> {
    let folders: Vec<&[u8]> = images.iter().map(|image| first_folder(&image.path)).collect::<Option<_>>()?;
    let mut numbers: BTreeMap<&[u8], i32> = folders.iter().map(|folder| (*folder, 0)).collect();
    if numbers.len() < 2 {
        return None;
    }
    for (number, slot) in (0..).zip(numbers.values_mut()) {
        *slot = number;
    }
    Some(folders.iter().map(|folder| numbers[folder]).collect())
}

/// The name of each image's class: its first folder. None when some image lies in no folder.
pub fn class_names(images: &[ImageEntry]) -> Option<Vec<String>> {
    let name = |image: &ImageEntry| first_folder(&image.path).map(|name| String::from_utf8_lossy(name).into_owned());
    images.iter().map(name).collect()
}

fn first_folder(path: &[u8]) -> Option<&[u8]> {
    let slash = path.iter().position(|byte| *byte == b'/')?;
    Some(&path[..slash])
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
        assert_eq!(folder_classes(&images(&["cat/1.jpg", "dog/x/1.jpg", "cat/y/2.jpg"])), Some(vec![0, 1, 0]));
        assert_eq!(folder_classes(&images(&["cat/1.jpg", "2.jpg"])), None);
        assert_eq!(folder_classes(&images(&["cat/1.jpg", "cat/2.jpg"])), None);
    }
}
