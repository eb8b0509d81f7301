//! Networks as ONNX: the plan's layers as operators, with their weights, for any program that runs such models.
//!
//! ```text
//! pixels ─► normalised ─► Sobel? ─► plan's layers ─► features ─► whitened ─► nearest centroid
//! ```
//!
//! Nothing here reads a file or knows of libtorch: weights come from whoever calls, by their names in a PyTorch state_dict.
#![forbid(unsafe_code)]

mod clusters;
mod graph;
mod layers;
mod proto;

use deepcluster_domain::Plan;
use graph::{Graph, batch};
use prost::Message;
use proto::{FLOAT, GraphProto, INT64, ModelProto, OperatorSetIdProto, StringStringEntryProto, ValueInfoProto};

/// Version of the file format: that of the time of [`OPSET`], so that no reader of these operators is too old for the file.
const IR_VERSION: i64 = 8;

/// Version of the operators. The next ones take the axes of reductions as inputs.
const OPSET: i64 = 17;

/// The most bytes that a protobuf message may have, and so a model in one file.
const MAX_BYTES: usize = i32::MAX as usize;

const IMAGES: &str = "images";
const FEATURES: &str = "features";
const CLUSTER: &str = "cluster";
const DISTANCE: &str = "distance";

/// What the model's one input, "images", is: which parts of the way from pixels to the embedding are inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// f32 `[n, 3, size, size]`, RGB from 0 to 255: normalisation is inside, and the Sobel filter where the plan has one.
    Pixels,
    /// f32 `[n, 3, size, size]`, RGB from 0 to 1 less ImageNet's mean, divided by its standard deviation: the Sobel filter is
    /// inside where the plan has one.
    Normalised,
    /// f32 `[n, 2 or 3, size, size]`, what the first layer sees: the Sobel filter is outside.
    Seen,
}

/// What the model's outputs are.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// "features": f32 `[n, embedding]`, before any rectifier (recipe, step 1).
    Features,
    /// The same, with "cluster", int64 `[n]`, the number of the nearest centroid, and "distance", f32 `[n]`, the squared distance
    /// to it.
    Clusters(Assignment),
}

/// How features become clusters: x ↦ P (x − mean), to unit length, to the nearest centroid by Euclidean distance. A row without
/// any direction stays zero.
#[derive(Clone, Debug, PartialEq)]
pub struct Assignment {
    /// What is taken off the features, `[width]`.
    pub mean: Vec<f32>,
    /// P, `[dims, width]`.
    pub projection: Vec<f32>,
    /// Centroids of whitened points, `[k, dims]`.
    pub centroids: Vec<f32>,
    /// Number of dimensions after whitening.
    pub dims: usize,
}

/// Why there is no model. `E` is how a weight may fail to come.
#[derive(Debug, thiserror::Error)]
pub enum OnnxError<E> {
    /// A weight did not come.
    #[error("weight {name}: {source}")]
    Weight {
        /// Its name in the state_dict.
        name: String,
        /// Why.
        source: E,
    },
    /// A weight, or a part of the assignment, does not fit the network.
    #[error("{name} has {found} numbers, not {wanted}")]
    Length {
        /// Its name in the state_dict, or "mean" or "projection".
        name: String,
        /// How many numbers came.
        found: usize,
        /// How many the network has there.
        wanted: i64,
    },
    /// There are no centroids, or they are no rows of `dims` numbers.
    #[error("{found} numbers are no centroids of {dims} dimensions")]
    Centroids {
        /// How many numbers came.
        found: usize,
        /// Number of dimensions after whitening.
        dims: usize,
    },
    /// A model in one file cannot be that large.
    #[error("the model takes {bytes} bytes, and an ONNX file holds {most}; smaller images make it smaller", most = MAX_BYTES)]
    TooLarge {
        /// What it would take.
        bytes: usize,
    },
}

