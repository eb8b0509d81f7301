//! `eval voc`: classification of Pascal VOC 2007, whose images show several classes each (paper, section 4.3).
//!
//! Numbers are those of `eval_voc_classif.py` of the authors' release: 80,000 steps of 16 images, SGD with rate 0.003, momentum
//! 0.9 and weight decay 10⁻⁶, a rate that is halved every 5,000 steps, crops of 10–50 % of an image, and ten of these for each
//! image of the test. Average precisions are those of VOC 2007, over eleven recalls.

use super::saved::{Saved, name_of, real};
use super::site::{Listed, Site};
use super::subject::{Subject, SubjectArgs};
use super::voc_sets::{Set, Sets, file_of};
use crate::failure::{Failure, say};
use crate::train::images_below_root;
use deepcluster_domain::SaveEvery;
use deepcluster_domain::ranking::{Relevance, average_precision_11};
use deepcluster_images::find::describe;
use deepcluster_proto::v1::{
    ClassifiedImages, Classifier, File, FinetuneRequest, PredictRequest, PredictResult, Progress, TrainSaved,
};
use deepcluster_service::requests::{file_to_wire, record_of};
use deepcluster_volume::npy;
use rayon::prelude::*;
use serde_json::json;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What learns, and how.
#[derive(clap::Args)]
pub struct VocArgs {
    #[command(flatten)]
    subject: SubjectArgs,
    /// The folder VOC2007, or the VOCdevkit that it lies in, with images and lists of trainval and test
    #[arg(long, value_name = "FOLDER")]
    voc: PathBuf,
    /// Let all layers learn; without it the fully connected ones do, which start anew, and the top layer (of a ResNet, that alone)
    #[arg(long)]
    finetune: bool,
    /// Steps of SGD
    #[arg(long, default_value_t = 80_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    steps: u64,
    /// Steps after which the learning rate is halved, again and again
    #[arg(long, default_value_t = 5_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    step_size: u64,
    /// Learning rate at the beginning
    #[arg(long, default_value_t = 0.003, value_name = "RATE")]
    lr: f64,
    /// Weight decay
    #[arg(long, default_value_t = 1e-6, value_name = "DECAY")]
    weight_decay: f64,
    /// Images of one step
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    batch: u32,
    /// Test with the corners, the centre, and their mirror images, instead of ten crops of the kind that was learned from
    #[arg(long)]
    ten_crops: bool,
    /// How often it is saved what has been learned: a duration like 90s, 5m or 1h, or a number of steps
    #[arg(long, default_value = "5m", value_name = "EVERY")]
    checkpoint_every: SaveEvery,
}

/// Momentum of SGD.
const MOMENTUM: f64 = 0.9;

/// Crops of an image in the test.
const CROPS: u32 = 10;

/// Crops are cut from images whose shorter side is this at most where the network is for 224 pixels: VOC's images as they are.
const SHORTER: u32 = 375;

impl VocArgs {
    /// Teaches, tests, and prints the average precision of each class, and their mean.
    ///
    /// # Errors
    /// When the run or the lists do not do, or a worker fails.
    pub async fn run(&self) -> Result<(), Failure> {
        for (flag, value, least) in [("lr", self.lr, f64::MIN_POSITIVE), ("weight-decay", self.weight_decay, 0.0)] {
            if !(value.is_finite() && value >= least) {
                return Err(Failure::usage(format!("--{flag} {value} is out of its range")));
            }
        }
        let sets = Sets::read(&self.voc)?;
        let mut subject = self.subject.find()?;
        let side = subject.network.image_size * SHORTER / 224;
        subject.network.cache_side = subject.network.cache_side.max(side);
        let name = self.name(&subject, &sets)?;
        subject
            .with_site(&name, self.subject.json, async |site| {
                let (scores, skipped) = self.evaluate(&subject, site, &sets).await?;
                site.clean()?;
                self.print(&subject, &sets, &scores, &skipped)
            })
            .await
    }

