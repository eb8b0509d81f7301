//! The images and labels of Pascal VOC 2007 in its own layout.

use crate::failure::Failure;
use deepcluster_volume::publish::digest_of;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// How names of lists of images to learn from end; before it stands a class.
const TRAINVAL: &str = "_trainval.txt";

/// How names of lists of images to be tested on end.
const TEST: &str = "_test.txt";

/// Both lists.
#[derive(Debug)]
pub struct Sets {
    /// Folder of the images.
    pub images: PathBuf,
    /// Names of the classes, sorted.
    pub classes: Vec<String>,
    /// Images to learn from.
    pub trainval: Set,
    /// Images to be tested on.
    pub test: Set,
}

/// Images, and what they show.
#[derive(Debug, PartialEq)]
pub struct Set {
    /// Names of the images, without ending.
    pub ids: Vec<String>,
    /// `[ids, classes]`: 1 where an image shows the class, −1 where it does not, 0 where it is hard to tell and does not count.
    pub labels: Vec<i32>,
}

impl Sets {
    /// Reads the lists of a folder VOC2007, or of one in which that lies.
    ///
    /// # Errors
    /// One sentence that names file and line.
    pub fn read(voc: &Path) -> Result<Self, Failure> {
        let inner = voc.join("VOC2007");
        let root = if inner.is_dir() { inner.as_path() } else { voc };
        let (images, lists) = (root.join("JPEGImages"), root.join("ImageSets").join("Main"));
        let failed = |error: std::io::Error| Failure::usage(format!("--voc: {}: {error}", lists.display()));
        let (mut classes, mut tested) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(&lists).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
            classes.extend(name.strip_suffix(TRAINVAL).map(str::to_owned));
            tested.extend(name.strip_suffix(TEST).map(str::to_owned));
        }
        classes.sort();
        tested.sort();
        if classes.is_empty() {
            return Err(Failure::usage(format!("--voc: {} has no CLASS{TRAINVAL}", lists.display())));
        }
        if let Some(class) = tested.iter().find(|class| classes.binary_search(class).is_err()) {
            return Err(Failure::usage(format!("--voc: {} has {class}{TEST} and no {class}{TRAINVAL}", lists.display())));
        }
        let (trainval, test) = (Set::read(&lists, &classes, TRAINVAL)?, Set::read(&lists, &classes, TEST)?);
        let sets = Self { images, classes, trainval, test };
        sets.check_images(&lists)?;
        Ok(sets)
    }

    fn check_images(&self, lists: &Path) -> Result<(), Failure> {
        for (set, ending) in [(&self.trainval, TRAINVAL), (&self.test, TEST)] {
            for id in &set.ids {
                let image = self.images.join(file_of(id));
                if !image.is_file() {
                    let list = lists.join(format!("{}{ending}", self.classes.first().map_or("", String::as_str)));
                    return Err(Failure::usage(format!("{} is not there, which {} names", image.display(), list.display())));
                }
            }
        }
        Ok(())
    }

    /// Changes with anything that the lists say.
    pub fn digest(&self) -> String {
        digest_of(format!("{self:?}").as_bytes()).blake3
    }
}

/// The file of an image.
pub fn file_of(id: &str) -> String {
    format!("{id}.jpg")
}

