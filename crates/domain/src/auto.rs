//! Training options that follow from the number of images where the user names no value.
//!
//! The paper's values are made for 1.28 million images. On a few hundred or thousand, whitening to 256 dimensions makes all
//! images equally far from each other, and batches of 256 leave an epoch with a handful of steps.

use crate::{Clustering, RunSpec, SpecError};
use std::fmt;
use std::str::FromStr;

/// An option that is either named by the user or chosen from the images.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Auto<T> {
    /// Chosen by [`RunSpec::resolve`].
    Auto,
    /// Named by the user.
    Fixed(T),
}

impl<T: Copy> Auto<T> {
    /// The value, if the user named one.
    pub fn fixed(self) -> Option<T> {
        match self {
            Self::Auto => None,
            Self::Fixed(value) => Some(value),
        }
    }
}

impl<T: fmt::Display> fmt::Display for Auto<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Fixed(value) => value.fmt(f),
        }
    }
}

impl<T: FromStr> FromStr for Auto<T> {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        match text {
            "auto" => Ok(Self::Auto),
            _ => text.parse().map(Self::Fixed).map_err(|_| SpecError(format!("'{text}' is neither 'auto' nor a number"))),
        }
    }
}

/// The options of a [`RunSpec`] that the user left to the program. Until [`RunSpec::resolve`] their fields hold the paper's
/// values; afterwards they hold the chosen ones, and the flags still say that they were chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AutoOptions {
    /// `batch` is chosen.
    pub batch: bool,
    /// `learning_rate` is chosen.
    pub learning_rate: bool,
    /// `pca` is chosen.
    pub pca: bool,
}

impl AutoOptions {
    /// Every option is chosen.
    pub const ALL: Self = Self { batch: true, learning_rate: true, pca: true };

    /// Every option is named by the user.
    pub const NONE: Self = Self { batch: false, learning_rate: false, pca: false };

    /// The names of the chosen options, as flags have them.
    pub fn names(self) -> Vec<&'static str> {
        let options = [("batch", self.batch), ("lr", self.learning_rate), ("pca", self.pca)];
        options.into_iter().filter(|(_, is_auto)| *is_auto).map(|(name, _)| name).collect()
    }

    /// The options that [`Self::names`] names.
    pub fn from_names(names: &[String]) -> Self {
        let contains = |name: &str| names.iter().any(|entry| entry == name);
        Self { batch: contains("batch"), learning_rate: contains("lr"), pca: contains("pca") }
    }
}

/// One chosen option, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AutoChoice {
    /// Its name, as the flag has it: "k", "batch", "lr" or "pca".
    pub option: &'static str,
    /// The chosen value.
    pub value: String,
    /// Why this value.
    pub reason: String,
}

/// Images that are needed to estimate a principal direction, rather than noise.
const IMAGES_PER_DIMENSION: usize = 128;

/// Fewest dimensions that are chosen, unless there are fewer images than twice as many.
const MIN_DIMENSIONS: usize = 16;

/// Training steps that an epoch should have.
const STEPS_PER_EPOCH: usize = 30;

/// Smallest batch that is chosen: batch norm estimates its statistics from it.
const MIN_BATCH: usize = 32;

impl RunSpec {
    /// Chooses the options that the user left to the program, for `readable` images. Returns the number of clusters, 0 where
    /// power iteration clustering finds it, and what was chosen, with reasons. Again for the same images it chooses the same.
    ///
    /// # Errors
    /// When there are fewer readable images than clusters.
    pub fn resolve(&mut self, readable: usize) -> Result<(u32, Vec<AutoChoice>), SpecError> {
        let mut choices = Vec::new();
        let k = match self.clustering {
            Clustering::KMeans => resolve_clusters(self.k, readable)?,
            Clustering::Pic => 0,
        };
        if self.k == Auto::Auto && self.clustering == Clustering::KMeans {
            choices.push(AutoChoice {
                option: "k",
                value: k.to_string(),
                reason: "a cluster for every 50 images, from 10 to 10000".to_owned(),
            });
        }
        let paper = Self::default();
        if self.auto.pca {
            let dimensions = (readable / IMAGES_PER_DIMENSION).max(MIN_DIMENSIONS.min(readable / 2)).max(1);
            self.pca = paper.pca.min(dimensions as u32);
            let reason = match self.pca == paper.pca {
                true => "as in the paper".to_owned(),
                false => {
                    format!("{readable} images do not determine more directions: one for every {IMAGES_PER_DIMENSION} images")
                }
            };
            choices.push(AutoChoice { option: "pca", value: self.pca.to_string(), reason });
        }
        if self.auto.batch {
            let batch = (readable / STEPS_PER_EPOCH).max(MIN_BATCH);
            self.batch = paper.batch.min(1 << batch.ilog2());
            let reason = match self.batch == paper.batch {
                true => "as in the paper".to_owned(),
                false => format!("an epoch of {readable} images has {} steps", readable.div_ceil(self.batch as usize)),
            };
            choices.push(AutoChoice { option: "batch", value: self.batch.to_string(), reason });
        }
        if self.auto.learning_rate {
            let ratio = f64::from(self.batch) / f64::from(paper.batch);
            // Four digits are enough to be repeated by hand.
            self.learning_rate = (paper.learning_rate * ratio.sqrt() * 1e4).round() / 1e4;
            let reason = match self.batch == paper.batch {
                true => "as in the paper".to_owned(),
                false => format!(
                    "the paper's {} for batches of {}, times the square root of the ratio of the batches",
                    paper.learning_rate, paper.batch
                ),
            };
            choices.push(AutoChoice { option: "lr", value: self.learning_rate.to_string(), reason });
        }
        Ok((k, choices))
    }

