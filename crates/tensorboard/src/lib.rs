//! What TensorBoard reads, written without TensorFlow: event files ([`EventFile`]) and the files of its embedding projector
//! ([`projector()`]).
//!
//! Nothing here touches a file: both give bytes, which the caller publishes. TensorBoard takes every file with "tfevents" in
//! its name for an event file, and reads those of a folder in order of their names; [`EventFile::name`] gives such a name.
//! It goes on reading where it stood, in the file that it has open, so what comes later belongs into another file with a later
//! name rather than into a longer one of the same name.
#![forbid(unsafe_code)]

mod events;
mod histogram;
mod messages;
mod projector;
mod records;
mod sprite;

pub use events::EventFile;
pub use projector::{Projection, ProjectionError, projector};
pub use sprite::{MAX_SHEET, Sprite};
