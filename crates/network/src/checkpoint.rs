//! Weights and optimizer state as `.safetensors`, under the names of a PyTorch state_dict.
//!
//! Momentum buffers stand under `optimizer.`, so that whoever wants the weights alone leaves those names out. What training
//! saves inside an epoch is a checkpoint that also tells how far the epoch is, under `progress.`.

use crate::NetworkError;
use crate::weights::{SOBEL_GREY, SOBEL_KERNELS, Tensors};
use deepcluster_domain::Plan;
use deepcluster_domain::plan::{Start, WeightSpec};
use deepcluster_volume::VolumeError;
use deepcluster_volume::publish::Digest;
use deepcluster_volume::tensors::publish_views;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// Before the name of a weight: its momentum buffer.
pub const OPTIMIZER: &str = "optimizer.";

/// Before the names of what tells how far an epoch is.
const PROGRESS: &str = "progress.";

/// Before the names of the top layer's weight and bias.
const TOP_LAYER: &str = "top_layer.";

/// Reads the network's tensors; everything is checked before anything is returned.
///
/// # Errors
/// When the file cannot be read, lacks a tensor, or has one of another shape or type.
pub fn load_network(path: &Path, plan: &Plan, device: Device) -> Result<Tensors, NetworkError> {
    load(path, &plan.weights(), "", device)
}

/// Reads the momentum buffers of all trained weights.
///
/// # Errors
/// As [`load_network`].
pub fn load_momentum(path: &Path, plan: &Plan, device: Device) -> Result<Tensors, NetworkError> {
    let trained: Vec<WeightSpec> = plan.weights().into_iter().filter(|spec| spec.start.is_trained()).collect();
    load(path, &trained, OPTIMIZER, device)
}

fn load(path: &Path, specs: &[WeightSpec], prefix: &str, device: Device) -> Result<Tensors, NetworkError> {
    let wrong = |why: String| NetworkError::Checkpoint { path: path.display().to_string(), why };
    let content = fs::read(path).map_err(VolumeError::io(path))?;
    let file = SafeTensors::deserialize(&content).map_err(|error| wrong(error.to_string()))?;
    let mut tensors = Tensors::new();
    for spec in specs {
        let name = format!("{prefix}{}", spec.name);
        let view = file.tensor(&name).map_err(|_| wrong(format!("has no tensor {name}")))?;
        let shape: Vec<i64> = view.shape().iter().map(|n| *n as i64).collect();
        if view.dtype() != Dtype::F32 || shape != spec.shape {
            return Err(wrong(format!("{name} is {:?} of shape {shape:?}, not F32 of shape {:?}", view.dtype(), spec.shape)));
        }
        let tensor = Tensor::f_from_data_size(view.data(), &shape, Kind::Float)?.f_to(device)?;
        tensors.insert(spec.name.clone(), tensor);
    }
    Ok(tensors)
}

/// How far an epoch of training is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrainingProgress {
    /// Steps done.
    pub steps: u64,
    /// Sum of the losses of all images, exactly: the mean must not depend on how often training was interrupted.
    pub loss_sum: f64,
    /// Images trained on, repetitions counted.
    pub n_images: u64,
    /// Rows of images.csv that could not be read, and why.
    pub skipped: BTreeMap<u64, String>,
}

/// Reads how far an epoch of training was when it saved itself.
///
/// # Errors
/// When the file cannot be read or does not tell.
pub fn load_progress(path: &Path) -> Result<TrainingProgress, NetworkError> {
    let wrong = |why: &str| NetworkError::Checkpoint { path: path.display().to_string(), why: why.to_owned() };
    let content = fs::read(path).map_err(VolumeError::io(path))?;
    let file = SafeTensors::deserialize(&content).map_err(|error| wrong(&error.to_string()))?;
    let bytes =
        |leaf: &str| file.tensor(&format!("{PROGRESS}{leaf}")).map(|view| view.data()).map_err(|_| wrong("has no progress"));
    let number = |leaf: &str| -> Result<[u8; 8], NetworkError> {
        bytes(leaf)?.try_into().map_err(|_| wrong("tells no progress of this kind"))
    };
    Ok(TrainingProgress {
        steps: u64::from_le_bytes(number("steps")?),
        loss_sum: f64::from_le_bytes(number("loss_sum")?),
        n_images: u64::from_le_bytes(number("n_images")?),
        skipped: serde_json::from_slice(bytes("skipped")?).map_err(|error| wrong(&error.to_string()))?,
    })
}

/// Reads a top layer: weight and bias.
///
/// # Errors
/// As [`load_network`].
pub fn load_top_layer(path: &Path, embedding: i64, k: i64, device: Device) -> Result<[Tensor; 2], NetworkError> {
    let spec =
        |leaf: &str, shape: &[i64]| WeightSpec { name: format!("{TOP_LAYER}{leaf}"), shape: shape.to_vec(), start: Start::Zero };
    let specs = [spec("bias", &[k]), spec("weight", &[k, embedding])];
    // Sorted by name.
    let mut tensors = load(path, &specs, "", device)?.into_values();
    match (tensors.next(), tensors.next()) {
        (Some(bias), Some(weight)) => Ok([weight, bias]),
        _ => Err(NetworkError::Torch("a top layer has a weight and a bias".to_owned())),
    }
}

