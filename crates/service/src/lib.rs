//! The chassis that every service runs on: configuration, logs, health, jobs with progress, serving and draining.
//!
//! ```text
//! main ─► Options (flags, DC_*) ─► Config (all mistakes at once) ─► listener ─► serve ─► drain on SIGTERM
//!                                                               TLS ─► door (tokens, limits) ─► the service
//! ```
#![forbid(unsafe_code)]

pub mod config;
pub mod door;
pub mod jobs;
pub mod limits;
pub mod memory;
pub mod metrics;
pub mod probe;
pub mod requests;
pub mod serve;
mod streams;
pub mod telemetry;
pub mod threads;
pub mod tls;
pub mod tokens;

pub use config::{Config, ConfigError, Options};
pub use jobs::{JobContext, Jobs, Update};
pub use serve::{ServeError, Service, run};
