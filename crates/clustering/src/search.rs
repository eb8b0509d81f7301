//! The most similar of many rows for each of some others, by the cosine, on faiss's flat index of inner products.
//!
//! The rows that are searched pass by block after block, since wide features of many images do not fit into memory; the best of
//! each block are merged with the best so far.

use crate::{ClusteringError, Features, Points, Progress, Whitening};
use faiss::{Index, index::flat::FlatIndexImpl};

/// The best matches of each query, the most similar first.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Rows of what was searched, `[queries, neighbours]`.
    pub neighbours: Vec<i32>,
    /// Their cosines, likewise.
    pub similarities: Vec<f32>,
    /// How many each query has.
    pub n: usize,
}

/// Searches for the rows of `queries`, which are in memory and of length 1 each `[n, dims]`; `own` tells the row that a query
/// must not find, which is itself.
///
/// # Errors
/// When the widths differ, a value is not finite, a file cannot be read, or `progress` says so.
pub fn search(
    searched: &Searched<'_>,
    queries: &[f32],
    n: usize,
    own: Option<&[usize]>,
    progress: &mut Progress<'_>,
) -> Result<Found, ClusteringError> {
    let (dims, total) = (searched.dims(), searched.n() as u64);
    if dims == 0 || !queries.len().is_multiple_of(dims) {
        return Err(ClusteringError::Unusable(format!("the queries are no rows of {dims} values")));
    }
    let n = n.min(searched.n() - usize::from(own.is_some() && searched.n() > 1));
    let mut best = Best { n, lists: vec![Vec::new(); queries.len() / dims] };
    let mut index = FlatIndexImpl::new_ip(dims as u32)?;
    searched.for_each_block(|rows, block| {
        index.reset()?;
        index.add(block)?;
        // One more, should the query itself be among them.
        let found = index.search(queries, (n + 1).min(rows.len()))?;
        let per_query = found.labels.len() / best.lists.len().max(1);
        let matches = found.labels.chunks(per_query.max(1)).zip(found.distances.chunks(per_query.max(1)));
        for (query, (labels, similarities)) in matches.enumerate() {
            for (label, similarity) in labels.iter().zip(similarities) {
                let Some(row) = label.get().and_then(|at| rows.get(at as usize)) else { continue };
                if own.is_none_or(|own| own[query] != *row) {
                    best.lists[query].push((*similarity, *row));
                }
            }
        }
        best.keep_best();
        progress("search", rows.last().map_or(0, |row| *row as u64 + 1), total)
    })?;
    Ok(best.found())
}

/// What is searched.
pub enum Searched<'a> {
    /// Features as they are; they are brought to unit length.
    Raw(&'a Features),
    /// Whitened points, which are of unit length, and the rows that they stand for.
    Whitened(&'a Points, &'a [usize]),
}

impl Searched<'_> {
    fn dims(&self) -> usize {
        match self {
            Self::Raw(features) => features.width(),
            Self::Whitened(points, _) => points.dims(),
        }
    }

    fn n(&self) -> usize {
        match self {
            Self::Raw(features) => features.n_kept(),
            Self::Whitened(points, _) => points.n(),
        }
    }

    fn for_each_block(
        &self,
        mut visit: impl FnMut(&[usize], &[f32]) -> Result<(), ClusteringError>,
    ) -> Result<(), ClusteringError> {
        match self {
            Self::Raw(features) => {
                let mut unit = Vec::new();
                features.for_each_block(|block| {
                    unit.clear();
                    unit.extend_from_slice(block.values);
                    unit.chunks_exact_mut(features.width()).for_each(crate::whitening::normalise);
                    visit(block.rows, &unit)
                })
            }
            Self::Whitened(points, rows) => {
                points.for_each_block(|first, block| visit(&rows[first..first + block.len() / points.dims()], block))
            }
        }
    }
}

