//! How well clusters agree with classes: adjusted Rand index, purity, and accuracy under the best matching.
//!
//! The Rand index is scikit-learn's (`adjusted_rand_score`), the matching that of scipy's `linear_sum_assignment`. Points with
//! a negative label in either (skipped images, images without a class) are left out.

use crate::scores::Contingency;
use pathfinding::prelude::{Matrix, kuhn_munkres};

/// Rand index of two labellings of the same points, adjusted for chance (Hubert, Arabie 1985): 1 for equal labellings, about 0
/// for random ones, at least −½. Two labellings of nothing agree fully.
///
/// Pairs are counted in whole numbers, so that nothing is lost with millions of points.
pub fn ari(a: &[i32], b: &[i32]) -> f64 {
    let table = Contingency::new(a, b);
    let [first, second] = &table.sizes;
    let total = table.total as i128;
    // Ordered pairs of points that are together in both, each with itself included.
    let both = squares(table.cells.iter().map(|(_, n)| *n));
    let only_first = squares(first.iter().map(|(_, n)| *n)) - both;
    let only_second = squares(second.iter().map(|(_, n)| *n)) - both;
    let neither = total * total - only_first - only_second - both;
    let both = both - total;
    if only_first == 0 && only_second == 0 {
        return 1.0;
    }
    let numerator = both * neither - only_first * only_second;
    let denominator = (both + only_first) * (only_first + neither) + (both + only_second) * (only_second + neither);
    2.0 * numerator as f64 / denominator as f64
}

/// Share of the points that belong to the most frequent class of their cluster, in [0, 1]; 0 without any point.
pub fn purity(labels: &[i32], classes: &[i32]) -> f64 {
    let table = Contingency::new(labels, classes);
    // Cells are sorted by cluster.
    let of_clusters = table.cells.chunk_by(|((x, _), _), ((y, _), _)| x == y);
    let most: usize = of_clusters.map(|cells| cells.iter().map(|(_, n)| *n).max().unwrap_or(0)).sum();
    most as f64 / table.total.max(1.0)
}

/// Share of the points whose class is the one that their cluster stands for, when every cluster stands for at most one class
/// and every class for at most one cluster, in the way that makes this share largest; 0 without any point.
///
/// Also that matching, in order of the clusters: (cluster, class), without pairs that have no point in common. Where several
/// matchings are best, it is one of them. Takes 8 bytes for each cluster and class, and at most (the smaller number)² × (the
/// larger) steps.
pub fn matched_accuracy(labels: &[i32], classes: &[i32]) -> (f64, Vec<(i32, i32)>) {
    let table = Contingency::new(labels, classes);
    let [clusters, classes] = &table.sizes;
    if table.cells.is_empty() {
        return (0.0, Vec::new());
    }
    // Every row gets a column, so there may be no more rows.
    let turned = clusters.len() > classes.len();
    let (rows, columns) = if turned { (classes, clusters) } else { (clusters, classes) };
    let mut shared = Matrix::new(rows.len(), columns.len(), 0_i64);
    for ((cluster, class), n) in &table.cells {
        let (row, column) = if turned { (class, cluster) } else { (cluster, class) };
        shared[(place(rows, *row), place(columns, *column))] = *n as i64;
    }
    let (hits, column_of) = kuhn_munkres(&shared);
    let mut pairs = Vec::new();
    for (row, column) in column_of.into_iter().enumerate() {
        if shared[(row, column)] > 0 {
            let (row, column) = (rows[row].0, columns[column].0);
            pairs.push(if turned { (column, row) } else { (row, column) });
        }
    }
    pairs.sort_unstable();
    (hits as f64 / table.total, pairs)
}

fn squares(sizes: impl Iterator<Item = usize>) -> i128 {
    sizes.map(|n| (n as i128) * (n as i128)).sum()
}

/// Where a label stands among the sorted ones; all that are asked for are there.
fn place(sizes: &[(i32, usize)], label: i32) -> usize {
    sizes.partition_point(|(other, _)| *other < label)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn labels(case: &Value, member: &str) -> Vec<i32> {
        case[member].as_array().unwrap().iter().map(|label| label.as_i64().unwrap() as i32).collect()
    }

    #[test]
    fn all_three_are_scikit_learns_and_scipys() {
        let all: Value = serde_json::from_str(include_str!("../../../tests/parity/evaluation.json")).unwrap();
        let cases = all["agreement"].as_array().unwrap();
        assert_eq!(cases.len(), 5);
        for case in cases {
            let (clusters, classes) = (labels(case, "labels"), labels(case, "classes"));
            let (accuracy, pairs) = matched_accuracy(&clusters, &classes);
            let found =
                [("ari", ari(&clusters, &classes)), ("purity", purity(&clusters, &classes)), ("matched_accuracy", accuracy)];
            for (score, value) in found {
                let expected = case[score].as_f64().unwrap();
                assert!((value - expected).abs() < 1e-12, "{}: {score} is {value}, not {expected}", case["name"]);
            }
            // The pairs make up the accuracy, and none has a side twice.
            let kept = clusters.iter().zip(&classes).filter(|(x, y)| **x >= 0 && **y >= 0);
            let hits = kept.clone().filter(|(x, y)| pairs.contains(&(**x, **y))).count();
            assert_eq!(accuracy, hits as f64 / kept.count() as f64);
            let (mut left, mut right): (Vec<i32>, Vec<i32>) = pairs.iter().copied().unzip();
            left.dedup();
            right.sort_unstable();
            right.dedup();
            assert_eq!((left.len(), right.len()), (pairs.len(), pairs.len()));
        }
    }

    #[test]
    fn edges_are_scikit_learns() {
        assert_eq!(ari(&[], &[]), 1.0);
        assert_eq!(ari(&[0, 0, 0], &[4, 4, 4]), 1.0);
        assert_eq!(ari(&[0, 0, 0, 0], &[0, 1, 2, 3]), 0.0);
        assert_eq!(ari(&[0, 0, 1, 1], &[0, 1, 0, 1]), -0.5);
        assert_eq!(purity(&[-1, -1], &[0, 1]), 0.0);
        assert_eq!(matched_accuracy(&[3], &[-1]), (0.0, Vec::new()));
        // Three clusters for two classes: the smallest stands for none.
        assert_eq!(matched_accuracy(&[7, 7, 7, 5, 5, 2], &[0, 0, 1, 1, 1, 1]), (4.0 / 6.0, vec![(5, 1), (7, 0)]));
    }
}