    /// A name that is the same for the same question: about the same network, by the same images.
    fn name(&self, subject: &Subject, sets: &Sets) -> Result<String, Failure> {
        let checkpoint = subject.network.checkpoint.as_ref().map(|file| file.blake3.as_str());
        let question = json!([
            checkpoint,
            subject.network.precision,
            subject.network.device,
            real(&self.voc)?,
            sets.digest(),
            self.finetune,
            self.steps,
            self.step_size,
            self.lr,
            self.weight_decay,
            self.batch,
        ]);
        Ok(name_of("voc", &question))
    }

    /// Scores of the test's images `[images, classes]`, and the rows of those that could not be read.
    async fn evaluate(&self, subject: &Subject, site: &Site<'_>, sets: &Sets) -> Result<(Vec<f32>, BTreeSet<u64>), Failure> {
        let train = listed(site, "trainval", &sets.images, &sets.trainval)?;
        let test = listed(site, "test", &sets.images, &sets.test)?;
        let classifier = Classifier { n_classes: sets.classes.len() as u32, all_layers: self.finetune };
        let trained = self.teach(subject, site, (&train, sets), classifier).await?;
        let request = PredictRequest {
            images: Some(site.prepared(&test).await?),
            network: Some(subject.network.clone()),
            seed: subject.spec.seed,
            classifier: Some(classifier),
            trained: Some(trained),
            batch: self.batch.saturating_mul(CROPS).min(65_536),
            ten_crops: self.ten_crops,
            output: subject.volume.relative(&site.folder.join("scores.npy"))?,
        };
        let mut told = |progress: &Progress| site.told("test", progress.done, progress.total, 0.0);
        let PredictResult { scores, skipped } = site.calls.predict(&request, &mut told).await?;
        let record = record_of("scores", scores.as_ref()).map_err(|error| Failure::other(error.to_string()))?;
        let (shape, scores) = npy::read_f32(&subject.volume.verified(&record)?)?;
        if shape != [test.entries.len(), sets.classes.len()] {
            return Err(Failure::other(format!("{}: its shape is {shape:?}", record.path)));
        }
        let listed = (0..).zip(&test.entries).filter(|(_, entry)| entry.skipped.is_some()).map(|(row, _)| row);
        Ok((scores, listed.chain(skipped.iter().map(|image| image.index)).collect()))
    }

    /// What has been learned, from where an earlier command was interrupted.
    async fn teach(
        &self,
        subject: &Subject,
        site: &Site<'_>,
        (train, sets): (&Listed, &Sets),
        classifier: Classifier,
    ) -> Result<File, Failure> {
        let volume = &subject.volume;
        let labels = site.folder.join("labels.npy");
        let digest = npy::publish_i32_matrix(&labels, &[train.entries.len(), sets.classes.len()], &sets.trainval.labels)?;
        let classes = Some(file_to_wire(&volume.record(&labels, digest)?));
        let images = ClassifiedImages { classes, ..site.prepared(train).await? };
        let mut saved = Saved::at(site);
        let request = FinetuneRequest {
            images: Some(images),
            network: Some(subject.network.clone()),
            seed: subject.spec.seed,
            classifier: Some(classifier),
            batch: self.batch,
            steps: self.steps,
            learning_rate: self.lr,
            halve_every: self.step_size,
            momentum: MOMENTUM,
            weight_decay: self.weight_decay,
            output: volume.relative(&site.folder.join("trained.safetensors"))?,
            save_every: self.checkpoint_every.to_string(),
            save_to: volume.relative(&site.folder.join("trained"))?,
            saved: saved.file(),
        };
        let mut last = None;
        let mut told = |progress: &Progress| {
            site.told("learning", progress.done, progress.total, progress.loss);
            // While it waits and loads, the trainer does not say where it goes on.
            if progress.done == 0 {
                return;
            }
            let hundredth = progress.done * 100 / progress.total.max(1);
            if last.replace(hundredth) != Some(hundredth) {
                // Whoever reads the lines may be gone; the result will say so.
                let _ = site.event("voc", progress.done, progress.total, progress.loss);
            }
        };
        let mut kept = |file: TrainSaved| saved.keep("trained", &file);
        let result = site.calls.finetune(&request, &mut told, &mut kept).await?;
        result.trained.ok_or_else(|| Failure::other("the trainer made nothing"))
    }