    /// The spec as it was given: chosen options have the paper's values again. Two requests are the same where these are equal.
    pub fn as_requested(&self) -> Self {
        let paper = Self::default();
        let choose = |is_auto: bool, chosen: u32, paper: u32| if is_auto { paper } else { chosen };
        Self {
            batch: choose(self.auto.batch, self.batch, paper.batch),
            learning_rate: if self.auto.learning_rate { paper.learning_rate } else { self.learning_rate },
            pca: choose(self.auto.pca, self.pca, paper.pca),
            ..self.clone()
        }
    }
}

/// The number of clusters for `readable` images: min(10000, max(10, N / 50)) unless it is named.
fn resolve_clusters(k: Auto<u32>, readable: usize) -> Result<u32, SpecError> {
    let clusters = match k {
        Auto::Auto => (readable / 50).clamp(10, 10_000) as u32,
        Auto::Fixed(clusters) => clusters,
    };
    if (clusters as usize) <= readable {
        return Ok(clusters);
    }
    Err(SpecError(match k {
        Auto::Auto if readable == 1 => {
            format!("1 readable image is too few for k = auto, which is {clusters} at least; name k")
        }
        Auto::Auto => format!("{readable} readable images are too few for k = auto, which is {clusters} at least; name k"),
        Auto::Fixed(_) => format!("k = {clusters} is larger than the {readable} readable images"),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(readable: usize) -> RunSpec {
        let mut spec = RunSpec::default();
        spec.resolve(readable).unwrap();
        spec
    }

    #[test]
    fn clusters_follow_the_number_of_images() {
        for (readable, k) in [(10, 10), (500, 10), (20_000, 400), (1_281_167, 10_000)] {
            assert_eq!(resolve_clusters(Auto::Auto, readable), Ok(k));
        }
        assert_eq!(resolve_clusters(Auto::Fixed(7), 7), Ok(7));
        let error = resolve_clusters(Auto::Fixed(8), 7).unwrap_err();
        assert_eq!(error.to_string(), "k = 8 is larger than the 7 readable images");
        assert!(resolve_clusters(Auto::Auto, 9).is_err());
    }

    #[test]
    fn imagenet_gets_the_values_of_the_paper() {
        let spec = resolved(1_281_167);
        assert_eq!(RunSpec { auto: AutoOptions::ALL, ..RunSpec::default() }, spec);
    }

    #[test]
    fn chosen_options_are_valid_for_any_number_of_images() {
        for readable in [10, 11, 33, 200, 2_000, 20_000, 100_000, 10_000_000] {
            let spec = resolved(readable);
            assert_eq!(spec.validate(), Ok(()), "{readable} images");
            assert!(spec.pca as usize <= readable / 2, "{} dimensions of {readable} images", spec.pca);
        }
    }

    #[test]
    fn explicit_options_stay_and_are_not_listed() {
        let mut spec = RunSpec { pca: 200, auto: AutoOptions::NONE, k: Auto::Fixed(5), ..RunSpec::default() };
        let (k, choices) = spec.resolve(300).unwrap();
        assert_eq!((k, spec.pca, spec.batch, spec.learning_rate), (5, 200, 256, 0.05));
        assert_eq!(choices, []);
    }

    #[test]
    fn chosen_options_are_listed_with_reasons_and_forgotten_in_requests() {
        let requested = RunSpec::default();
        let mut spec = requested.clone();
        let (_, choices) = spec.resolve(2_000).unwrap();
        assert_eq!(choices.iter().map(|choice| choice.option).collect::<Vec<_>>(), ["k", "pca", "batch", "lr"]);
        assert!(choices.iter().all(|choice| !choice.reason.is_empty()));
        assert_ne!(spec, requested);
        assert_eq!(spec.as_requested(), requested);
        assert_eq!(
            AutoOptions::from_names(&spec.auto.names().iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()),
            spec.auto
        );
    }

    #[test]
    fn text_is_auto_or_a_number() {
        assert_eq!("auto".parse(), Ok(Auto::<u32>::Auto));
        assert_eq!("0.5".parse(), Ok(Auto::Fixed(0.5)));
        assert_eq!("much".parse::<Auto<u32>>().unwrap_err().to_string(), "'much' is neither 'auto' nor a number");
    }
}
