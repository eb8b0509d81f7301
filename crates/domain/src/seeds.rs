//! Randomness as a function of (run seed, epoch, purpose, step), never of history.
//!
//! Whoever needs random numbers asks for the stream of its purpose at its step. A run that was killed and resumed
//! asks for the same streams and so draws the same numbers.

use crate::EpochId;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// What a stream of random numbers is for. Two purposes never share a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The network's first weights.
    InitialWeights,
    /// The fresh top layer of an epoch.
    TopLayer,
    /// faiss's choice of first centroids.
    KMeans,
    /// The start block of the eigenvector solver.
    Whitening,
    /// The order of the training list.
    Sampling,
    /// Random resized crop and flip; the step is the position in the training list.
    Augmentation,
    /// Dropout masks; the step is the training step.
    Dropout,
    /// The noise that a picture of a filter begins as; the step is the filter.
    Ascent,
}

impl Purpose {
    fn name(self) -> &'static str {
        match self {
            Self::InitialWeights => "initial-weights",
            Self::TopLayer => "top-layer",
            Self::KMeans => "k-means",
            Self::Whitening => "whitening",
            Self::Sampling => "sampling",
            Self::Augmentation => "augmentation",
            Self::Dropout => "dropout",
            Self::Ascent => "ascent",
        }
    }
}

/// The source of every random number of one epoch of one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seeds {
    run_seed: u64,
    epoch: EpochId,
    retry: u32,
}

impl Seeds {
    /// Seeds of one epoch. What happens once a run (the first weights) belongs to epoch 0.
    pub fn new(run_seed: u64, epoch: EpochId) -> Self {
        Self { run_seed, epoch, retry: 0 }
    }

    /// The same purposes with other numbers, for work that went wrong with the first ones; 0 stands for those.
    pub fn retried(self, retry: u32) -> Self {
        Self { retry, ..self }
    }

    /// A generator for this purpose and step.
    pub fn rng(&self, purpose: Purpose, step: u64) -> ChaCha8Rng {
        ChaCha8Rng::from_seed(self.digest(purpose, step))
    }

    /// A 63-bit seed for libraries that bring their own generator (libtorch reads it as signed).
    pub fn number(&self, purpose: Purpose, step: u64) -> u64 {
        let digest = self.digest(purpose, step);
        let mut low = [0; 8];
        low.copy_from_slice(&digest[..8]);
        u64::from_le_bytes(low) >> 1
    }

    fn digest(&self, purpose: Purpose, step: u64) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("deepcluster 2026 seeds v1");
        hasher.update(&self.run_seed.to_le_bytes());
        hasher.update(&self.epoch.0.to_le_bytes());
        hasher.update(&step.to_le_bytes());
        hasher.update(purpose.name().as_bytes());
        if self.retry > 0 {
            hasher.update(&self.retry.to_le_bytes());
        }
        *hasher.finalize().as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::RngCore;

    #[test]
    fn streams_depend_on_all_four_and_on_nothing_else() {
        let of = |seed, epoch, purpose, step| Seeds::new(seed, EpochId(epoch)).rng(purpose, step).next_u64();
        let one = of(31, 2, Purpose::Dropout, 5);
        assert_eq!(one, of(31, 2, Purpose::Dropout, 5));
        assert_ne!(one, of(32, 2, Purpose::Dropout, 5));
        assert_ne!(one, of(31, 3, Purpose::Dropout, 5));
        assert_ne!(one, of(31, 2, Purpose::Sampling, 5));
        assert_ne!(one, of(31, 2, Purpose::Dropout, 6));
        let retried = |retry| Seeds::new(31, EpochId(2)).retried(retry).rng(Purpose::Dropout, 5).next_u64();
        assert_eq!(one, retried(0));
        assert_ne!(one, retried(1));
    }

    #[test]
    fn streams_stay_the_same_from_release_to_release() {
        // A changed stream would make old runs resume differently: these values are part of the format.
        assert_eq!(Seeds::new(31, EpochId(0)).number(Purpose::KMeans, 0), 8_559_709_714_455_106_901);
    }
}
