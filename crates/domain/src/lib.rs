//! The pure bottom of deepcluster: ids, the run's spec, the epoch's state machine, seeds and scores.
//!
//! Nothing here reads a file, opens a socket or knows of libtorch, faiss, gRPC or JSON. Every other crate may use this
//! one; it uses none of them.
#![forbid(unsafe_code)]

pub mod agreement;
pub mod auto;
pub mod choices;
pub mod epoch;
pub mod geometry;
pub mod health;
pub mod ids;
pub mod input;
pub mod layers;
pub mod lineage;
pub mod plan;
pub mod ranking;
pub mod scores;
pub mod seeds;
pub mod space;
pub mod spec;
pub mod tags;
pub mod trend;

pub use auto::{Auto, AutoChoice, AutoOptions};
pub use choices::{Architecture, Clustering, DeviceChoice, FeatureDtype, Precision};
pub use epoch::{EpochProgress, Step};
pub use ids::{EpochId, RunId, ShardId};
pub use layers::Tap;
pub use plan::Plan;
pub use seeds::{Purpose, Seeds};
pub use spec::{RunSpec, SaveEvery, SpecError};
pub use tags::Tags;
