//! Measuring a sample: the workers do on it what they will do in the run, and say when they were how far.
//!
//! 1. A first look at a few images tells how many the sample may have, so that slow networks do not take minutes.
//! 2. Extraction that decodes, two pieces of training with batches of two sizes, and extraction from the cache.
//! 3. Clustering of rows that are mixed from the features of the sample, for the matrices to have their real width.

use super::forecast::{Calibration, Cost, Footprint};
use crate::calls::{Calls, Timeline};
use crate::failure::Failure;
use deepcluster_domain::RunSpec;
use deepcluster_domain::spec::{KMEANS_ITERATIONS, MOMENTUM};
use deepcluster_proto::network_of;
use deepcluster_proto::v1::{
    CachedShard, ClusterRequest, DigestsOfShard, ExtractRequest, ExtractResult, FeatureDtype, File, ImageList, TrainRequest,
    TrainResult,
};
use deepcluster_service::requests::file_to_wire;
use deepcluster_volume::image_list::{self, ImageEntry};
use deepcluster_volume::npy::{self, ArrayFile, ArrayWriter};
use deepcluster_volume::publish::{Digest, create_folder, publish_bytes};
use deepcluster_volume::{Volume, VolumeError};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::path::Path;

/// Images of the first look, and of its batches; what a batch adds to the memory is told from these and larger ones.
const FIRST_LOOK: usize = 12;
const FEW: usize = 4;

/// The smallest batch of a sample, unless the run's own is smaller.
const SMALL_BATCH: usize = 16;

/// Seconds that extraction of the sample may take, about; training takes as long.
const EXTRACTION_S: f64 = 2.5;

/// Batches of extraction, at least, so that those that were decoded before the first one was computed are not most of them.
const BATCHES: usize = 8;

/// Small batches of a sample could lead a network astray, and what is not finite is refused; the time is the same.
const LEARNING_RATE: f64 = 1e-6;

/// Batches of training, at least.
const TRAINED: usize = 3;

/// The most images of a sample, and the most rows to be clustered.
const MOST_IMAGES: usize = 4096;
const MOST_ROWS: usize = 6144;

/// Where measured files lie on the volume.
const FOLDER: &str = "sample";

/// What is measured, and with whom.
pub struct Site<'a> {
    /// The workers.
    pub calls: Calls,
    /// A volume for the time of the calibration.
    pub volume: Volume,
    /// The run's spec.
    pub spec: &'a RunSpec,
    /// The images, of which some are taken.
    pub images: &'a [ImageEntry],
    /// Number of images of the run, which may be more.
    pub n: u64,
    /// Number of clusters of the run.
    pub k: u32,
    /// Peaks of the memory of coordinator, extractor, clusterer and trainer until now, in bytes.
    pub peaks: &'a dyn Fn() -> [u64; 4],
}

/// Images that stand for all.
struct Sample {
    list: ImageList,
    images: Vec<ImageEntry>,
    batch: usize,
}

