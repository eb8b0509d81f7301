//! From features to pseudo-labels: PCA, whitening and L2 normalisation, then k-means or power iteration clustering. The only crate that knows faiss.
//!
//! ```text
//! shards ─► blocks ─► mean, covariance ─► leading eigenvectors ─► whitened rows ─► k-means ─► labels
//! ```
//!
//! Neither features nor whitened rows are held whole: blocks of them pass by. What stays in memory is one covariance matrix, a
//! block, and labels. Fewer images than values of a feature are held whole, in the place of the covariance.
#![deny(unsafe_code)]

pub mod device;
pub mod eigen;
pub mod error;
pub mod features;
pub mod kmeans;
pub mod nearest;
pub mod pic;
pub mod points;
mod principal;
pub mod search;
pub mod whitening;

pub use device::Device;
pub use error::ClusteringError;
pub use features::Features;
pub use kmeans::Assigned;
pub use points::Points;
pub use whitening::Whitening;

/// Told how far the work has come: phase, done, total. Returning an error stops it.
pub type Progress<'a> = dyn FnMut(&str, u64, u64) -> Result<(), ClusteringError> + 'a;
