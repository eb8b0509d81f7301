//! How good a clustering is: mutual information with another labelling, and how full its clusters are.
//!
//! The definitions are scikit-learn's (`normalized_mutual_info_score`, `adjusted_mutual_info_score`, both with the
//! arithmetic mean), natural logarithms, f64 throughout.

/// How the points spread over the clusters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Occupancy {
    /// Clusters with at least one point.
    pub nonempty: usize,
    /// Points of the largest cluster ÷ all points, in [0, 1].
    pub largest_share: f64,
    /// exp of the entropy of the sizes: as many clusters of equal size would be as varied. 0 without any point.
    pub effective: f64,
}

/// Occupancy of a labelling. Negative labels (skipped images) do not count.
pub fn occupancy(labels: &[i32]) -> Occupancy {
    let kept: Vec<i32> = labels.iter().copied().filter(|label| *label >= 0).collect();
    let sizes = counts(kept.iter().copied());
    let largest = sizes.iter().map(|(_, n)| *n).max().unwrap_or(0);
    let total = kept.len().max(1) as f64;
    let entropy: f64 = sizes.iter().map(|(_, n)| *n as f64 / total).map(|share| -share * share.ln()).sum();
    let effective = if kept.is_empty() { 0.0 } else { entropy.exp() };
    Occupancy { nonempty: sizes.len(), largest_share: largest as f64 / total, effective }
}

/// Normalised mutual information of two labellings of the same points, in [0, 1].
///
/// Points with a negative label in either are left out. Two labellings without any information agree fully (1.0).
pub fn nmi(a: &[i32], b: &[i32]) -> f64 {
    let table = Contingency::new(a, b);
    if table.is_trivial() {
        return 1.0;
    }
    let information = table.mutual_information();
    // Independent labellings leave rounding noise around zero, which must not become a score.
    if information <= f64::EPSILON {
        return 0.0;
    }
    information / table.mean_entropy()
}

/// Mutual information adjusted for chance (Vinh, Epps, Bailey 2010): 1 for equal labellings, about 0 for random ones.
///
/// Points with a negative label in either are left out.
pub fn ami(a: &[i32], b: &[i32]) -> f64 {
    let table = Contingency::new(a, b);
    if table.is_trivial() {
        return 1.0;
    }
    let expected = table.expected_mutual_information();
    let mut denominator = table.mean_entropy() - expected;
    // As scikit-learn does it: keep the sign, but never divide by zero.
    denominator = if denominator < 0.0 { denominator.min(-f64::EPSILON) } else { denominator.max(f64::EPSILON) };
    (table.mutual_information() - expected) / denominator
}

/// The NMI that random labellings with the group sizes of these have on average: the level of chance, above which an NMI means
/// something. It rises with the number of groups and falls with that of points.
///
/// Points with a negative label in either are left out.
pub fn nmi_chance(a: &[i32], b: &[i32]) -> f64 {
    let table = Contingency::new(a, b);
    if table.is_trivial() {
        return 1.0;
    }
    table.expected_mutual_information() / table.mean_entropy()
}

/// How often each pair of labels occurs together. Sorted, so that sums are added in the same order every time.
pub(crate) struct Contingency {
    pub(crate) total: f64,
    /// Sizes of the groups of the first and of the second labelling.
    pub(crate) sizes: [Vec<(i32, usize)>; 2],
    /// (label of the first, label of the second) and how many points have both.
    pub(crate) cells: Vec<((i32, i32), usize)>,
}

impl Contingency {
    pub(crate) fn new(a: &[i32], b: &[i32]) -> Self {
        let pairs: Vec<(i32, i32)> = a.iter().copied().zip(b.iter().copied()).filter(|(x, y)| *x >= 0 && *y >= 0).collect();
        Self {
            total: pairs.len() as f64,
            sizes: [counts(pairs.iter().map(|p| p.0)), counts(pairs.iter().map(|p| p.1))],
            cells: counts(pairs.iter().copied()),
        }
    }

    /// Both labellings put everything into one group, or there is nothing at all.
    fn is_trivial(&self) -> bool {
        self.sizes.iter().all(|sizes| sizes.len() <= 1)
    }

    fn mutual_information(&self) -> f64 {
        let size_of = |side: usize, label: i32| {
            let sizes = &self.sizes[side];
            sizes.binary_search_by_key(&label, |(l, _)| *l).map_or(0.0, |at| sizes[at].1 as f64)
        };
        let sum: f64 = self
            .cells
            .iter()
            .map(|((x, y), n)| {
                let n = *n as f64;
                n / self.total * (n * self.total / (size_of(0, *x) * size_of(1, *y))).ln()
            })
            .sum();
        sum.max(0.0)
    }

    fn mean_entropy(&self) -> f64 {
        let entropy =
            |sizes: &[(i32, usize)]| -> f64 { sizes.iter().map(|(_, n)| *n as f64 / self.total).map(|p| -p * p.ln()).sum() };
        (entropy(&self.sizes[0]) + entropy(&self.sizes[1])) / 2.0
    }

