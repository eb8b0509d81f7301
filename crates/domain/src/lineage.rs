//! Names of clusters that last from epoch to epoch, although every clustering numbers its clusters anew.
//!
//! A cluster takes the name of the cluster before it with which it shares most images. Names are numbers, and none is given
//! twice in a run.

use crate::scores::Contingency;
use std::cmp::Reverse;
use std::collections::HashSet;

/// The ancestor of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Match {
    /// Its number in the clustering before.
    pub from: u32,
    /// Images that are in both.
    pub shared: usize,
}

/// Finds for each of `k` clusters its ancestor, one to one: the pair that shares most images goes first; of equal ones that
/// with the smaller number before, then that with the smaller number now.
///
/// Images with a negative label in either, and those whose label now is `k` or above, are left out. How many clusters there
/// were before does not matter.
pub fn match_clusters(before: &[i32], now: &[i32], k: u32) -> Vec<Option<Match>> {
    let mut cells = Contingency::new(before, now).cells;
    cells.sort_unstable_by_key(|(pair, shared)| (Reverse(*shared), *pair));
    let mut matches: Vec<Option<Match>> = vec![None; k as usize];
    let mut taken = HashSet::new();
    for ((from, to), shared) in cells {
        let Some(place) = matches.get_mut(to as usize) else { continue };
        if place.is_none() && taken.insert(from) {
            *place = Some(Match { from: from as u32, shared });
        }
    }
    matches
}

/// A cluster and where it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    /// Its name, which it has from its ancestor, or which nobody had before.
    pub name: u32,
    /// Number of its ancestor in the clustering before; none for a new cluster.
    pub from: Option<u32>,
    /// Images that it shares with its ancestor; 0 for a new cluster.
    pub shared: usize,
    /// Images that it has.
    pub size: usize,
}

/// The names of all clusters of an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lineage {
    /// `[k]`, in order of the clusters' numbers.
    pub clusters: Vec<Named>,
    /// The smallest name that no cluster of the run had so far.
    pub next_name: u32,
}

impl Lineage {
    /// Of the first clustering: every cluster is called by its number.
    pub fn first(labels: &[i32], k: u32) -> Self {
        let clusters = (0..k).zip(sizes(labels, k)).map(|(name, size)| Named { name, from: None, shared: 0, size });
        Self { clusters: clusters.collect(), next_name: k }
    }

    /// Of the clustering after this one, which had `labels_before`. A cluster without ancestor gets a new name. So does an
    /// empty one: it has nothing in common with the cluster that had its number, and leaves no name to one that has it later.
    pub fn next(&self, labels_before: &[i32], labels: &[i32], k: u32) -> Self {
        let mut next_name = self.next_name;
        let mut clusters = Vec::with_capacity(k as usize);
        for (found, size) in match_clusters(labels_before, labels, k).into_iter().zip(sizes(labels, k)) {
            let ancestor = found.and_then(|found| Some((found, self.clusters.get(found.from as usize)?)));
            clusters.push(match ancestor {
                Some((found, ancestor)) => Named { name: ancestor.name, from: Some(found.from), shared: found.shared, size },
                None => {
                    let name = next_name;
                    next_name = next_name.saturating_add(1);
                    Named { name, from: None, shared: 0, size }
                }
            });
        }
        Self { clusters, next_name }
    }
}

/// Images of each of `k` clusters.
fn sizes(labels: &[i32], k: u32) -> Vec<usize> {
    let mut sizes: Vec<usize> = vec![0; k as usize];
    for label in labels {
        if let Some(size) = usize::try_from(*label).ok().and_then(|label| sizes.get_mut(label)) {
            *size += 1;
        }
    }
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_overlap_goes_first_and_nobody_has_two_heirs() {
        let images = [((0, 0), 2), ((0, 1), 3), ((1, 1), 2), ((1, 0), 1), ((-1, 1), 9), ((1, -1), 9)];
        let (before, now): (Vec<i32>, Vec<i32>) = images.iter().flat_map(|(pair, n)| std::iter::repeat_n(*pair, *n)).unzip();
        let found = match_clusters(&before, &now, 3);
        assert_eq!(found, [Some(Match { from: 1, shared: 1 }), Some(Match { from: 0, shared: 3 }), None]);
        // All overlaps are equal: the smaller numbers find each other.
        let found = match_clusters(&[0, 0, 1, 1], &[0, 1, 0, 1], 2);
        assert_eq!(found, [Some(Match { from: 0, shared: 1 }), Some(Match { from: 1, shared: 1 })]);
        // More clusters than there are now, and a label that is none.
        assert_eq!(match_clusters(&[9, 9, 3], &[0, 0, 5], 1), [Some(Match { from: 9, shared: 2 })]);
    }

    #[test]
    fn names_outlive_numbers_and_are_never_given_twice() {
        let labels = [[0, 0, 1, 1, 2, -1], [2, 2, 0, 0, 0, 0], [1, 1, 0, 0, 2, 2], [0, 0, 2, 2, 1, 1]];
        let mut lineage = Lineage::first(&labels[0], 3);
        let names = |lineage: &Lineage| lineage.clusters.iter().map(|named| named.name).collect::<Vec<_>>();
        assert_eq!((names(&lineage), lineage.next_name), (vec![0, 1, 2], 3));
        lineage = lineage.next(&labels[0], &labels[1], 3);
        // Cluster 1 is empty and new; cluster 0 was 1 and has swallowed 2.
        let first = Named { name: 1, from: Some(1), shared: 2, size: 4 };
        let empty = Named { name: 3, from: None, shared: 0, size: 0 };
        let last = Named { name: 0, from: Some(0), shared: 2, size: 2 };
        assert_eq!(lineage, Lineage { clusters: vec![first, empty, last], next_name: 4 });
        lineage = lineage.next(&labels[1], &labels[2], 3);
        // What has split off cluster 0 is new: neither name 2, which is gone, nor 3, which was empty, comes back.
        assert_eq!((names(&lineage), lineage.next_name), (vec![1, 0, 4], 5));
        lineage = lineage.next(&labels[2], &labels[3], 3);
        assert_eq!((names(&lineage), lineage.next_name), (vec![0, 4, 1], 5));
    }
}