/// What a checkpoint holds.
pub struct Contents<'a> {
    /// The layout, for the fixed tensors that PyTorch expects.
    pub plan: &'a Plan,
    /// Weights and batch-norm statistics.
    pub network: &'a Tensors,
    /// Weight and bias.
    pub top_layer: &'a [Tensor; 2],
    /// Momentum buffers by the names of their weights.
    pub momentum: &'a Tensors,
    /// Training steps since the first epoch of the run, as batch norm counts them.
    pub n_steps: i64,
    /// How far the epoch is; none once it is done.
    pub progress: Option<&'a TrainingProgress>,
}

/// Publishes a checkpoint.
///
/// # Errors
/// When the file cannot be written.
pub fn publish(path: &Path, contents: &Contents<'_>) -> Result<Digest, NetworkError> {
    let mut blobs: Vec<Blob> = Vec::new();
    for (name, tensor) in contents.network {
        blobs.push(Blob::of(name.clone(), tensor)?);
        if let Some(layer) = name.strip_suffix("running_mean") {
            let counter = contents.n_steps.to_le_bytes().to_vec();
            blobs.push(Blob::plain(format!("{layer}num_batches_tracked"), Dtype::I64, Vec::new(), counter));
        }
    }
    for (leaf, tensor) in ["weight", "bias"].into_iter().zip(contents.top_layer) {
        blobs.push(Blob::of(format!("{TOP_LAYER}{leaf}"), tensor)?);
    }
    for (name, tensor) in contents.momentum {
        blobs.push(Blob::of(format!("{OPTIMIZER}{name}"), tensor)?);
    }
    if contents.plan.sobel {
        blobs.push(Blob::fixed("sobel.0.weight", &[1, 3, 1, 1], &SOBEL_GREY));
        blobs.push(Blob::fixed("sobel.0.bias", &[1], &[0.0]));
        blobs.push(Blob::fixed("sobel.1.weight", &[2, 1, 3, 3], &SOBEL_KERNELS));
        blobs.push(Blob::fixed("sobel.1.bias", &[2], &[0.0, 0.0]));
    }
    if let Some(TrainingProgress { steps, loss_sum, n_images, skipped }) = contents.progress {
        let skipped = serde_json::to_vec(skipped).map_err(|error| VolumeError::corrupt(path, error))?;
        let mut tell =
            |leaf: &str, dtype, shape, bytes| blobs.push(Blob::plain(format!("{PROGRESS}{leaf}"), dtype, shape, bytes));
        tell("steps", Dtype::U64, Vec::new(), steps.to_le_bytes().to_vec());
        tell("loss_sum", Dtype::F64, Vec::new(), loss_sum.to_le_bytes().to_vec());
        tell("n_images", Dtype::U64, Vec::new(), n_images.to_le_bytes().to_vec());
        tell("skipped", Dtype::U8, vec![skipped.len()], skipped);
    }
    let views = blobs.iter().map(|blob| {
        let view = TensorView::new(blob.dtype, blob.shape.clone(), &blob.bytes);
        view.map(|view| (blob.name.as_str(), view)).map_err(|error| VolumeError::corrupt(path, error))
    });
    Ok(publish_views(path, views.collect::<Result<Vec<_>, _>>()?)?)
}

/// Training steps that a checkpoint has behind it; 0 when it does not say.
///
/// # Errors
/// When the file cannot be read.
pub fn n_steps(path: &Path) -> Result<i64, NetworkError> {
    let content = fs::read(path).map_err(VolumeError::io(path))?;
    let file = SafeTensors::deserialize(&content).map_err(|error| VolumeError::corrupt(path, error))?;
    let counter = file.iter().find(|(name, _)| name.ends_with(".num_batches_tracked"));
    Ok(counter.and_then(|(_, view)| view.data().try_into().ok()).map_or(0, i64::from_le_bytes))
}

/// A tensor as bytes.
struct Blob {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Blob {
    fn of(name: String, tensor: &Tensor) -> Result<Self, NetworkError> {
        let _no_grad = tch::no_grad_guard();
        let tensor = tensor.f_detach()?.f_to(Device::Cpu)?.f_contiguous()?;
        let mut bytes = vec![0; tensor.numel() * 4];
        let flat = tensor.f_view_dtype(Kind::Uint8)?;
        flat.f_copy_data(&mut bytes, tensor.numel() * 4)?;
        Ok(Self { name, dtype: Dtype::F32, shape: tensor.size().iter().map(|n| *n as usize).collect(), bytes })
    }

    fn plain(name: String, dtype: Dtype, shape: Vec<usize>, bytes: Vec<u8>) -> Self {
        Self { name, dtype, shape, bytes }
    }

    fn fixed(name: &str, shape: &[usize], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self::plain(name.to_owned(), Dtype::F32, shape.to_vec(), bytes)
    }
}
