//! What requests name, checked: files of the volume, networks, image lists.

use deepcluster_domain::{EpochId, RunId, RunSpec};
use deepcluster_proto::{FieldError, v1};
use deepcluster_volume::layout::resolve_below;
use deepcluster_volume::publish::FileRecord;
use deepcluster_volume::{Volume, VolumeError};
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// A volume's failure as the caller of a service sees it.
pub fn volume_status(error: &VolumeError) -> Status {
    let message = error.to_string();
    match error {
        full if full.is_full() => no_room(message),
        VolumeError::Io { .. } => Status::internal(message),
        VolumeError::Corrupt { .. } | VolumeError::Missing(_) => Status::data_loss(message),
        VolumeError::Outside(_) => Status::invalid_argument(message),
        VolumeError::Owned { .. } | VolumeError::Lost { .. } => Status::failed_precondition(message),
    }
}

/// Why a volume has no room, for machines to tell from other limits.
const NO_ROOM: &str = "NO_ROOM";

/// A refusal because the volume has not the room: RESOURCE_EXHAUSTED, with `google.rpc.ErrorInfo` of reason NO_ROOM.
pub fn no_room(sentence: impl Into<String>) -> Status {
    let details = ErrorDetails::with_error_info(NO_ROOM, "deepcluster", HashMap::new());
    Status::with_error_details(Code::ResourceExhausted, sentence, details)
}

/// Whether that is one. The transport, and limits of servers, say RESOURCE_EXHAUSTED too, of what another try may have.
pub fn is_no_room(status: &Status) -> bool {
    status.code() == Code::ResourceExhausted && status.get_details_error_info().is_some_and(|info| info.reason == NO_ROOM)
}

/// The wire form of a record.
pub fn file_to_wire(record: &FileRecord) -> v1::File {
    v1::File { path: record.path.clone(), bytes: record.bytes, blake3: record.blake3.clone() }
}

/// The record that a message names.
///
/// # Errors
/// When the field is absent.
pub fn record_of(field: &'static str, file: Option<&v1::File>) -> Result<FileRecord, FieldError> {
    let file = file.ok_or_else(|| FieldError::new(field, "is missing"))?;
    Ok(FileRecord { path: file.path.clone(), bytes: file.bytes, blake3: file.blake3.clone() })
}

/// The place of a file that a request names, after it was verified.
///
/// # Errors
/// INVALID_ARGUMENT when it is absent or leaves the volume, DATA_LOSS when it is not what the request says.
pub fn verified(volume: &Volume, field: &'static str, file: Option<&v1::File>) -> Result<PathBuf, Status> {
    volume.verified(&record_of(field, file)?).map_err(|error| volume_status(&error))
}

/// The place of an output.
///
/// # Errors
/// INVALID_ARGUMENT when it leaves the volume.
pub fn output(volume: &Volume, path: &str) -> Result<PathBuf, Status> {
    volume.resolve(path).map_err(|error| FieldError::new("output", error).into())
}

/// The folder of images that a request names; the root itself when it names none.
///
/// # Errors
/// INVALID_ARGUMENT when it leaves the root.
pub fn images_folder(root: &Path, relative: &str) -> Result<PathBuf, Status> {
    match relative {
        "" | "." => Ok(root.to_owned()),
        _ => resolve_below(root, Path::new(relative)).map_err(|error| FieldError::new("images", error).into()),
    }
}

/// How images were read, for the wire; `unfit` are files of the cache.
pub fn reads_to_wire(volume: &Volume, decoded: u64, cached: u64, unfit: &BTreeSet<PathBuf>) -> v1::Reads {
    let unfit = unfit.iter().filter_map(|path| volume.relative(path).ok()).collect();
    v1::Reads { decoded, cached, unfit }
}

/// Run and epoch of a request.
///
/// # Errors
/// INVALID_ARGUMENT when the id is none.
pub fn run_and_epoch(run_id: &str, epoch: u32) -> Result<(RunId, EpochId), Status> {
    let run_id = run_id.parse::<RunId>().map_err(|error| FieldError::new("run_id", error))?;
    Ok((run_id, EpochId(epoch)))
}

/// The part of a spec that concerns the network.
///
/// # Errors
/// INVALID_ARGUMENT with every field that does not do.
pub fn network_spec(network: Option<&v1::Network>, seed: u64) -> Result<RunSpec, Status> {
    let network = network.ok_or_else(|| FieldError::new("network", "is missing"))?;
    let wire = v1::RunSpec {
        architecture: network.architecture,
        image_size: network.image_size,
        cache_side: network.cache_side,
        no_sobel: !network.sobel,
        device: network.device.clone(),
        precision: network.precision,
        seed: Some(seed),
        ..v1::RunSpec::default()
    };
    Ok(RunSpec::try_from(wire)?)
}

/// A failure of the work itself: the caller's fault (INVALID_ARGUMENT), or ours (INTERNAL).
pub fn work_status(error: &dyn std::fmt::Display, callers_fault: bool) -> Status {
    if callers_fault { Status::invalid_argument(error.to_string()) } else { Status::internal(error.to_string()) }
}
