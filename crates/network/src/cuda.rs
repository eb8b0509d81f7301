//! GPUs: loading libtorch's other half, and asking the driver what they can do.
//!
//! Only libtorch's CPU half is linked. Its CUDA half registers itself when it is loaded, so one binary serves machines
//! with and without a GPU.
#![expect(unsafe_code, reason = "libraries are loaded and called by name")]

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use std::ffi::c_int;
use std::sync::Once;
use tch::Cuda;

/// First generation of GPUs with instructions for bf16: Ampere's compute capability (CUDA C++ programming guide).
const BF16_SINCE: c_int = 8;

/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR` of CUDA's driver API.
const CAPABILITY_MAJOR: c_int = 75;

/// Number of GPUs that libtorch can use; loads its CUDA half first.
pub(crate) fn n_gpus() -> i64 {
    static LOAD: Once = Once::new();
    LOAD.call_once(load);
    if Cuda::is_available() { Cuda::device_count() } else { 0 }
}

fn load() {
    // SAFETY: libtorch_cuda's initialisers only register its kernels with libtorch_cpu, of the same release, before any
    // CUDA call of ours (this runs once, ahead of the first). A missing library is the usual case and no error.
    let library = unsafe { Library::open(Some("libtorch_cuda.so"), RTLD_NOW | RTLD_GLOBAL) };
    if let Ok(library) = library {
        // It must never be unloaded.
        std::mem::forget(library);
    }
}

/// Whether a GPU computes bf16 in hardware; not when the driver cannot be asked.
pub(crate) fn has_bf16(index: usize) -> bool {
    capability(index).is_some_and(|major| major >= BF16_SINCE)
}

/// First number of a GPU's compute capability.
fn capability(index: usize) -> Option<c_int> {
    type Init = unsafe extern "C" fn(flags: u32) -> c_int;
    type Get = unsafe extern "C" fn(device: *mut c_int, ordinal: c_int) -> c_int;
    type Attribute = unsafe extern "C" fn(value: *mut c_int, attribute: c_int, device: c_int) -> c_int;
    let ordinal = c_int::try_from(index).ok()?;
    let (mut device, mut major) = (0, 0);
    // SAFETY: the three functions have had these signatures since the driver API's first release (cuda.h); they write one
    // int each, to variables that outlive the calls, and say by 0 that they did. The library stays loaded meanwhile.
    unsafe {
        let driver = Library::open(Some("libcuda.so.1"), RTLD_NOW).ok()?;
        let init = driver.get::<Init>(b"cuInit\0").ok()?;
        let get = driver.get::<Get>(b"cuDeviceGet\0").ok()?;
        let attribute = driver.get::<Attribute>(b"cuDeviceGetAttribute\0").ok()?;
        let done = init(0) == 0 && get(&mut device, ordinal) == 0 && attribute(&mut major, CAPABILITY_MAJOR, device) == 0;
        done.then_some(major)
    }
}
