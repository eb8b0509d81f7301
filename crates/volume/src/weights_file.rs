//! Files of weights of other programs, of either format.

use crate::VolumeError;
use crate::pytorch::PytorchFile;
use crate::tensors::{Described, TensorsFile};
use std::path::Path;

/// An open file of named tensors.
pub enum WeightsFile {
    /// Of the safetensors format.
    Safetensors(TensorsFile),
    /// Of `torch.save`.
    Pytorch(PytorchFile),
}

impl WeightsFile {
    /// Opens a file; its content says of which format it is.
    ///
    /// # Errors
    /// When it is of neither, or damaged.
    pub fn open(path: &Path) -> Result<Self, VolumeError> {
        match PytorchFile::is_one(path) {
            true => PytorchFile::open(path).map(Self::Pytorch),
            false => TensorsFile::open(path).map(Self::Safetensors),
        }
    }

    /// What the file holds, in order of the names.
    pub fn tensors(&self) -> Box<dyn Iterator<Item = &Described> + '_> {
        match self {
            Self::Safetensors(file) => Box::new(file.tensors()),
            Self::Pytorch(file) => Box::new(file.tensors()),
        }
    }

    /// Reads the numbers of a tensor as f32 in C order, in the place of what `out` held.
    ///
    /// # Errors
    /// When there is none of that name, it holds no numbers that become f32, or it cannot be read.
    pub fn read_as_f32(&self, name: &str, out: &mut Vec<f32>) -> Result<(), VolumeError> {
        match self {
            Self::Safetensors(file) => file.read_as_f32(name, out),
            Self::Pytorch(file) => file.read_as_f32(name, out),
        }
    }

    /// The names under which a file of `torch.save` has its tensors, from the outside; empty where they lie in the file itself.
    pub fn found_in(&self) -> &[String] {
        match self {
            Self::Safetensors(_) => &[],
            Self::Pytorch(file) => &file.found_in,
        }
    }
}
