//! One search for similar images, from request to result.

use crate::cluster::{Output, open, status, teller};
use deepcluster_clustering::search::{Found, Searched, queries, search as find};
use deepcluster_clustering::{ClusteringError, Features, Progress, Whitening};
use deepcluster_domain::{EpochId, Seeds};
use deepcluster_proto::FieldError;
use deepcluster_proto::v1::{File, SearchRequest, SearchResult};
use deepcluster_service::JobContext;
use deepcluster_service::requests::{self, volume_status};
use deepcluster_volume::Volume;
use deepcluster_volume::npy;
use tonic::Status;

/// Queries that are in memory at a time, in values, with what is found for them.
const QUERIES: usize = 1 << 26;

/// Most neighbours of all queries together.
const MOST_FOUND: u64 = 1 << 31;

/// Finds the most similar features of each query and publishes them.
pub(crate) fn search(volume: &Volume, request: &SearchRequest, context: &JobContext) -> Result<SearchResult, Status> {
    let output = Output { volume, folder: requests::output(volume, &request.output)? };
    check(request)?;
    let kept = request.mask.as_ref().map(|file| kept_rows(volume, file)).transpose()?;
    let features = open(volume, &request.features, kept)?;
    let asked = match request.queries.as_slice() {
        [] => None,
        queries => Some(open(volume, queries, None)?),
    };
    let failed = |error| status(error, None);
    let mut tell = teller(context);
    let whitening = whitening(volume, request, &features, &mut tell)?;
    let points = match &whitening {
        Some(whitening) if !request.whitened => {
            Some(whitening.apply(&features, &output.folder.join("points.npy"), &mut tell).map_err(failed)?)
        }
        _ => None,
    };
    let rows: Vec<usize> = features.kept_rows().collect();
    let searched = match &points {
        Some(points) => Searched::Whitened(points, &rows),
        None => Searched::Raw(&features),
    };
    // Whitened rows are searched for as they are.
    let by = whitening.as_ref().filter(|_| asked.is_some() || !request.whitened);
    let found = find_all(&searched, &features, asked.as_ref(), by, request.neighbours, &mut tell)?;
    let shape = [asked.as_ref().unwrap_or(&features).n_rows(), found.n];
    let published = |error| volume_status(&error);
    let neighbours =
        output.publish("neighbours.npy", |path| npy::publish_i32_matrix(path, &shape, &found.neighbours).map_err(published))?;
    let similarities =
        output.publish("similarities.npy", |path| npy::publish_f32(path, &shape, &found.similarities).map_err(published))?;
    Ok(SearchResult { neighbours: Some(neighbours), similarities: Some(similarities) })
}

fn check(request: &SearchRequest) -> Result<(), FieldError> {
    if !(1..=100_000).contains(&request.neighbours) {
        return Err(FieldError::new("neighbours", "must lie between 1 and 100000"));
    }
    if request.whitened && request.whiten.is_none() {
        return Err(FieldError::new("whiten", "is missing"));
    }
    if request.mask.is_some() && request.queries.is_empty() {
        return Err(FieldError::new("queries", "are missing: rows that take no part cannot be searched for"));
    }
    Ok(())
}

/// What is most similar to each query; without queries, to each row of the features, which does not find itself. Queries are
/// whitened by `by`.
fn find_all(
    searched: &Searched<'_>,
    features: &Features,
    asked: Option<&Features>,
    by: Option<&Whitening>,
    neighbours: u32,
    tell: &mut Progress<'_>,
) -> Result<Found, Status> {
    let wanted = asked.unwrap_or(features);
    let n_found = wanted.n_rows() as u64 * u64::from(neighbours).min(features.n_rows() as u64);
    if n_found > MOST_FOUND {
        let why = format!("{neighbours} of each of {} queries are more than {MOST_FOUND} in all", wanted.n_rows());
        return Err(FieldError::new("neighbours", why).into());
    }
    let failed = |error| status(error, None);
    let mut all = Found { neighbours: Vec::new(), similarities: Vec::new(), n: 0 };
    // What is found takes four values for each neighbour of a block and of the best so far.
    let each = (QUERIES / (wanted.width() + 8 * neighbours as usize).max(1)).max(1);
    for first in (0..wanted.n_rows()).step_by(each) {
        let part = first..wanted.n_rows().min(first + each);
        let rows = queries(wanted, by, part.clone()).map_err(failed)?;
        let own: Option<Vec<usize>> = asked.is_none().then(|| part.collect());
        let found = find(searched, &rows, neighbours as usize, own.as_deref(), tell).map_err(failed)?;
        all.neighbours.extend(found.neighbours);
        all.similarities.extend(found.similarities);
        all.n = found.n;
    }
    Ok(all)
}

/// Which rows take part.
fn kept_rows(volume: &Volume, mask: &File) -> Result<Vec<bool>, Status> {
    let path = requests::verified(volume, "mask", Some(mask))?;
    let mask = npy::read_i32(&path).map_err(|error| volume_status(&error))?;
    Ok(mask.into_iter().map(|number| number >= 0).collect())
}

/// The whitening that a request wants, if any.
fn whitening(
    volume: &Volume,
    request: &SearchRequest,
    features: &Features,
    tell: &mut Progress<'_>,
) -> Result<Option<Whitening>, Status> {
    let failed = |error: ClusteringError| status(error, None);
    match (&request.whiten, request.pca) {
        (Some(file), _) => {
            let path = requests::verified(volume, "whiten", Some(file))?;
            Whitening::read(&path).map(Some).map_err(failed)
        }
        (None, 0) => Ok(None),
        (None, pca @ 1..=65_536) => {
            let seeds = Seeds::new(request.seed, EpochId(0));
            Whitening::fit(features, pca as usize, seeds, tell).map(Some).map_err(failed)
        }
        (None, _) => Err(FieldError::new("pca", "must be at most 65536").into()),
    }
}
