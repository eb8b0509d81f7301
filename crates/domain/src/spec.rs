//! What a run shall do: every choice of the recipe with its default, and the rules a choice must keep.

use crate::auto::{Auto, AutoOptions};
use crate::choices::{Architecture, Clustering, DeviceChoice, FeatureDtype, Precision};
use crate::geometry;
use std::fmt;
use std::str::FromStr;

/// Momentum of the body's SGD (recipe, step 6). The top layer has none.
pub const MOMENTUM: f64 = 0.9;

/// Lloyd iterations of k-means (recipe, step 3).
pub const KMEANS_ITERATIONS: u32 = 20;

/// How often training saves itself inside an epoch: what a crash may cost, and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaveEvery {
    /// Whenever so many seconds have passed.
    Seconds(u32),
    /// After every so many steps.
    Steps(u32),
}

impl fmt::Display for SaveEvery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Seconds(seconds) if seconds % 60 == 0 => write!(f, "{}m", seconds / 60),
            Self::Seconds(seconds) => write!(f, "{seconds}s"),
            Self::Steps(steps) => write!(f, "{steps}"),
        }
    }
}

impl FromStr for SaveEvery {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let positive = |digits: &str| digits.parse::<u32>().ok().filter(|n| *n > 0);
        let seconds = |digits: &str, unit: u32| positive(digits)?.checked_mul(unit).map(Self::Seconds);
        let parsed = match text.as_bytes().last() {
            Some(b's') => seconds(&text[..text.len() - 1], 1),
            Some(b'm') => seconds(&text[..text.len() - 1], 60),
            Some(b'h') => seconds(&text[..text.len() - 1], 3600),
            _ => positive(text).map(Self::Steps),
        };
        parsed.ok_or_else(|| SpecError(format!("'{text}' is neither a duration like 90s, 5m or 1h nor a number of steps")))
    }
}

/// Everything that decides what a run produces. Two runs of one spec on one CPU give the same bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct RunSpec {
    /// Folder of images, relative to the images root of the services.
    pub images: String,
    /// Number of clusters.
    pub k: Auto<u32>,
    /// Number of epochs, each one clustering and one pass of training.
    pub epochs: u32,
    /// The convnet.
    pub architecture: Architecture,
    /// Side of the square that the network sees, in pixels.
    pub image_size: u32,
    /// Whether a fixed Sobel filter takes the colour away first.
    pub sobel: bool,
    /// Images of one training step.
    pub batch: u32,
    /// Learning rate of both SGDs.
    pub learning_rate: f64,
    /// Weight decay of both SGDs.
    pub weight_decay: f64,
    /// Dimensions kept by PCA; at most the embedding's.
    pub pca: u32,
    /// Length of an epoch's training list ÷ number of readable images.
    pub reassign: f64,
    /// The seed from which every random number of the run follows.
    pub seed: u64,
    /// Where the network computes.
    pub device: DeviceChoice,
    /// Arithmetic of the network.
    pub precision: Precision,
    /// How features are stored.
    pub feature_dtype: FeatureDtype,
    /// The run fails when more than this share of the images cannot be read, in [0, 1].
    pub max_skipped: f64,
    /// Whether images whose last rows are missing are left out, too.
    pub skip_truncated: bool,
    /// Whether hidden files and folders are taken, and those that machines make beside pictures.
    pub include_hidden: bool,
    /// The level of folders that are classes, from 1 on; 0 for the first that is not just a division into train, val and the like.
    pub classes_from: u32,
    /// Committed epochs that stay on the volume.
    pub keep_epochs: u32,
    /// Whether the epoch whose clusters agree best with the classes stays, too, and the one before it, whose network made them.
    pub keep_best: bool,
    /// Images of one shard.
    pub shard_images: u32,
    /// How often training saves itself inside an epoch.
    pub checkpoint_every: SaveEvery,
    /// Images are shrunk until their shorter side is not longer than this, in pixels, before views are cut from them.
    pub cache_side: u32,
    /// How features become pseudo-labels.
    pub clustering: Clustering,
    /// Whether the top layer keeps the rows of clusters that were there in the epoch before, instead of drawing them anew.
    pub match_labels: bool,
    /// A file of weights to start from, relative to the images root of the services; none: they are drawn from the seed.
    pub init: Option<String>,
    /// Which of `batch`, `learning_rate` and `pca` follow from the images.
    pub auto: AutoOptions,
}

impl Default for RunSpec {
    fn default() -> Self {
        Self {
            images: ".".to_owned(),
            k: Auto::Auto,
            epochs: 100,
            architecture: Architecture::AlexNet,
            image_size: 224,
            sobel: true,
            batch: 256,
            learning_rate: 0.05,
            weight_decay: 1e-5,
            pca: 256,
            reassign: 1.0,
            seed: 31,
            device: DeviceChoice::Auto,
            precision: Precision::Auto,
            feature_dtype: FeatureDtype::F16,
            max_skipped: 0.1,
            skip_truncated: false,
            include_hidden: false,
            classes_from: 0,
            keep_epochs: 3,
            keep_best: true,
            shard_images: 4096,
            checkpoint_every: SaveEvery::Seconds(300),
            cache_side: geometry::resize_side(224),
            clustering: Clustering::KMeans,
            match_labels: false,
            init: None,
            auto: AutoOptions::ALL,
        }
    }
}

