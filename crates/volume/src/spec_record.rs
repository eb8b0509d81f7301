//! How a run's spec stands in `run.json`.

use deepcluster_domain::geometry::resize_side;
use deepcluster_domain::{AutoOptions, Clustering, RunSpec, SaveEvery, SpecError};
use serde::{Deserialize, Serialize};

/// The persisted form of [`RunSpec`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "each field is the field of RunSpec with its name")]
pub struct SpecRecord {
    pub images: String,
    pub k: String,
    pub epochs: u32,
    pub arch: String,
    pub image_size: u32,
    pub sobel: bool,
    pub batch: u32,
    pub lr: f64,
    pub weight_decay: f64,
    pub pca: u32,
    pub reassign: f64,
    pub seed: u64,
    pub device: String,
    pub precision: String,
    pub feature_dtype: String,
    pub max_skipped: f64,
    #[serde(default)]
    pub skip_truncated: bool,
    #[serde(default)]
    pub include_hidden: bool,
    #[serde(default)]
    pub classes_from: u32,
    pub keep_epochs: u32,
    #[serde(default = "keep_best")]
    pub keep_best: bool,
    pub shard_images: u32,
    #[serde(default = "five_minutes")]
    pub checkpoint_every: String,
    #[serde(default)]
    pub cache_side: u32,
    #[serde(default = "kmeans")]
    pub clustering: String,
    #[serde(default)]
    pub match_labels: bool,
    #[serde(default)]
    pub init: Option<String>,
    /// Which options follow from the images; their fields hold what was chosen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub auto: Vec<String>,
}

/// What runs do whose record is older than the choice.
fn five_minutes() -> String {
    SaveEvery::Seconds(300).to_string()
}

fn keep_best() -> bool {
    true
}

fn kmeans() -> String {
    Clustering::KMeans.to_string()
}

impl From<&RunSpec> for SpecRecord {
    fn from(spec: &RunSpec) -> Self {
        // Destructured, so that a new field cannot be forgotten here.
        let RunSpec {
            images,
            k,
            epochs,
            architecture,
            image_size,
            sobel,
            batch,
            learning_rate,
            weight_decay,
            pca,
            reassign,
            seed,
            device,
            precision,
            feature_dtype,
            max_skipped,
            skip_truncated,
            include_hidden,
            classes_from,
            keep_epochs,
            keep_best,
            shard_images,
            checkpoint_every,
            cache_side,
            clustering,
            match_labels,
            init,
            auto,
        } = spec.clone();
        Self {
            images,
            k: k.to_string(),
            epochs,
            arch: architecture.to_string(),
            image_size,
            sobel,
            batch,
            lr: learning_rate,
            weight_decay,
            pca,
            reassign,
            seed,
            device: device.to_string(),
            precision: precision.to_string(),
            feature_dtype: feature_dtype.to_string(),
            max_skipped,
            skip_truncated,
            include_hidden,
            classes_from,
            keep_epochs,
            keep_best,
            shard_images,
            checkpoint_every: checkpoint_every.to_string(),
            cache_side,
            clustering: clustering.to_string(),
            match_labels,
            init,
            auto: auto.names().into_iter().map(str::to_owned).collect(),
        }
    }
}

impl TryFrom<SpecRecord> for RunSpec {
    type Error = SpecError;

    fn try_from(record: SpecRecord) -> Result<Self, SpecError> {
        let spec = Self {
            images: record.images,
            k: record.k.parse()?,
            epochs: record.epochs,
            architecture: record.arch.parse()?,
            image_size: record.image_size,
            sobel: record.sobel,
            batch: record.batch,
            learning_rate: record.lr,
            weight_decay: record.weight_decay,
            pca: record.pca,
            reassign: record.reassign,
            seed: record.seed,
            device: record.device.parse()?,
            precision: record.precision.parse()?,
            feature_dtype: record.feature_dtype.parse()?,
            max_skipped: record.max_skipped,
            skip_truncated: record.skip_truncated,
            include_hidden: record.include_hidden,
            classes_from: record.classes_from,
            keep_epochs: record.keep_epochs,
            keep_best: record.keep_best,
            shard_images: record.shard_images,
            checkpoint_every: record.checkpoint_every.parse()?,
            cache_side: match record.cache_side {
                // The record is older than the choice.
                0 => resize_side(record.image_size),
                side => side,
            },
            clustering: record.clustering.parse()?,
            match_labels: record.match_labels,
            init: record.init,
            auto: AutoOptions::from_names(&record.auto),
        };
        spec.validate()?;
        Ok(spec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_survives_the_volume() {
        let counted = RunSpec {
            k: "37".parse().unwrap(),
            learning_rate: 0.1 + 0.2,
            seed: u64::MAX,
            init: Some("a/b".into()),
            ..RunSpec::default()
        };
        let found = RunSpec { clustering: Clustering::Pic, ..RunSpec::default() };
        for spec in [counted, found] {
            let text = serde_json::to_string(&SpecRecord::from(&spec)).unwrap();
            let record: SpecRecord = serde_json::from_str(&text).unwrap();
            assert_eq!(RunSpec::try_from(record), Ok(spec));
        }
    }
}
