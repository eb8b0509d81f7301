//! Places of many-dimensional points on a plane: t-SNE for as many as it has time for, principal components for more. The
//! same points have the same places every time.

use crate::last::Centroids;
use crate::nearest::{self, Near};
use bhtsne::{Neighbor, tSNE};
use rayon::ThreadPoolBuilder;
use rayon::prelude::*;

/// Most points that t-SNE places.
const MOST_TSNE: usize = 2000;

/// Fewer have too few neighbours for it.
const FEWEST_TSNE: usize = 10;

/// How many neighbours count for each point, softly.
const PERPLEXITY: usize = 20;

const STEPS: usize = 750;

/// How coarsely far points are taken together; the customary value.
const THETA: f32 = 0.5;

/// Rounds of power iteration; a map needs no more digits than these give.
const ROUNDS: usize = 200;

/// How the places came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    /// Neighbours stay neighbours; distances across the map mean little.
    TSne,
    /// The two directions in which the points differ most.
    PrincipalComponents,
}

/// Places of the points in these rows, in the same order.
pub(crate) fn project(points: &Centroids, rows: &[usize]) -> (Method, Vec<[f32; 2]>) {
    let principal = principal_components(points, rows);
    let placed = if (FEWEST_TSNE..=MOST_TSNE).contains(&rows.len()) { tsne(points, rows, &principal) } else { None };
    match placed {
        Some(places) => (Method::TSne, places),
        None => (Method::PrincipalComponents, principal),
    }
}

/// None where the method came to no finite places.
fn tsne(points: &Centroids, rows: &[usize], start: &[[f32; 2]]) -> Option<Vec<[f32; 2]>> {
    let perplexity = PERPLEXITY.min((rows.len() - 1) / 3);
    // Its neighbours are those of a tree that is built at random; these are exact. Rows count from 0 here.
    let dense = Centroids { width: points.width, values: rows.iter().flat_map(|row| points.row(*row)).copied().collect() };
    let all: Vec<usize> = (0..rows.len()).collect();
    let neighbour = |near: Near| Neighbor { index: near.row, distance: near.distance };
    let neighbours = nearest::nearest(&dense, &all, &all, 3 * perplexity);
    let neighbours: Vec<Vec<Neighbor<f32>>> =
        neighbours.into_iter().map(|of_row| of_row.into_iter().map(neighbour).collect()).collect();
    // A small start, as is usual; its largest coordinate is 1.
    let largest = start.iter().flatten().fold(f32::MIN_POSITIVE, |largest, x| largest.max(x.abs()));
    let start: Vec<f32> = start.iter().flatten().map(|x| x / largest * 1e-4).collect();
    // Sums over several threads would be added in another order each time.
    let one_thread = ThreadPoolBuilder::new().num_threads(1).build().ok()?;
    let placed: Vec<f32> = one_thread.install(|| {
        let mut tsne: tSNE<'_, f32, usize> = tSNE::new(&all);
        tsne.perplexity(perplexity as f32).epochs(STEPS).initial_embedding(start);
        tsne.barnes_hut_with_neighbors(THETA, &neighbours).embedding()
    });
    let (places, _) = placed.as_chunks::<2>();
    (places.len() == rows.len() && placed.iter().all(|x| x.is_finite())).then(|| places.to_vec())
}

/// The coordinates along the two directions of most variance, by power iteration.
fn principal_components(points: &Centroids, rows: &[usize]) -> Vec<[f32; 2]> {
    let mut centred = centre(points, rows);
    let mut places = vec![[0.0_f32; 2]; rows.len()];
    for axis in 0..2 {
        let direction = first_direction(&centred, points.width);
        for (row, place) in centred.iter_mut().zip(&mut places) {
            let coordinate = dot(row, &direction);
            if let Some(slot) = place.get_mut(axis) {
                *slot = coordinate as f32;
            }
            // What the next direction may not see any more.
            row.iter_mut().zip(&direction).for_each(|(x, d)| *x -= coordinate * d);
        }
    }
    places
}

