//! The shared volume: where everything lies, how it is written so that a crash never leaves half of it, and how it is
//! verified before it is trusted.
//!
//! ```text
//! <volume>/.owner                   the coordinator that owns the volume, and its token
//! <volume>/.reserve                 room for the word that the volume is full
//! <volume>/cache/<key>/            decoded images, for whoever has the same ones; may go at any time
//!   used.json  00003.pixels
//! <volume>/runs/<run-id>/
//!   run.json  images.csv  events.jsonl  labels.csv
//!   init.safetensors                the weights that the run starts from, where they are not drawn
//!   tensorboard/  visualize/  eval/ what follows from the run, and may go
//!   digests.json  digests/00003.npy what the image files contained when they were first read
//!   epochs/0007/
//!     features/00003.npy            until the epoch is committed
//!     pending.json                  what of the epoch is done, until it is committed
//!     training-00000200.safetensors where training stood, until it is done
//!     .*.tmp                        what somebody is writing, or was when it died
//!     labels.npy distances.npy whiten.safetensors whitened.npy centroids.npy lineage.json checkpoint.safetensors
//!     epoch.json                    the commit point: sizes and checksums of the seven files above
//! ```
//!
//! Invariants: every file is published by [`publish::AtomicFile`] (temporary name, fsync, rename, fsync of the folder);
//! the one file that grows in place is `events.jsonl`, a line at a time, and those of the cache are not waited for on the disk. What no manifest names does not exist.
#![forbid(unsafe_code)]

pub mod committed;
mod crash;
pub mod digests;
mod error;
pub mod events;
pub mod image_list;
pub mod layout;
pub mod lineage_record;
pub mod lock;
pub mod names;
pub mod npy;
pub mod pixels;
pub mod publish;
pub mod pytorch;
mod record_file;
pub mod records;
pub mod space;
mod spec_record;
pub mod tensors;
pub mod verify;
pub mod weights_file;

pub use error::VolumeError;
pub use layout::{CacheFolder, EpochFolder, RunFolder, Volume};
pub use publish::{AtomicFile, FileRecord};
