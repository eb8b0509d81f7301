//! Which network is evaluated.

use crate::failure::Failure;
use crate::local::chosen_epoch;
use crate::snapshot::{Snapshot, writable_volume};
use deepcluster_domain::{DeviceChoice, Plan, Precision, RunSpec};
use deepcluster_proto::network_of;
use deepcluster_proto::v1::{self, Network};
use deepcluster_service::requests::file_to_wire;
use deepcluster_volume::records::{RunRecord, read_record};
use deepcluster_volume::{RunFolder, Volume};
use std::path::PathBuf;

/// The network of a run.
#[derive(clap::Args, Clone)]
pub struct SubjectArgs {
    /// Folder of the run
    pub run_dir: PathBuf,
    /// Take the network as this epoch has left it, instead of the last one
    #[arg(long, value_name = "N", conflicts_with = "random")]
    epoch: Option<u32>,
    /// Take the network as it was before it has learned anything
    #[arg(long)]
    random: bool,
    /// Where the network computes: auto, cpu, cuda or cuda:N
    #[arg(long, default_value_t = DeviceChoice::Auto, value_name = "DEVICE")]
    device: DeviceChoice,
    /// Arithmetic of the network: auto (bf16 where the hardware has it), f32 or bf16; without it, what the run was trained with
    #[arg(long, value_name = "PRECISION")]
    precision: Option<Precision>,
    /// One JSON object a line
    #[arg(long)]
    pub json: bool,
}

/// A network that is found.
pub struct Subject {
    /// The volume.
    pub volume: Volume,
    /// The run's name.
    pub run_id: String,
    /// Its folder on the volume.
    pub run: RunFolder,
    /// The run's spec, but for where the network computes, and how exactly where that was named.
    pub spec: RunSpec,
    /// The epoch that has left the network so; none before the first.
    pub epoch: Option<u32>,
    /// For the workers.
    pub network: Network,
    /// The volume, where that is a temporary one, since the run's own cannot be written.
    pub snapshot: Option<Snapshot>,
}

impl SubjectArgs {
    /// Finds the network.
    ///
    /// # Errors
    /// When the folder is no run of a volume, or has no such epoch.
    pub fn find(&self) -> Result<Subject, Failure> {
        let given = RunFolder::at(&self.run_dir);
        if !given.run_json().is_file() {
            return Err(Failure::usage(format!("{} is not the folder of a run", self.run_dir.display())));
        }
        let (root, run_id, snapshot) = writable_volume(&self.run_dir)?;
        let volume = Volume::new(root);
        let id = run_id.parse().map_err(|error| Failure::usage(format!("{run_id}: {error}")))?;
        let run = volume.run(&id);
        let record: RunRecord = read_record(&run.run_json())?;
        let spec = RunSpec::try_from(record.spec).map_err(|error| Failure::usage(error.to_string()))?;
        let spec = self.computing(spec);
        let epoch = if self.random { None } else { Some(chosen_epoch(&run, self.epoch)?) };
        let checkpoint: Option<v1::File> = epoch.as_ref().map(|epoch| file_to_wire(&epoch.manifest.files.checkpoint));
        let first = record.resolved.init.as_ref().map(file_to_wire);
        let network = network_of(&spec, checkpoint.or(first));
        Ok(Subject { volume, run_id, run, spec, epoch: epoch.map(|epoch| epoch.epoch.0), network, snapshot })
    }

    /// A run's spec with the device that is asked for, and the precision if one is.
    fn computing(&self, spec: RunSpec) -> RunSpec {
        RunSpec { device: self.device, precision: self.precision.unwrap_or(spec.precision), ..spec }
    }
}

impl Subject {
    /// What a table calls the network.
    pub fn name(&self) -> String {
        let first = if self.network.checkpoint.is_some() { "the weights of --init" } else { "random weights" };
        self.epoch.map_or(first.to_owned(), |epoch| format!("epoch {epoch}"))
    }

    /// The layers of some names, each once; none given: `otherwise`.
    ///
    /// # Errors
    /// When the network has none of such a name.
    pub fn layers(&self, wanted: &[String], otherwise: Vec<String>) -> Result<Vec<String>, Failure> {
        let plan = Plan::new(self.spec.architecture, self.spec.image_size, self.spec.sobel);
        let mut layers: Vec<String> = Vec::new();
        for layer in if wanted.is_empty() { otherwise } else { wanted.to_vec() } {
            plan.tap(&layer).map_err(|error| Failure::usage(format!("--layer: {error}")))?;
            if !layers.contains(&layer) {
                layers.push(layer);
            }
        }
        Ok(layers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Asked {
        #[command(flatten)]
        subject: SubjectArgs,
    }

    #[test]
    fn a_network_computes_as_exactly_as_it_was_trained_unless_one_says_otherwise() {
        let precision = |flags: &[&str]| {
            let words = ["eval", "run-0001"].into_iter().chain(flags.iter().copied());
            let trained = RunSpec { precision: Precision::F32, ..RunSpec::default() };
            Asked::parse_from(words).subject.computing(trained).precision
        };
        assert_eq!(precision(&[]), Precision::F32);
        assert_eq!(precision(&["--precision", "bf16"]), Precision::Bf16);
        assert_eq!(precision(&["--precision", "auto"]), Precision::Auto);
    }
}
