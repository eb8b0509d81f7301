//! How a command fails: one sentence, and exit code 2 for bad usage or input or 1 for anything else; and how it speaks.

use deepcluster_volume::VolumeError;
use std::fmt::Display;
use std::io::{self, Write};

/// A command that ends early.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// One sentence that names the flag, file or value.
    pub message: String,
    /// Exit code; 0 where nobody wanted more.
    pub code: u8,
}

impl Failure {
    /// Bad usage or bad input.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { message: without_error_numbers(&message.into()), code: 2 }
    }

    /// Anything else.
    pub fn other(message: impl Into<String>) -> Self {
        Self { message: without_error_numbers(&message.into()), code: 1 }
    }

    /// Standard output that cannot be written. Where its reader has gone (`deepcluster labels … | head`) it had what it wanted, and
    /// all is well.
    pub fn output(error: io::Error) -> Self {
        match kind_of(&error) {
            io::ErrorKind::BrokenPipe => Self { message: String::new(), code: 0 },
            _ => Self::other(format!("standard output: {error}")),
        }
    }

    /// For commands whose work ends with them: it has not come to its end, even if nobody listens any more.
    pub fn unfinished(self) -> Self {
        if self.code == 0 && self.message.is_empty() {
            return Self::other("nobody reads standard output any more, so the work stops; `deepcluster resume` goes on with it");
        }
        Self { code: self.code.max(1), ..self }
    }
}

/// A sentence without the numbers that Rust writes behind the system's own words for an error, as "(os error 2)".
fn without_error_numbers(sentence: &str) -> String {
    let mut parts = sentence.split(" (os error ");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        plain.push_str(part.split_once(')').map_or("", |(_, rest)| rest));
    }
    plain
}

/// What kind of error it is; `csv` wraps those of the file that it writes to.
fn kind_of(error: &io::Error) -> io::ErrorKind {
    let wrapped = error.get_ref().and_then(|inner| inner.downcast_ref::<csv::Error>());
    match wrapped.map(csv::Error::kind) {
        Some(csv::ErrorKind::Io(inner)) => inner.kind(),
        _ => error.kind(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_has_gone_is_no_error() {
        let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
        for error in [gone(), io::Error::from(csv::Error::from(gone()))] {
            let failure = Failure::output(error);
            assert_eq!((failure.code, failure.message.as_str()), (0, ""));
            let failure = failure.unfinished();
            assert_eq!(failure.code, 1);
            assert!(failure.message.contains("deepcluster resume"), "{failure}");
        }
        let missing = Failure::usage(format!("a: {}; b", io::Error::from_raw_os_error(2)));
        assert_eq!(missing.message, "a: No such file or directory; b");
        let full = io::Error::from(csv::Error::from(io::Error::from(io::ErrorKind::StorageFull)));
        let failure = Failure::output(full);
        assert_eq!(failure.code, 1);
        assert!(failure.message.starts_with("standard output: "), "{failure}");
    }
}
