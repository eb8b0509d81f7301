//! `visualize filters`: for each filter of a layer the images of the run that excite it most, and a picture made by gradient
//! ascent (paper, section 4.2). `report` shows what lies in the folder `visualize` of a run.

use super::sheet::{Sheets, png};
use super::top::{Excited, most_exciting};
use crate::eval::site::Site;
use crate::eval::subject::{Subject, SubjectArgs};
use crate::failure::{Failure, say};
use crate::report::images_root;
use crate::sort::{check_free, staged_name};
use crate::train::images_below_root;
use deepcluster_proto::v1::{AscendRequest, AscendResult, ExtractRequest, ExtractResult, Progress};
use deepcluster_service::requests::{file_to_wire, record_of};
use deepcluster_volume::image_list::{self, ImageEntry};
use deepcluster_volume::names;
use deepcluster_volume::npy::ArrayFile;
use deepcluster_volume::publish;
use deepcluster_volume::records::{DigestsRecord, RunRecord, read_record};
use image::RgbImage;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// More filters than any layer has.
const MOST: u32 = 65_536;

/// Pictures that are made at a time.
const BATCH: u32 = 16;

/// Which filters are looked at, and how.
#[derive(clap::Args)]
pub struct FiltersArgs {
    #[command(flatten)]
    subject: SubjectArgs,
    /// Where the pictures and filters.json go, a new folder or an empty one, instead of the folder `visualize` of the run, which
    /// is replaced, and where `report` finds them
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
    /// The layer: conv1 … conv5, layer1 … layer4, pool, fc6, fc7
    #[arg(long, default_value = "conv1", value_name = "LAYER")]
    layer: String,
    /// How many filters, or which, as 3,7,12-15; they count from 0
    #[arg(long, default_value = "16", value_name = "FILTERS")]
    filters: Filters,
    /// Steps of gradient ascent
    #[arg(long, default_value_t = 200, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    steps: u32,
    /// How much a step changes a picture, of pixels from 0 to 255
    #[arg(long, default_value_t = 4.0, value_name = "RATE")]
    lr: f64,
    /// Folder of the run's images, where it is not the one that `train` was given
    #[arg(long, value_name = "FOLDER")]
    images: Option<PathBuf>,
}

/// Numbers of filters, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Filters(Vec<u32>);

impl FromStr for Filters {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is neither how many filters nor which, as 3,7,12-15");
        let number = |text: &str| text.parse::<u32>().ok().filter(|number| *number <= MOST).ok_or_else(wrong);
        if let Ok(count) = text.parse::<u32>() {
            return if (1..=MOST).contains(&count) { Ok(Self((0..count).collect())) } else { Err(wrong()) };
        }
        let mut filters = BTreeSet::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(wrong());
            }
            filters.extend(first..=last);
        }
        Ok(Self(filters.into_iter().collect()))
    }
}

/// What there is to say.
struct Shown {
    /// Of each filter.
    filters: Vec<Value>,
    /// Images that take no part though the run has them: path, and why.
    left_out: Vec<(String, String)>,
}

/// Pictures by gradient ascent.
struct Ascended {
    /// f32 `[filters, side, side, 3]`.
    pictures: ArrayFile,
    result: AscendResult,
}

impl Ascended {
    /// One of them.
    fn picture(&self, at: usize) -> Result<RgbImage, Failure> {
        let mut values = Vec::new();
        self.pictures.read_f32_rows(at, 1, &mut values)?;
        let pixels = values.iter().map(|value| *value as u8).collect();
        let side = self.pictures.shape().get(1).copied().unwrap_or(0) as u32;
        RgbImage::from_raw(side, side, pixels).ok_or_else(|| Failure::other("a picture of the trainer has too few pixels"))
    }
}

impl FiltersArgs {
    /// Makes the pictures and says where they are.
    ///
    /// # Errors
    /// When run, layer, filters or images do not do, or a worker fails.
    pub async fn run(&self) -> Result<(), Failure> {
        if !(self.lr.is_finite() && self.lr > 0.0) {
            return Err(Failure::usage(format!("--lr {} is not above 0", self.lr)));
        }
        let subject = self.subject.find()?;
        subject.layers(std::slice::from_ref(&self.layer), Vec::new())?;
        // What lies in the run's own folder is replaced; in another one lies what is somebody else's.
        self.to.as_deref().map_or(Ok(()), check_free)?;
        if self.to.is_none() && subject.snapshot.is_some() {
            return Err(Failure::usage("the run's folder cannot be written; name another by --to"));
        }
        let to = self.to.clone().unwrap_or_else(|| subject.run.path().join("visualize"));
        if fs::metadata(&to).is_ok_and(|found| !found.is_dir()) {
            return Err(Failure::usage(format!("{} is there already and is not a folder", to.display())));
        }
        let record: RunRecord = read_record(&subject.run.run_json())?;
        let root = images_root(&record.spec.images, self.images.as_deref())?;
        if !root.is_dir() {
            let why = format!("{} is not there; --images names the folder that the run's images are in now", root.display());
            return Err(Failure::usage(why));
        }
        let images = image_list::read_known(&subject.run.images_csv(), &record.resolved.images_csv)?;
        let name = format!("visualize-{}", std::process::id());
        let shown = subject
            .with_site(&name, self.subject.json, async |site| {
                let outcome = self.visualize(&subject, site, &root, images, &to).await;
                site.clean()?;
                outcome
            })
            .await?;
        self.print(&subject, &to, &shown)
    }

