//! Questions in the layout of the Oxford and Paris buildings: for each, NAME_query.txt with an image and a box in it, and lists of
//! images that show the same (NAME_good.txt, NAME_ok.txt) or do not count (NAME_junk.txt, which may be missing).

use crate::failure::Failure;
use deepcluster_domain::ranking::Relevance;
use deepcluster_volume::image_list::ImageEntry;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// How names of question files end.
const QUERY: &str = "_query.txt";

/// Before the images of Oxford's question files, and nowhere else.
const OXFORD: &str = "oxc1_";

/// Rows of images by their names without ending; none for one that cannot be read.
pub type Ids = BTreeMap<String, Option<usize>>;

/// One question.
#[derive(Debug)]
pub struct Query {
    /// Name of the question.
    pub name: String,
    /// Its file.
    pub file: PathBuf,
    /// Row of its image.
    pub image: usize,
    /// Left, top, right and bottom of the part that counts, in pixels; none for the whole.
    pub region: Option<[f64; 4]>,
    /// What each image is to it.
    pub relevance: Vec<Relevance>,
}

/// Names of images, and those that can be read, whose rows the names tell.
///
/// # Errors
/// When two have the same name.
pub fn named(entries: Vec<ImageEntry>) -> Result<(Ids, Vec<ImageEntry>), Failure> {
    let (mut ids, mut readable) = (Ids::new(), Vec::with_capacity(entries.len()));
    for entry in entries {
        let name = entry.as_path().file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let row = entry.skipped.is_none().then_some(readable.len());
        if ids.insert(name.clone(), row).is_some() {
            return Err(Failure::usage(format!("--images: two images have the name '{name}'")));
        }
        readable.extend(row.map(|_| entry));
    }
    Ok((ids, readable))
}

/// All questions of a folder, by their names.
///
/// # Errors
/// One sentence that names file and line.
pub fn read(folder: &Path, ids: &Ids) -> Result<Vec<Query>, Failure> {
    let failed = |error: std::io::Error| Failure::usage(format!("--ground-truth {}: {error}", folder.display()));
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        names.extend(name.to_str().and_then(|name| name.strip_suffix(QUERY)).map(str::to_owned));
    }
    names.sort();
    if names.is_empty() {
        return Err(Failure::usage(format!("--ground-truth {} has no NAME{QUERY}", folder.display())));
    }
    names.iter().map(|name| query(folder, name, ids)).collect()
}

fn query(folder: &Path, name: &str, ids: &Ids) -> Result<Query, Failure> {
    let n_images = ids.values().flatten().count();
    let file = folder.join(format!("{name}{QUERY}"));
    let lines = lines(&file)?;
    let [(number, line)] = lines.as_slice() else {
        return Err(Failure::usage(format!("{}: has {} lines, not one", file.display(), lines.len())));
    };
    let wrong = |why: String| Failure::usage(format!("{} line {number}: {why}", file.display()));
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (id, numbers): (&str, &[&str]) = fields.split_first().map(|(id, numbers)| (*id, numbers)).unwrap_or_default();
    let region = match numbers {
        [] => None,
        _ => Some(region(numbers).ok_or_else(|| wrong(format!("'{}' is no box x1 y1 x2 y2", numbers.join(" "))))?),
    };
    let found = ids.get(id).or_else(|| ids.get(id.strip_prefix(OXFORD)?));
    let image = found.ok_or_else(|| wrong(format!("there is no image '{id}'")))?;
    let image = image.ok_or_else(|| wrong(format!("image '{id}' cannot be read")))?;
    let mut relevance = vec![Relevance::Negative; n_images];
    // What does not count does not, even where another list names it, too.
    for (list, meaning) in [("good", Relevance::Positive), ("ok", Relevance::Positive), ("junk", Relevance::Ignored)] {
        let path = folder.join(format!("{name}_{list}.txt"));
        if list == "junk" && !path.try_exists().map_err(|error| Failure::usage(format!("{}: {error}", path.display())))? {
            continue;
        }
        for (number, id) in self::lines(&path)? {
            let row = ids.get(&id);
            let row = row.ok_or_else(|| Failure::usage(format!("{} line {number}: there is no image '{id}'", path.display())))?;
            if let Some(row) = *row {
                relevance[row] = meaning;
            }
        }
    }
    if !relevance.contains(&Relevance::Positive) {
        let path = folder.join(format!("{name}_good.txt"));
        return Err(Failure::usage(format!("{} and {name}_ok.txt name no image that counts", path.display())));
    }
    Ok(Query { name: name.to_owned(), file, image, region, relevance })
}

