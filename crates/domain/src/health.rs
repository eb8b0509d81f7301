//! Whether training is healthy: figures that should worry, each with a remedy.
//!
//! What users of the original ask about (loss stuck at ln k, empty clusters, nearly all images in one) is said here, at
//! the epoch where it shows.

use crate::Clustering;

/// One cluster with more than this share of all images is a collapse.
pub const LARGEST_SHARE: f64 = 0.5;

/// Fewer effective clusters than this share of k are a collapse.
pub const EFFECTIVE_SHARE: f64 = 0.1;

/// A loss above this share of ln k, the loss of guessing, has learned nothing, unless it has fallen below this share of
/// the loss of the epoch before.
pub const GUESSING: f64 = 0.98;

/// A loss that is so many times that of the epoch before, and of guessing, is not on its way down.
pub const RISING: f64 = 1.1;

/// A loss that is so many times that of guessing, and by one above it, is worse than knowing nothing: steps are too long. That
/// shows in the first epoch already, where an untrained network is at ln k and hardly above.
pub const WORSE_THAN_GUESSING: f64 = 1.5;

/// Batches of fewer images than this make steps of chance, which no lower rate mends.
pub const SMALL_BATCH: u32 = 16;

/// More clusters than this share of the images are no groups of images.
pub const MANY_CLUSTERS: f64 = 0.5;

/// Whitened to more dimensions than this share of their number, images are all nearly equally far from each other.
pub const MANY_DIMENSIONS: f64 = 0.5;

/// Figures of one epoch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figures {
    /// How it clusters. Power iteration clustering finds its k itself, so nobody is told to change --k.
    pub clustering: Clustering,
    /// Images that take part.
    pub images: usize,
    /// Dimensions that whitening is to keep.
    pub dims: u32,
    /// Images of a training step.
    pub batch: u32,
    /// Mean cross-entropy of the training pass.
    pub loss: f64,
    /// Loss of the epoch before, if there is one.
    pub last_loss: Option<f64>,
    /// Number of clusters.
    pub k: u32,
    /// Share of the largest cluster.
    pub largest_share: f64,
    /// exp of the entropy of the cluster sizes: how many clusters of equal size would be as varied.
    pub effective_clusters: f64,
}

/// Something that should worry.
#[derive(Clone, Debug, PartialEq)]
pub struct Warning {
    /// "stuck-loss", "rising-loss", "high-loss", "collapse", "many-clusters", "many-dimensions", or one of `trend`.
    pub kind: &'static str,
    /// What is the matter, with the figures.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
}

/// Kinds of warnings whose cause cannot change within a run: they are said once.
pub const CONSTANT_KINDS: [&str; 2] = ["many-clusters", "many-dimensions"];

/// Everything that should worry about an epoch by itself.
pub fn warnings(figures: &Figures) -> Vec<Warning> {
    let mut warnings: Vec<Warning> = loss_warning(figures).into_iter().collect();
    if figures.largest_share > LARGEST_SHARE {
        warnings.push(Warning {
            kind: "collapse",
            message: format!("{:.1} % of the images are in one cluster", figures.largest_share * 100.0),
            remedy: match figures.clustering {
                Clustering::KMeans => "look for near-duplicates among the images, lower --lr, or raise --k".to_owned(),
                Clustering::Pic => "look for near-duplicates among the images, or lower --lr".to_owned(),
            },
        });
    }
    if figures.effective_clusters < EFFECTIVE_SHARE * f64::from(figures.k) {
        let (effective, k) = (figures.effective_clusters, figures.k);
        warnings.push(Warning {
            kind: "collapse",
            message: format!("the images spread over {effective:.1} effective clusters of {k}"),
            remedy: match figures.clustering {
                Clustering::KMeans => "lower --k or --lr, or train with --feature-dtype f32 if the features are large".to_owned(),
                Clustering::Pic => "lower --lr, or train with --feature-dtype f32 if the features are large".to_owned(),
            },
        });
    }
    warnings.extend(disproportions(figures));
    warnings
}

/// What should worry about the loss. Of several things the one that asks for the right remedy: a loss that stands still far
/// above that of guessing needs a lower rate, not a higher one.
fn loss_warning(figures: &Figures) -> Option<Warning> {
    let Figures { clustering, loss, last_loss, k, .. } = *figures;
    let guess = f64::from(k).ln();
    let guessing = format!("guessing among {k} clusters has ln {k} = {guess:.3}");
    if let Some(last) = last_loss.filter(|last| loss > RISING * last && loss > RISING * guess) {
        let message = format!("the loss has risen from {last:.3} to {loss:.3}, and {guessing}");
        return Some(Warning { kind: "rising-loss", message, remedy: shorter_steps(figures.batch) });
    }
    if loss > WORSE_THAN_GUESSING * guess && loss > guess + 1.0 {
        let message = format!("the loss is {loss:.3}, worse than guessing: {guessing}");
        return Some(Warning { kind: "high-loss", message, remedy: shorter_steps(figures.batch) });
    }
    // One epoch at ln k is how every run may begin; two without any fall are a standstill.
    let last = last_loss.filter(|last| last.min(loss) > GUESSING * guess && loss > GUESSING * last)?;
    let message = format!("the loss was {last:.3} and is {loss:.3}, and {guessing}");
    let remedy = match clustering {
        Clustering::KMeans => "train with a smaller --batch or a higher --lr, or with fewer clusters (--k)",
        Clustering::Pic => "train with a smaller --batch or a higher --lr",
    };
    Some(Warning { kind: "stuck-loss", message, remedy: remedy.to_owned() })
}