    /// Makes everything.
    async fn visualize(
        &self,
        subject: &Subject,
        site: &Site<'_>,
        root: &Path,
        images: Vec<ImageEntry>,
        to: &Path,
    ) -> Result<Shown, Failure> {
        // First, since the trainer says soonest what is wrong with the filters.
        let ascended = self.ascend(subject, site).await?;
        let listed = site.listed("images", images_below_root(root)?, images)?;
        let digests = read_record::<DigestsRecord>(&subject.run.digests_json()).ok();
        let change = |request: &mut ExtractRequest| {
            request.layer = self.layer.clone();
            // Of each map one value stays, its maximum.
            request.values = 1;
            // Another content is another image, though it has name and size of the run's.
            let known = digests.as_ref().and_then(|known| known.shards.get(&request.shard));
            request.digests = known.filter(|file| subject.volume.verified(file).is_ok()).map(file_to_wire);
        };
        let results = site.extracted(&listed, &self.layer, &change).await?;
        let left_out = left_out(&listed.entries, &results);
        let n_wanted = listed.entries.iter().filter(|image| image.skipped.is_none()).count();
        if let Some((path, why)) = left_out.first().filter(|_| left_out.len() == n_wanted) {
            let root = root.display();
            return Err(Failure::usage(format!(
                "{root} holds none of the run's images (see --images); the first: {path}: {why}"
            )));
        }
        let tops = most_exciting(&subject.volume, &listed.entries, &results, &self.filters.0)?;
        let mut sheets = Sheets::new(root, subject.spec.image_size, subject.spec.cache_side);
        let staged = self.staged(site, to)?;
        let written = self.write(subject, &staged, &listed.entries, (tops.as_slice(), &ascended), &mut sheets);
        let published = written.and_then(|filters| {
            // Either the old pictures lie there or the new ones, or none for a moment; never some of each.
            if self.to.is_none() {
                publish::remove(to)?;
            }
            publish::adopt(&staged, to)?;
            Ok(Shown { filters, left_out })
        });
        if published.is_err() {
            publish::remove(&staged)?;
        }
        published
    }

    /// Where everything is made before it gets its place: in the evaluation's folder, which is swept should this be killed, or
    /// beside another folder.
    fn staged(&self, site: &Site<'_>, to: &Path) -> Result<PathBuf, Failure> {
        if self.to.is_none() {
            return Ok(site.folder.join("visualized"));
        }
        let name = to.file_name().ok_or_else(|| Failure::usage(format!("--to {} has no name", to.display())))?;
        Ok(to.with_file_name(staged_name(name)))
    }

    async fn ascend(&self, subject: &Subject, site: &Site<'_>) -> Result<Ascended, Failure> {
        let request = AscendRequest {
            network: Some(subject.network.clone()),
            seed: subject.spec.seed,
            layer: self.layer.clone(),
            filters: self.filters.0.clone(),
            steps: self.steps,
            learning_rate: self.lr,
            batch: BATCH,
            output: subject.volume.relative(&site.folder.join("pictures.npy"))?,
        };
        let mut told = |progress: &Progress| site.told("ascent", progress.done, progress.total, 0.0);
        let result = site.calls.ascend(&request, &mut told).await?;
        let record = record_of("pictures", result.pictures.as_ref()).map_err(|error| Failure::other(error.to_string()))?;
        let pictures = ArrayFile::open(&subject.volume.verified(&record)?)?;
        let side = subject.spec.image_size as usize;
        if pictures.shape() != [self.filters.0.len(), side, side, 3] {
            return Err(Failure::other(format!("the trainer's pictures have shape {:?}", pictures.shape())));
        }
        Ok(Ascended { pictures, result })
    }

