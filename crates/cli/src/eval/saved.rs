//! What an interrupted evaluation has learned: the same command goes on from there.

use super::site::Site;
use crate::failure::Failure;
use deepcluster_images::{FindOptions, find_images};
use deepcluster_proto::v1::{File, TrainSaved};
use deepcluster_service::requests::{file_to_wire, record_of};
use deepcluster_volume::image_list;
use deepcluster_volume::{FileRecord, publish};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// Where it stands what was saved last.
pub const NOTE: &str = "saved.json";

/// The name of an evaluation's folder, which is the same for the same question.
pub fn name_of(kind: &str, question: &Value) -> String {
    format!("{kind}-{}", &publish::digest_of(question.to_string().as_bytes()).blake3[..12])
}

/// A folder of images and what is in it, by which an evaluation of the same is known.
///
/// # Errors
/// When it has no images.
pub fn listing(flag: &str, folder: &Path) -> Result<(PathBuf, String), Failure> {
    let path = real(folder)?;
    let images = find_images(folder, FindOptions::default())
        .map(|found| found.images)
        .map_err(|error| Failure::usage(format!("--{flag}: {error}")))?;
    let (_, checksum) = image_list::to_csv(&images).map_err(|error| Failure::other(error.to_string()))?;
    Ok((path, checksum))
}

/// A folder that belongs to a question, whatever name it was given.
///
/// # Errors
/// When it is not there.
pub fn real(folder: &Path) -> Result<PathBuf, Failure> {
    fs::canonicalize(folder).map_err(|error| Failure::usage(format!("{}: {error}", folder.display())))
}

/// What was saved last, and where it stands.
pub struct Saved<'a> {
    site: &'a Site<'a>,
    last: Option<FileRecord>,
}

impl<'a> Saved<'a> {
    /// What an earlier command has left at this site, if it is still whole.
    pub fn at(site: &'a Site<'a>) -> Self {
        let note = fs::read(site.folder.join(NOTE)).ok();
        let last: Option<FileRecord> = note.and_then(|note| serde_json::from_slice(&note).ok());
        Self { site, last: last.filter(|record| site.subject.volume.verified(record).is_ok()) }
    }

    /// For a request.
    pub fn file(&self) -> Option<File> {
        self.last.as_ref().map(file_to_wire)
    }

    /// Keeps what a worker has saved, instead of what was saved before, under a name that begins with `stem`.
    ///
    /// # Errors
    /// When the volume cannot be written.
    pub fn keep(&mut self, stem: &str, saved: &TrainSaved) -> Result<File, Failure> {
        let (volume, folder) = (&self.site.subject.volume, &self.site.folder);
        let record = record_of("saved", saved.file.as_ref()).map_err(|error| Failure::other(error.to_string()))?;
        let record = volume.adopt(&record, &folder.join(format!("{stem}-{:08}.safetensors", saved.steps)))?;
        publish::publish_bytes(&folder.join(NOTE), json!(record).to_string().as_bytes())?;
        let old = self.last.replace(record.clone()).filter(|old| old.path != record.path);
        old.map_or(Ok(()), |old| publish::remove(&volume.resolve(&old.path)?))?;
        Ok(file_to_wire(&record))
    }
}
