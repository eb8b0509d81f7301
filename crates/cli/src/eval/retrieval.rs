//! `eval retrieval`: mean average precision of searching for the same building, by the protocol of the Oxford and Paris buildings.
//!
//! Features are regional maximum activations of whole images (R-MAC; Tolias, Sicre, Jégou 2016): of length 1, whitened by a PCA
//! of the searched images where that is asked for, and of length 1 again. `eval_retrieval.py` of the authors' release whitens
//! each region before they are summed up. A question is the part of its image that its box tells, at the scale at which the
//! whole image would be looked at.

use super::ground_truth::{self, Query};
use super::site::{Site, whitened_dims};
use super::subject::{Subject, SubjectArgs};
use crate::failure::{Failure, say};
use crate::train::images_below_root;
use deepcluster_domain::layers::probed_layers;
use deepcluster_domain::ranking::{Relevance, average_precision};
use deepcluster_images::find::describe;
use deepcluster_images::{FindOptions, decode, find_images};
use deepcluster_proto::v1::{ExtractRequest, File, Progress, SearchRequest};
use deepcluster_volume::image_list::ImageEntry;
use deepcluster_volume::{npy, publish};
use image::{ImageFormat, RgbImage, imageops};
use serde_json::json;
use std::io::Cursor;
use std::path::PathBuf;

/// Most images that are ranked.
const MOST: usize = 100_000;

/// What is searched, and how.
#[derive(clap::Args)]
pub struct RetrievalArgs {
    #[command(flatten)]
    subject: SubjectArgs,
    /// Images, in any folders; the name of a file without its ending is what the lists call it
    #[arg(long, value_name = "FOLDER")]
    images: PathBuf,
    /// Questions and answers: NAME_query.txt, NAME_good.txt, NAME_ok.txt, and NAME_junk.txt where there is any; without it, the
    /// folder gt of the images
    #[arg(long, value_name = "FOLDER")]
    ground_truth: Option<PathBuf>,
    /// Compare activations of this layer: conv1 … conv5, layer1 … layer4; without it, the last convolution or stage
    #[arg(long, value_name = "LAYER")]
    layer: Option<String>,
    /// Longer side at which images are looked at, in pixels
    #[arg(long, default_value_t = 1024, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(1..=8192))]
    side: u32,
    /// Whiten by a PCA of the searched images to so many dimensions
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pca: Option<u32>,
}

impl RetrievalArgs {
    /// Searches and prints the average precision of each question, and their mean.
    ///
    /// # Errors
    /// When run, layer, images or lists do not do, or a worker fails.
    pub async fn run(&self) -> Result<(), Failure> {
        let subject = self.subject.find()?;
        let layer = self.layer(&subject)?;
        if self.side < subject.spec.image_size {
            let least = subject.spec.image_size;
            return Err(Failure::usage(format!("--side {} is less than the {least} pixels that the network is for", self.side)));
        }
        let entries = find_images(&self.images, FindOptions::default())
            .map(|found| found.images)
            .map_err(|error| Failure::usage(format!("--images: {error}")))?;
        let (ids, entries) = ground_truth::named(entries)?;
        if entries.is_empty() || entries.len() > MOST {
            return Err(Failure::usage(format!("--images: {} images can be read, not 1 to {MOST}", entries.len())));
        }
        let folder = self.ground_truth.clone().unwrap_or_else(|| self.images.join("gt"));
        let queries = ground_truth::read(&folder, &ids)?;
        let name = format!("retrieval-{}", std::process::id());
        let (scores, dims) = subject
            .with_site(&name, self.subject.json, async |site| {
                let outcome = self.evaluate(&subject, site, &layer, (entries, queries.as_slice())).await;
                site.clean()?;
                outcome
            })
            .await?;
        self.print(&subject, &layer, &queries, (&scores, dims))
    }

    fn layer(&self, subject: &Subject) -> Result<String, Failure> {
        let has_maps = |layer: &String| layer.starts_with("conv") || layer.starts_with("layer");
        let layer = match &self.layer {
            Some(layer) => layer.clone(),
            None => probed_layers(subject.spec.architecture).into_iter().rfind(has_maps).unwrap_or_default(),
        };
        subject.layers(std::slice::from_ref(&layer), Vec::new())?;
        match has_maps(&layer) {
            true => Ok(layer),
            false => Err(Failure::usage(format!("--layer: {layer} has no maps, and so no regions"))),
        }
    }

