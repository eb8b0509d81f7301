//! Weights and optimizer state as `.safetensors`, under the names of a PyTorch state_dict.
//!
//! Momentum buffers stand under `optimizer.`, so that whoever wants the weights alone leaves those names out. What training
//! saves inside an epoch is a checkpoint that also tells how far the epoch is, under `progress.`.

use crate::NetworkError;
use crate::weights::Tensors;
use deepcluster_domain::Plan;
use deepcluster_domain::input::{SOBEL_GREY, SOBEL_KERNELS};
use deepcluster_domain::plan::{Start, WeightSpec};
use deepcluster_volume::VolumeError;
use deepcluster_volume::publish::Digest;
use deepcluster_volume::tensors::{self, Described, TensorsFile};
use safetensors::tensor::Dtype;
use std::collections::BTreeMap;
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
    load_some(path, &plan.weights(), device)
}

/// Reads the momentum buffers of all trained weights.
///
/// # Errors
/// As [`load_network`].
pub fn load_momentum(path: &Path, plan: &Plan, device: Device) -> Result<Tensors, NetworkError> {
    let trained: Vec<WeightSpec> = plan.weights().into_iter().filter(|spec| spec.start.is_trained()).collect();
    load(path, &trained, OPTIMIZER, device)
}

/// Reads the tensors of some names and shapes.
///
/// # Errors
/// As [`load_network`].
pub(crate) fn load_some(path: &Path, specs: &[WeightSpec], device: Device) -> Result<Tensors, NetworkError> {
    load(path, specs, "", device)
}

