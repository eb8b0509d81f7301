//! Logs: to standard error, as text or JSON.

use crate::Config;
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// Starts logging for the process.
pub fn init(config: &Config) {
    let filter = config.log.parse::<EnvFilter>().unwrap_or_default();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A line that cannot be written, on a full disk, must not end the service: saying so on standard error would panic.
    let builder = builder.with_ansi(std::io::stderr().is_terminal()).log_internal_errors(false);
    // A second start, as in tests of several services in one process, changes nothing.
    let _ = if config.log_json { builder.json().try_init() } else { builder.try_init() };
}
