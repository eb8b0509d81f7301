//! `eval linear`: linear probes of every layer, all taught by the same passes through the frozen network.
//!
//! What they have learned lies on the volume under a name that follows from what was asked, so that the same command goes on
//! where it was interrupted.

use super::saved::{Saved, listing, name_of};
use super::site::{Listed, Site};
use super::subject::{Subject, SubjectArgs};
use crate::failure::{Failure, say};
use deepcluster_domain::SaveEvery;
use deepcluster_domain::layers::{PROBED_VALUES, probed_layers};
use deepcluster_proto::v1::{
    ClassifiedImages, File, LayerHits, ProbeRequest, Probes, Progress, ScoreRequest, ScoreResult, TrainSaved,
};
use serde_json::json;
use std::path::PathBuf;

/// How probes are taught.
#[derive(clap::Args)]
pub struct LinearArgs {
    #[command(flatten)]
    subject: SubjectArgs,
    /// Training images, in one folder a class
    #[arg(long, value_name = "FOLDER")]
    train: PathBuf,
    /// Test images, in one folder a class
    #[arg(long, value_name = "FOLDER")]
    test: PathBuf,
    /// Probe these layers alone, with commas: conv1 … conv5, layer1 … layer4, pool, fc6, fc7; without it, all convolutions or
    /// stages
    #[arg(long, value_name = "LAYER", value_delimiter = ',')]
    layer: Vec<String>,
    /// Passes over the training images
    #[arg(long, default_value_t = 90, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    epochs: u32,
    /// About how many values of a layer a probe sees, by maxima over windows
    #[arg(long, default_value_t = PROBED_VALUES, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    values: u32,
    /// Show the probes standardised values, which need fewer epochs
    #[arg(long)]
    standardise: bool,
    /// Learning rate at the beginning; it decays as lr / √(1 + lr · decay · steps)
    #[arg(long, default_value_t = 0.01, value_name = "RATE")]
    lr: f64,
    /// Weight decay
    #[arg(long, default_value_t = 1e-4, value_name = "DECAY")]
    weight_decay: f64,
    /// Images of one step
    #[arg(long, default_value_t = 256, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=65_536))]
    batch: u32,
    /// Test with the average over ten crops of each image
    #[arg(long)]
    ten_crops: bool,
    /// How often the probes are saved: a duration like 90s, 5m or 1h, or a number of steps
    #[arg(long, default_value = "1m", value_name = "EVERY")]
    checkpoint_every: SaveEvery,
}

/// Momentum of the probes' SGD (paper, section 4.2).
const MOMENTUM: f64 = 0.9;

impl LinearArgs {
    /// Teaches probes and prints a table of what they get right.
    ///
    /// # Errors
    /// When run, layers or images do not do, or a worker fails.
    pub async fn run(&self) -> Result<(), Failure> {
        for (flag, value, least) in [("lr", self.lr, f64::MIN_POSITIVE), ("weight-decay", self.weight_decay, 0.0)] {
            if !(value.is_finite() && value >= least) {
                return Err(Failure::usage(format!("--{flag} {value} is out of its range")));
            }
        }
        let subject = self.subject.find()?;
        let layers = subject.layers(&self.layer, probed_layers(subject.spec.architecture))?;
        let name = self.name(&subject, &layers)?;
        subject
            .with_site(&name, self.subject.json, async |site| {
                let (scores, classes, loss) = self.evaluate(&subject, site, layers).await?;
                site.clean()?;
                self.print(&subject, &scores, classes, loss)
            })
            .await
    }

    /// A name that is the same for the same question: about the same network, by the same images.
    fn name(&self, subject: &Subject, layers: &[String]) -> Result<String, Failure> {
        let checkpoint = subject.network.checkpoint.as_ref().map(|file| file.blake3.as_str());
        let question = json!([
            checkpoint,
            subject.network.precision,
            subject.network.device,
            listing("train", &self.train)?,
            listing("test", &self.test)?,
            layers,
            self.epochs,
            self.values,
            self.standardise,
            self.lr,
            self.weight_decay,
            self.batch,
        ]);
        Ok(name_of("linear", &question))
    }

