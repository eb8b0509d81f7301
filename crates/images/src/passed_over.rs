//! Files and folders that a search for images passed over, so that nobody's pictures vanish without a word.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// Most endings that are named one by one.
const NAMED: usize = 5;

/// Endings of pictures that are not read, and what converts them.
const CONVERTERS: [(&str, &str); 9] = [
    ("heic", "heif-convert"),
    ("heif", "heif-convert"),
    ("avif", "avifdec"),
    ("jxl", "djxl"),
    ("jp2", "opj_decompress"),
    ("j2k", "opj_decompress"),
    ("svg", "rsvg-convert"),
    ("pdf", "pdftoppm"),
    ("psd", "an export as PNG"),
];

/// Folders that machines make beside pictures: thumbnails of NAS boxes, what was thrown away, what archives leave.
const OF_MACHINES: [&str; 9] = [
    "@eaDir",
    "#recycle",
    "@Recycle",
    "@Recently-Snapshot",
    "#snapshot",
    "$RECYCLE.BIN",
    "System Volume Information",
    "__MACOSX",
    "lost+found",
];

/// Whether a folder is one that machines make beside pictures.
pub(crate) fn is_of_machines(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| OF_MACHINES.contains(&name))
}

/// What a search passed over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PassedOver {
    /// Number of files whose ending is not that of an image, by their endings in lower case; empty for none.
    pub files: BTreeMap<String, usize>,
    /// Folders that machines make beside pictures, as `@eaDir`.
    pub folders: usize,
    /// Folders that cannot be listed, and why.
    pub unreadable: Vec<(PathBuf, String)>,
    /// Whether the volume lies below the images' folder.
    pub volume: bool,
}

impl PassedOver {
    /// Counts a file.
    pub(crate) fn add_file(&mut self, path: &Path) {
        let ending = path.extension().map(|ending| ending.to_string_lossy().to_lowercase()).unwrap_or_default();
        *self.files.entry(ending).or_default() += 1;
    }

    /// All of it in one sentence; none where nothing was passed over.
    pub fn sentence(&self) -> Option<String> {
        let mut parts = self.files_part();
        match self.folders {
            0 => {}
            1 => parts.push("1 folder of thumbnails or thrown away files (--include-hidden takes it, too)".to_owned()),
            n => parts.push(format!("{n} folders of thumbnails or thrown away files (--include-hidden takes them, too)")),
        }
        if let Some((path, why)) = self.unreadable.first() {
            let n = self.unreadable.len();
            let folders = if n == 1 { "1 folder".to_owned() } else { format!("{n} folders") };
            parts.push(format!("{folders} that cannot be listed, as {}: {why}", path.display()));
        }
        if self.volume {
            parts.push("the volume itself, which lies in the images' folder".to_owned());
        }
        if parts.is_empty() {
            return None;
        }
        let converters = self.converters();
        let advice =
            if converters.is_empty() { String::new() } else { format!("; to have them read: {}", converters.join(", ")) };
        Some(format!("passed over: {}{advice}", parts.join("; ")))
    }

    fn files_part(&self) -> Vec<String> {
        let mut counted: Vec<(&String, usize)> = self.files.iter().map(|(ending, n)| (ending, *n)).collect();
        counted.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
        let name = |(ending, n): &(&String, usize)| match ending.as_str() {
            "" => format!("{n} without an ending"),
            ending => format!("{n} .{ending}"),
        };
        let mut words: Vec<String> = counted.iter().take(NAMED).map(name).collect();
        let rest: usize = counted.iter().skip(NAMED).map(|(_, n)| n).sum();
        if rest > 0 {
            words.push(format!("{rest} with other endings"));
        }
        if words.is_empty() {
            Vec::new()
        } else {
            vec![format!("files that are no images by their names ({})", words.join(", "))]
        }
    }

    fn converters(&self) -> Vec<String> {
        let found = CONVERTERS.into_iter().filter(|(ending, _)| self.files.contains_key(*ending));
        found.map(|(ending, converter)| format!(".{ending} by {converter}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sentence_names_endings_and_converters() {
        let mut passed = PassedOver::default();
        assert_eq!(passed.sentence(), None);
        for name in ["a.HEIC", "b.heic", "c.heic", "notes.txt", "README"] {
            passed.add_file(Path::new(name));
        }
        assert_eq!(
            passed.sentence().unwrap(),
            "passed over: files that are no images by their names (3 .heic, 1 without an ending, 1 .txt); to have them read: \
             .heic by heif-convert"
        );
        for (n, name) in ["x.a", "x.b", "x.c", "x.d", "x.e"].into_iter().enumerate() {
            (0..=n).for_each(|_| passed.add_file(Path::new(name)));
        }
        assert!(passed.sentence().unwrap().contains("(5 .e, 4 .d, 3 .c, 3 .heic, 2 .b, 3 with other endings)"));
        let folders = PassedOver { folders: 2, volume: true, ..PassedOver::default() };
        let sentence = folders.sentence().unwrap();
        assert!(sentence.contains("2 folders of thumbnails") && sentence.contains("--include-hidden"), "{sentence}");
        assert!(sentence.contains("the volume itself"), "{sentence}");
    }
}