    fn print(&self, subject: &Subject, sets: &Sets, scores: &[f32], skipped: &BTreeSet<u64>) -> Result<(), Failure> {
        let precisions = precisions(sets.classes.len(), &sets.test.labels, scores, skipped);
        let mean = precisions.iter().sum::<f64>() / precisions.len().max(1) as f64;
        let n_images = sets.test.ids.len() - skipped.len();
        for (class, precision) in sets.classes.iter().zip(&precisions) {
            match self.subject.json {
                true => say(json!({"event": "class", "class": class, "ap": precision}))?,
                false => say(format!("{class:16} {:>5.1} %", precision * 100.0))?,
            }
        }
        if self.subject.json {
            return say(json!({
                "event": "voc", "epoch": subject.epoch, "finetune": self.finetune, "steps": self.steps, "map": mean,
                "classes": precisions.len(), "images": n_images, "unreadable": skipped.len(), "ten_crops": self.ten_crops,
            }));
        }
        let how = if self.finetune { "all layers" } else { "the classifier alone" };
        let (name, steps, n) = (subject.name(), self.steps, precisions.len());
        say(format!("{name}: {:.1} % on average of {n} classes, {n_images} images; {how}, {steps} steps", mean * 100.0))?;
        match skipped.len() {
            0 => Ok(()),
            n => say(format!("{n} images could not be read")),
        }
    }
}

/// Lists the images of a set.
fn listed(site: &Site<'_>, name: &str, folder: &Path, set: &Set) -> Result<Listed, Failure> {
    let entries = set.ids.par_iter().map(|id| describe(folder, Path::new(&file_of(id)))).collect();
    site.listed(name, images_below_root(folder)?, entries)
}

/// Average precision of each class; `labels` and `scores` are `[images, classes]`.
fn precisions(n_classes: usize, labels: &[i32], scores: &[f32], skipped: &BTreeSet<u64>) -> Vec<f64> {
    let of = |class: usize| {
        let rows = (0_u64..).zip(labels.chunks_exact(n_classes).zip(scores.chunks_exact(n_classes)));
        let (scores, relevant): (Vec<f32>, Vec<Relevance>) = rows
            .map(|(row, (labels, scores))| {
                let relevance = match labels[class] {
                    _ if skipped.contains(&row) => Relevance::Ignored,
                    1 => Relevance::Positive,
                    0 => Relevance::Ignored,
                    _ => Relevance::Negative,
                };
                (scores[class], relevance)
            })
            .unzip();
        average_precision_11(&scores, &relevant)
    };
    (0..n_classes).map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_difficult_nor_unreadable_images_count() {
        // Of class 0 the one right image comes second, behind a wrong, a difficult and an unreadable one.
        let labels = [-1, 1, 0, 1, 1, -1, -1, -1];
        let scores = [0.9, 0.9, 0.8, 0.8, 0.1, 0.1, 0.7, 0.7];
        let found = precisions(2, &labels, &scores, &BTreeSet::from([3]));
        assert!((found[0] - 0.5).abs() < 1e-12, "{found:?}");
        assert!((found[1] - 1.0).abs() < 1e-12, "{found:?}");
        let all = precisions(2, &labels, &scores, &BTreeSet::new());
        assert!((all[0] - 1.0 / 3.0).abs() < 1e-12, "{all:?}");
    }
}