impl Site<'_> {
    /// Measures everything.
    ///
    /// # Errors
    /// When the images cannot be read, the network does not fit, or a worker fails.
    pub async fn calibrate(&self) -> Result<Calibration, Failure> {
        create_folder(&self.volume.resolve(FOLDER)?)?;
        let few = self.sample("few", FIRST_LOOK, FEW)?;
        let (first_look, _) = self.extract(&few, None).await?;
        let [coordinator, extractor_few, clusterer_idle, _] = (self.peaks)();

        let wanted = EXTRACTION_S / first_look.cost("images", few.images.len()).each.max(1e-6);
        let readable = self.images.iter().filter(|image| image.skipped.is_none()).count();
        let wanted = (wanted as usize).clamp(FIRST_LOOK, MOST_IMAGES).min(readable);
        let batch = (self.spec.batch as usize).min((wanted / BATCHES).max(SMALL_BATCH));
        let sample = self.sample("sample", (wanted / batch).max(BATCHES) * batch, batch)?;
        let (decoding, extracted) = self.extract(&sample, None).await?;
        let extractor_at_first = (self.peaks)()[1];

        // Only for its checkpoint: reading one takes memory, which is not to be taken for that of a larger batch.
        let (_, first) = self.train(&few, 1, None).await?;
        let small = Sample { batch: small_batch(batch), ..sample };
        let (short, before) = self.train(&small, TRAINED, Some((first, &extracted))).await?;
        let trainer_small = (self.peaks)()[3];
        let sample = Sample { batch, ..small };
        let batches = TRAINED.max(sample.images.len() / batch / 3);
        let (training, trained) = self.train(&sample, batches, Some((before, &extracted))).await?;
        let trainer = footprint((small_batch(batch), trainer_small), (batch, (self.peaks)()[3]));

        let (cached, _) = self.extract(&sample, Some((&trained, &extracted))).await?;
        let [_, extractor_at_last, ..] = (self.peaks)();
        let mut extractor = footprint((few.batch, extractor_few), (batch, extractor_at_first));
        // It has read a checkpoint meanwhile, which has no more to do with the size of a batch.
        extractor.once += extractor_at_last.saturating_sub(extractor_at_first) as f64;
        let (whitening, nearest) = self.cluster(&extracted, sample.images.len()).await?;
        let n = sample.images.len();
        let (small_image, image) = (short.each("images"), training.each("images"));
        let step = step_seconds((small_batch(batch), small_image), (batch, image));
        let mut training = training.cost("images", trained.n_images as usize);
        training.each = (training.each - step / batch as f64).max(0.0);
        Ok(Calibration {
            decoding: decoding.cost("images", n),
            cached: cached.cost("images", n),
            training,
            step,
            whitening,
            nearest,
            extractor,
            trainer,
            clusterer: (clusterer_idle, (self.peaks)()[2]),
            coordinator,
            cached_bytes: extracted.cache.map_or(0.0, |cache| cache.bytes as f64) / n as f64,
        })
    }

    /// Readable images in even distances over the list.
    fn sample(&self, name: &str, wanted: usize, batch: usize) -> Result<Sample, Failure> {
        let readable: Vec<&ImageEntry> = self.images.iter().filter(|image| image.skipped.is_none()).collect();
        let n = wanted.min(readable.len()).max(1);
        let images: Vec<ImageEntry> = (0..n).filter_map(|at| readable.get(at * readable.len() / n).copied().cloned()).collect();
        let (csv, _) = image_list::to_csv(&images).map_err(|error| Failure::other(error.to_string()))?;
        let list = self.publish(&format!("{name}.csv"), |path| publish_bytes(path, &csv))?;
        Ok(Sample { list: ImageList { root: self.spec.images.clone(), list: Some(list) }, images, batch })
    }

    fn publish(&self, name: &str, write: impl FnOnce(&Path) -> Result<Digest, VolumeError>) -> Result<File, Failure> {
        let path = self.volume.resolve(&format!("{FOLDER}/{name}"))?;
        let digest = write(&path)?;
        Ok(file_to_wire(&self.volume.record(&path, digest)?))
    }

    /// Extracts as in the first epoch, or as in a later one: from a checkpoint, the cache and known digests.
    async fn extract(
        &self,
        sample: &Sample,
        later: Option<(&TrainResult, &ExtractResult)>,
    ) -> Result<(Timeline, ExtractResult), Failure> {
        let is_first = later.is_none();
        let if_first = |what: &str| if is_first { format!("{FOLDER}/{what}") } else { String::new() };
        let output = |what: &str| format!("{FOLDER}/{what}");
        let request = ExtractRequest {
            run_id: "run-0001".to_owned(),
            images: Some(sample.list.clone()),
            n_images: sample.images.len() as u64,
            network: Some(network_of(self.spec, later.and_then(|(trained, _)| trained.checkpoint.clone()))),
            seed: self.spec.seed,
            batch: sample.batch as u32,
            feature_dtype: FeatureDtype::from(self.spec.feature_dtype).into(),
            output: output(if is_first { "features.npy" } else { "features-again.npy" }),
            digests: later.and_then(|(_, extracted)| extracted.digests.clone()),
            digests_output: if_first("digests.npy"),
            cache_output: if_first("sample.pixels"),
            cache: later.map(|_| cached_sample()),
            ..ExtractRequest::default()
        };
        self.calls.extract(&request, &mut |_| {}).await
    }

    async fn train(
        &self,
        sample: &Sample,
        batches: usize,
        before: Option<(TrainResult, &ExtractResult)>,
    ) -> Result<(Timeline, TrainResult), Failure> {
        let n = sample.images.len();
        let labels: Vec<i32> = (0..n as i32).map(|image| image % self.k as i32).collect();
        let labels = self.publish("labels.npy", |path| npy::publish_i32(path, &labels))?;
        let output = format!("{FOLDER}/{batches}-{}.safetensors", sample.batch);
        let request = TrainRequest {
            run_id: "run-0001".to_owned(),
            images: Some(sample.list.clone()),
            labels: Some(labels),
            k: self.k,
            network: Some(network_of(self.spec, before.as_ref().and_then(|(before, _)| before.checkpoint.clone()))),
            seed: self.spec.seed,
            batch: sample.batch as u32,
            learning_rate: LEARNING_RATE,
            momentum: MOMENTUM,
            weight_decay: self.spec.weight_decay,
            reassign: (batches * sample.batch) as f64 / n as f64,
            output,
            cache: before.iter().map(|_| cached_sample()).collect(),
            digests: before.iter().map(|(_, of)| DigestsOfShard { file: of.digests.clone(), first_image: 0 }).collect(),
            ..TrainRequest::default()
        };
        self.calls.train(&request).await
    }

    /// What whitening takes, and what a row, a centroid and an iteration of k-means take.
    async fn cluster(&self, extracted: &ExtractResult, n_images: usize) -> Result<(Cost, f64), Failure> {
        let n = (self.n as usize).min(MOST_ROWS).max(n_images);
        let k = if n as u64 == self.n { self.k } else { self.k.min((n / 3) as u32) };
        let features = self.mix_features(extracted, n)?;
        let row = |index| ImageEntry {
            path: format!("{index}").into_bytes(),
            bytes: 1,
            width: 1,
            height: 1,
            skipped: None,
            remark: None,
        };
        let (csv, _) =
            image_list::to_csv(&(0..n).map(row).collect::<Vec<_>>()).map_err(|error| Failure::other(error.to_string()))?;
        let request = ClusterRequest {
            run_id: "run-0001".to_owned(),
            images: Some(self.publish("rows.csv", |path| publish_bytes(path, &csv))?),
            features: vec![features],
            k,
            pca: self.spec.pca,
            iterations: KMEANS_ITERATIONS,
            seed: self.spec.seed,
            output: FOLDER.to_owned(),
            device: self.spec.device.to_string(),
            ..ClusterRequest::default()
        };
        let (timeline, _) = self.calls.cluster(&request).await?;
        let iteration = timeline.each("k-means");
        let each = ["mean", "covariance", "project", "write"].iter().map(|phase| timeline.each(phase)).sum::<f64>();
        // The assignment to the last centroids is one more pass.
        let nearest = iteration * f64::from(KMEANS_ITERATIONS + 1);
        let once = (timeline.seconds - nearest - each * n as f64).max(0.0);
        Ok((Cost { once, each }, iteration / (n as f64 * f64::from(k))))
    }

    /// `n` rows, each a row of the sample and half of the difference of two others: about as many directions as real ones have.
    fn mix_features(&self, extracted: &ExtractResult, n: usize) -> Result<File, Failure> {
        let file = extracted.features.as_ref().ok_or_else(|| Failure::other("extractor: it ended without features"))?;
        let array = ArrayFile::open(&self.volume.resolve(&file.path)?)?;
        let (width, mut values) = (array.width(), Vec::new());
        array.read_f32_rows(0, array.rows(), &mut values)?;
        let mut rng = ChaCha8Rng::seed_from_u64(self.spec.seed);
        self.publish("rows.npy", |path| {
            let mut writer = ArrayWriter::create(path, self.spec.feature_dtype.into(), &[n, width])?;
            let mut row = vec![0.0; width];
            for _ in 0..n {
                let [a, b, c] = std::array::from_fn(|_| rng.random_range(0..array.rows()) * width);
                for (at, value) in row.iter_mut().enumerate() {
                    *value = values[a + at] + 0.5 * (values[b + at] - values[c + at]);
                }
                writer.push(&row)?;
            }
            writer.commit()
        })
    }
}

