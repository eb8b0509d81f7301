//! Where distances are computed: on the CPU, or on a GPU where faiss was built for it (feature `gpu`) and one is there.
#![cfg_attr(feature = "gpu", expect(unsafe_code, reason = "faiss's count of GPUs is in no safe binding"))]

use crate::ClusteringError;
#[cfg(feature = "gpu")]
use crate::nearest::Faiss;
use crate::nearest::{Nearest, Products};
use deepcluster_domain::DeviceChoice;
#[cfg(feature = "gpu")]
use faiss::index::flat::FlatIndexImpl;
use std::fmt;

/// A device that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The CPU.
    Cpu,
    /// A GPU by number.
    #[cfg(feature = "gpu")]
    Gpu(i32),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            #[cfg(feature = "gpu")]
            Self::Gpu(index) => write!(f, "cuda:{index}"),
        }
    }
}

impl Device {
    /// The device for a run: the GPU that its network computes on where this process has it too, else the CPU. Clusters do
    /// not need a GPU, so a clusterer without one is no error.
    #[cfg(feature = "gpu")]
    pub fn find(choice: DeviceChoice) -> Self {
        let index = match choice {
            DeviceChoice::Cpu => return Self::Cpu,
            DeviceChoice::Auto => 0,
            DeviceChoice::Cuda(index) => index,
        };
        match i32::try_from(index) {
            Ok(index) if index < n_gpus() => Self::Gpu(index),
            _ => Self::Cpu,
        }
    }

    /// The CPU: this faiss was built without GPUs.
    #[cfg(not(feature = "gpu"))]
    pub fn find(_: DeviceChoice) -> Self {
        Self::Cpu
    }

    /// Hands what finds the nearest of vectors of `dims` numbers to `work`. On a GPU it is faiss, whose index and scratch memory
    /// go with the call, since others compute there as well.
    pub(crate) fn with_nearest<T>(
        self,
        dims: usize,
        work: impl FnOnce(&mut dyn Nearest) -> Result<T, ClusteringError>,
    ) -> Result<T, ClusteringError> {
        match self {
            Self::Cpu => work(&mut Products::new(dims)),
            #[cfg(feature = "gpu")]
            Self::Gpu(index) => {
                let resources = faiss::StandardGpuResources::new()?;
                let flat = FlatIndexImpl::new_l2(dims as u32)?.into_gpu(&resources, index)?;
                work(&mut Faiss::new(dims, flat))
            }
        }
    }
}

/// Number of GPUs that faiss can use; none where there is no driver.
#[cfg(feature = "gpu")]
fn n_gpus() -> i32 {
    let mut n = 0;
    // SAFETY: it writes one int to a variable that outlives the call, and says by 0 that it did.
    let done = unsafe { faiss_sys::faiss_get_num_gpus(&mut n) } == 0;
    if done { n } else { 0 }
}
