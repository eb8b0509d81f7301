//! Where an evaluation takes place: a folder of its own on the volume, the workers, and a line that says how far they are.

use super::saved::NOTE;
use super::subject::Subject;
use crate::calls::Calls;
use crate::embedded::{ServicesArgs, Stack};
use crate::failure::Failure;
use crate::train::{images_below_root, while_alive};
use deepcluster_domain::ShardId;
use deepcluster_images::{FindOptions, class_names, find_images};
use deepcluster_proto::v1::{
    CachedShard, ClassifiedImages, DigestsOfShard, ExtractRequest, ExtractResult, FeatureDtype, File, ImageList, Progress,
};
use deepcluster_service::requests::{file_to_wire, record_of};
use deepcluster_volume::image_list::{self, ImageEntry};
use deepcluster_volume::{VolumeError, npy, publish};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::fs::TryLockError;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

/// Place, workers and progress of one evaluation.
pub struct Site<'a> {
    /// What is evaluated.
    pub subject: &'a Subject,
    /// The workers.
    pub calls: Calls,
    /// Where its files lie.
    pub folder: PathBuf,
    bar: Option<ProgressBar>,
    json: bool,
}

/// Images in a list that the workers can read.
pub struct Listed {
    /// For requests.
    pub list: ImageList,
    /// The images.
    pub entries: Vec<ImageEntry>,
    /// Class of each, by `names`; -1 for one that takes no part.
    pub classes: Vec<i32>,
    /// Names of the classes.
    pub names: Vec<String>,
    name: String,
}

impl Subject {
    /// Evaluates in a folder `eval/NAME` of the run with workers of this machine.
    ///
    /// # Errors
    /// What the work fails with, or why the workers cannot start.
    pub async fn with_site<T>(
        &self,
        name: &str,
        json: bool,
        work: impl AsyncFnOnce(&Site<'_>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let above = self.run.path().join("eval");
        let folder = above.join(name);
        sweep_dead(&above)?;
        // Once more: another evaluation that ended may just have taken the empty folder above away.
        publish::create_folder(&folder).or_else(|_| publish::create_folder(&folder))?;
        let _lock = lock(&folder)?;
        let outcome = self.with_workers(&folder, json, work).await;
        // What was wrong with the question stays wrong, a folder that has the name of this process is of no use to another, and
        // where nothing was saved there is nothing to go on from.
        let is_ours = process_of(name) == Some(std::process::id());
        if outcome.as_ref().is_err_and(|failure| failure.code == 2 || is_ours || !folder.join(NOTE).is_file()) {
            publish::remove(&folder)?;
        }
        // Stays where something is in it.
        let _ = std::fs::remove_dir(&above);
        outcome
    }

    async fn with_workers<T>(
        &self,
        folder: &Path,
        json: bool,
        work: impl AsyncFnOnce(&Site<'_>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let stack = Stack::workers(self.volume.root(), &ServicesArgs::ONE_EACH)?;
        let bar = (!json && std::io::stderr().is_terminal()).then(|| ProgressBar::new(0));
        let site = Site { subject: self, calls: Calls::of(&stack)?, folder: folder.to_owned(), bar, json };
        let outcome = while_alive(stack, "; the same command goes on", work(&site)).await;
        if let Some(bar) = &site.bar {
            bar.finish_and_clear();
        }
        outcome
    }
}

/// Dimensions that whitening to `pca` keeps at most of `n` images' features: those span one less than there are, and no more
/// than the features' width.
pub fn whitened_dims(pca: u32, n: usize, width: usize) -> usize {
    (pca as usize).min(width).min(n.saturating_sub(1))
}

/// A line on progress, without a loss of 0, which nobody has measured yet.
fn progress_line(phase: &str, done: u64, total: u64, loss: f64) -> Value {
    match loss == 0.0 {
        true => json!({"event": "progress", "phase": phase, "done": done, "total": total}),
        false => json!({"event": "progress", "phase": phase, "done": done, "total": total, "loss": loss}),
    }
}

/// Keeps a second command of the same question from working in the same folder.
fn lock(folder: &Path) -> Result<std::fs::File, Failure> {
    let named = |error: std::io::Error| Failure::usage(format!("{}: {error}", folder.display()));
    let file = std::fs::File::open(folder).map_err(named)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(Failure::other(format!("another command works on the same in {}", folder.display())))
        }
        Err(TryLockError::Error(error)) => Err(named(error)),
    }
}

/// The process that an evaluation's folder is named after, if it is.
fn process_of(name: &str) -> Option<u32> {
    const NAMED: [&str; 4] = ["knn", "retrieval", "neighbours", "visualize"];
    let (protocol, process) = name.rsplit_once('-')?;
    process.parse().ok().filter(|_| NAMED.contains(&protocol))
}

