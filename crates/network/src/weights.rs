//! Named weights on a device, and their first values.

use crate::NetworkError;
use deepcluster_domain::plan::{Start, WeightSpec};
use deepcluster_domain::{EpochId, Plan, Purpose, Seeds};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use tch::{Device, Kind, Tensor};

/// Tensors by their state_dict names.
pub type Tensors = BTreeMap<String, Tensor>;

/// libtorch's generator is one for all threads: two that draw at the same time would take each other's numbers.
static DRAWING: Mutex<()> = Mutex::new(());

/// Draws the first weights of a run: a function of its seed alone, whatever the device.
///
/// # Errors
/// When libtorch is out of memory.
pub fn draw(plan: &Plan, run_seed: u64, device: Device) -> Result<Tensors, NetworkError> {
    let seed = Seeds::new(run_seed, EpochId(0)).number(Purpose::InitialWeights, 0);
    let _alone = DRAWING.lock().unwrap_or_else(PoisonError::into_inner);
    tch::manual_seed(seed as i64);
    plan.weights().into_iter().map(|spec| Ok((spec.name.clone(), first_value(&spec)?.f_to(device)?))).collect()
}

/// Draws a fresh top layer (recipe, step 5) for `k` clusters: weight `[k, embedding]` and bias `[k]`.
///
/// # Errors
/// When libtorch is out of memory.
pub fn draw_top_layer(embedding: i64, k: i64, seeds: Seeds, device: Device) -> Result<[Tensor; 2], NetworkError> {
    let _alone = DRAWING.lock().unwrap_or_else(PoisonError::into_inner);
    tch::manual_seed(seeds.number(Purpose::TopLayer, 0) as i64);
    let weight = Tensor::f_empty([k, embedding], (Kind::Float, Device::Cpu))?.f_normal_(0.0, 0.01)?;
    let bias = Tensor::f_zeros([k], (Kind::Float, Device::Cpu))?;
    Ok([weight.f_to(device)?, bias.f_to(device)?])
}

pub(crate) fn first_value(spec: &WeightSpec) -> Result<Tensor, NetworkError> {
    let place = (Kind::Float, Device::Cpu);
    Ok(match spec.start {
        Start::Normal(std) => Tensor::f_empty(spec.shape.as_slice(), place)?.f_normal_(0.0, std)?,
        Start::Zero | Start::RunningMean => Tensor::f_zeros(spec.shape.as_slice(), place)?,
        Start::One | Start::RunningVar => Tensor::f_ones(spec.shape.as_slice(), place)?,
    })
}

/// Lays convolution weights out channels-last in memory; their shape stays.
///
/// # Errors
/// When libtorch is out of memory.
pub fn channels_last(tensor: &Tensor) -> Result<Tensor, NetworkError> {
    if tensor.dim() != 4 {
        return Ok(tensor.shallow_clone());
    }
    Ok(tensor.f_permute([0, 2, 3, 1])?.f_contiguous()?.f_permute([0, 3, 1, 2])?)
}
