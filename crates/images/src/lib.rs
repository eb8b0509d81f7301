//! From a folder of image files to batches of pixels: finding, decoding, resizing, cropping, and which image is shown
//! to the network when.
//!
//! Pixels leave this crate as RGB bytes, `[images, size, size, 3]`; normalisation happens beside the network.
#![forbid(unsafe_code)]

pub mod classes;
pub mod decode;
pub mod find;
mod format;
pub mod given;
mod jpeg;
pub mod loader;
pub mod passed_over;
pub mod sampler;
pub mod source;
mod tiff;
mod tiff_directory;
pub mod transform;

pub use classes::{class_level, class_names, folder_classes};
pub use decode::{Decoded, Expected, Unreadable};
pub use find::{FindOptions, ImageSearch, find_images};
pub use given::Given;
pub use loader::{Batch, BatchLoader, LoaderOptions, Request};
pub use passed_over::PassedOver;
pub use source::{Cached, Reads, Source};
pub use transform::View;