/// Lines that are not empty, without what is around them, and their numbers.
fn lines(path: &Path) -> Result<Vec<(usize, String)>, Failure> {
    let text = fs::read_to_string(path).map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?;
    let lines = (1..).zip(text.lines().map(str::trim)).filter(|(_, line)| !line.is_empty());
    Ok(lines.map(|(number, line)| (number, line.to_owned())).collect())
}

fn region(numbers: &[&str]) -> Option<[f64; 4]> {
    let numbers: Vec<f64> = numbers.iter().map(|number| number.parse().ok()).collect::<Option<_>>()?;
    let [left, top, right, bottom] = numbers.try_into().ok()?;
    let holds = [left, top, right, bottom].iter().all(|number| number.is_finite()) && left < right && top < bottom;
    holds.then_some([left, top, right, bottom])
}

#[cfg(test)]
mod tests {
    use super::*;
    use deepcluster_volume::publish::publish_bytes;

    fn ids() -> Ids {
        let entry = |(path, skipped): (&str, bool)| ImageEntry {
            path: path.as_bytes().to_vec(),
            bytes: 1,
            width: 1,
            height: 1,
            remark: None,
            skipped: skipped.then(|| "broken".to_owned()),
        };
        let entries = [("a/one.jpg", false), ("two.png", true), ("b/three.jpg", false), ("four.jpg", false)].map(entry);
        let (ids, readable) = named(entries.to_vec()).unwrap();
        assert_eq!(readable.len(), 3);
        ids
    }

    #[test]
    fn questions_are_read_as_oxford_and_paris_write_them() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| publish_bytes(&folder.path().join(name), text.as_bytes()).unwrap();
        write("hall_1_query.txt", "oxc1_three 136.5 34.1 648.5 955.7\r\n");
        write("hall_1_good.txt", "three\n\n");
        write("hall_1_ok.txt", "two\none\n");
        write("hall_1_junk.txt", "one\r\n");
        let all = read(folder.path(), &ids()).unwrap();
        assert_eq!(all.len(), 1);
        let query = &all[0];
        assert_eq!((query.name.as_str(), query.image, query.region), ("hall_1", 1, Some([136.5, 34.1, 648.5, 955.7])));
        assert_eq!(query.relevance, [Relevance::Ignored, Relevance::Positive, Relevance::Negative]);

        let sentence = |name: &str, text: &str, why: &str| {
            let before = fs::read(folder.path().join(name)).unwrap();
            write(name, text);
            let said = read(folder.path(), &ids()).unwrap_err().message;
            assert!(said.contains(name) && said.contains(why), "{said}");
            publish_bytes(&folder.path().join(name), &before).unwrap();
        };
        sentence("hall_1_query.txt", "three 1 2 3", "line 1: '1 2 3' is no box");
        sentence("hall_1_query.txt", "three 3 3 2 9", "is no box");
        sentence("hall_1_query.txt", "five", "line 1: there is no image 'five'");
        sentence("hall_1_query.txt", "two", "image 'two' cannot be read");
        sentence("hall_1_query.txt", "", "has 0 lines");
        sentence("hall_1_ok.txt", "two\nsix", "line 2: there is no image 'six'");
        sentence("hall_1_good.txt", "one", "name no image that counts");
        fs::remove_file(folder.path().join("hall_1_junk.txt")).unwrap();
        let without = read(folder.path(), &ids()).unwrap();
        assert_eq!(without[0].relevance, [Relevance::Positive, Relevance::Positive, Relevance::Negative]);
        fs::remove_file(folder.path().join("hall_1_ok.txt")).unwrap();
        assert!(read(folder.path(), &ids()).unwrap_err().message.contains("hall_1_ok.txt"));
    }
}
