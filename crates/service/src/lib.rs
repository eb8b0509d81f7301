//! The chassis that every service runs on: configuration, logs, health, jobs with progress, serving and draining.
//!
//! ```text
//! main ─► Options (flags, DC_*) ─► Config (all mistakes at once) ─► listener ─► serve ─► drain on SIGTERM
//! ```
#![forbid(unsafe_code)]

pub mod config;
pub mod jobs;
pub mod requests;
pub mod serve;
pub mod telemetry;

pub use config::{Config, ConfigError, Options};
pub use jobs::{JobContext, Jobs, Update};
pub use serve::{ServeError, Service, run};
