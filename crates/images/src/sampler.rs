//! The training list of an epoch: uniform over clusters, so that a few big clusters do not become the whole lesson.

use deepcluster_domain::{Purpose, Seeds};
use rand::Rng;
use rand::seq::{SliceRandom, index};
use std::collections::BTreeMap;

/// Draws the images of one epoch (recipe, step 4; paper, section 3.3).
///
/// N = ⌊`reassign` · readable images⌉. From every non-empty cluster come ⌊N / non-empty⌋ + 1 images, without replacement where the cluster is
/// larger than that and with replacement otherwise; all shuffled, then cut to N. Images labelled -1 are never drawn.
pub fn uniform_over_clusters(labels: &[i32], reassign: f64, seeds: Seeds) -> Vec<usize> {
    let mut clusters: BTreeMap<i32, Vec<usize>> = BTreeMap::new();
    for (image, label) in labels.iter().enumerate().filter(|(_, label)| **label >= 0) {
        clusters.entry(*label).or_default().push(image);
    }
    let readable: usize = clusters.values().map(Vec::len).sum();
    if readable == 0 {
        return Vec::new();
    }
    let n = ((readable as f64 * reassign).round() as usize).max(1);
    let each = n / clusters.len() + 1;
    let mut rng = seeds.rng(Purpose::Sampling, 0);
    let mut list = Vec::with_capacity(each * clusters.len());
    for images in clusters.values() {
        if images.len() > each {
            list.extend(index::sample(&mut rng, images.len(), each).iter().map(|at| images[at]));
        } else {
            list.extend((0..each).map(|_| images[rng.random_range(0..images.len())]));
        }
    }
    list.shuffle(&mut rng);
    list.truncate(n);
    list
}

#[cfg(test)]
mod tests {
    use super::*;
    use deepcluster_domain::EpochId;

    fn draw(labels: &[i32], reassign: f64, seed: u64) -> Vec<usize> {
        uniform_over_clusters(labels, reassign, Seeds::new(seed, EpochId(4)))
    }

    #[test]
    fn every_cluster_gets_its_share() {
        // One cluster of 900, one of 90, one of 10, ten skipped images.
        let labels: Vec<i32> = [(0, 900), (5, 90), (7, 10), (-1, 10)].iter().flat_map(|(l, n)| vec![*l; *n]).collect();
        let list = draw(&labels, 1.0, 1);
        assert_eq!(list.len(), 1000);
        for label in [0, 5, 7] {
            let n = list.iter().filter(|image| labels[**image] == label).count();
            assert!((332..=334).contains(&n), "cluster {label} was drawn {n} times");
        }
        assert!(list.iter().all(|image| labels[*image] >= 0));
        let mut big: Vec<usize> = list.iter().copied().filter(|image| labels[*image] == 0).collect();
        big.sort_unstable();
        big.dedup();
        assert!(big.len() >= 332, "the large cluster is drawn without replacement");
    }

    #[test]
    fn the_list_is_shuffled_and_follows_from_the_seed() {
        let labels: Vec<i32> = (0..100).map(|i| i / 50).collect();
        assert_eq!(draw(&labels, 1.0, 3), draw(&labels, 1.0, 3));
        assert_ne!(draw(&labels, 1.0, 3), draw(&labels, 1.0, 4));
        let halves: Vec<i32> = draw(&labels, 1.0, 3).iter().map(|image| labels[*image]).collect();
        assert!(!halves.is_sorted());
        assert_eq!(draw(&labels, 2.5, 3).len(), 250);
        assert_eq!(draw(&[-1, -1], 1.0, 3), Vec::<usize>::new());
    }
}
