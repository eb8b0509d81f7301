//! How a command fails: one sentence, and exit code 2 for bad usage or input or 1 for anything else; and how it speaks.

use deepcluster_volume::VolumeError;
use std::fmt::Display;
use std::io::{self, Write};

/// A failed command.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// One sentence that names the flag, file or value.
    pub message: String,
    /// Exit code.
    pub code: u8,
}

impl Failure {
    /// Bad usage or bad input.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: 2 }
    }

    /// Anything else.
    pub fn other(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: 1 }
    }

    /// Standard output that cannot be written. Without a message where its reader has gone (`deepcluster labels … | head`),
    /// since that is no news to anybody.
    pub fn output(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::other(""),
            _ => Self::other(format!("standard output: {error}")),
        }
    }
}

/// Writes one line to standard output.
///
/// # Errors
/// When it cannot be written; `println!` would panic.
pub fn say(line: impl Display) -> Result<(), Failure> {
    writeln!(io::stdout().lock(), "{line}").map_err(Failure::output)
}

impl From<VolumeError> for Failure {
    fn from(error: VolumeError) -> Self {
        Self::usage(error.to_string())
    }
}