impl RunSpec {
    /// Checks what can be checked without looking at the images.
    ///
    /// # Errors
    /// One sentence that names every field that is out of its range.
    pub fn validate(&self) -> Result<(), SpecError> {
        let sentences: Vec<String> = self.violations().into_iter().map(|(_, sentence)| sentence).collect();
        if sentences.is_empty() { Ok(()) } else { Err(SpecError(sentences.join("; "))) }
    }

    /// Every field that is out of its range, by its name on the wire, and the sentence that says so.
    pub fn violations(&self) -> Vec<(&'static str, String)> {
        let positive_number = |value: f64| value.is_finite() && value > 0.0;
        let smallest = geometry::smallest_image(self.architecture);
        let rules = [
            (self.k != Auto::Fixed(0) && self.k != Auto::Fixed(1), "k", "k must be at least 2".to_owned()),
            (matches!(self.k, Auto::Auto | Auto::Fixed(0..=10_000_000)), "k", "k must be at most 10000000".to_owned()),
            (
                self.clustering == Clustering::KMeans || self.k == Auto::Auto,
                "k",
                "k means nothing to pic, which finds its number of clusters itself".to_owned(),
            ),
            (self.epochs >= 1 && self.epochs <= 9999, "epochs", "epochs must lie between 1 and 9999".to_owned()),
            (
                self.image_size >= smallest,
                "image_size",
                format!("image size {} is too small for {}, which needs at least {smallest}", self.image_size, self.architecture),
            ),
            (self.image_size <= 4096, "image_size", "image size must be at most 4096".to_owned()),
            (
                self.cache_side >= self.image_size && self.cache_side <= 65_536,
                "cache_side",
                "cache side must lie between the image size and 65536".to_owned(),
            ),
            (self.batch >= 2 && self.batch <= 65_536, "batch", "batch must lie between 2 and 65536".to_owned()),
            (positive_number(self.learning_rate), "learning_rate", "learning rate must be a positive number".to_owned()),
            (
                self.weight_decay.is_finite() && self.weight_decay >= 0.0,
                "weight_decay",
                "weight decay must be a number that is not negative".to_owned(),
            ),
            (self.pca >= 1 && self.pca <= 65_536, "pca", "pca must lie between 1 and 65536".to_owned()),
            (
                positive_number(self.reassign) && self.reassign <= 100.0,
                "reassign",
                "reassign must lie between 0 and 100".to_owned(),
            ),
            ((0.0..=1.0).contains(&self.max_skipped), "max_skipped", "max-skipped must lie between 0 and 1".to_owned()),
            (self.keep_epochs >= 1, "keep_epochs", "keep-epochs must be at least 1".to_owned()),
            (
                self.shard_images >= 1 && self.shard_images <= 1_000_000,
                "shard_images",
                "shard-images must lie between 1 and 1000000".to_owned(),
            ),
        ];
        rules.into_iter().filter(|(holds, ..)| !holds).map(|(_, field, sentence)| (field, sentence)).collect()
    }
}

/// A choice that is out of its range, as one sentence that names it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SpecError(pub String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_every_mistake_is_named_at_once() {
        assert_eq!(RunSpec::default().validate(), Ok(()));
        let spec = RunSpec { image_size: 32, batch: 0, learning_rate: f64::NAN, k: Auto::Fixed(1), ..RunSpec::default() };
        let sentence = spec.validate().unwrap_err().to_string();
        for part in ["k must be", "image size 32 is too small for alexnet, which needs at least 63", "batch", "learning rate"] {
            assert!(sentence.contains(part), "{sentence}");
        }
    }

    #[test]
    fn names_have_one_spelling() {
        for architecture in Architecture::ALL {
            assert_eq!(architecture.as_str().parse(), Ok(*architecture));
        }
        for (text, every) in [("5m", SaveEvery::Seconds(300)), ("90s", SaveEvery::Seconds(90)), ("200", SaveEvery::Steps(200))] {
            assert_eq!(text.parse(), Ok(every));
            assert_eq!(every.to_string(), text);
        }
        for bad in ["", "0", "-5m", "5 m", "m", "0s", "99999999h", "\u{fc}m"] {
            assert!(bad.parse::<SaveEvery>().is_err(), "{bad}");
        }
        assert_eq!("cuda:1".parse(), Ok(DeviceChoice::Cuda(1)));
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        assert!("gpu".parse::<DeviceChoice>().is_err());
        let error = "lenet".parse::<Architecture>().unwrap_err();
        assert_eq!(error.to_string(), "unknown architecture 'lenet': known are alexnet, vgg16, resnet18, resnet50");
    }
}