    /// Writes the pictures and the file that names them to a new folder.
    fn write(
        &self,
        subject: &Subject,
        to: &Path,
        images: &[ImageEntry],
        (tops, ascended): (&[Vec<Excited>], &Ascended),
        sheets: &mut Sheets<'_>,
    ) -> Result<Vec<Value>, Failure> {
        publish::create_folder(to)?;
        let (mut named, mut shown) = (Vec::new(), Vec::new());
        for (at, (filter, top)) in self.filters.0.iter().zip(tops).enumerate() {
            let picture = ascended.picture(at)?;
            let ascent = format!("{}-{filter:04}.png", self.layer);
            publish::publish_bytes(&to.join(&ascent), &png(&picture)?)?;
            let entries: Vec<&ImageEntry> = top.iter().filter_map(|top| images.get(top.image)).collect();
            let sheet = sheets.sheet(&entries, &picture);
            let sheet_name = format!("{}-{filter:04}-sheet.png", self.layer);
            publish::publish_bytes(&to.join(&sheet_name), &png(&sheet)?)?;
            let paths: Vec<String> = entries.iter().map(|entry| names::escape(&entry.path).into_owned()).collect();
            let activations: Vec<f32> = top.iter().map(|top| top.activation).collect();
            shown.push(json!({
                "event": "filter", "layer": self.layer, "filter": filter, "top": paths, "activations": activations,
                "ascent": ascent, "sheet": sheet_name, "before": ascended.result.before.get(at),
                "after": ascended.result.after.get(at),
            }));
            named.push(json!({"filter": filter, "top": paths, "ascent": ascent, "sheet": sheet_name}));
        }
        let file = json!({"run": subject.run_id, "epoch": subject.epoch, "layer": self.layer, "filters": named}).to_string();
        publish::publish_bytes(&to.join("filters.json"), file.as_bytes())?;
        Ok(shown)
    }

    fn print(&self, subject: &Subject, to: &Path, shown: &Shown) -> Result<(), Failure> {
        let (filters, n_left_out) = (&shown.filters, shown.left_out.len());
        if self.subject.json {
            filters.iter().try_for_each(say)?;
            return shown.left_out.first().map_or(Ok(()), |(path, why)| {
                say(json!({"event": "left_out", "images": n_left_out, "first": path, "reason": why}))
            });
        }
        let hint = match self.to {
            None => format!("; `deepcluster report {} --to report.html` shows them", self.subject.run_dir.display()),
            Some(_) => String::new(),
        };
        let (n, layer, name) = (filters.len(), &self.layer, subject.name());
        let filters = if n == 1 { "filter" } else { "filters" };
        say(format!("{name}: wrote pictures of {n} {filters} of {layer} to {}{hint}", to.display()))?;
        shown.left_out.first().map_or(Ok(()), |(path, why)| {
            let take = if n_left_out == 1 { "takes" } else { "take" };
            say(format!(
                "{n_left_out} of the run's images {take} no part, not being there or others now; the first: {path}: {why}"
            ))
        })
    }
}

/// Images of the run that could not be read now.
fn left_out(images: &[ImageEntry], results: &[ExtractResult]) -> Vec<(String, String)> {
    let mut left_out = Vec::new();
    for skipped in results.iter().flat_map(|result| &result.skipped) {
        let image = usize::try_from(skipped.index).ok().and_then(|row| images.get(row));
        if let Some(image) = image.filter(|image| image.skipped.is_none()) {
            left_out.push((names::escape(&image.path).into_owned(), skipped.reason.clone()));
        }
    }
    left_out
}

#[cfg(test)]
mod tests {
    use super::*;
    use deepcluster_proto::v1::SkippedImage;

    #[test]
    fn filters_are_a_number_or_a_list() {
        let read = |text: &str| text.parse::<Filters>().map(|filters| filters.0);
        assert_eq!(read("3").unwrap(), [0, 1, 2]);
        assert_eq!(read("7,3,12-15,13").unwrap(), [3, 7, 12, 13, 14, 15]);
        assert_eq!(read("5-5").unwrap(), [5]);
        for wrong in ["", "0", "-1", "1,", "5-3", "a", "1-2-3", "4000000000", "0-4000000000", "1.5"] {
            assert!(read(wrong).unwrap_err().contains("neither how many"), "{wrong}");
        }
    }

    #[test]
    fn images_that_the_run_has_left_out_itself_are_no_news() {
        let entry = |name: &str, skipped: Option<&str>| ImageEntry {
            path: name.as_bytes().to_vec(),
            bytes: 1,
            width: 1,
            height: 1,
            remark: None,
            skipped: skipped.map(str::to_owned),
        };
        let images = [entry("a.png", None), entry("b.png", Some("no image")), entry("c.png", None)];
        let skipped = |index: u64| SkippedImage { index, reason: "the file was replaced".to_owned() };
        let result = |skipped: Vec<SkippedImage>| ExtractResult { skipped, ..ExtractResult::default() };
        let found = left_out(&images, &[result(vec![skipped(1)]), result(vec![skipped(2), skipped(3)])]);
        assert_eq!(found, [("c.png".to_owned(), "the file was replaced".to_owned())]);
    }
}
