//! `eval clusters`: agreement of the clusters with true classes.

use super::subject::manifest_of;
use crate::failure::{Failure, say};
use crate::local::LastEpoch;
use deepcluster_domain::agreement::{ari, matched_accuracy, purity};
use deepcluster_domain::scores::{ami, nmi, occupancy};
use deepcluster_images::folder_classes;
use deepcluster_volume::records::{EpochManifest, RunRecord, read_record};
use deepcluster_volume::{RunFolder, image_list, npy};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

/// Which clusters, and what is true.
#[derive(clap::Args)]
pub struct ClustersArgs {
    /// Folder of the run
    run_dir: PathBuf,
    /// Take the clusters of this epoch instead of the last one
    #[arg(long, value_name = "N")]
    epoch: Option<u32>,
    /// A CSV file of path,class with the true classes, where the images do not lie in one folder a class
    #[arg(long, value_name = "FILE")]
    classes: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl ClustersArgs {
    /// Scores the clusters.
    ///
    /// # Errors
    /// When the run has no such epoch, or there are no classes.
    pub fn run(&self) -> Result<(), Failure> {
        let run = RunFolder::at(&self.run_dir);
        let last = LastEpoch::of(&run)?;
        let manifest = self.epoch.map_or(Ok(last.manifest.clone()), |epoch| manifest_of(&run, epoch))?;
        let record: RunRecord = read_record(&run.run_json())?;
        let images = image_list::read_known(&run.images_csv(), &record.resolved.images_csv)?;
        let labels = labels(&run, &manifest)?;
        let classes = match &self.classes {
            Some(file) => self.listed_classes(file, &images)?,
            None => {
                let why = "the images lie in no folder a class; --classes FILE names their classes";
                folder_classes(&images).ok_or_else(|| Failure::usage(why))?
            }
        };
        if labels.len() != classes.len() {
            return Err(Failure::usage(format!("there are labels of {} images, not of {}", labels.len(), classes.len())));
        }
        let scored = labels.iter().zip(&classes).filter(|(label, class)| **label >= 0 && **class >= 0).count();
        if scored == 0 {
            return Err(Failure::usage("no image has both a cluster and a class"));
        }
        let n_classes = classes.iter().filter(|class| **class >= 0).collect::<std::collections::BTreeSet<_>>().len();
        let occupancy = occupancy(&labels);
        let (accuracy, _) = matched_accuracy(&labels, &classes);
        let scores = [
            ("nmi", nmi(&labels, &classes)),
            ("ami", ami(&labels, &classes)),
            ("ari", ari(&labels, &classes)),
            ("purity", purity(&labels, &classes)),
            ("accuracy", accuracy),
        ];
        if self.json {
            let mut line =
                json!({"epoch": manifest.epoch, "images": scored, "classes": n_classes, "clusters": occupancy.nonempty});
            if let Value::Object(object) = &mut line {
                object.extend(scores.iter().map(|(name, score)| ((*name).to_owned(), json!(score))));
            }
            return say(line);
        }
        let (epoch, clusters) = (manifest.epoch, occupancy.nonempty);
        say(format!("epoch {epoch}: {scored} images in {clusters} clusters, {n_classes} classes"))?;
        let meaning = [
            "normalised mutual information",
            "mutual information adjusted for chance",
            "Rand index adjusted for chance",
            "share of the most frequent class of each cluster",
            "under the best matching of clusters to classes, one to one",
        ];
        for ((name, score), meaning) in scores.iter().zip(meaning) {
            say(format!("{name:9} {score:.4}  {meaning}"))?;
        }
        Ok(())
    }

    /// Classes of the images by a file's lines; -1 where it does not name one.
    fn listed_classes(&self, file: &PathBuf, images: &[image_list::ImageEntry]) -> Result<Vec<i32>, Failure> {
        let text = fs::read_to_string(file).map_err(|error| Failure::usage(format!("{}: {error}", file.display())))?;
        let mut by_path: BTreeMap<&str, &str> = BTreeMap::new();
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let (path, class) = line
                .rsplit_once(',')
                .ok_or_else(|| Failure::usage(format!("{} line {}: '{line}' is not path,class", file.display(), number + 1)))?;
            by_path.insert(path.trim_matches('"'), class.trim());
        }
        let mut names: Vec<&str> = by_path.values().copied().collect();
        names.sort_unstable();
        names.dedup();
        let class = |image: &image_list::ImageEntry| {
            let class = std::str::from_utf8(&image.path).ok().and_then(|path| by_path.get(path))?;
            names.binary_search(class).ok().map(|number| number as i32)
        };
        let classes: Vec<i32> = images.iter().map(|image| class(image).unwrap_or(-1)).collect();
        match classes.iter().any(|class| *class >= 0) {
            true => Ok(classes),
            false => Err(Failure::usage(format!("{} names none of the run's images", file.display()))),
        }
    }
}

/// Labels of an epoch, verified.
fn labels(run: &RunFolder, manifest: &EpochManifest) -> Result<Vec<i32>, Failure> {
    let path = run.epoch(deepcluster_domain::EpochId(manifest.epoch)).labels();
    let found = deepcluster_volume::publish::digest(&path)?;
    if found.blake3 != manifest.files.labels.blake3 {
        return Err(Failure::usage(format!("{}: its checksum is not the recorded one", path.display())));
    }
    Ok(npy::read_i32(&path)?)
}
