//! The convnets: their layout, their weights, one forward pass, one training step. The only crate that knows libtorch.
//!
//! ```text
//! RGB bytes ─► input ─► Sobel? ─► plan's layers ─► embedding ─► ReLU? ─► top layer
//! ```
//!
//! A network belongs to one thread: build it there, use it there, drop it there. Every call returns libtorch's errors
//! as values; nothing here panics on what a file or a request holds.
#![deny(unsafe_code)]

pub mod ascent;
pub mod assigning;
pub mod checkpoint;
mod cuda;
pub mod device;
pub mod error;
pub mod finetune;
mod fold;
pub mod forward;
mod front;
pub mod layers;
pub mod memory;
pub mod probes;
mod sgd;
pub mod training;
pub mod weights;

pub use ascent::Ascent;
pub use assigning::Assigning;
pub use device::{Runtime, check_libtorch};
pub use error::NetworkError;
pub use finetune::{FinetuneOptions, Finetuned, Finetuning};
pub use forward::Network;
pub use probes::{ProbeOptions, Probes};
pub use sgd::SgdOptions;
pub use training::TrainingPass;
