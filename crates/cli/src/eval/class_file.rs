//! `--classes FILE`: the true classes of images, in the tables that people have.

use crate::failure::Failure;
use csv::{ByteRecord, ReaderBuilder};
use deepcluster_volume::image_list::ImageEntry;
use deepcluster_volume::names;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Headings of the column of paths, and of that of classes.
const PATHS: [&str; 6] = ["path", "file", "filename", "file_name", "image", "name"];
const CLASSES: [&str; 6] = ["class", "label", "target", "category", "class_name", "y"];

/// What a file says.
pub struct ClassFile {
    /// Class of each image, -1 where the file names none.
    pub classes: Vec<i32>,
    /// Lines with a path and no class.
    pub n_without: usize,
}

/// Reads a table of paths and classes: separated by commas, semicolons or tabs, in the columns that the headings name, or else
/// the first two. Paths are as the run has them, absolute, or begin with `./`. `images_root` is the run's folder of images below /.
///
/// # Errors
/// When it cannot be read, names an image twice with different classes, or none of the images.
pub fn read(file: &Path, images: &[ImageEntry], images_root: &str) -> Result<ClassFile, Failure> {
    let wrong = |why: String| Failure::usage(format!("{}: {why}", file.display()));
    let content = fs::read(file).map_err(|error| wrong(error.to_string()))?;
    if content.starts_with(b"\xff\xfe") || content.starts_with(b"\xfe\xff") {
        return Err(wrong("is in UTF-16; save it as UTF-8".to_owned()));
    }
    let content = content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&content);
    let rows = rows(content).map_err(|error| wrong(error.to_string()))?;
    let (path_column, class_column) = columns(rows.first());
    let absolute = [b"/".as_slice(), images_root.trim_matches('/').as_bytes(), b"/"].concat();
    let (mut by_path, mut n_without) = (BTreeMap::new(), 0);
    for row in &rows {
        let (Some(path), Some(class)) = (row.get(path_column), row.get(class_column)) else {
            return Err(wrong(format!("a line has {} fields, and the class is in field {}", row.len(), class_column + 1)));
        };
        if class.is_empty() {
            n_without += 1;
            continue;
        }
        let path = path.strip_prefix(b"./").or_else(|| path.strip_prefix(absolute.as_slice())).unwrap_or(path);
        match by_path.insert(names::unescape(path), class.to_vec()) {
            Some(before) if before != class => {
                let [before, class] = [&before[..], class].map(|class| names::escape(class).into_owned());
                return Err(wrong(format!("'{}' has two classes, {before} and {class}", names::escape(path))));
            }
            _ => {}
        }
    }
    let class_of = |image: &ImageEntry| by_path.get(&image.path);
    let mut known: Vec<&Vec<u8>> = images.iter().filter_map(class_of).collect();
    known.sort_unstable();
    known.dedup();
    let number = |class: &Vec<u8>| known.binary_search(&class).ok().map(|number| number as i32);
    let classes: Vec<i32> = images.iter().map(|image| class_of(image).and_then(number).unwrap_or(-1)).collect();
    if classes.iter().any(|class| *class >= 0) {
        return Ok(ClassFile { classes, n_without });
    }
    let theirs = by_path.keys().next().map(|path| names::escape(path).into_owned()).unwrap_or_default();
    let ours = images.first().map(|image| names::escape(&image.path).into_owned()).unwrap_or_default();
    Err(wrong(format!("names none of the run's images: its paths are like '{theirs}', the run's like '{ours}'")))
}

/// The lines, separated by that of comma, semicolon and tab which the first line has most of.
fn rows(content: &[u8]) -> Result<Vec<ByteRecord>, csv::Error> {
    let first = content.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let count = |separator: &u8| first.iter().filter(|byte| *byte == separator).count();
    // Of equals the last one; commas are the rule.
    let separator = [b'\t', b';', b','].into_iter().max_by_key(count).unwrap_or(b',');
    let mut reader = ReaderBuilder::new().has_headers(false).flexible(true).delimiter(separator).from_reader(content);
    reader.byte_records().collect()
}

/// Columns of paths and classes, by the headings of the first line if it has such.
fn columns(first: Option<&ByteRecord>) -> (usize, usize) {
    let find = |headings: &[&str]| {
        let is_one =
            |field: &[u8]| std::str::from_utf8(field).is_ok_and(|field| headings.contains(&&*field.trim().to_lowercase()));
        first?.iter().position(is_one)
    };
    match (find(&PATHS), find(&CLASSES)) {
        (Some(path), Some(class)) if path != class => (path, class),
        _ => (0, 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classes(text: &[u8]) -> Result<(Vec<i32>, usize), String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("classes.csv");
        deepcluster_volume::publish::publish_bytes(&file, text).unwrap();
        let entry = |path: &str| ImageEntry {
            path: path.as_bytes().to_vec(),
            bytes: 1,
            width: 1,
            height: 1,
            skipped: None,
            remark: None,
        };
        let images = [entry("a/1.png"), entry("a/2.png"), entry("b/3.png")];
        let found = read(&file, &images, "data/images").map_err(|failure| failure.message)?;
        Ok((found.classes, found.n_without))
    }

    #[test]
    fn tables_as_people_have_them_are_read() {
        for text in [
            "a/1.png,cat\na/2.png,dog\nb/3.png,cat\n",
            "path,class\na/1.png,cat\na/2.png,dog\nb/3.png,cat\n",
            "class,path\ncat,a/1.png\ndog,a/2.png\ncat,b/3.png\n",
            ",filename,label\n0,a/1.png,cat\n1,a/2.png,dog\n2,b/3.png,cat\n",
            "a/1.png;cat\na/2.png;dog\nb/3.png;cat\n",
            "a/1.png\tcat\na/2.png\tdog\nb/3.png\tcat\n",
            "./a/1.png,cat\n./a/2.png,dog\n/data/images/b/3.png,cat\n",
            "\u{feff}path,class\na/1.png,cat\na/2.png,dog\nb/3.png,cat\na/1.png,cat\n",
        ] {
            assert_eq!(classes(text.as_bytes()), Ok((vec![0, 1, 0], 0)), "{text}");
        }
        assert_eq!(classes(b"a/1.png,cat\na/2.png,\nb/3.png,dog\n"), Ok((vec![0, -1, 1], 1)), "an empty class is none");
    }

    #[test]
    fn what_cannot_be_right_is_named() {
        for (text, word) in [
            (b"a/1.png,cat\na/1.png,dog\n".as_slice(), "'a/1.png' has two classes, cat and dog"),
            (b"other/1.png,cat\n", "its paths are like 'other/1.png', the run's like 'a/1.png'"),
            (b"\xff\xfea\0/\0", "UTF-16"),
            (b"a/1.png\n", "a line has 1 fields"),
        ] {
            let sentence = classes(text).unwrap_err();
            assert!(sentence.contains(word), "{sentence}");
        }
    }
}
