//! From what was measured on a sample to what a run will take: arithmetic alone.

use deepcluster_domain::RunSpec;
use deepcluster_domain::geometry::embedding_width;
use deepcluster_domain::space::{CacheLimit, POINTS_IN_MEMORY, SpaceNeeded};
use deepcluster_domain::spec::KMEANS_ITERATIONS;

/// What the run's list of images takes of the memory of a process, per image, in bytes: path, size, state.
const LISTED: u64 = 150;

/// What the trainer has of each image beside: label, digest, place in the order, place in the cache.
const TRAINED: u64 = 100;

/// What a run takes of the coordinator's memory beside its list, in bytes: records, scores, events and who follows them.
const COORDINATED: u64 = 12 << 20;

/// Rows of features that the clusterer has in memory at a time, in f32 and centred.
const BLOCK_ROWS: u64 = 2048;

/// Seconds that work takes in any case, and seconds for each unit of it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// In any case.
    pub once: f64,
    /// For each unit.
    pub each: f64,
}

impl Cost {
    fn of(self, units: f64) -> f64 {
        self.once + self.each * units
    }
}

/// Bytes that a service takes in any case, and for each image of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Footprint {
    /// In any case.
    pub once: f64,
    /// For each image of a batch.
    pub each: f64,
}

/// What was measured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Calibration {
    /// Extraction of a shard by its images, which are decoded.
    pub decoding: Cost,
    /// The same from the cache.
    pub cached: Cost,
    /// Training of an epoch by its images, which come from the cache.
    pub training: Cost,
    /// Seconds of a training step beside its images.
    pub step: f64,
    /// Whitening by rows, whitened rows written with them, eigenvectors among what it takes in any case.
    pub whitening: Cost,
    /// Seconds of k-means and assignment for a row, a centroid and an iteration.
    pub nearest: f64,
    /// Peak of an extractor by the size of a batch.
    pub extractor: Footprint,
    /// Peak of the trainer by the size of a batch.
    pub trainer: Footprint,
    /// Bytes of the clusterer before it has anything to do, and its peak over the sample.
    pub clusterer: (u64, u64),
    /// Bytes of the coordinator.
    pub coordinator: u64,
    /// Bytes that the working image of an image takes in the cache.
    pub cached_bytes: f64,
}

/// Seconds of the phases of an epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Seconds {
    /// Extraction.
    pub extract: f64,
    /// Clustering.
    pub cluster: f64,
    /// Training.
    pub train: f64,
}

/// What a run will take.
#[derive(Clone, Debug, PartialEq)]
pub struct Forecast {
    /// The first epoch, which decodes.
    pub first: Seconds,
    /// Each later epoch.
    pub later: Seconds,
    /// Peaks of resident memory in bytes, by service.
    pub memory: [(&'static str, u64); 4],
    /// Room for the run's files.
    pub space: SpaceNeeded,
    /// Bytes of the working images of all images.
    pub cache: u64,
    /// The share of them that will stay.
    pub kept: f64,
}

/// What the run is about.
#[derive(Clone, Copy, Debug)]
pub struct Task<'a> {
    /// Its spec.
    pub spec: &'a RunSpec,
    /// Number of its images.
    pub n: u64,
    /// Number of clusters.
    pub k: u32,
    /// Extractors, which share the work.
    pub extractors: usize,
    /// Limit of the cache.
    pub cache_limit: CacheLimit,
    /// Bytes that are free where the volume will be.
    pub free: u64,
}

impl Forecast {
    /// Of a task, by what was measured.
    pub fn of(task: Task<'_>, measured: &Calibration) -> Self {
        let Task { spec, n, k, .. } = task;
        let space = SpaceNeeded::of(spec, n as usize, k);
        let cache = (measured.cached_bytes * n as f64) as u64;
        let room = task.cache_limit.room(task.free, space.whole_run());
        let kept = if cache == 0 { 1.0 } else { (room as f64 / cache as f64).min(1.0) };
        let later = Seconds {
            extract: kept * extraction(task, measured.cached) + (1.0 - kept) * extraction(task, measured.decoding),
            cluster: clustering(task, measured),
            train: training(task, measured, kept),
        };
        let first = Seconds { extract: extraction(task, measured.decoding), ..later };
        Self { first, later, memory: memory(task, measured), space, cache, kept }
    }