fn shorter_steps(batch: u32) -> String {
    if batch < SMALL_BATCH { format!("raise --batch, which is {batch}, or lower --lr") } else { "lower --lr".to_owned() }
}

/// What should worry about how many images there are.
fn disproportions(figures: &Figures) -> Vec<Warning> {
    let Figures { clustering, images, k, dims, .. } = *figures;
    let mut warnings = Vec::new();
    if f64::from(k) > MANY_CLUSTERS * images as f64 {
        warnings.push(Warning {
            kind: "many-clusters",
            message: format!("there are {k} clusters of {images} images, which leaves fewer than two images to a cluster"),
            remedy: match clustering {
                Clustering::KMeans => "lower --k, or train on more images".to_owned(),
                Clustering::Pic => "lower --pca, or train on more images".to_owned(),
            },
        });
    }
    if f64::from(dims) > MANY_DIMENSIONS * images as f64 {
        warnings.push(Warning {
            kind: "many-dimensions",
            message: format!(
                "whitening to {dims} dimensions makes {images} images nearly equally far from each other, whatever they show"
            ),
            remedy: "lower --pca well below the number of images".to_owned(),
        });
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEALTHY: Figures = Figures {
        clustering: Clustering::KMeans,
        images: 200,
        dims: 100,
        batch: 64,
        loss: 3.0,
        last_loss: Some(3.5),
        k: 100,
        largest_share: 0.05,
        effective_clusters: 80.0,
    };

    fn kinds(figures: Figures) -> Vec<&'static str> {
        warnings(&figures).into_iter().map(|warning| warning.kind).collect()
    }

    #[test]
    fn healthy_figures_worry_nobody_and_sick_ones_are_named() {
        assert_eq!(kinds(HEALTHY), [""; 0]);
        assert_eq!(kinds(Figures { loss: 4.6, last_loss: None, ..HEALTHY }), [""; 0]);
        assert_eq!(kinds(Figures { loss: 4.6, last_loss: Some(4.6), ..HEALTHY }), ["stuck-loss"]);
        assert_eq!(kinds(Figures { loss: 6.0, last_loss: Some(7.5), ..HEALTHY }), [""; 0], "it falls");
        assert_eq!(kinds(Figures { loss: 9.0, last_loss: Some(4.0), ..HEALTHY }), ["rising-loss"]);
        // ln 100 is 4.605.
        assert_eq!(kinds(Figures { loss: 4.615, last_loss: None, ..HEALTHY }), [""; 0], "an untrained network");
        assert_eq!(kinds(Figures { loss: 7.0, last_loss: None, ..HEALTHY }), ["high-loss"]);
        assert_eq!(kinds(Figures { loss: 60.0, last_loss: Some(90.0), ..HEALTHY }), ["high-loss"], "though it falls");
        assert_eq!(kinds(Figures { loss: 60.0, last_loss: Some(60.0), ..HEALTHY }), ["high-loss"], "no higher --lr");
        // Half of ln 2 is little.
        assert_eq!(kinds(Figures { loss: 1.2, last_loss: None, k: 2, effective_clusters: 2.0, ..HEALTHY }), [""; 0]);
        let few = Figures { loss: 3.849, last_loss: None, k: 5, effective_clusters: 4.0, ..HEALTHY };
        let high = warnings(&few);
        assert!(high.len() == 1 && high[0].message.contains("ln 5 = 1.609") && high[0].remedy == "lower --lr", "{high:?}");
        let tiny = warnings(&Figures { batch: 2, ..few });
        assert_eq!(tiny[0].remedy, "raise --batch, which is 2, or lower --lr");
        assert_eq!(kinds(Figures { largest_share: 0.6, ..HEALTHY }), ["collapse"]);
        let few = warnings(&Figures { effective_clusters: 9.9, ..HEALTHY });
        assert!(few[0].message.contains("9.9 effective clusters of 100"), "{}", few[0].message);
    }

    #[test]
    fn clusters_and_dimensions_nearly_as_many_as_images_are_named() {
        let [clusters, dims]: [Warning; 2] = warnings(&Figures { k: 101, dims: 101, ..HEALTHY }).try_into().unwrap();
        assert_eq!([clusters.kind, dims.kind], ["many-clusters", "many-dimensions"]);
        assert!(clusters.message.contains("101 clusters of 200 images") && clusters.remedy.contains("--k"), "{clusters:?}");
        assert!(dims.message.contains("101 dimensions makes 200 images") && dims.remedy.contains("--pca"), "{dims:?}");
        let found = warnings(&Figures { clustering: Clustering::Pic, k: 150, ..HEALTHY });
        assert!(found.len() == 1 && !found[0].remedy.contains("--k"), "{found:?}");
    }

    #[test]
    fn who_has_no_k_is_not_told_to_change_it() {
        let pic = Figures { clustering: Clustering::Pic, ..HEALTHY };
        let sick = Figures { loss: 4.6, last_loss: Some(4.6), largest_share: 0.9, effective_clusters: 1.5, ..pic };
        let rising = Figures { loss: 9.0, last_loss: Some(4.0), ..pic };
        let all = [warnings(&sick), warnings(&rising)].concat();
        assert_eq!(all.len(), 4);
        for warning in all {
            let remedy = warning.remedy;
            assert!(remedy.contains("--lr") && !remedy.contains("--k"), "{remedy}");
        }
    }
}