fn centre(points: &Centroids, rows: &[usize]) -> Vec<Vec<f64>> {
    let mut mean = vec![0.0_f64; points.width];
    for row in rows {
        mean.iter_mut().zip(points.row(*row)).for_each(|(sum, x)| *sum += f64::from(*x));
    }
    mean.iter_mut().for_each(|sum| *sum /= rows.len().max(1) as f64);
    let centred = |row: &usize| points.row(*row).iter().zip(&mean).map(|(x, mean)| f64::from(*x) - mean).collect();
    rows.iter().map(centred).collect()
}

/// A unit vector along which the points vary most; its largest number is positive. All zero where they do not vary.
fn first_direction(centred: &[Vec<f64>], width: usize) -> Vec<f64> {
    // No axis and no sum of axes, to which a direction could be orthogonal by chance.
    let mut direction: Vec<f64> = (0..width).map(|n| 1.0 + ((n + 1) as f64 * 0.618_034).fract()).collect();
    normalise(&mut direction);
    for _ in 0..ROUNDS {
        // In parallel over points; the sum is added in their order.
        let along: Vec<f64> = centred.par_iter().map(|row| dot(row, &direction)).collect();
        let mut next = vec![0.0_f64; width];
        for (row, along) in centred.iter().zip(along) {
            next.iter_mut().zip(row).for_each(|(sum, x)| *sum += along * x);
        }
        normalise(&mut next);
        let still = dot(&next, &direction) > 1.0 - 1e-12;
        direction = next;
        if still {
            break;
        }
    }
    let largest = direction.iter().copied().max_by(|a, b| a.abs().total_cmp(&b.abs())).unwrap_or(1.0);
    if largest < 0.0 {
        direction.iter_mut().for_each(|x| *x = -*x);
    }
    direction
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

fn normalise(vector: &mut [f64]) {
    let length = dot(vector, vector).sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|x| *x /= length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two groups of points, far from each other.
    fn groups(n: usize) -> Centroids {
        let point = |n: usize| {
            let far = if n.is_multiple_of(2) { 0.0 } else { 50.0 };
            [far, (n as f32 * 0.37).sin(), (n as f32 * 0.61).cos(), far]
        };
        Centroids { width: 4, values: (0..n).flat_map(point).collect() }
    }

    #[test]
    fn principal_components_find_the_direction_of_most_variance() {
        let rows: Vec<usize> = (0..6).collect();
        let (method, places) = project(&groups(6), &rows);
        assert_eq!(method, Method::PrincipalComponents);
        for (n, place) in places.iter().enumerate() {
            let expected = if n % 2 == 0 { -35.355 } else { 35.355 };
            assert!((place[0] - expected).abs() < 0.1, "{places:?}");
            assert!(place[1].abs() < 2.0, "{places:?}");
        }
        assert_eq!(project(&Centroids { width: 4, values: vec![1.0; 24] }, &rows).1, vec![[0.0; 2]; 6]);
    }

    #[test]
    fn tsne_keeps_groups_apart_and_says_the_same_twice() {
        let rows: Vec<usize> = (0..40).collect();
        let points = groups(40);
        let (method, places) = project(&points, &rows);
        assert_eq!(method, Method::TSne);
        assert_eq!(project(&points, &rows).1, places);
        let apart = |a: [f32; 2], b: [f32; 2]| (a[0] - b[0]).hypot(a[1] - b[1]);
        let closest = |n: usize| {
            (0..40).filter(|m| *m != n).min_by(|a, b| apart(places[n], places[*a]).total_cmp(&apart(places[n], places[*b])))
        };
        let kept = rows.iter().filter(|n| closest(**n).is_some_and(|m| m % 2 == **n % 2)).count();
        assert!(kept >= 38, "{kept} of 40 have a neighbour of their own group");
    }
}
