//! How the epochs of a run follow on each other: a run whose last figures look well may have been better, and may get worse.

use crate::Clustering;
use crate::health::Warning;

/// An NMI with the classes that has lost this share of its best has fallen.
pub const FALLEN_SHARE: f64 = 1.0 / 3.0;

/// An NMI less than this above the level of chance says nothing.
pub const ABOVE_CHANCE: f64 = 0.02;

/// Epochs after which a run should have learned something.
pub const EPOCHS_TO_LEARN: usize = 3;

/// A change of an NMI that is less than this is noise.
pub const NMI_NOISE: f64 = 0.01;

/// A change of the k-means objective by less than this share is noise: in runs that learn well it falls by half and then goes up
/// and down by a tenth.
pub const OBJECTIVE_NOISE: f64 = 0.05;

/// What an epoch scored, as far as trends are concerned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EpochPoint {
    /// The epoch's number.
    pub epoch: u32,
    /// Mean cross-entropy of the training pass.
    pub loss: f64,
    /// Sum of squared distances to the own centroid.
    pub objective: f64,
    /// NMI with the labels of the epoch before.
    pub nmi_last: Option<f64>,
    /// NMI with the classes.
    pub nmi_classes: Option<f64>,
    /// What random labels would have of it.
    pub nmi_chance: Option<f64>,
}

/// The epoch whose clusters agree best with the classes, the earliest of equals; none where no classes are known.
pub fn best_epoch(epochs: &[EpochPoint]) -> Option<(u32, f64)> {
    let mut best: Option<(u32, f64)> = None;
    for point in epochs {
        if let Some(nmi) = point.nmi_classes
            && best.is_none_or(|(_, best)| nmi > best)
        {
            best = Some((point.epoch, nmi));
        }
    }
    best
}

/// Everything that should worry about the way that the figures took, up to the last of the epochs.
pub fn trend_warnings(clustering: Clustering, epochs: &[EpochPoint]) -> Vec<Warning> {
    let checks = [fallen_classes(epochs), not_learned(epochs), worse_clusters(epochs), unsettled(epochs)];
    let mut warnings: Vec<Warning> = checks.into_iter().flatten().collect();
    // Power iteration clustering makes nothing small.
    if clustering == Clustering::KMeans {
        warnings.extend(rising_objective(epochs));
    }
    warnings
}

/// What to do where an earlier epoch was better. Its clusters were made by the network that the epoch before it left.
fn go_back_to(best: u32) -> String {
    let network = best.saturating_sub(1);
    format!(
        "take the network that made the clusters of epoch {best} (`deepcluster export RUN --epoch {network} --to FILE`), and train \
         on from it with `--init FILE` and a lower --lr"
    )
}

fn fallen_classes(epochs: &[EpochPoint]) -> Option<Warning> {
    let (best_epoch, best) = best_epoch(epochs)?;
    let last = epochs.last()?;
    let now = last.nmi_classes?;
    let chance = last.nmi_chance.unwrap_or(0.0);
    if best < chance + ABOVE_CHANCE || now > (1.0 - FALLEN_SHARE) * best {
        return None;
    }
    Some(Warning {
        kind: "fallen-classes",
        message: format!(
            "the NMI with the classes is {now:.3}, and was {best:.3} in epoch {best_epoch}; random clusters have {chance:.3}"
        ),
        remedy: go_back_to(best_epoch),
    })
}

fn not_learned(epochs: &[EpochPoint]) -> Option<Warning> {
    let (best_epoch, best) = best_epoch(epochs)?;
    let chance = epochs.last()?.nmi_chance?;
    if epochs.len() < EPOCHS_TO_LEARN || best >= chance + ABOVE_CHANCE {
        return None;
    }
    Some(Warning {
        kind: "not-learned",
        message: format!(
            "after {} epochs the clusters agree with the classes no better than random ones: the best NMI is {best:.3} in epoch \
             {best_epoch}, and random clusters have {chance:.3}",
            epochs.len()
        ),
        remedy: "look at the atlas: if the folders are no classes of what the images show, this means nothing; else train with \
                 fewer dimensions (--pca), fewer clusters (--k) or a lower --lr"
            .to_owned(),
    })
}

/// The last three values, where each of them is there.
fn last_three(epochs: &[EpochPoint], value: impl Fn(&EpochPoint) -> Option<f64>) -> Option<[f64; 3]> {
    let [first, second, third] = epochs.last_chunk::<3>()?;
    Some([value(first)?, value(second)?, value(third)?])
}

fn falls(values: [f64; 3], noise: f64) -> bool {
    values[1] < values[0] - noise && values[2] < values[1] - noise
}

/// Whether clusters get no worse by the classes, where these are known: then they only become more varied.
fn classes_hold(epochs: &[EpochPoint]) -> bool {
    last_three(epochs, |point| point.nmi_classes).is_some_and(|nmis| nmis[2] > nmis[0] - NMI_NOISE)
}

/// The loss falls because the labels become easier, not because they become better.
fn worse_clusters(epochs: &[EpochPoint]) -> Option<Warning> {
    let nmis = last_three(epochs, |point| point.nmi_classes)?;
    let losses = last_three(epochs, |point| Some(point.loss))?;
    if !falls(nmis, NMI_NOISE) || !falls(losses, 0.0) {
        return None;
    }
    let (best_epoch, _) = best_epoch(epochs)?;
    Some(Warning {
        kind: "worse-clusters",
        message: format!(
            "the loss falls ({:.3} to {:.3} in three epochs) while the clusters get worse (NMI with the classes {:.3} to {:.3})",
            losses[0], losses[2], nmis[0], nmis[2]
        ),
        remedy: go_back_to(best_epoch),
    })
}

