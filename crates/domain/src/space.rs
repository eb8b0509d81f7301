//! How much room a run takes on the volume: pure arithmetic, so that a run can be refused before it fills a disk.

use crate::geometry::embedding_width;
use crate::spec::SpecError;
use crate::{Clustering, FeatureDtype, Plan, RunSpec};
use bytesize::ByteSize;
use std::str::FromStr;

/// So many whitened points are in memory at a time; more lie on the volume while they are clustered.
pub const POINTS_IN_MEMORY: usize = 65_536;

/// Bytes that a run's files take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpaceNeeded {
    /// The features of all images, which go once their epoch is committed.
    pub features: u64,
    /// The whitened points of all images, which go once they are clustered.
    pub points: u64,
    /// What is kept of an epoch: labels, distances, centroids, whitening, whitened features, checkpoint.
    pub epoch: u64,
    /// What training saves of itself inside an epoch: beside it lies the next one, or the epoch's checkpoint.
    pub saved: u64,
    /// The largest number of epochs that lie on the volume at a time.
    pub n_epochs: u64,
}

impl SpaceNeeded {
    /// Of a spec, once the number of images and of clusters is known.
    pub fn of(spec: &RunSpec, n_images: usize, k: u32) -> Self {
        let n = n_images as u64;
        // How many clusters power iteration finds is not known before; none of them has one image alone that has a neighbour.
        let k = if spec.clustering == Clustering::Pic { n / 2 } else { u64::from(k) };
        let width = u64::from(embedding_width(spec.architecture));
        let dims = u64::from(spec.pca).min(width);
        let feature_bytes = match spec.feature_dtype {
            FeatureDtype::F16 => 2,
            FeatureDtype::F32 => 4,
        };
        let plan = Plan::new(spec.architecture, spec.image_size, spec.sobel);
        // Every trained weight has a momentum buffer beside it.
        let weights: u64 = plan
            .weights()
            .iter()
            .map(|weight| {
                let numbers: i64 = weight.shape.iter().product();
                numbers as u64 * if weight.start.is_trained() { 2 } else { 1 }
            })
            .sum();
        let checkpoint = 4 * (weights + k * (width + 1));
        // The whitened features are stored as f16, whatever the features are.
        let clustering = 4 * (2 * n + k * dims + (dims + 1) * width) + 2 * n * dims;
        Self {
            features: n * width * feature_bytes,
            points: if n_images > POINTS_IN_MEMORY { 4 * n * dims } else { 0 },
            epoch: checkpoint + clustering,
            saved: checkpoint,
            // The new epoch is committed before the oldest one goes; the best one stays with the one before it.
            n_epochs: u64::from(spec.epochs).min(u64::from(spec.keep_epochs.max(2)) + 1 + if spec.keep_best { 2 } else { 0 }),
        }
    }

    /// The most that the whole run takes at a time.
    pub fn whole_run(&self) -> u64 {
        self.features + self.points + self.saved + self.n_epochs * self.epoch
    }

    /// The most that one epoch takes beside what is already there.
    pub fn one_epoch(&self) -> u64 {
        self.features + self.points + self.saved + self.epoch
    }
}

/// How much room all decoded images may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheLimit {
    /// Half of what would be free without them.
    HalfOfFree,
    /// So many bytes; 0 for none.
    Bytes(u64),
}

impl CacheLimit {
    /// The most that decoded images may take where `free` bytes would be free without them, of which the run itself still needs
    /// `needed`.
    pub fn room(self, free: u64, needed: u64) -> u64 {
        let left = free.saturating_sub(needed);
        match self {
            Self::HalfOfFree => left.min(free / 2),
            Self::Bytes(most) => left.min(most),
        }
    }
}

impl FromStr for CacheLimit {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        match text.parse::<ByteSize>() {
            Ok(size) => Ok(Self::Bytes(size.as_u64())),
            Err(_) => Err(SpecError(format!("'{text}' is not a size like 200GB"))),
        }
    }
}

/// A number of bytes for people: "3.4 GB".
pub fn human(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if bytes < 1000 {
        return format!("{bytes} bytes");
    }
    let mut value = bytes as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Architecture;

    #[test]
    fn imagenet_by_alexnet_takes_what_its_files_take() {
        let needed = SpaceNeeded::of(&RunSpec::default(), 1_281_167, 10_000);
        assert_eq!(needed.features, 1_281_167 * 4096 * 2);
        // 57 million weights and as many momentum buffers, and the top layer of 41 million: about 0.6 GB. As much again for 256
        // halves of each image.
        assert!((1.25e9..1.36e9).contains(&(needed.epoch as f64)), "{}", needed.epoch);
        assert_eq!(needed.n_epochs, 6, "three, a new one, and the best with the one before it");
        assert!(needed.whole_run() > needed.one_epoch());
    }

    #[test]
    fn a_short_run_of_a_small_network_takes_little() {
        let spec = RunSpec { architecture: Architecture::ResNet18, epochs: 1, image_size: 64, ..RunSpec::default() };
        let needed = SpaceNeeded::of(&spec, 100, 10);
        assert_eq!(needed.n_epochs, 1);
        assert_eq!(needed.features, 100 * 512 * 2);
    }

    #[test]
    fn decoded_images_leave_room_for_the_run() {
        assert_eq!(CacheLimit::HalfOfFree.room(100, 20), 50);
        assert_eq!(CacheLimit::HalfOfFree.room(100, 80), 20);
        assert_eq!("30B".parse::<CacheLimit>().unwrap().room(100, 20), 30);
        assert_eq!("1kB".parse::<CacheLimit>().unwrap().room(100, 120), 0);
        assert!("much".parse::<CacheLimit>().unwrap_err().to_string().contains("'much' is not a size"));
    }

    #[test]
    fn bytes_are_readable() {
        for (bytes, text) in [(999, "999 bytes"), (1_500, "1.5 kB"), (999_999, "1.0 MB"), (3_400_000_000, "3.4 GB")] {
            assert_eq!(human(bytes), text);
        }
    }
}