/// The decoded images of the sample.
fn cached_sample() -> CachedShard {
    CachedShard { path: format!("{FOLDER}/sample.pixels"), first_image: 0 }
}

/// The smaller batch of training.
fn small_batch(batch: usize) -> usize {
    (batch / 4).max(2)
}

/// What a peak is made of, from peaks at two sizes of a batch.
fn footprint((few, at_few): (usize, u64), (many, at_many): (usize, u64)) -> Footprint {
    if many <= few {
        return Footprint { once: at_many as f64, each: 0.0 };
    }
    let each = at_many.saturating_sub(at_few) as f64 / (many - few) as f64;
    Footprint { once: at_many as f64 - each * many as f64, each }
}

/// Seconds of a step beside its images, from seconds for an image in steps of two sizes.
fn step_seconds((few, at_few): (usize, f64), (many, at_many): (usize, f64)) -> f64 {
    if many <= few || at_few <= at_many || at_many <= 0.0 {
        return 0.0;
    }
    (at_few - at_many) / (1.0 / few as f64 - 1.0 / many as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_sizes_of_a_batch_tell_what_each_image_adds() {
        assert_eq!(footprint((8, 1_080), (32, 1_320)), Footprint { once: 1_000.0, each: 10.0 });
        assert_eq!(footprint((8, 1_000), (8, 1_100)), Footprint { once: 1_100.0, each: 0.0 });
        // 0.1 s a step and 0.01 s an image.
        let step = step_seconds((10, 0.02), (40, 0.0125));
        assert!((step - 0.1).abs() < 1e-9);
        assert_eq!(step_seconds((10, 0.01), (40, 0.02)), 0.0);
    }
}