fn unsettled(epochs: &[EpochPoint]) -> Option<Warning> {
    let nmis = last_three(epochs, |point| point.nmi_last)?;
    (falls(nmis, NMI_NOISE) && !classes_hold(epochs)).then(|| Warning {
        kind: "unsettled",
        message: format!("the NMI with the epoch before falls: {:.3}, {:.3}, {:.3}", nmis[0], nmis[1], nmis[2]),
        remedy: "lower --lr, or train with fewer clusters (--k)".to_owned(),
    })
}

fn rising_objective(epochs: &[EpochPoint]) -> Option<Warning> {
    let [first, second, third] = last_three(epochs, |point| Some(point.objective))?;
    let rises = second > first * (1.0 + OBJECTIVE_NOISE) && third > second * (1.0 + OBJECTIVE_NOISE);
    (rises && !classes_hold(epochs)).then(|| Warning {
        kind: "rising-objective",
        message: format!(
            "the k-means objective rises ({first:.1}, {second:.1}, {third:.1}): images lie farther from their centroids"
        ),
        remedy: "lower --lr, or train with fewer dimensions (--pca)".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(nmis: &[f64]) -> Vec<EpochPoint> {
        let point = |(epoch, nmi): (usize, &f64)| EpochPoint {
            epoch: epoch as u32,
            loss: 3.0 - 0.1 * epoch as f64,
            objective: 900.0 - 10.0 * epoch as f64,
            nmi_last: (epoch > 0).then_some(0.4 + 0.05 * epoch as f64),
            nmi_classes: Some(*nmi),
            nmi_chance: Some(0.03),
        };
        nmis.iter().enumerate().map(point).collect()
    }

    fn kinds(epochs: &[EpochPoint]) -> Vec<&'static str> {
        trend_warnings(Clustering::KMeans, epochs).into_iter().map(|warning| warning.kind).collect()
    }

    #[test]
    fn a_run_that_learns_worries_nobody() {
        assert_eq!(kinds(&points(&[0.05, 0.12, 0.18, 0.17, 0.19])), [""; 0]);
        assert_eq!(kinds(&[]), [""; 0]);
        assert_eq!(kinds(&points(&[0.035])), [""; 0]);
        let unknown: Vec<EpochPoint> =
            points(&[0.0; 6]).into_iter().map(|point| EpochPoint { nmi_classes: None, nmi_chance: None, ..point }).collect();
        assert_eq!(kinds(&unknown), [""; 0]);
    }

    #[test]
    fn a_run_that_was_better_before_is_named_with_its_best_epoch() {
        // The demo of old, seed 31.
        let demo = points(&[0.035, 0.162, 0.120, 0.09, 0.08, 0.07, 0.06, 0.052]);
        let found = trend_warnings(Clustering::KMeans, &demo);
        assert_eq!(found[0].kind, "fallen-classes");
        assert!(found[0].message.contains("is 0.052, and was 0.162 in epoch 1"), "{found:?}");
        assert!(found[0].remedy.contains("export RUN --epoch 0 "), "{found:?}");
        assert_eq!(kinds(&points(&[0.035, 0.162, 0.120])), [""; 0], "not by a third");
        assert_eq!(kinds(&points(&[0.03, 0.045, 0.02])), ["not-learned"], "chance falls, too");
    }

    #[test]
    fn clusters_that_never_agree_with_the_classes_have_not_learned() {
        assert_eq!(kinds(&points(&[0.03, 0.035])), [""; 0], "too early");
        assert_eq!(kinds(&points(&[0.03, 0.035, 0.031])), ["not-learned"]);
        assert_eq!(kinds(&points(&[0.03, 0.035, 0.06])), [""; 0]);
    }

    #[test]
    fn figures_that_get_worse_twice_in_a_row_are_named() {
        assert_eq!(kinds(&points(&[0.30, 0.28, 0.26])), ["worse-clusters"]);
        assert_eq!(kinds(&points(&[0.30, 0.295, 0.29])), [""; 0], "noise");
        let mut epochs = points(&[0.2, 0.21, 0.22, 0.23]);
        for (point, nmi) in epochs.iter_mut().zip([0.5, 0.6, 0.55, 0.5]) {
            point.nmi_last = Some(nmi);
        }
        assert_eq!(kinds(&epochs), [""; 0], "the classes say that all is well");
        epochs.iter_mut().for_each(|point| point.nmi_classes = None);
        assert_eq!(kinds(&epochs), ["unsettled"]);
        let mut epochs = points(&[0.2, 0.21, 0.22]);
        for (point, objective) in epochs.iter_mut().zip([500.0, 560.0, 600.0]) {
            point.objective = objective;
        }
        assert_eq!(kinds(&epochs), [""; 0], "the classes say that all is well");
        epochs.iter_mut().for_each(|point| point.nmi_classes = None);
        assert_eq!(kinds(&epochs), ["rising-objective"]);
        assert!(trend_warnings(Clustering::Pic, &epochs).is_empty());
    }
}
