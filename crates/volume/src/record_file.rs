//! How records are written and read: JSON for people, with a version and a checksum of its own.

use crate::VolumeError;
use crate::publish::publish_bytes;
use crate::records::VERSION;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs;
use std::path::Path;

/// A record with a version, as all of this module's files are.
pub trait Versioned: Serialize + DeserializeOwned {
    /// The version it was written as.
    fn version(&self) -> u32;
}

/// Before a record's own checksum, which is its last member.
const CHECKSUM: &str = ",\n  \"checksum\": \"";

/// Publishes a record as indented JSON. Its last member is the BLAKE3 of all the text before it.
///
/// # Errors
/// When it cannot be written.
pub fn publish_record<R: Versioned>(path: &Path, record: &R) -> Result<(), VolumeError> {
    let text = serde_json::to_string_pretty(record).map_err(|error| VolumeError::corrupt(path, error))?;
    let body = text.strip_suffix("\n}").ok_or_else(|| VolumeError::corrupt(path, "a record has at least one member"))?;
    let checksum = blake3::hash(body.as_bytes()).to_hex();
    publish_bytes(path, format!("{body}{CHECKSUM}{checksum}\"\n}}\n").as_bytes()).map(drop)
}

/// Reads a record. One without a checksum comes from an older program, and is taken as it is.
///
/// # Errors
/// When it is missing, no such record, not what was written, or of a newer version.
pub fn read_record<R: Versioned>(path: &Path) -> Result<R, VolumeError> {
    let text = fs::read(path).map_err(VolumeError::io(path))?;
    let text = std::str::from_utf8(&text).map_err(|error| VolumeError::corrupt(path, error))?;
    let record: R = serde_json::from_str(text).map_err(|error| VolumeError::corrupt(path, error))?;
    if record.version() != VERSION {
        let why = format!("has version {}, this program reads version {VERSION}", record.version());
        return Err(VolumeError::corrupt(path, why));
    }
    if let Some((body, checksum)) = text.rsplit_once(CHECKSUM)
        && checksum.trim_end() != format!("{}\"\n}}", blake3::hash(body.as_bytes()).to_hex())
    {
        return Err(VolumeError::corrupt(path, "its checksum is not the recorded one"));
    }
    Ok(record)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::PendingEpoch;

    #[test]
    fn records_of_other_versions_and_torn_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pending.json");
        publish_record(&path, &PendingEpoch::new(3)).unwrap();
        assert_eq!(read_record::<PendingEpoch>(&path).unwrap(), PendingEpoch::new(3));
        publish_record(&path, &PendingEpoch { version: 2, ..PendingEpoch::new(3) }).unwrap();
        assert!(read_record::<PendingEpoch>(&path).unwrap_err().to_string().contains("version 2"));
        publish_bytes(&path, b"{\"version\":1,").unwrap();
        assert!(matches!(read_record::<PendingEpoch>(&path), Err(VolumeError::Corrupt { .. })));
    }

    #[test]
    fn a_changed_number_is_noticed_and_a_record_of_before_checksums_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pending.json");
        publish_record(&path, &PendingEpoch::new(3)).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        publish_bytes(&path, text.replace("\"epoch\": 3", "\"epoch\": 2").as_bytes()).unwrap();
        assert!(read_record::<PendingEpoch>(&path).unwrap_err().to_string().contains("checksum"));
        let (body, _) = text.rsplit_once(CHECKSUM).unwrap();
        publish_bytes(&path, format!("{body}\n}}\n").as_bytes()).unwrap();
        assert_eq!(read_record::<PendingEpoch>(&path).unwrap(), PendingEpoch::new(3));
    }
}