/// Removes what evaluations have left that were killed.
fn sweep_dead(folder: &Path) -> Result<(), Failure> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(()) };
    for entry in entries.flatten() {
        let process = entry.file_name().to_str().and_then(process_of);
        if process.is_some_and(|process| !Path::new("/proc").join(process.to_string()).is_dir()) {
            publish::remove(&entry.path())?;
        }
    }
    Ok(())
}

impl Site<'_> {
    /// Lists the images of a folder; the classes are those of `known`, or the folders' names.
    ///
    /// # Errors
    /// When the folder has no images, no classes, or one that is not among the known.
    pub fn classified(&self, flag: &str, folder: &Path, known: Option<&[String]>) -> Result<Listed, Failure> {
        let mut listed = self.list(flag, folder)?;
        let found = class_names(&listed.entries);
        let found = found.ok_or_else(|| Failure::usage(format!("--{flag} {} has no folder a class", folder.display())))?;
        let names = match known {
            Some(known) => known.to_vec(),
            None => {
                let mut names = found.clone();
                names.sort();
                names.dedup();
                names
            }
        };
        if names.len() < 2 {
            return Err(Failure::usage(format!("--{flag} {} has one class alone", folder.display())));
        }
        for (class, (name, entry)) in listed.classes.iter_mut().zip(found.iter().zip(&listed.entries)) {
            let number = names.binary_search(name).map_err(|_| {
                Failure::usage(format!("--{flag} {} has a class '{name}' that the training images have not", folder.display()))
            })?;
            *class = if entry.skipped.is_none() { number as i32 } else { -1 };
        }
        listed.names = names;
        Ok(listed)
    }

    /// Lists the images of a folder, without classes.
    ///
    /// # Errors
    /// When it has none.
    pub fn list(&self, flag: &str, folder: &Path) -> Result<Listed, Failure> {
        let root = images_below_root(folder)?;
        let entries = find_images(folder, FindOptions::default())
            .map(|found| found.images)
            .map_err(|error| Failure::usage(format!("--{flag}: {error}")))?;
        self.listed(flag, root, entries)
    }

    /// Makes a list of images known to the workers.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn listed(&self, name: &str, root: String, entries: Vec<ImageEntry>) -> Result<Listed, Failure> {
        let path = self.folder.join(format!("{name}.csv"));
        let (csv, _) = image_list::to_csv(&entries).map_err(|error| Failure::from(VolumeError::io(&path)(error)))?;
        publish::publish_bytes(&path, &csv)?;
        let list = file_to_wire(&self.subject.volume.record_existing(&path)?);
        let classes = vec![-1; entries.len()];
        Ok(Listed { list: ImageList { root, list: Some(list) }, entries, classes, names: Vec::new(), name: name.to_owned() })
    }

    /// Extracts features of all shards: a layer's, or of no layer the embedding. `what` names the files.
    ///
    /// # Errors
    /// When a worker fails.
    pub async fn extract(&self, listed: &Listed, what: &str, change: &dyn Fn(&mut ExtractRequest)) -> Result<Vec<File>, Failure> {
        let results = self.extracted(listed, what, change).await?;
        Ok(results.into_iter().filter_map(|result| result.features).collect())
    }

    /// The same, with all else that there is to say of each shard.
    ///
    /// # Errors
    /// As [`Site::extract`].
    pub async fn extracted(
        &self,
        listed: &Listed,
        what: &str,
        change: &dyn Fn(&mut ExtractRequest),
    ) -> Result<Vec<ExtractResult>, Failure> {
        let mut results = Vec::new();
        for number in 0..self.n_shards(listed) {
            let mut request = self.extract_request(listed, number, what)?;
            change(&mut request);
            let before = u64::from(number) * u64::from(self.subject.spec.shard_images);
            let total = listed.entries.len() as u64;
            let mut told =
                |progress: &Progress| self.told(&format!("{} {what}", listed.name), before + progress.done, total, 0.0);
            results.push(self.calls.extract(&request, &mut told).await?.1);
        }
        Ok(results)
    }

    /// Decodes the images once, for work that looks at them many times: a list with classes and what is cached of it.
    ///
    /// # Errors
    /// When a worker fails or the volume cannot be written.
    pub async fn prepared(&self, listed: &Listed) -> Result<ClassifiedImages, Failure> {
        let (volume, name) = (&self.subject.volume, &listed.name);
        let classes = Some(self.classes(listed)?);
        let mut images = ClassifiedImages { images: Some(listed.list.clone()), classes, ..ClassifiedImages::default() };
        for number in 0..self.n_shards(listed) {
            let shard = ShardId(number);
            let at = |ending: &str| self.folder.join(format!("{name}-{shard}.{ending}"));
            let first_image = u64::from(number) * u64::from(self.subject.spec.shard_images);
            let (pixels, digests) = (volume.relative(&at("pixels"))?, volume.relative(&at("digests.npy"))?);
            let mut request = self.extract_request(listed, number, "pixels")?;
            (request.cache_output, request.digests_output) = (pixels.clone(), digests);
            // The first layer is wanted of none of them, but it takes the least time.
            request.layer = "conv1".to_owned();
            request.values = 1;
            let total = listed.entries.len() as u64;
            let mut told = |progress: &Progress| self.told(&format!("{name} decoding"), first_image + progress.done, total, 0.0);
            let (_, result) = self.calls.extract(&request, &mut told).await?;
            images.digests.extend(result.digests.map(|file| DigestsOfShard { file: Some(file), first_image }));
            images.cache.extend(result.cache.map(|_| CachedShard { path: pixels, first_image }));
            if let Some(features) = result.features {
                publish::remove(&volume.resolve(&features.path)?)?;
            }
        }
        Ok(images)
    }

    /// How many shards a list has.
    pub fn n_shards(&self, listed: &Listed) -> u32 {
        listed.entries.len().div_ceil(self.subject.spec.shard_images as usize) as u32
    }

    /// What is asked of the extractor for the embeddings of a shard; `what` names the file.
    ///
    /// # Errors
    /// When the path of the file is not UTF-8.
    pub fn extract_request(&self, listed: &Listed, number: u32, what: &str) -> Result<ExtractRequest, Failure> {
        let spec = &self.subject.spec;
        let first_image = u64::from(number) * u64::from(spec.shard_images);
        let rest = listed.entries.len() as u64 - first_image;
        let output = self.folder.join(format!("{}-{what}-{}.npy", listed.name, ShardId(number)));
        Ok(ExtractRequest {
            run_id: self.subject.run_id.clone(),
            shard: number,
            images: Some(listed.list.clone()),
            first_image,
            n_images: rest.min(u64::from(spec.shard_images)),
            network: Some(self.subject.network.clone()),
            seed: spec.seed,
            batch: spec.batch,
            feature_dtype: FeatureDtype::F32.into(),
            output: self.subject.volume.relative(&output)?,
            ..ExtractRequest::default()
        })
    }

    /// A file that a worker has made, verified.
    ///
    /// # Errors
    /// When it is not what the worker says.
    pub fn verified(&self, field: &'static str, file: Option<&File>) -> Result<PathBuf, Failure> {
        let record = record_of(field, file).map_err(|error| Failure::other(error.to_string()))?;
        Ok(self.subject.volume.verified(&record)?)
    }

    /// How many values each image has in features that a worker has made.
    ///
    /// # Errors
    /// When the file is not there or damaged.
    pub fn width(&self, features: &[File]) -> Result<usize, Failure> {
        let first = features.first().ok_or_else(|| Failure::other("the extractor made no features"))?;
        Ok(npy::ArrayFile::open(&self.subject.volume.resolve(&first.path)?)?.width())
    }

    /// Removes files that are no longer needed.
    ///
    /// # Errors
    /// When one cannot be removed.
    pub fn remove(&self, files: &[File]) -> Result<(), Failure> {
        files.iter().try_for_each(|file| Ok(publish::remove(&self.subject.volume.resolve(&file.path)?)?))
    }

    /// The classes of a list as a file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn classes(&self, listed: &Listed) -> Result<File, Failure> {
        let path = self.folder.join(format!("{}-classes.npy", listed.name));
        let digest = npy::publish_i32(&path, &listed.classes)?;
        Ok(file_to_wire(&self.subject.volume.record(&path, digest)?))
    }

    /// Shows how far the work is; in JSON mode nobody looks.
    pub fn told(&self, phase: &str, done: u64, total: u64, loss: f64) {
        let Some(bar) = &self.bar else { return };
        if let Ok(style) = ProgressStyle::with_template("{msg:32} [{bar:30}] {pos}/{len}  {eta}") {
            bar.set_style(style);
        }
        bar.set_length(total);
        bar.set_position(done);
        bar.set_message(if loss > 0.0 { format!("{phase}  loss {loss:.3}") } else { phase.to_owned() });
    }

    /// Progress as a line for machines; the loss is the mean since the beginning.
    ///
    /// # Errors
    /// When the output is closed.
    pub fn event(&self, phase: &str, done: u64, total: u64, loss: f64) -> Result<(), Failure> {
        match self.json {
            true => crate::failure::say(progress_line(phase, done, total, loss)),
            false => Ok(()),
        }
    }

    /// Removes everything that the evaluation has written.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn clean(&self) -> Result<(), Failure> {
        Ok(publish::remove(&self.folder)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_images_or_narrow_features_keep_few_dimensions() {
        assert_eq!(whitened_dims(5000, 400, 9216), 399);
        assert_eq!(whitened_dims(5000, 400, 256), 256);
        assert_eq!(whitened_dims(64, 400, 256), 64);
    }

    #[test]
    fn a_loss_that_was_not_measured_is_not_told() {
        assert!(progress_line("voc", 1, 9, 0.0).get("loss").is_none());
        assert_eq!(progress_line("voc", 1, 9, 2.5)["loss"], 2.5);
    }
}
