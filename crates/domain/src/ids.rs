//! Newtypes for everything that is counted or named, so that an epoch is never passed where a shard belongs.

use std::fmt;
use std::str::FromStr;

/// A run's name on the volume and over the API: 1 to 64 of `a-z 0-9 -`, starting with a letter or digit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunId(String);

impl RunId {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a text is no run id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("run id '{0}' is not 1 to 64 of a-z, 0-9 and '-'")]
pub struct InvalidRunId(pub String);

impl FromStr for RunId {
    type Err = InvalidRunId;

    fn from_str(text: &str) -> Result<Self, InvalidRunId> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if text.is_empty() || text.len() > 64 || text.starts_with('-') || !text.chars().all(allowed) {
            return Err(InvalidRunId(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

/// The number of an epoch, from 0. Shown with four digits, as its folder is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EpochId(pub u32);

impl EpochId {
    /// The epoch after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The epoch before this one; none before the first.
    pub fn previous(self) -> Option<Self> {
        self.0.checked_sub(1).map(Self)
    }
}

impl fmt::Display for EpochId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}", self.0)
    }
}

/// The number of a shard, from 0: a run of consecutive images that one extractor takes at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u32);

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:05}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_ids_are_safe_as_folder_names() {
        for good in ["a", "20261123-alexnet-1", "0"] {
            assert_eq!(good.parse::<RunId>().map(|id| id.to_string()), Ok(good.to_owned()));
        }
        for bad in ["", "-a", "..", "a/b", "A", "a b", &"x".repeat(65)] {
            assert!(bad.parse::<RunId>().is_err(), "{bad:?} passed");
        }
    }

    #[test]
    fn epochs_are_named_like_their_folders() {
        assert_eq!(EpochId(7).to_string(), "0007");
        assert_eq!(EpochId(0).previous(), None);
        assert_eq!(ShardId(3).to_string(), "00003");
    }
}