    /// What the probes get right, how many classes there are, and the probes' mean loss in the last epoch, where it is known.
    async fn evaluate(
        &self,
        subject: &Subject,
        site: &Site<'_>,
        layers: Vec<String>,
    ) -> Result<(ScoreResult, usize, Option<f64>), Failure> {
        let train = site.classified("train", &self.train, None)?;
        let test = site.classified("test", &self.test, Some(&train.names))?;
        let probes = Probes {
            layers,
            n_classes: train.names.len() as u32,
            values: self.values,
            standardise: self.standardise,
            learning_rate: self.lr,
            momentum: MOMENTUM,
            weight_decay: self.weight_decay,
        };
        let (trained, loss) = self.teach(subject, site, &train, probes.clone()).await?;
        let images = site.prepared(&test).await?;
        let request = ScoreRequest {
            images: Some(images),
            network: Some(subject.network.clone()),
            seed: subject.spec.seed,
            probes: Some(probes),
            trained: Some(trained),
            batch: self.batch,
            ten_crops: self.ten_crops,
        };
        let mut told = |progress: &Progress| site.told("test", progress.done, progress.total, 0.0);
        Ok((site.calls.score(&request, &mut told).await?, train.names.len(), loss))
    }

    /// The probes, taught from where an earlier command was interrupted, and their mean loss in the last epoch, where it is known.
    async fn teach(
        &self,
        subject: &Subject,
        site: &Site<'_>,
        train: &Listed,
        probes: Probes,
    ) -> Result<(File, Option<f64>), Failure> {
        let volume = &subject.volume;
        let images: ClassifiedImages = site.prepared(train).await?;
        let mut saved = Saved::at(site);
        let request = ProbeRequest {
            images: Some(images),
            network: Some(subject.network.clone()),
            seed: subject.spec.seed,
            probes: Some(probes),
            batch: self.batch,
            epochs: self.epochs,
            output: volume.relative(&site.folder.join("probes.safetensors"))?,
            save_every: self.checkpoint_every.to_string(),
            save_to: volume.relative(&site.folder.join("probes"))?,
            saved: saved.file(),
        };
        let mut last_epoch = None;
        let mut losses = Losses::default();
        let mut told = |progress: &Progress| {
            site.told("probes", progress.done, progress.total, progress.loss);
            // While it waits and loads, the trainer does not say where it goes on.
            if progress.done == 0 {
                return;
            }
            losses.heard((progress.done, progress.loss), progress.total, u64::from(self.epochs));
            let epoch = progress.done * u64::from(self.epochs) / progress.total.max(1);
            if last_epoch.replace(epoch) != Some(epoch) {
                // Whoever reads the lines may be gone; the result will say so.
                let _ = site.event("probes", epoch, u64::from(self.epochs), progress.loss);
            }
        };
        let mut kept = |file: TrainSaved| saved.keep("probes", &file);
        let result = site.calls.probe(&request, &mut told, &mut kept).await.map_err(|failure| self.with_hint(failure))?;
        let probes = result.probes.ok_or_else(|| Failure::other("the trainer made no probes"))?;
        Ok((probes, losses.in_last_epoch()))
    }

    /// Says what else may help where numbers of the probes grew beyond all bounds, which the trainer calls "not finite". The same
    /// question would come to the same end.
    fn with_hint(&self, failure: Failure) -> Failure {
        let more = if self.standardise { "" } else { ", and so may --standardise" };
        match failure.message.contains("not finite") {
            true => Failure::usage(format!("{}{more}", failure.message)),
            false => failure,
        }
    }

    /// What to say of probes whose loss has ended above that of guessing.
    fn diverged(&self, loss: Option<f64>, n_classes: usize) -> Option<String> {
        let loss = loss?;
        let guess = (n_classes as f64).ln();
        let help = if self.standardise { "a lower --lr" } else { "--standardise or a lower --lr" };
        let what = format!("the last epoch's loss is about {loss:.3} on average of the layers");
        (loss > guess).then(|| format!("{what}, and guessing has ln {n_classes} = {guess:.3}; {help} may help"))
    }