impl Set {
    fn read(lists: &Path, classes: &[String], ending: &str) -> Result<Self, Failure> {
        let mut ids: Vec<String> = Vec::new();
        let mut rows: BTreeMap<String, usize> = BTreeMap::new();
        let mut columns = Vec::with_capacity(classes.len());
        for (number, class) in classes.iter().enumerate() {
            let path = lists.join(format!("{class}{ending}"));
            let wrong = |line: usize, why: String| Failure::usage(format!("{} line {line}: {why}", path.display()));
            let text = fs::read_to_string(&path).map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?;
            let mut column: Vec<Option<i32>> = vec![None; ids.len()];
            for (line, words) in (1..).zip(text.lines()).filter(|(_, words)| !words.trim().is_empty()) {
                let (id, label) = parse(words).ok_or_else(|| wrong(line, format!("'{}' is not IMAGE -1|0|1", words.trim())))?;
                if number == 0 && !rows.contains_key(id) {
                    rows.insert(id.to_owned(), ids.len());
                    ids.push(id.to_owned());
                    column.push(None);
                }
                let row = rows.get(id).copied().and_then(|row| column.get_mut(row));
                let slot = row.ok_or_else(|| wrong(line, format!("image '{id}' is not in {}{ending}", classes[0])))?;
                if slot.replace(label).is_some() {
                    return Err(wrong(line, format!("image '{id}' is named a second time")));
                }
            }
            if let Some((id, _)) = ids.iter().zip(&column).find(|(_, label)| label.is_none()) {
                return Err(Failure::usage(format!("{}: image '{id}' of {}{ending} is missing", path.display(), classes[0])));
            }
            let column: Vec<i32> = column.into_iter().flatten().collect();
            if !column.contains(&1) {
                return Err(Failure::usage(format!("{}: no image shows the class", path.display())));
            }
            columns.push(column);
        }
        let labels = (0..ids.len()).flat_map(|row| columns.iter().map(move |column| column[row])).collect();
        Ok(Self { ids, labels })
    }
}

/// An image and its label.
fn parse(line: &str) -> Option<(&str, i32)> {
    let mut words = line.split_whitespace();
    let (id, label, end) = (words.next()?, words.next()?, words.next());
    let label = label.parse().ok().filter(|label| (-1..=1).contains(label))?;
    end.is_none().then_some((id, label))
}

#[cfg(test)]
mod tests {
    use super::*;
    use deepcluster_volume::publish::publish_bytes;

    #[test]
    fn lists_are_read_as_voc_has_them_and_refused_by_line() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("VOC2007");
        let lists = root.join("ImageSets/Main");
        let write = |name: &str, text: &str| drop(publish_bytes(&lists.join(name), text.as_bytes()).unwrap());
        for id in ["000012", "000017", "000001"] {
            publish_bytes(&root.join("JPEGImages").join(file_of(id)), b"").unwrap();
        }
        write("cat_trainval.txt", "000012 -1\n000017  1\n");
        write("dog_trainval.txt", "000017  0\r\n000012  1\r\n");
        write("cat_test.txt", "000001  1\n");
        write("dog_test.txt", "000001  1\n");
        write("trainval.txt", "000012\n000017\n");
        let sets = Sets::read(folder.path()).unwrap();
        assert_eq!(sets.classes, ["cat", "dog"]);
        assert_eq!(sets.trainval, Set { ids: vec!["000012".to_owned(), "000017".to_owned()], labels: vec![-1, 1, 1, 0] });
        assert_eq!(sets.test, Set { ids: vec!["000001".to_owned()], labels: vec![1, 1] });
        assert_eq!(Sets::read(&root).unwrap().digest(), sets.digest());

        let refused = |name: &str, text: &str, why: &str| {
            let before = fs::read(lists.join(name)).ok();
            write(name, text);
            let said = Sets::read(&root).unwrap_err().message;
            assert!(said.contains(why), "{said}");
            match before {
                Some(before) => drop(publish_bytes(&lists.join(name), &before).unwrap()),
                None => fs::remove_file(lists.join(name)).unwrap(),
            }
        };
        refused("dog_trainval.txt", "000012 2\n", "dog_trainval.txt line 1: '000012 2' is not");
        refused("dog_trainval.txt", "000012 1\n000012 1\n", "line 2: image '000012' is named a second time");
        refused("dog_trainval.txt", "000012 1\n000018 1\n", "line 2: image '000018' is not in cat_trainval.txt");
        refused("dog_trainval.txt", "000012 1\n", "image '000017' of cat_trainval.txt is missing");
        refused("dog_test.txt", "000001 -1\n", "dog_test.txt: no image shows the class");
        refused("cow_trainval.txt", "000012 1\n000017 1\n", "cow_test.txt");
        refused("cow_test.txt", "000001 1\n", "has cow_test.txt and no cow_trainval.txt");
        fs::remove_file(root.join("JPEGImages/000001.jpg")).unwrap();
        let said = Sets::read(&root).unwrap_err().message;
        assert!(said.contains("000001.jpg is not there") && said.contains("cat_test.txt names"), "{said}");
    }
}
