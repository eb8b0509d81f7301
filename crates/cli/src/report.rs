//! `report`: one page that says what came of a run, and loads nothing from anywhere.

use crate::failure::{Failure, say};
use crate::local::check_target;
use deepcluster_volume::layout::resolve_below;
use deepcluster_volume::records::{RunRecord, read_record};
use deepcluster_volume::{RunFolder, publish};
use serde_json::json;
use std::path::{Path, PathBuf};

/// What every cluster of a page has one of. Nothing that users write can look like it, since that is escaped.
const CARD: &str = "<article class=\"card\"";

/// Writes the page.
///
/// # Errors
/// When the folder is no run, a file of its last epoch is damaged, or something other than a file is there already.
pub fn report(run_dir: &Path, to: &Path, atlas: Option<&Path>, images: Option<&Path>, as_json: bool) -> Result<(), Failure> {
    check_target(to)?;
    atlas.map_or(Ok(()), check_target)?;
    let run = RunFolder::at(run_dir);
    if !run.run_json().is_file() {
        return Err(Failure::usage(format!("{} is not the folder of a run", run_dir.display())));
    }
    let record: RunRecord = read_record(&run.run_json())?;
    let root = images_root(&record.spec.images, images)?;
    let page = deepcluster_report::report(&run, &root).map_err(|error| Failure::usage(error.to_string()))?;
    let clusters = page.html.matches(CARD).count();
    let written = publish::publish_bytes(to, page.html.as_bytes())?;
    if let Some(file) = atlas {
        let png = deepcluster_report::atlas_png(&run, &root).map_err(|error| Failure::usage(error.to_string()))?;
        publish::publish_bytes(file, &png)?;
    }
    if as_json {
        return say(json!({
            "file": to.display().to_string(), "bytes": written.bytes, "blake3": written.blake3, "clusters": clusters,
            "grey": page.grey, "atlas": atlas.map(|file| file.display().to_string()),
        }));
    }
    say(format!("wrote the report on {clusters} clusters to {} ({} bytes)", to.display(), written.bytes))?;
    if let Some(file) = atlas {
        say(format!("wrote the atlas of its largest clusters to {}", file.display()))?;
    }
    page.remark.map_or(Ok(()), say)
}

/// The folder that a run's list of images is relative to: the one that is named, or that of the run's spec, which runs of this
/// machine know by its way from `/`.
///
/// # Errors
/// When the one that is named is no folder, or the spec's leads nowhere.
pub fn images_root(of_run: &str, named: Option<&Path>) -> Result<PathBuf, Failure> {
    match named {
        Some(folder) if folder.is_dir() => Ok(folder.to_owned()),
        Some(folder) => Err(Failure::usage(format!("--images {} is not a folder", folder.display()))),
        None if matches!(of_run, "" | ".") => Ok(PathBuf::from("/")),
        None => Ok(resolve_below(Path::new("/"), Path::new(of_run))?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_where_the_run_has_them_or_where_one_says() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(images_root("home/me/pictures", None).unwrap(), Path::new("/home/me/pictures"));
        assert_eq!(images_root(".", None).unwrap(), Path::new("/"));
        assert_eq!(images_root("elsewhere", Some(folder.path())).unwrap(), folder.path());
        for (of_run, named) in [("a/../../etc", None), ("/etc", None), ("a", Some(Path::new("/no/such/folder")))] {
            assert!(images_root(of_run, named).is_err(), "{of_run}");
        }
    }
}
