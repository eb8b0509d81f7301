//! `eval clusters`: agreement of the clusters with true classes.

use super::class_file;
use crate::failure::{Failure, say};
use crate::local::chosen_epoch;
use deepcluster_domain::agreement::{ari, matched_accuracy, purity};
use deepcluster_domain::scores::{ami, nmi, nmi_chance, occupancy};
use deepcluster_images::folder_classes;
use deepcluster_volume::records::{RunRecord, read_record};
use deepcluster_volume::{RunFolder, image_list, npy};
use serde_json::{Value, json};
use std::path::PathBuf;

/// Most pairs of a cluster and a class for which the best matching is looked for.
const MOST_PAIRS: usize = 50_000_000;

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
        let epoch = chosen_epoch(&run, self.epoch)?;
        let record: RunRecord = read_record(&run.run_json())?;
        let images = image_list::read_known(&run.images_csv(), &record.resolved.images_csv)?;
        let labels = npy::read_i32(&epoch.verified("labels.npy")?)?;
        let classes = match &self.classes {
            Some(file) => {
                let found = class_file::read(file, &images, &record.spec.images)?;
                if found.n_without > 0 && !self.json {
                    say(format!("{} lines of {} have a path and no class", found.n_without, file.display()))?;
                }
                found.classes
            }
            None => {
                let why = "the images lie in no folder a class; --classes FILE names their classes";
                folder_classes(&images, record.spec.classes_from).ok_or_else(|| Failure::usage(why))?
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
        let of_scored: Vec<i32> =
            labels.iter().zip(&classes).map(|(label, class)| if *class >= 0 { *label } else { -1 }).collect();
        let occupancy = occupancy(&of_scored);
        let left_out = labels.iter().filter(|label| **label >= 0).count() - scored;
        // The matching takes 8 bytes for each pair, and so many steps for each class.
        let accuracy = (occupancy.nonempty * n_classes <= MOST_PAIRS).then(|| matched_accuracy(&labels, &classes).0);
        let scores = [
            ("nmi", nmi(&labels, &classes)),
            ("nmi_chance", nmi_chance(&labels, &classes)),
            ("ami", ami(&labels, &classes)),
            ("ari", ari(&labels, &classes)),
            ("purity", purity(&labels, &classes)),
            ("accuracy", accuracy.unwrap_or(f64::NAN)),
        ];
        if self.json {
            let mut line = json!({"epoch": epoch.epoch.0, "images": scored, "left_out": left_out, "classes": n_classes, "clusters": occupancy.nonempty});
            if let Value::Object(object) = &mut line {
                object.extend(scores.iter().map(|(name, score)| ((*name).to_owned(), json!(score))));
            }
            return say(line);
        }
        let (epoch, clusters) = (epoch.epoch.0, occupancy.nonempty);
        say(format!("epoch {epoch}: {scored} images in {clusters} clusters, {n_classes} classes"))?;
        if left_out > 0 {
            say(format!("{left_out} images have a cluster and no class, and are left out"))?;
        }
        let meaning = [
            "normalised mutual information",
            "what random clusters of these sizes have of it",
            "mutual information adjusted for chance",
            "Rand index adjusted for chance",
            "share of the most frequent class of each cluster",
            "under the best matching of clusters to classes, one to one",
        ];
        for ((name, score), meaning) in scores.iter().zip(meaning) {
            match score.is_nan() {
                true => say(format!("{name:10} {:6}  too many clusters and classes for the best matching", "-"))?,
                false => say(format!("{name:10} {score:.4}  {meaning}"))?,
            }
        }
        Ok(())
    }
}
