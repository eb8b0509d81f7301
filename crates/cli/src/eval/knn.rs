//! `eval knn`: the classes of the k most similar training images vote, weighted by exp(similarity / temperature)
//! (Wu, Xiong, Yu, Lin 2018).

use super::site::{Site, whitened_dims};
use super::subject::{Subject, SubjectArgs};
use crate::failure::{Failure, say};
use deepcluster_domain::ranking::knn_vote;
use deepcluster_proto::v1::{ExtractRequest, File, Progress, SearchRequest};
use deepcluster_volume::npy;
use serde_json::json;
use std::path::PathBuf;

/// What votes, and how.
#[derive(clap::Args)]
pub struct KnnArgs {
    #[command(flatten)]
    subject: SubjectArgs,
    /// Training images, in one folder a class
    #[arg(long, value_name = "FOLDER")]
    train: PathBuf,
    /// Test images, in one folder a class
    #[arg(long, value_name = "FOLDER")]
    test: PathBuf,
    /// Compare activations of this layer instead of the embedding: conv1 … conv5, layer1 … layer4, pool, fc6, fc7, or several with
    /// commas
    #[arg(long, value_name = "LAYER", value_delimiter = ',')]
    layer: Vec<String>,
    /// About how many values of a layer's maps are compared, by maxima over windows
    #[arg(long, default_value_t = 9216, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    values: u32,
    /// Whiten by a PCA of the training images to so many dimensions first
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pca: Option<u32>,
    /// Neighbours that vote
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    k: u32,
    /// The smaller, the more the most similar count
    #[arg(long, default_value_t = 0.07, value_name = "T")]
    temperature: f64,
}

/// What the name of an embedding is where there are layers beside it.
const EMBEDDING: &str = "embedding";

impl KnnArgs {
    /// Lets them vote and prints how many were right.
    ///
    /// # Errors
    /// When run, layers or images do not do, or a worker fails.
    pub async fn run(&self) -> Result<(), Failure> {
        if !(self.temperature.is_finite() && self.temperature > 0.0) {
            return Err(Failure::usage(format!("--temperature {} is not above 0", self.temperature)));
        }
        let subject = self.subject.find()?;
        let layers = subject.layers(&self.layer, Vec::new())?;
        let name = format!("knn-{}", std::process::id());
        subject
            .with_site(&name, self.subject.json, async |site| {
                let outcome = self.evaluate(&subject, site, &layers).await;
                site.clean()?;
                outcome
            })
            .await
    }

    async fn evaluate(&self, subject: &Subject, site: &Site<'_>, layers: &[String]) -> Result<(), Failure> {
        let mut train = site.classified("train", &self.train, None)?;
        let mut test = site.classified("test", &self.test, Some(&train.names))?;
        let wanted: Vec<Option<&String>> = if layers.is_empty() { vec![None] } else { layers.iter().map(Some).collect() };
        for layer in wanted {
            let label = layer.map_or(EMBEDDING, String::as_str);
            let change = |request: &mut ExtractRequest| {
                request.layer = layer.cloned().unwrap_or_default();
                request.values = self.values;
            };
            let mut sets = Vec::new();
            for set in [&mut train, &mut test] {
                let results = site.extracted(set, label, &change).await?;
                // What cannot be read has no features: it neither votes nor is it asked about.
                for image in results.iter().flat_map(|result| &result.skipped) {
                    set.classes.get_mut(image.index as usize).into_iter().for_each(|class| *class = -1);
                }
                sets.push(results.into_iter().filter_map(|result| result.features).collect::<Vec<File>>());
            }
            let (queries, features) = (sets.pop().unwrap_or_default(), sets.pop().unwrap_or_default());
            let n_train = train.classes.iter().filter(|class| **class >= 0).count();
            let width = site.width(&features)?;
            let used = [features.clone(), queries.clone()].concat();
            let request = SearchRequest {
                features,
                queries,
                mask: Some(site.classes(&train)?),
                neighbours: self.k,
                pca: self.pca.unwrap_or(0),
                seed: subject.spec.seed,
                output: subject.volume.relative(&site.folder)?,
                device: subject.spec.device.to_string(),
                ..SearchRequest::default()
            };
            let mut told = |progress: &Progress| site.told(&progress.phase, progress.done, progress.total, 0.0);
            let found = site.calls.search(&request, &mut told).await?;
            let ([_, k], neighbours) = npy::read_i32_matrix(&site.verified("neighbours", found.neighbours.as_ref())?)?;
            let (_, similarities) = npy::read_f32(&site.verified("similarities", found.similarities.as_ref())?)?;
            // Features of a layer take much room.
            site.remove(&used)?;
            let (hits, n) = self.hits(&train.classes, &test.classes, train.names.len(), k, (&neighbours, &similarities));
            if n == 0 {
                return Err(Failure::usage(format!("--test {}: none of its images can be read", self.test.display())));
            }
            // Both are less than what was asked for where there are few images.
            let dims = self.pca.map(|pca| whitened_dims(pca, n_train, width));
            self.print(subject, label, (k, dims), (hits, n))?;
        }
        Ok(())
    }

    /// Test images that were voted into their class, and how many there are.
    fn hits(&self, train: &[i32], test: &[i32], n_classes: usize, k: usize, found: (&[i32], &[f32])) -> (usize, usize) {
        let rows = found.0.chunks_exact(k.max(1)).zip(found.1.chunks_exact(k.max(1)));
        let (mut hits, mut n) = (0, 0);
        for ((neighbours, similarities), class) in rows.zip(test).filter(|(_, class)| **class >= 0) {
            let voters = neighbours.iter().zip(similarities);
            let voters = voters.filter_map(|(row, similarity)| Some((*train.get(*row as usize)?, *similarity)));
            let (classes, similarities): (Vec<i32>, Vec<f32>) = voters.filter(|(class, _)| *class >= 0).unzip();
            hits += usize::from(knn_vote(&similarities, &classes, self.temperature, n_classes) == *class);
            n += 1;
        }
        (hits, n)
    }

    /// Prints how many were right, by so many neighbours in so many dimensions of whitening.
    fn print(
        &self,
        subject: &Subject,
        layer: &str,
        (k, dims): (usize, Option<usize>),
        (hits, n): (usize, usize),
    ) -> Result<(), Failure> {
        let top1 = hits as f64 / n.max(1) as f64;
        if self.subject.json {
            return say(json!({
                "event": "knn", "epoch": subject.epoch, "layer": layer, "k": k, "temperature": self.temperature,
                "pca": dims, "top1": top1, "images": n,
            }));
        }
        let whitened = dims.map_or(String::new(), |dims| format!(", whitened to at most {dims}"));
        say(format!("{}  {layer}{whitened}: {:.1} % of {n} by {k} neighbours", subject.name(), top1 * 100.0))
    }
}
