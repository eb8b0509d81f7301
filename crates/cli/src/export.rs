//! `export`: the network of a run for programs that know nothing of us.

use crate::failure::{Failure, say};
use crate::local::{check_target, chosen_epoch, epoch_before};
use clap::ValueEnum;
use deepcluster_domain::{Plan, RunSpec};
use deepcluster_onnx::{Assignment, Input, Output, model};
use deepcluster_volume::committed::CommittedEpoch;
use deepcluster_volume::publish::{self, Digest};
use deepcluster_volume::records::{RunRecord, read_record};
use deepcluster_volume::tensors::{self, TensorsFile};
use deepcluster_volume::{RunFolder, VolumeError, npy};
use serde_json::json;
use std::path::PathBuf;

/// What is written, and where.
#[derive(clap::Args)]
pub struct ExportArgs {
    /// Folder of the run
    run_dir: PathBuf,
    /// The file to write
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// Without it the ending of FILE decides: onnx for .onnx, otherwise safetensors
    #[arg(long, value_enum, value_name = "FORMAT")]
    format: Option<Format>,
    /// Take the network as this epoch has left it, instead of the last one
    #[arg(long, value_name = "N")]
    epoch: Option<u32>,
    /// What an ONNX model takes; without it, pixels
    #[arg(long, value_enum, value_name = "KIND")]
    input: Option<Taken>,
    /// Let an ONNX model also tell cluster and distance of each image, by the network that came into the epoch
    #[arg(long)]
    assign: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Formats of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// The weights, under PyTorch's names
    Safetensors,
    /// The network up to its embedding, for onnxruntime and others
    Onnx,
}

/// What an ONNX model takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Taken {
    /// RGB from 0 to 255
    Pixels,
    /// RGB from 0 to 1, less ImageNet's mean, divided by its standard deviation
    Normalised,
    /// What the first layer sees: after the Sobel filter, where the network has one
    Seen,
}

impl From<Taken> for Input {
    fn from(taken: Taken) -> Self {
        match taken {
            Taken::Pixels => Self::Pixels,
            Taken::Normalised => Self::Normalised,
            Taken::Seen => Self::Seen,
        }
    }
}

impl ExportArgs {
    /// Writes the file.
    ///
    /// # Errors
    /// When the run cannot be read, the file cannot be written, or something other than a file is there.
    pub fn run(&self) -> Result<(), Failure> {
        let to = &self.to;
        // Publishing renames over its target, which would take the place of a device, a folder or a link.
        check_target(to)?;
        let by_ending = if to.extension().is_some_and(|ending| ending == "onnx") { Format::Onnx } else { Format::Safetensors };
        let format = self.format.unwrap_or(by_ending);
        if format == Format::Safetensors && (self.assign || self.input.is_some()) {
            return Err(Failure::usage("--input and --assign are for --format onnx: weights take nothing and tell nothing"));
        }
        let run = RunFolder::at(&self.run_dir);
        let epoch = chosen_epoch(&run, self.epoch)?;
        let (what, written) = match format {
            Format::Safetensors => {
                let checkpoint = epoch.verified("checkpoint.safetensors")?;
                ("weights", tensors::copy_some(&checkpoint, to, |name| !name.starts_with("optimizer."))?)
            }
            Format::Onnx => (if self.assign { "network and clusters" } else { "network" }, self.onnx(&run, &epoch)?),
        };
        let epoch = epoch.manifest.epoch;
        if self.json {
            let file = to.to_string_lossy();
            return say(json!({"file": file, "epoch": epoch, "bytes": written.bytes, "blake3": written.blake3}));
        }
        say(format!("wrote the {what} of epoch {epoch} to {} ({} bytes)", to.display(), written.bytes))
    }

    fn onnx(&self, run: &RunFolder, epoch: &CommittedEpoch) -> Result<Digest, Failure> {
        let record: RunRecord = read_record(&run.run_json())?;
        let run_id = record.run_id.clone();
        let spec = RunSpec::try_from(record.spec.clone()).map_err(|error| Failure::usage(error.to_string()))?;
        let plan = Plan::new(spec.architecture, spec.image_size, spec.sobel);
        let (checkpoint, network_epoch) = match self.assign {
            true => before(run, &record, epoch)?,
            false => (epoch.verified("checkpoint.safetensors")?, epoch.epoch.0.to_string()),
        };
        let output = if self.assign { Output::Clusters(assignment(epoch)?) } else { Output::Features };
        let checkpoint = TensorsFile::open(&checkpoint)?;
        let about = [
            ("run", run_id),
            ("epoch", epoch.manifest.epoch.to_string()),
            // The same, but for clusters.
            ("network_epoch", network_epoch),
        ];
        let input = self.input.map_or(Input::Pixels, Input::from);
        let mut weight = |name: &str| -> Result<Vec<f32>, VolumeError> { checkpoint.read_f32(name) };
        let bytes = model::<VolumeError>(&plan, input, output, &about, &mut weight);
        let bytes = bytes.map_err(|error| Failure::usage(format!("{}: {error}", self.run_dir.display())))?;
        Ok(publish::publish_bytes(&self.to, &bytes)?)
    }
}

/// The weights whose features an epoch clustered, and which epoch has left them: those of the epoch before, or what the run
/// started from.
fn before(run: &RunFolder, record: &RunRecord, epoch: &CommittedEpoch) -> Result<(PathBuf, String), Failure> {
    if let Some(before) = epoch_before(run, epoch)? {
        return Ok((before.verified("checkpoint.safetensors")?, before.epoch.0.to_string()));
    }
    let init = record.resolved.init.as_ref().ok_or_else(|| {
        let clusters = format!("the clusters of epoch {} belong to the network before any training", epoch.epoch.0);
        Failure::usage(format!("--assign: {clusters}, which is not stored; with an epoch more, there are others"))
    })?;
    match publish::digest(&run.init())?.blake3 == init.blake3 {
        true => Ok((run.init(), "init".to_owned())),
        false => Err(Failure::usage(format!("{}: its checksum is not the recorded one", run.init().display()))),
    }
}

/// Whitening and centroids of an epoch.
fn assignment(epoch: &CommittedEpoch) -> Result<Assignment, Failure> {
    let whiten = TensorsFile::open(&epoch.verified("whiten.safetensors")?)?;
    let at = epoch.verified("centroids.npy")?;
    let (shape, centroids) = npy::read_f32(&at)?;
    let [_, dims] = shape[..] else { return Err(VolumeError::corrupt(&at, "is no matrix").into()) };
    Ok(Assignment { mean: whiten.read_f32("mean")?, projection: whiten.read_f32("projection")?, centroids, dims })
}