fn load(path: &Path, specs: &[WeightSpec], prefix: &str, device: Device) -> Result<Tensors, NetworkError> {
    let wrong = |why: String| NetworkError::Checkpoint { path: path.display().to_string(), why };
    let file = TensorsFile::open(path).map_err(|error| unfit(path, error))?;
    let mut tensors = Tensors::new();
    let mut bytes = Vec::new();
    for spec in specs {
        let name = format!("{prefix}{}", spec.name);
        let found = file.find(&name).ok_or_else(|| wrong(format!("has no tensor {name}")))?;
        let shape: Vec<i64> = found.shape.iter().map(|n| *n as i64).collect();
        if found.dtype != Dtype::F32 || shape != spec.shape {
            return Err(wrong(format!("{name} is {:?} of shape {shape:?}, not F32 of shape {:?}", found.dtype, spec.shape)));
        }
        file.read(&name, &mut bytes)?;
        let tensor = Tensor::f_from_data_size(&bytes, &shape, Kind::Float)?.f_to(device)?;
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

impl TrainingProgress {
    /// Mean of the losses of all images so far; 0 before the first.
    pub fn loss(&self) -> f64 {
        self.loss_sum / self.n_images.max(1) as f64
    }

    /// Takes over the mean loss of one step over so many images.
    pub fn add(&mut self, loss: f64, n_images: usize) {
        self.loss_sum += loss * n_images as f64;
        self.n_images += n_images as u64;
    }
}

/// Reads how far an epoch of training was when it saved itself.
///
/// # Errors
/// When the file cannot be read or does not tell.
pub fn load_progress(path: &Path) -> Result<TrainingProgress, NetworkError> {
    let wrong = |why: &str| NetworkError::Checkpoint { path: path.display().to_string(), why: why.to_owned() };
    let file = TensorsFile::open(path).map_err(|error| unfit(path, error))?;
    let bytes = |leaf: &str| -> Result<Vec<u8>, NetworkError> {
        let (name, mut bytes) = (format!("{PROGRESS}{leaf}"), Vec::new());
        file.find(&name).ok_or_else(|| wrong("has no progress"))?;
        file.read(&name, &mut bytes)?;
        Ok(bytes)
    };
    let number = |leaf: &str| -> Result<[u8; 8], NetworkError> {
        bytes(leaf)?.try_into().map_err(|_| wrong("tells no progress of this kind"))
    };
    Ok(TrainingProgress {
        steps: u64::from_le_bytes(number("steps")?),
        loss_sum: f64::from_le_bytes(number("loss_sum")?),
        n_images: u64::from_le_bytes(number("n_images")?),
        skipped: serde_json::from_slice(&bytes("skipped")?).map_err(|error| wrong(&error.to_string()))?,
    })
}

/// Reads the momentum buffers as [`load_momentum`] does; nothing where the file holds weights alone.
///
/// # Errors
/// As there.
pub fn load_momentum_if_any(path: &Path, plan: &Plan, device: Device) -> Result<Tensors, NetworkError> {
    let file = TensorsFile::open(path).map_err(|error| unfit(path, error))?;
    match file.tensors().any(|tensor| tensor.name.starts_with(OPTIMIZER)) {
        true => load_momentum(path, plan, device),
        false => Ok(Tensors::new()),
    }
}

/// Reads the top layer that a checkpoint has, whatever its number of clusters.
///
/// # Errors
/// As [`load_network`].
pub fn load_any_top_layer(path: &Path, embedding: i64, device: Device) -> Result<[Tensor; 2], NetworkError> {
    let file = TensorsFile::open(path).map_err(|error| unfit(path, error))?;
    let k = file.find(&format!("{TOP_LAYER}bias")).and_then(|bias| bias.shape.first().copied()).unwrap_or(0);
    load_top_layer(path, embedding, k as i64, device)
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

/// Publishes a checkpoint, tensor by tensor. A network that is broken does not take the place of one that is not.
///
/// # Errors
/// When a number is not finite, or the file cannot be written.
pub fn publish(path: &Path, contents: &Contents<'_>) -> Result<Digest, NetworkError> {
    publish_pieces(path, &pieces(path, contents)?, contents.n_steps)
}

/// Publishes other tensors of f32, and how far the work on them is.
///
/// # Errors
/// As [`publish`].
pub(crate) fn publish_some(path: &Path, tensors: &Tensors, progress: &TrainingProgress) -> Result<Digest, NetworkError> {
    let mut pieces: BTreeMap<String, Piece<'_>> =
        tensors.iter().map(|(name, tensor)| (name.clone(), Piece::Weight(tensor))).collect();
    pieces.extend(progress_pieces(path, progress)?);
    publish_pieces(path, &pieces, progress.steps as i64)
}

fn publish_pieces(path: &Path, pieces: &BTreeMap<String, Piece<'_>>, n_steps: i64) -> Result<Digest, NetworkError> {
    let described = |(name, piece): (&String, &Piece<'_>)| {
        let (dtype, shape) = match piece {
            Piece::Weight(tensor) => (Dtype::F32, tensor.size().iter().map(|n| *n as usize).collect()),
            Piece::Plain(dtype, shape, _) => (*dtype, shape.clone()),
        };
        Described { name: name.clone(), dtype, shape }
    };
    tensors::publish(path, pieces.iter().map(described).collect(), |name, out| match &pieces[name] {
        Piece::Plain(_, _, bytes) => {
            out.extend_from_slice(bytes);
            Ok(())
        }
        Piece::Weight(tensor) => {
            copy(tensor, out)?;
            let finite = |bytes: &[u8]| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]).is_finite();
            // To the end in any case: only a loop without an exit is done for many numbers at a time.
            match out.chunks_exact(4).fold(true, |all, bytes| all & finite(bytes)) {
                true => Ok(()),
                false => Err(NetworkError::NotFinite { what: "the weights are", step: n_steps as u64 }),
            }
        }
    })
}

/// What a checkpoint consists of, by name.
fn pieces<'a>(path: &Path, contents: &Contents<'a>) -> Result<BTreeMap<String, Piece<'a>>, NetworkError> {
    let mut pieces = BTreeMap::new();
    for (name, tensor) in contents.network {
        pieces.insert(name.clone(), Piece::Weight(tensor));
        if let Some(layer) = name.strip_suffix("running_mean") {
            let counter = Piece::Plain(Dtype::I64, Vec::new(), contents.n_steps.to_le_bytes().to_vec());
            pieces.insert(format!("{layer}num_batches_tracked"), counter);
        }
    }
    let top_layer = ["weight", "bias"].into_iter().zip(contents.top_layer);
    pieces.extend(top_layer.map(|(leaf, tensor)| (format!("{TOP_LAYER}{leaf}"), Piece::Weight(tensor))));
    let momentum = contents.momentum.iter();
    pieces.extend(momentum.map(|(name, tensor)| (format!("{OPTIMIZER}{name}"), Piece::Weight(tensor))));
    if contents.plan.sobel {
        let mut fixed = |name: &str, shape: &[usize], values: &[f32]| {
            let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            pieces.insert(name.to_owned(), Piece::Plain(Dtype::F32, shape.to_vec(), bytes));
        };
        fixed("sobel.0.weight", &[1, 3, 1, 1], &SOBEL_GREY);
        fixed("sobel.0.bias", &[1], &[0.0]);
        fixed("sobel.1.weight", &[2, 1, 3, 3], &SOBEL_KERNELS);
        fixed("sobel.1.bias", &[2], &[0.0, 0.0]);
    }
    if let Some(progress) = contents.progress {
        pieces.extend(progress_pieces(path, progress)?);
    }
    Ok(pieces)
}