/// A network as an ONNX file of opset 17, for any number of images at a time. `about` is what else the file's metadata shall tell.
///
/// `weight` is asked once for each of [`Plan::weights`], in their order, and answers in C order.
///
/// # Errors
/// When a weight does not come or has another number of values than the plan, the assignment does not fit the embedding, or the
/// file would be larger than 2 GiB.
pub fn model<E>(
    plan: &Plan,
    input: Input,
    output: Output,
    about: &[(&str, String)],
    weight: &mut dyn FnMut(&str) -> Result<Vec<f32>, E>,
) -> Result<Vec<u8>, OnnxError<E>> {
    if let Output::Clusters(assignment) = &output {
        check::<E>(assignment, plan.embedding)?;
    }
    let mut graph = Graph::default();
    for spec in plan.weights() {
        let values = weight(&spec.name).map_err(|source| OnnxError::Weight { name: spec.name.clone(), source })?;
        of_length::<E>(&spec.name, &values, spec.shape.iter().product())?;
        graph.constant(&spec.name, &spec.shape, &values);
    }
    let features = layers::embedding(&mut graph, plan, input, IMAGES);
    graph.rename(&features, FEATURES);
    if let Output::Clusters(assignment) = &output {
        clusters::assign(&mut graph, assignment, plan.embedding, FEATURES);
    }
    let model = file(graph, plan, input, &output, about);
    let bytes = model.encoded_len();
    if bytes > MAX_BYTES {
        return Err(OnnxError::TooLarge { bytes });
    }
    Ok(model.encode_to_vec())
}

fn check<E>(assignment: &Assignment, width: i64) -> Result<(), OnnxError<E>> {
    let Assignment { mean, projection, centroids, dims } = assignment;
    of_length::<E>("mean", mean, width)?;
    of_length::<E>("projection", projection, width.saturating_mul(*dims as i64))?;
    if centroids.is_empty() || !centroids.len().is_multiple_of(*dims) {
        return Err(OnnxError::Centroids { found: centroids.len(), dims: *dims });
    }
    Ok(())
}

fn of_length<E>(name: &str, values: &[f32], wanted: i64) -> Result<(), OnnxError<E>> {
    if values.len() as i64 != wanted {
        return Err(OnnxError::Length { name: name.to_owned(), found: values.len(), wanted });
    }
    Ok(())
}

/// The graph with what a reader has to know about it.
fn file(graph: Graph, plan: &Plan, input: Input, output: &Output, about: &[(&str, String)]) -> ModelProto {
    let (kind, doc) = match input {
        Input::Pixels => ("pixels", "RGB from 0 to 255"),
        Input::Normalised => ("normalised", "RGB from 0 to 1, less ImageNet's mean, divided by its standard deviation"),
        Input::Seen if plan.sobel => ("seen", "horizontal and vertical gradient of the normalised grey image"),
        Input::Seen => ("seen", "RGB from 0 to 1, less ImageNet's mean, divided by its standard deviation"),
    };
    let channels = if input == Input::Seen && plan.sobel { 2 } else { 3 };
    let side = i64::from(plan.image_size);
    let props = [("image_size", side.to_string()), ("input", kind.to_owned())];
    let props = props.iter().chain(about);
    ModelProto {
        ir_version: IR_VERSION,
        producer_name: "deepcluster".to_owned(),
        producer_version: env!("CARGO_PKG_VERSION").to_owned(),
        doc_string: "A convnet trained by DeepCluster, up to its embedding.".to_owned(),
        graph: Some(GraphProto {
            node: graph.nodes,
            name: "deepcluster".to_owned(),
            initializer: graph.initializers,
            doc_string: String::new(),
            input: vec![batch(IMAGES, FLOAT, &[channels, side, side], doc)],
            output: outputs(plan.embedding, output),
        }),
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: OPSET }],
        metadata_props: props
            .map(|(key, value)| StringStringEntryProto { key: (*key).to_owned(), value: value.clone() })
            .collect(),
    }
}

fn outputs(embedding: i64, output: &Output) -> Vec<ValueInfoProto> {
    let mut outputs = vec![batch(FEATURES, FLOAT, &[embedding], "the embedding of each image, before any rectifier")];
    if let Output::Clusters(_) = output {
        outputs.push(batch(CLUSTER, INT64, &[], "number of the centroid nearest to the whitened features"));
        outputs.push(batch(DISTANCE, FLOAT, &[], "squared distance to it"));
    }
    outputs
}

#[cfg(test)]
mod tests;
