//! Where the network computes, and how precisely.

use crate::NetworkError;
use crate::cuda::{has_bf16, n_gpus};
use deepcluster_domain::{DeviceChoice, Precision};
use tch::{Cuda, Device, Kind, Tensor};

/// A device and the arithmetic on it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Runtime {
    /// Where tensors live.
    pub device: Device,
    /// Kind of the numbers inside the layers; weights are f32 in any case.
    pub kind: Kind,
}

impl Runtime {
    /// Finds the device and settles the precision, and prepares the calling thread for computing on it.
    ///
    /// `threads` is the number of CPU threads for one operation. libtorch keeps it per thread, which is why this must run
    /// on the thread that computes.
    ///
    /// # Errors
    /// When a GPU is asked for that is not there.
    pub fn prepare(choice: DeviceChoice, precision: Precision, threads: usize) -> Result<Self, NetworkError> {
        tch::set_num_threads(threads.max(1) as i32);
        let device = match choice {
            DeviceChoice::Cpu => Device::Cpu,
            DeviceChoice::Auto if n_gpus() > 0 => Device::Cuda(0),
            DeviceChoice::Auto => Device::Cpu,
            DeviceChoice::Cuda(index) => {
                let n = n_gpus();
                if i64::from(index) >= n {
                    return Err(NetworkError::Device(format!("cuda:{index} was asked for, but there are {n} GPUs")));
                }
                Device::Cuda(index as usize)
            }
        };
        if device.is_cuda() {
            Cuda::cudnn_set_benchmark(true);
        }
        let kind = match precision {
            Precision::F32 => Kind::Float,
            Precision::Bf16 => Kind::BFloat16,
            Precision::Auto if computes_bf16(device) => Kind::BFloat16,
            Precision::Auto => Kind::Float,
        };
        Ok(Self { device, kind })
    }

    /// RGB bytes `[n, height, width, 3]` on the device, as `[n, 3, height, width]`: they already lie channels-last, the order that
    /// convolutions like best. `size` is (width, height).
    pub(crate) fn images(&self, pixels: &[u8], size: (u32, u32)) -> Result<Tensor, NetworkError> {
        let (width, height) = (i64::from(size.0), i64::from(size.1));
        let n = (pixels.len() as i64) / (width * height * 3);
        let bytes = Tensor::f_from_data_size(pixels, &[n, height, width, 3], Kind::Uint8)?;
        let bytes = match self.device {
            Device::Cuda(_) => bytes.f_pin_memory(self.device)?.f_to_device_(self.device, Kind::Uint8, true, false)?,
            _ => bytes,
        };
        Ok(bytes.f_permute([0, 3, 1, 2])?)
    }
}

/// Whether a device has instructions for bf16: without them it is slower than f32.
fn computes_bf16(device: Device) -> bool {
    match device {
        Device::Cuda(index) => has_bf16(index),
        // oneDNN, which does libtorch's convolutions, uses these, and AMX where that is there as well.
        #[cfg(target_arch = "x86_64")]
        _ => std::arch::is_x86_feature_detected!("avx512bf16"),
        #[cfg(not(target_arch = "x86_64"))]
        _ => false,
    }
}

/// Makes libtorch compute something small, to be sure that it is there and works.
///
/// # Errors
/// What libtorch says.
pub fn check_libtorch() -> Result<(), NetworkError> {
    let one = Tensor::f_ones([1], (Kind::Float, Device::Cpu))?;
    let two = one.f_add(&one)?.f_double_value(&[0])?;
    if two == 2.0 { Ok(()) } else { Err(NetworkError::Torch(format!("1 + 1 gave {two}"))) }
}
