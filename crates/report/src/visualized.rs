//! What `deepcluster visualize filters` has left in the folder of a run: for filters of some layer the images that excite them
//! most, and a picture made for them by gradient ascent.

use crate::html::{counted, data_uri, escape};
use crate::last::Clustered;
use crate::thumbs::{self, Strip, Thumbnailer};
use deepcluster_images::decode::Expected;
use deepcluster_volume::RunFolder;
use rayon::prelude::*;
use serde::{Deserialize, Deserializer};
use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;

/// Most filters that the page shows.
const MOST: usize = 256;

/// Side of the images of a filter, and of the picture made for it.
const SIDES: (u32, u32) = (56, 168);

const COLUMNS: u32 = 3;

/// `visualize/filters.json`.
#[derive(Deserialize)]
struct Visualized {
    /// The epoch that has left the network so: null where it has not learned anything, none where nobody wrote it down.
    #[serde(default, deserialize_with = "written")]
    epoch: Option<Option<u32>>,
    layer: String,
    filters: Vec<Filter>,
}

/// Tells null from what is not there.
fn written<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Option<u32>>, D::Error> {
    Option::<u32>::deserialize(from).map(Some)
}

#[derive(Deserialize)]
struct Filter {
    /// Its number in the layer.
    filter: u32,
    /// Paths of images, relative to their folder, the one that excites it most first.
    top: Vec<String>,
    /// Name of a picture beside the file.
    ascent: String,
}

/// The section's content: the filters, or a sentence that says how to come by them.
pub(crate) fn visualized_html(run: &RunFolder, clustered: &Clustered, images_root: &Path) -> String {
    let folder = run.path().join("visualize");
    let path = folder.join("filters.json");
    let how = "<code>deepcluster visualize filters</code> followed by the folder of the run";
    let text = match fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return format!(
                "<p>Nothing here yet: {how} finds the images that excite each filter most; then make this page again.</p>\n"
            );
        }
        other => other,
    };
    let read = text.map_err(|error| error.to_string());
    let read = read.and_then(|text| serde_json::from_slice::<Visualized>(&text).map_err(|error| error.to_string()));
    match read {
        Ok(found) => filters_html(&found, &folder, &Images { root: images_root, known: known(&found, clustered) }),
        Err(error) => format!("<p>visualize/filters.json cannot be read ({}); {how} makes it anew.</p>\n", escape(&error)),
    }
}

/// The images that are shown.
struct Images<'a> {
    root: &'a Path,
    /// What each should be, by its path.
    known: HashMap<String, Expected>,
}

/// What the run knows of the images that are named.
fn known(found: &Visualized, clustered: &Clustered) -> HashMap<String, Expected> {
    let named: HashSet<&str> = found.filters.iter().flat_map(|filter| &filter.top).map(String::as_str).collect();
    let expected = |row: usize, path: &[u8]| -> Option<(String, Expected)> {
        let path = String::from_utf8_lossy(path);
        if named.contains(&*path) { Some((path.into_owned(), clustered.expected(row)?)) } else { None }
    };
    clustered.images.iter().enumerate().filter_map(|(row, image)| expected(row, &image.path)).collect()
}

/// Which network it was.
fn network(found: &Visualized) -> String {
    match found.epoch {
        Some(Some(epoch)) => format!(" as epoch {epoch} has left it"),
        Some(None) => " <strong>before any training</strong>".to_owned(),
        None => String::new(),
    }
}

fn filters_html(found: &Visualized, folder: &Path, images: &Images<'_>) -> String {
    let shown = found.filters.get(..MOST.min(found.filters.len())).unwrap_or_default();
    let mut html = format!(
        "<p>{} of layer <code>{}</code>{}{}. On the left of each the images that excite it most, in order; on the right a picture \
         that gradient ascent made to excite it.</p>\n<div class=\"filters\">\n",
        counted(found.filters.len(), "filter", "filters"),
        escape(&found.layer),
        network(found),
        if shown.len() < found.filters.len() { format!(", of which the first {MOST} are shown") } else { String::new() },
    );
    let make = |thumbnailer: &mut Thumbnailer, filter: &Filter| filter_html(thumbnailer, filter, folder, images);
    let made: Vec<String> = shown.par_iter().map_init(Thumbnailer::default, make).collect();
    html.push_str(&made.concat());
    html.push_str("</div>\n");
    html
}