/// What tells how far an epoch is.
fn progress_pieces<'a>(path: &Path, progress: &TrainingProgress) -> Result<BTreeMap<String, Piece<'a>>, NetworkError> {
    let TrainingProgress { steps, loss_sum, n_images, skipped } = progress;
    let skipped = serde_json::to_vec(skipped).map_err(|error| VolumeError::corrupt(path, error))?;
    let plain = |leaf: &str, dtype, shape, bytes| (format!("{PROGRESS}{leaf}"), Piece::Plain(dtype, shape, bytes));
    Ok(BTreeMap::from([
        plain("steps", Dtype::U64, Vec::new(), steps.to_le_bytes().to_vec()),
        plain("loss_sum", Dtype::F64, Vec::new(), loss_sum.to_le_bytes().to_vec()),
        plain("n_images", Dtype::U64, Vec::new(), n_images.to_le_bytes().to_vec()),
        plain("skipped", Dtype::U8, vec![skipped.len()], skipped),
    ]))
}

/// Training steps that a checkpoint has behind it; 0 when it does not say.
///
/// # Errors
/// When the file cannot be read.
pub fn n_steps(path: &Path) -> Result<i64, NetworkError> {
    let file = TensorsFile::open(path)?;
    let Some(counter) = file.tensors().find(|tensor| tensor.name.ends_with(".num_batches_tracked")) else { return Ok(0) };
    let mut bytes = Vec::new();
    file.read(&counter.name, &mut bytes)?;
    Ok(bytes.try_into().map_or(0, i64::from_le_bytes))
}

/// A part of a checkpoint.
enum Piece<'a> {
    /// In f32.
    Weight(&'a Tensor),
    /// Bytes that stand for themselves, with type and shape.
    Plain(Dtype, Vec<usize>, Vec<u8>),
}

/// The values of a tensor in C order as bytes, in the place of what `out` held.
fn copy(tensor: &Tensor, out: &mut Vec<u8>) -> Result<(), NetworkError> {
    let _no_grad = tch::no_grad_guard();
    let tensor = tensor.f_detach()?.f_to(Device::Cpu)?.f_contiguous()?;
    let bytes = tensor.numel() * size_of::<f32>();
    out.resize(bytes, 0);
    // Without dimensions there is nothing to view as bytes.
    Ok(tensor.f_view([-1])?.f_view_dtype(Kind::Uint8)?.f_copy_data(out, bytes)?)
}

/// A file that is no checkpoint, or cannot be read.
fn unfit(path: &Path, error: VolumeError) -> NetworkError {
    match error {
        VolumeError::Corrupt { why, .. } => NetworkError::Checkpoint { path: path.display().to_string(), why },
        other => other.into(),
    }
}