    /// Average precision of each question, and the dimensions of whitening, where that is wanted.
    async fn evaluate(
        &self,
        subject: &Subject,
        site: &Site<'_>,
        layer: &str,
        (entries, queries): (Vec<ImageEntry>, &[Query]),
    ) -> Result<(Vec<f64>, Option<usize>), Failure> {
        let listed = site.listed("images", images_below_root(&self.images)?, entries)?;
        let wanted = |side: u32| {
            move |request: &mut ExtractRequest| {
                request.layer = layer.to_owned();
                request.regions_side = side;
            }
        };
        let features = site.extract(&listed, layer, &wanted(self.side)).await?;
        let folder = site.folder.join("queries");
        publish::create_folder(&folder)?;
        let root = images_below_root(&folder)?;
        let mut asked = Vec::with_capacity(queries.len());
        for (number, query) in queries.iter().enumerate() {
            let (part, side) = self.part(query, &listed.entries, subject.spec.image_size)?;
            let file = PathBuf::from(format!("{number:05}.png"));
            publish::publish_bytes(&folder.join(&file), &part)?;
            let one = site.listed(&format!("query-{number:05}"), root.clone(), vec![describe(&folder, &file)])?;
            asked.extend(site.extract(&one, layer, &wanted(side)).await?);
        }
        let blank = blank_rows(site, &features)?;
        let width = site.width(&features)?;
        let request = SearchRequest {
            features,
            queries: asked,
            neighbours: listed.entries.len() as u32,
            pca: self.pca.unwrap_or(0),
            seed: subject.spec.seed,
            output: subject.volume.relative(&site.folder)?,
            device: subject.spec.device.to_string(),
            ..SearchRequest::default()
        };
        let mut told = |progress: &Progress| site.told(&progress.phase, progress.done, progress.total, 0.0);
        let found = site.calls.search(&request, &mut told).await?;
        let ([_, n], ranked) = npy::read_i32_matrix(&site.verified("neighbours", found.neighbours.as_ref())?)?;
        let meaning = |query: &Query, row: &i32| {
            let row = *row as usize;
            // An image that turned out to be unreadable is as if it were not there.
            let is_blank = blank.get(row).copied().unwrap_or(true);
            if is_blank { Relevance::Ignored } else { query.relevance.get(row).copied().unwrap_or(Relevance::Ignored) }
        };
        let scores = queries.iter().zip(ranked.chunks_exact(n.max(1))).map(|(query, rows)| {
            let ranked: Vec<Relevance> = rows.iter().map(|row| meaning(query, row)).collect();
            average_precision(&ranked)
        });
        let dims = self.pca.map(|pca| whitened_dims(pca, blank.len(), width));
        Ok((scores.collect(), dims))
    }

    /// The part of an image that a question is about as a PNG file, and the longer side at which it is looked at.
    fn part(&self, query: &Query, entries: &[ImageEntry], least: u32) -> Result<(Vec<u8>, u32), Failure> {
        let named = |why: String| Failure::usage(format!("{}: {why}", query.file.display()));
        let entry = entries.get(query.image).ok_or_else(|| named("there is no such image".to_owned()))?;
        let path = self.images.join(entry.as_path());
        let unreadable = |why: deepcluster_images::Unreadable| named(format!("{}: {why}", path.display()));
        let mut content = Vec::new();
        decode::read(&path, None, &mut content).map_err(unreadable)?;
        let image = decode::decode(&content).map_err(unreadable)?.image;
        let part = match query.region {
            Some(region) => cut(&image, region).ok_or_else(|| named("the box lies outside of the image".to_owned()))?,
            None => image.clone(),
        };
        let longer = |image: &RgbImage| f64::from(image.width().max(image.height()));
        let side = (f64::from(self.side) * longer(&part) / longer(&image)).round() as u32;
        let mut png = Cursor::new(Vec::new());
        part.write_to(&mut png, ImageFormat::Png).map_err(|error| named(error.to_string()))?;
        Ok((png.into_inner(), side.max(least)))
    }

    fn print(
        &self,
        subject: &Subject,
        layer: &str,
        queries: &[Query],
        (scores, dims): (&[f64], Option<usize>),
    ) -> Result<(), Failure> {
        let mean = scores.iter().sum::<f64>() / scores.len().max(1) as f64;
        let n_images = queries.first().map_or(0, |query| query.relevance.len());
        for (query, score) in queries.iter().zip(scores) {
            let name = &query.name;
            let relevant = query.relevance.iter().filter(|relevance| **relevance == Relevance::Positive).count();
            match self.subject.json {
                true => say(json!({"event": "query", "query": name, "ap": score, "relevant": relevant}))?,
                false => say(format!("{name:24} {:>6.1} %  of {relevant} images", score * 100.0))?,
            }
        }
        if self.subject.json {
            return say(json!({
                "event": "retrieval", "epoch": subject.epoch, "layer": layer, "side": self.side, "pca": dims, "map": mean,
                "queries": scores.len(), "images": n_images,
            }));
        }
        let whitened = dims.map_or(String::new(), |dims| format!(", whitened to at most {dims}"));
        let n = scores.len();
        say(format!(
            "{}  {layer}{whitened}: {:.1} % on average of {n} queries to {n_images} images",
            subject.name(),
            mean * 100.0
        ))
    }
}

/// A part of an image; none where the box lies outside of it.
fn cut(image: &RgbImage, [left, top, right, bottom]: [f64; 4]) -> Option<RgbImage> {
    let pixel = |along: f64, length: u32| along.round().clamp(0.0, f64::from(length)) as u32;
    let (width, height) = image.dimensions();
    let (x, y) = (pixel(left, width), pixel(top, height));
    let (width, height) = (pixel(right, width).checked_sub(x)?, pixel(bottom, height).checked_sub(y)?);
    (width > 0 && height > 0).then(|| imageops::crop_imm(image, x, y, width, height).to_image())
}

/// Which rows of features are zero, as those of images are that could not be read.
fn blank_rows(site: &Site<'_>, features: &[File]) -> Result<Vec<bool>, Failure> {
    let mut blank = Vec::new();
    for file in features {
        let (shape, values) = npy::read_f32(&site.verified("features", Some(file))?)?;
        let width = shape.get(1).copied().unwrap_or(1).max(1);
        blank.extend(values.chunks_exact(width).map(|row| row.iter().all(|value| *value == 0.0)));
    }
    Ok(blank)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_are_cut_to_the_image() {
        let image = RgbImage::from_fn(10, 8, |x, y| image::Rgb([x as u8, y as u8, 0]));
        let part = cut(&image, [2.4, 0.6, 5.5, 99.0]).unwrap();
        assert_eq!((part.dimensions(), part.get_pixel(0, 0).0), ((4, 7), [2, 1, 0]));
        assert!(cut(&image, [20.0, 0.0, 30.0, 8.0]).is_none());
        assert!(cut(&image, [3.1, 0.0, 3.2, 8.0]).is_none());
    }
}