fn filter_html(thumbnailer: &mut Thumbnailer, filter: &Filter, folder: &Path, images: &Images<'_>) -> String {
    let mut paths = String::new();
    let mut top = Vec::new();
    for path in &filter.top {
        let square = thumbnailer.square(images.root, Path::new(path), images.known.get(path).copied(), SIDES.0);
        let why = square.as_ref().err().map(|why| format!(" <em>cannot be read: {}</em>", escape(&why.to_string())));
        top.push(square.unwrap_or_else(|_| thumbs::grey(SIDES.0)));
        paths.push_str(&format!("<li><code>{}</code>{}</li>", escape(path), why.unwrap_or_default()));
    }
    let ascent = thumbnailer.square(folder, Path::new(&filter.ascent), None, SIDES.1).unwrap_or_else(|_| thumbs::grey(SIDES.1));
    let n = filter.filter;
    let top_alt = format!("the {} that excite filter {n} most", counted(top.len(), "image", "images"));
    format!(
        "<figure><figcaption>Filter {n}</figcaption>{}{}<details><summary>Paths</summary><ol>{paths}</ol></details></figure>\n",
        img(thumbs::strip(&[top], COLUMNS), &top_alt),
        img(thumbs::strip(&[vec![ascent]], 1), &format!("what filter {n} responds to, by gradient ascent")),
    )
}

fn img(strip: Option<Strip>, alt: &str) -> String {
    let Some(Strip { jpeg, width, height }) = strip else { return String::new() };
    format!("<img width=\"{width}\" height=\"{height}\" alt=\"{alt}\" src=\"{}\">", data_uri("jpeg", &jpeg))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::made_up_run;
    use deepcluster_volume::publish::publish_bytes;
    use image::RgbImage;

    #[test]
    fn filters_are_shown_once_they_were_made() {
        let folder = tempfile::tempdir().unwrap();
        let made = made_up_run(folder.path());
        let clustered = Clustered::read(&made.run).unwrap();
        let shown = || visualized_html(&made.run, &clustered, &made.images);
        assert!(shown().contains("deepcluster visualize filters"));
        let beside = made.run.path().join("visualize");
        let text = br#"{"epoch":1,"layer":"conv<1>","filters":[{"filter":4,"top":["dogs/05.png","gone.png"],"ascent":"a.png"}]}"#;
        publish_bytes(&beside.join("filters.json"), text).unwrap();
        RgbImage::new(20, 20).save(beside.join("a.png")).unwrap();
        let html = shown();
        assert!(
            html.contains("1 filter of layer <code>conv&lt;1&gt;</code> as epoch 1 has left it.") && html.contains("Filter 4"),
            "{html}"
        );
        assert_eq!((html.matches("<img ").count(), html.matches("cannot be read").count()), (2, 1), "{html}");
        // Another image of the same name is not shown as the one that was found.
        let content = fs::read(made.images.join("dogs/05.png")).unwrap();
        publish_bytes(&made.images.join("dogs/05.png"), &[content.as_slice(), b"longer"].concat()).unwrap();
        let html = shown();
        assert_eq!((html.matches("cannot be read").count(), html.matches("the file was replaced").count()), (2, 1), "{html}");
        // What has not learned anything says so; a file of old says nothing.
        publish_bytes(&beside.join("filters.json"), br#"{"epoch":null,"layer":"conv1","filters":[]}"#).unwrap();
        let html = shown();
        assert!(html.contains("<code>conv1</code> <strong>before any training</strong>."), "{html}");
        publish_bytes(&beside.join("filters.json"), br#"{"layer":"conv1","filters":[]}"#).unwrap();
        assert!(!shown().contains("training"));
        publish_bytes(&beside.join("filters.json"), b"{").unwrap();
        assert!(shown().contains("makes it anew"));
    }
}