    /// The sum over all epochs.
    pub fn whole_run(&self, epochs: u32) -> Seconds {
        let later = f64::from(epochs.saturating_sub(1));
        Seconds {
            extract: self.first.extract + later * self.later.extract,
            cluster: self.first.cluster + later * self.later.cluster,
            train: self.first.train + later * self.later.train,
        }
    }
}

impl Seconds {
    /// The phases and their sum, each with its name.
    pub fn parts(&self) -> [(&'static str, f64); 4] {
        [("extraction", self.extract), ("clustering", self.cluster), ("training", self.train), ("together", self.sum())]
    }

    /// Of all phases.
    pub fn sum(&self) -> f64 {
        self.extract + self.cluster + self.train
    }
}

fn extraction(task: Task<'_>, cost: Cost) -> f64 {
    let shards = task.n.div_ceil(u64::from(task.spec.shard_images)) as f64;
    (cost.once * shards + cost.each * task.n as f64) / task.extractors as f64
}

fn training(task: Task<'_>, measured: &Calibration, kept: f64) -> f64 {
    let shown = task.n as f64 * task.spec.reassign;
    let decoding = (1.0 - kept) * (measured.decoding.each - measured.cached.each).max(0.0);
    measured.training.of(shown) + measured.step * (shown / f64::from(task.spec.batch)).ceil() + decoding * shown
}

fn clustering(task: Task<'_>, measured: &Calibration) -> f64 {
    // The assignment to the last centroids is one more pass.
    let passes = f64::from(KMEANS_ITERATIONS + 1);
    measured.whitening.of(task.n as f64) + measured.nearest * task.n as f64 * f64::from(task.k) * passes
}

fn memory(task: Task<'_>, measured: &Calibration) -> [(&'static str, u64); 4] {
    let listed = LISTED * task.n;
    let of_batch = |footprint: Footprint| (footprint.once + footprint.each * f64::from(task.spec.batch)).max(0.0) as u64;
    let width = u64::from(embedding_width(task.spec.architecture));
    let dims = u64::from(task.spec.pca).min(width);
    let (idle, peak) = measured.clusterer;
    let in_memory = task.n.min(POINTS_IN_MEMORY as u64);
    // Labels and distances, of the images that take part and of all.
    let labels = 16 * task.n;
    let points = labels + 4 * (in_memory * dims + 2 * BLOCK_ROWS * width + dims * width + 4 * u64::from(task.k) * dims);
    [
        ("coordinator", measured.coordinator + COORDINATED + listed),
        ("extractor", of_batch(measured.extractor) + listed),
        ("clusterer", peak.max(idle + points) + listed),
        ("trainer", of_batch(measured.trainer) + listed + TRAINED * task.n),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured() -> Calibration {
        Calibration {
            decoding: Cost { once: 1.0, each: 0.01 },
            cached: Cost { once: 1.0, each: 0.004 },
            training: Cost { once: 2.0, each: 0.01 },
            step: 0.1,
            whitening: Cost { once: 3.0, each: 1e-4 },
            nearest: 1e-9,
            extractor: Footprint { once: 1e9, each: 1e6 },
            trainer: Footprint { once: 2e9, each: 1e7 },
            clusterer: (100 << 20, 800 << 20),
            coordinator: 50 << 20,
            cached_bytes: 200_000.0,
        }
    }

    fn task(spec: &RunSpec, n: u64) -> Task<'_> {
        Task { spec, n, k: 1000, extractors: 1, cache_limit: CacheLimit::HalfOfFree, free: 1 << 40 }
    }

    #[test]
    fn phases_are_sums_of_what_their_parts_take() {
        let spec = RunSpec { batch: 100, shard_images: 1000, ..RunSpec::default() };
        let forecast = Forecast::of(task(&spec, 10_000), &measured());
        let near = |is: f64, should: f64| assert!((is / should - 1.0).abs() < 1e-9, "{is}, not {should}");
        near(forecast.first.extract, 10.0 + 100.0);
        near(forecast.later.extract, 10.0 + 40.0);
        near(forecast.later.train, 2.0 + 100.0 + 10.0);
        near(forecast.later.cluster, 3.0 + 1.0 + 1e-9 * 10_000.0 * 1000.0 * 21.0);
        near(forecast.whole_run(3).extract, 110.0 + 2.0 * 50.0);
        near(forecast.kept, 1.0);
    }

    #[test]
    fn what_the_cache_cannot_hold_is_decoded_in_every_epoch() {
        let spec = RunSpec { batch: 100, shard_images: 1000, ..RunSpec::default() };
        let none = Task { cache_limit: CacheLimit::Bytes(0), ..task(&spec, 10_000) };
        let forecast = Forecast::of(none, &measured());
        assert_eq!(forecast.later.extract, forecast.first.extract);
        assert!((forecast.later.train - (112.0 + 60.0)).abs() < 1e-9);
        let half = Task { cache_limit: CacheLimit::Bytes(forecast.cache / 2), ..none };
        assert!((Forecast::of(half, &measured()).kept - 0.5).abs() < 1e-9);
    }

    #[test]
    fn memory_grows_by_lists_alone() {
        let spec = RunSpec { batch: 100, ..RunSpec::default() };
        let memory = |n: u64| Forecast::of(task(&spec, n), &measured()).memory.map(|(_, bytes)| bytes);
        let (few, many) = (memory(10_000), memory(1_000_000));
        let grown = LISTED * 990_000;
        assert_eq!([many[0] - few[0], many[1] - few[1]], [grown; 2]);
        assert_eq!(many[3] - few[3], grown + TRAINED * 990_000);
        assert_eq!(few[2], (800 << 20) + LISTED * 10_000, "the matrices of the whitening are the most");
        assert_eq!(many[2] - few[2], grown, "whitened points lie in a file");
    }
}
