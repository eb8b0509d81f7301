//! The flags that describe a run.

use crate::failure::Failure;
use crate::train::below_root;
use clap::{ArgAction, ValueEnum};
use deepcluster_domain::geometry::resize_side;
use deepcluster_domain::{
    Architecture, Auto, AutoOptions, Clustering, DeviceChoice, FeatureDtype, Precision, RunSpec, SaveEvery,
};

/// What a run shall do. Defaults are the recipe's.
#[derive(Clone, Debug, clap::Args)]
pub struct SpecArgs {
    /// Number of clusters, or "auto" for min(10000, max(10, N/50))
    #[arg(long, default_value_t = Auto::Auto, value_name = "K")]
    k: Auto<u32>,
    /// Epochs, each one clustering and one pass of training
    #[arg(long, default_value_t = 100, value_name = "N")]
    epochs: u32,
    /// The convnet: alexnet, vgg16, resnet18 or resnet50
    #[arg(long, default_value_t = Architecture::AlexNet, value_name = "NAME")]
    arch: Architecture,
    /// Side of the square that the network sees, in pixels
    #[arg(long, default_value_t = 224, value_name = "PIXELS")]
    image_size: u32,
    /// Show the network colours instead of edges
    #[arg(long)]
    no_sobel: bool,
    /// Images of one training step, or "auto" to choose it from the number of images (256 for large sets)
    #[arg(long, default_value_t = Auto::Auto, value_name = "N")]
    batch: Auto<u32>,
    /// Learning rate of SGD, or "auto" to choose it from the batch (0.05 for large sets)
    #[arg(long, default_value_t = Auto::Auto, value_name = "RATE")]
    lr: Auto<f64>,
    /// Weight decay
    #[arg(long, default_value_t = 1e-5, value_name = "DECAY")]
    weight_decay: f64,
    /// Dimensions kept by PCA, or "auto" to choose them from the number of images (256 for large sets)
    #[arg(long, default_value_t = Auto::Auto, value_name = "N")]
    pca: Auto<u32>,
    /// Length of an epoch's training list ÷ number of readable images
    #[arg(long, default_value_t = 1.0, value_name = "FACTOR")]
    reassign: f64,
    /// The seed from which every random number of the run follows
    #[arg(long, default_value = "31", value_parser = seed, value_name = "SEED")]
    seed: u64,
    /// Where the network computes: auto, cpu, cuda or cuda:N
    #[arg(long, default_value_t = DeviceChoice::Auto, value_name = "DEVICE")]
    device: DeviceChoice,
    /// Arithmetic of the network: auto (bf16 where the hardware has it), f32 or bf16
    #[arg(long, default_value_t = Precision::Auto, value_name = "PRECISION")]
    precision: Precision,
    /// How features are stored: f16 or f32
    #[arg(long, default_value_t = FeatureDtype::F16, value_name = "TYPE")]
    feature_dtype: FeatureDtype,
    /// Share of the images that may be unreadable, 0 to 1 or as 10%
    #[arg(long, default_value = "0.1", value_parser = share, value_name = "SHARE")]
    max_skipped: f64,
    /// What becomes of JPEGs whose last rows are missing: read (where at least half of the rows are there) or skip
    #[arg(long, value_enum, default_value_t = Truncated::Read, value_name = "WHAT")]
    truncated: Truncated,
    /// Take hidden files and folders, too, and those that machines make beside pictures, as @eaDir
    #[arg(long)]
    include_hidden: bool,
    /// Level of folders that are the classes to score against, from 1 on; 0 for the first that is not just train, val and the like
    #[arg(long, default_value_t = 0, value_name = "LEVEL")]
    classes_from: u32,
    /// Committed epochs that stay on the volume; two stay in any case
    #[arg(long, default_value_t = 3, value_name = "N")]
    keep_epochs: u32,
    /// Keep the epoch whose clusters agree best with the classes of the folders, too, and the one before it
    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_name = "BOOL")]
    keep_best: bool,
    /// Images that an extractor takes at a time
    #[arg(long, default_value_t = 4096, value_name = "N")]
    shard_images: u32,
    /// How often training saves itself inside an epoch: a duration like 90s, 5m or 1h, or a number of steps
    #[arg(long, default_value = "5m", value_name = "EVERY")]
    checkpoint_every: SaveEvery,
    /// Shorter side to which images are shrunk before views are cut from them, and in which they lie in the cache, in pixels;
    /// 8/7 of the image size when not given
    #[arg(long, value_name = "PIXELS")]
    cache_side: Option<u32>,
    /// How features become pseudo-labels: kmeans, or pic (power iteration clustering, which finds its number of clusters itself)
    #[arg(long, default_value_t = Clustering::KMeans, value_name = "NAME")]
    clustering: Clustering,
    /// Keep the top layer's rows of clusters that were there in the epoch before, instead of drawing them anew
    #[arg(long)]
    match_labels: bool,
    /// A file of weights to start from, of safetensors or torch.save, under the official or torchvision's names with any prefix
    #[arg(long, value_name = "WEIGHTS")]
    init: Option<String>,
}

/// A share, as 0.1 or 10%.
fn share(text: &str) -> Result<f64, String> {
    let (number, scale) = text.strip_suffix('%').map_or((text, 1.0), |number| (number, 100.0));
    let share = number.trim().parse::<f64>().map(|number| number / scale);
    share.map_err(|_| "is no share, as 0.1 or 10%".to_owned())
}

fn seed(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("is no whole number from 0 to {}", u64::MAX))
}

/// What becomes of images whose last rows are missing.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Truncated {
    /// They take part; the missing rows are grey.
    Read,
    /// They take no part.
    Skip,
}

impl SpecArgs {
    /// The spec for a folder of images, given relative to the images root of the services.
    pub fn spec(&self, images: String) -> RunSpec {
        let paper = RunSpec::default();
        RunSpec {
            images,
            k: self.k,
            epochs: self.epochs,
            architecture: self.arch,
            image_size: self.image_size,
            sobel: !self.no_sobel,
            batch: self.batch.fixed().unwrap_or(paper.batch),
            learning_rate: self.lr.fixed().unwrap_or(paper.learning_rate),
            weight_decay: self.weight_decay,
            pca: self.pca.fixed().unwrap_or(paper.pca),
            reassign: self.reassign,
            seed: self.seed,
            device: self.device,
            precision: self.precision,
            feature_dtype: self.feature_dtype,
            max_skipped: self.max_skipped,
            skip_truncated: self.truncated == Truncated::Skip,
            include_hidden: self.include_hidden,
            classes_from: self.classes_from,
            keep_epochs: self.keep_epochs,
            keep_best: self.keep_best,
            shard_images: self.shard_images,
            checkpoint_every: self.checkpoint_every,
            cache_side: self.cache_side.unwrap_or_else(|| resize_side(self.image_size)),
            clustering: self.clustering,
            match_labels: self.match_labels,
            init: self.init.clone(),
            auto: AutoOptions {
                batch: self.batch.fixed().is_none(),
                learning_rate: self.lr.fixed().is_none(),
                pca: self.pca.fixed().is_none(),
            },
        }
    }

    /// The same for services of this machine, whose images root is `/`.
    ///
    /// # Errors
    /// When the weights to start from are not there.
    pub fn on_this_machine(self) -> Result<Self, Failure> {
        let init = self.init.as_ref().map(|file| below_root(file.as_ref())).transpose();
        let init = init.map_err(|failure| Failure::usage(format!("--init {failure}")))?;
        Ok(Self { init, ..self })
    }
}