    fn print(&self, subject: &Subject, scores: &ScoreResult, n_classes: usize, loss: Option<f64>) -> Result<(), Failure> {
        let share = |hits: u64, n: u64| hits as f64 / n.max(1) as f64;
        let diverged = self.diverged(loss, n_classes);
        if self.subject.json {
            for LayerHits { layer, top1, top5, n } in &scores.layers {
                say(json!({
                    "event": "linear", "epoch": subject.epoch, "layer": layer, "top1": share(*top1, *n), "top5": share(*top5, *n),
                    "images": n, "classes": n_classes, "epochs": self.epochs, "ten_crops": self.ten_crops,
                }))?;
            }
            return diverged.map_or(Ok(()), |message| say(json!({"event": "warning", "message": message})));
        }
        let n = scores.layers.first().map_or(0, |hits| hits.n);
        say(format!("{}: linear probes on {n} images of {n_classes} classes, {} epochs", subject.name(), self.epochs))?;
        say(format!("{:8} {:>7} {:>7}", "layer", "top-1", "top-5"))?;
        for LayerHits { layer, top1, top5, n } in &scores.layers {
            say(format!("{layer:8} {:>6.1} % {:>5.1} %", share(*top1, *n) * 100.0, share(*top5, *n) * 100.0))?;
        }
        for image in scores.skipped.iter().take(1) {
            say(format!("{} images could not be read; one: {}", scores.skipped.len(), image.reason))?;
        }
        diverged.map_or(Ok(()), say)
    }
}

/// What was heard of the probes' loss.
#[derive(Default)]
struct Losses {
    /// Images seen and mean loss over them, when the last epoch began; none where nothing was heard at about that time, as after
    /// an interruption in the last epoch.
    before: Option<(u64, f64)>,
    /// The same, now.
    now: (u64, f64),
}

impl Losses {
    /// Takes in how many images were seen, of how many in how many epochs, and the mean loss over them.
    fn heard(&mut self, now: (u64, f64), total: u64, epochs: u64) {
        let an_epoch = total / epochs.max(1);
        let last = total - an_epoch;
        // Not every word of the trainer is heard, so a tenth of an epoch too early will do.
        if now.0 <= last && (last - now.0).saturating_mul(10) <= an_epoch {
            self.before = Some(now);
        } else if last == 0 {
            self.before = Some((0, 0.0));
        }
        self.now = now;
    }

    /// Mean loss in the last epoch, if that is known.
    fn in_last_epoch(&self) -> Option<f64> {
        let before = self.before.filter(|before| before.0 < self.now.0)?;
        Some(loss_since(before, self.now))
    }
}

/// Mean loss over the images between two moments, of each of which is known how many were seen and the mean loss over them.
fn loss_since((n_before, before): (u64, f64), (n, loss): (u64, f64)) -> f64 {
    (loss * n as f64 - before * n_before as f64) / n.saturating_sub(n_before).max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loss_of_the_last_epoch_follows_from_the_means() {
        assert_eq!(loss_since((0, 0.0), (10, 2.5)), 2.5);
        assert_eq!(loss_since((30, 4.0), (40, 3.5)), 2.0);
        assert_eq!(loss_since((40, 3.5), (40, 3.5)), 0.0);
    }

    #[test]
    fn the_loss_of_the_last_epoch_is_unknown_to_who_comes_in_its_middle() {
        let after = |heard: &[(u64, f64)], total: u64, epochs: u64| {
            let mut losses = Losses::default();
            heard.iter().for_each(|now| losses.heard(*now, total, epochs));
            losses.in_last_epoch()
        };
        assert_eq!(after(&[(10, 5.0), (30, 4.0), (40, 3.5)], 40, 4), Some(2.0));
        assert_eq!(after(&[(35, 3.75), (40, 3.5)], 40, 4), None);
        // What was heard long before that epoch tells as little of it.
        assert_eq!(after(&[(10, 5.0), (40, 3.5)], 40, 4), None);
        assert_eq!(after(&[(30, 4.0)], 40, 4), None);
        // An only epoch begins with nothing, wherever one comes in.
        assert_eq!(after(&[(30, 4.0), (40, 3.5)], 40, 1), Some(3.5));
    }
}
