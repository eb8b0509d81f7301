//! Nearest neighbours among centroids: of all, by brute force, which a few thousand points of a few hundred numbers allow.

use crate::last::Centroids;
use rayon::prelude::*;

/// Sums that are kept apart, so that the compiler may use wide registers.
const LANES: usize = 8;

/// A point and how far it is, not squared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Near {
    /// Its row.
    pub(crate) row: usize,
    /// Euclidean distance.
    pub(crate) distance: f32,
}

/// For each row of `of` the nearest rows of `among` other than itself, nearest first, the smaller row first among equals.
pub(crate) fn nearest(points: &Centroids, of: &[usize], among: &[usize], count: usize) -> Vec<Vec<Near>> {
    of.par_iter().map(|row| nearest_of(points, *row, among, count)).collect()
}

fn nearest_of(points: &Centroids, row: usize, among: &[usize], count: usize) -> Vec<Near> {
    let point = points.row(row);
    let others = among.iter().filter(|other| **other != row);
    let mut found: Vec<Near> = others.map(|other| Near { row: *other, distance: squared(point, points.row(*other)) }).collect();
    let order = |a: &Near, b: &Near| a.distance.total_cmp(&b.distance).then(a.row.cmp(&b.row));
    if count < found.len() {
        found.select_nth_unstable_by(count, order);
        found.truncate(count);
    }
    found.sort_by(order);
    found.iter_mut().for_each(|near| near.distance = near.distance.sqrt());
    found
}

fn squared(a: &[f32], b: &[f32]) -> f32 {
    let (a_lanes, a_rest) = a.as_chunks::<LANES>();
    let (b_lanes, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0.0_f32; LANES];
    for (x, y) in a_lanes.iter().zip(b_lanes) {
        for ((sum, x), y) in sums.iter_mut().zip(x).zip(y) {
            *sum += (x - y) * (x - y);
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(x, y)| (x - y) * (x - y)).sum();
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_are_found_in_order_and_never_the_point_itself() {
        // Ten numbers a point, so that both the lanes and what is left of them take part.
        let at = |x: f32| [vec![0.0; 9], vec![x]].concat();
        let points = Centroids { width: 10, values: [0.0, 5.0, 1.0, 2.0, -1.0].into_iter().flat_map(at).collect() };
        let found = nearest(&points, &[0, 1], &[0, 1, 2, 3, 4], 3);
        let rows = |near: &[Near]| near.iter().map(|near| near.row).collect::<Vec<_>>();
        assert_eq!(rows(&found[0]), [2, 4, 3]);
        assert_eq!(rows(&found[1]), [3, 2, 0]);
        assert_eq!(found[1][2], Near { row: 0, distance: 5.0 });
        assert!(nearest(&points, &[0], &[0], 3)[0].is_empty());
    }
}