    /// The mutual information that two random labellings with these group sizes have on average.
    ///
    /// Groups of equal size contribute equally, so the sum runs over distinct sizes; with a table of log-factorials
    /// a million points in ten thousand clusters take well under a second.
    fn expected_mutual_information(&self) -> f64 {
        let total = self.total as usize;
        let log_factorial: Vec<f64> = (0..=total).map(|n| libm::lgamma(n as f64 + 1.0)).collect();
        let distinct = |side: usize| counts(self.sizes[side].iter().map(|(_, n)| *n));
        let mut sum = 0.0;
        for &(a, times_a) in &distinct(0) {
            for &(b, times_b) in &distinct(1) {
                let fixed = log_factorial[a] + log_factorial[b] + log_factorial[total - a] + log_factorial[total - b]
                    - log_factorial[total];
                let mut inner = 0.0;
                for n in (a + b).saturating_sub(total).max(1)..=a.min(b) {
                    let share = n as f64 / self.total;
                    let gain = (self.total * n as f64 / (a as f64 * b as f64)).ln();
                    let log_probability =
                        fixed - log_factorial[n] - log_factorial[a - n] - log_factorial[b - n] - log_factorial[total + n - a - b];
                    inner += share * gain * log_probability.exp();
                }
                sum += inner * (times_a * times_b) as f64;
            }
        }
        sum
    }
}

/// Each distinct value with how often it occurs, in ascending order.
fn counts<T: Ord + Copy>(values: impl Iterator<Item = T>) -> Vec<(T, usize)> {
    let mut sorted: Vec<T> = values.collect();
    sorted.sort_unstable();
    sorted.chunk_by(|x, y| x == y).map(|group| (group[0], group.len())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The case of tests/parity/cases.json, whose answers are scikit-learn's.
    fn parity_labels() -> (Vec<i32>, Vec<i32>) {
        let a = (0..1000).map(|i| i % 7).collect();
        let b = (0..1000).map(|i| ((i % 7) * 3 + i32::from(i % 5 == 0)) % 11).collect();
        (a, b)
    }

    #[test]
    fn nmi_and_ami_are_scikit_learns() {
        let (a, b) = parity_labels();
        assert!((nmi(&a, &b) - 0.828_759_921_026_513_2).abs() < 1e-9);
        assert!((ami(&a, &b) - 0.826_176_548_327_650_2).abs() < 1e-9);
    }

    #[test]
    fn chance_is_what_shuffled_labels_score_on_average() {
        // 5,000 images in 100 clusters and 10 classes: 0.028.
        let clusters: Vec<i32> = (0..5000).map(|i| i % 100).collect();
        let classes: Vec<i32> = (0..5000).map(|i| i / 500).collect();
        let chance = nmi_chance(&clusters, &classes);
        assert!((chance - 0.028).abs() < 0.002, "{chance}");
        let mut state = 1_u64;
        let mut random = || {
            // Knuth's generator; its upper bits are the random ones.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state >> 33
        };
        let mut sum = 0.0;
        for _ in 0..20 {
            let mut keyed: Vec<(u64, i32)> = clusters.iter().map(|cluster| (random(), *cluster)).collect();
            keyed.sort_unstable();
            let shuffled: Vec<i32> = keyed.into_iter().map(|(_, cluster)| cluster).collect();
            sum += nmi(&shuffled, &classes);
        }
        assert!((sum / 20.0 - chance).abs() < 0.002, "{} against {chance}", sum / 20.0);
        assert_eq!(nmi_chance(&[0, 0], &[1, 1]), 1.0);
        assert_eq!(nmi_chance(&[0, 0], &[0, 1]), 0.0);
    }

    #[test]
    fn equal_labellings_score_one_and_unrelated_ones_nothing() {
        let a = [0, 0, 1, 1, 2, 2];
        assert!((nmi(&a, &[5, 5, 3, 3, 9, 9]) - 1.0).abs() < 1e-12);
        assert!((ami(&a, &[5, 5, 3, 3, 9, 9]) - 1.0).abs() < 1e-12);
        assert_eq!(nmi(&[0, 1, 0, 1], &[0, 0, 1, 1]), 0.0);
        assert_eq!(nmi(&[0, 0], &[1, 1]), 1.0);
        assert_eq!(nmi(&[], &[]), 1.0);
    }

    #[test]
    fn skipped_images_do_not_count() {
        let (a, b) = parity_labels();
        let (mut a2, mut b2) = (a.clone(), b.clone());
        a2.extend([-1, 3]);
        b2.extend([4, -1]);
        assert_eq!(nmi(&a2, &b2), nmi(&a, &b));
        assert_eq!(ami(&a2, &b2), ami(&a, &b));
        let found = occupancy(&[0, 0, 0, 4, -1, -1]);
        assert_eq!((found.nonempty, found.largest_share), (2, 0.75));
        assert!((found.effective - 1.754_765_350_603).abs() < 1e-9, "{}", found.effective);
        assert!((occupancy(&[0, 1, 2, 3]).effective - 4.0).abs() < 1e-12);
        assert_eq!(occupancy(&[-1]), Occupancy { nonempty: 0, largest_share: 0.0, effective: 0.0 });
    }
}