/// Some consecutive rows of features as queries: of unit length, after a whitening where there is one.
///
/// # Errors
/// When the widths differ, a value is not finite, or a file cannot be read.
pub fn queries(
    features: &Features,
    whitening: Option<&Whitening>,
    rows: std::ops::Range<usize>,
) -> Result<Vec<f32>, ClusteringError> {
    let mut values = Vec::new();
    features.for_each_block_of(rows, |block| {
        values.extend_from_slice(block.values);
        Ok(())
    })?;
    match whitening {
        Some(whitening) => whitening.apply_to(&values),
        None => {
            values.chunks_exact_mut(features.width()).for_each(crate::whitening::normalise);
            Ok(values)
        }
    }
}

/// The best matches so far.
struct Best {
    n: usize,
    lists: Vec<Vec<(f32, usize)>>,
}

impl Best {
    /// Equal similarities go by the smaller row.
    fn keep_best(&mut self) {
        for list in &mut self.lists {
            list.sort_unstable_by(|(a, row), (b, other)| b.total_cmp(a).then(row.cmp(other)));
            list.truncate(self.n);
        }
    }

    fn found(self) -> Found {
        let all = || self.lists.iter().flatten();
        Found {
            neighbours: all().map(|(_, row)| *row as i32).collect(),
            similarities: all().map(|(similarity, _)| *similarity).collect(),
            n: self.n,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use deepcluster_domain::{EpochId, Seeds};
    use deepcluster_volume::npy;
    use rand::{Rng, SeedableRng};

    /// 5,000 rows, more than a block, against a plain search.
    #[test]
    fn the_most_similar_are_found_and_nobody_finds_itself() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("features.npy");
        let (n, width) = (5000, 12);
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
        let values: Vec<f32> = (0..n * width).map(|_| rng.random_range(-1.0..1.0)).collect();
        npy::publish_f32(&path, &[n, width], &values).unwrap();
        let features = Features::open(&[path], None).unwrap();
        let mut all = queries(&features, None, 0..n).unwrap();
        let wanted: Vec<usize> = (0..n).step_by(500).collect();
        let rows: Vec<f32> = wanted.iter().flat_map(|row| all[row * width..(row + 1) * width].to_vec()).collect();
        let found = search(&Searched::Raw(&features), &rows, 4, Some(&wanted), &mut |_, _, _| Ok(())).unwrap();
        for (query, own) in wanted.iter().enumerate() {
            let cosine = |row: usize| -> f32 { (0..width).map(|at| all[row * width + at] * all[own * width + at]).sum() };
            let mut plain: Vec<usize> = (0..n).filter(|row| row != own).collect();
            plain.sort_by(|a, b| cosine(*b).total_cmp(&cosine(*a)));
            let ours: Vec<usize> = found.neighbours[query * 4..][..4].iter().map(|row| *row as usize).collect();
            assert_eq!(ours, plain[..4]);
            assert!((found.similarities[query * 4] - cosine(plain[0])).abs() < 1e-5);
        }
        // With itself allowed, each row finds itself first; and no more are found than there are.
        let found = search(&Searched::Raw(&features), &rows, 1, None, &mut |_, _, _| Ok(())).unwrap();
        assert_eq!(found.neighbours, wanted.iter().map(|row| *row as i32).collect::<Vec<_>>());
        all.truncate(width);
        let few = search(&Searched::Raw(&features), &all, 9999, None, &mut |_, _, _| Ok(())).unwrap();
        assert_eq!(few.n, n);

        let whitening = Whitening::fit(&features, 8, Seeds::new(1, EpochId(0)), &mut |_, _, _| Ok(())).unwrap();
        let points = whitening.apply(&features, &folder.path().join("points"), &mut |_, _, _| Ok(())).unwrap();
        let numbers: Vec<usize> = features.kept_rows().collect();
        let whitened = queries(&features, Some(&whitening), 0..n).unwrap();
        let found = search(&Searched::Whitened(&points, &numbers), &whitened, 1, None, &mut |_, _, _| Ok(())).unwrap();
        let own = found.neighbours.iter().zip(0..).filter(|(row, own)| **row == *own).count();
        assert_eq!(own, n);
    }
}
