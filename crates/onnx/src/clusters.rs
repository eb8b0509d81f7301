//! From the embedding to the nearest centroid.

use crate::graph::{Graph, float, int, ints};
use crate::{Assignment, CLUSTER, DISTANCE};

/// The shortest row that becomes one of length 1: the squares of shorter ones leave the range of f32. A row of zeros is divided
/// by it, and stays.
const SHORTEST: f32 = 1e-19;

/// Adds the way from features `[n, width]` to the outputs "cluster" and "distance".
pub(crate) fn assign(graph: &mut Graph, assignment: &Assignment, width: i64, features: &str) {
    let Assignment { mean, projection, centroids, dims } = assignment;
    let k = (centroids.len() / (*dims).max(1)) as i64;
    let dims = *dims as i64;
    graph.constant("whiten.mean", &[width], mean);
    graph.constant("whiten.projection", &[dims, width], projection);
    graph.constant("whiten.shortest", &[], &[SHORTEST]);
    graph.constant("centroids", &[k, dims], centroids);
    graph.constant("centroids.squares", &[k], &squares(centroids, dims as usize));

    // The mean goes first: features may differ little from image to image, and products would lose just those digits.
    let centred = graph.named("whiten.centred", "Sub", &[features, "whiten.mean"], Vec::new());
    let whitened = graph.named("whiten.projected", "Gemm", &[&centred, "whiten.projection"], vec![int("transB", 1)]);
    let by_row = |keep| vec![ints("axes", &[1]), int("keepdims", keep)];
    let length = graph.named("whiten.length", "ReduceL2", &[&whitened], by_row(1));
    let divisor = graph.named("whiten.divisor", "Max", &[&length, "whiten.shortest"], Vec::new());
    let point = graph.named("whiten", "Div", &[&whitened, &divisor], Vec::new());

    // |x − c|² = |x|² − 2xc + |c|², of which |x|² makes no difference to who is nearest.
    let product = vec![float("alpha", -2.0), float("beta", 1.0), int("transB", 1)];
    let ranks = graph.named("nearest.ranks", "Gemm", &[&point, "centroids", "centroids.squares"], product);
    graph.named(CLUSTER, "ArgMin", &[&ranks], vec![int("axis", 1), int("keepdims", 0)]);
    let best = graph.named("nearest.rank", "ReduceMin", &[&ranks], by_row(0));
    let square = graph.named("nearest.square", "ReduceSumSquare", &[&point], by_row(0));
    let distance = graph.named("nearest.distance", "Add", &[&best, &square], Vec::new());
    // Rounding can make it a little negative.
    graph.named(DISTANCE, "Relu", &[&distance], Vec::new());
}

/// The squared length of each row.
fn squares(rows: &[f32], width: usize) -> Vec<f32> {
    rows.chunks_exact(width.max(1)).map(|row| row.iter().map(|value| value * value).sum()).collect()
}
