//! Weights that a run starts from: a file of somebody else, taken over into the run under the names that checkpoints have.

use deepcluster_domain::plan::WeightSpec;
use deepcluster_domain::{Plan, RunSpec};
use deepcluster_proto::FieldError;
use deepcluster_volume::layout::resolve_below;
use deepcluster_volume::tensors::{self, Described, ElementKind};
use deepcluster_volume::weights_file::WeightsFile;
use deepcluster_volume::{FileRecord, RunFolder, Volume, VolumeError};
use std::collections::BTreeMap;
use std::path::Path;

/// What `torch.nn.DataParallel` puts before or into names: the released models have it behind `features`.
const WRAPPER: &str = "module.";

/// Which of several networks in a file is meant: what others are averages of, or what their makers publish.
const PREFERRED: [&str; 5] = ["encoder_q.", "teacher.", "online_encoder.", "backbone.", "encoder."];

/// A file of weights that fits a run's network.
pub(crate) struct Init {
    file: WeightsFile,
    /// By the names that checkpoints have: the names that the file has, and shapes.
    tensors: BTreeMap<String, (String, Vec<usize>)>,
    /// How the names were found, in a sentence; empty where they are as checkpoints have them.
    pub(crate) note: String,
}

impl Init {
    /// The file that a spec names, if it does; every tensor of the network must be there, in its shape.
    ///
    /// # Errors
    /// One sentence that names the file, and the tensor that is missing or of another shape.
    pub(crate) fn find(images_root: &Path, spec: &RunSpec) -> Result<Option<Self>, FieldError> {
        let Some(name) = &spec.init else { return Ok(None) };
        let path = resolve_below(images_root, Path::new(name)).map_err(|error| FieldError::new("init", error))?;
        let wrong = |why: String| FieldError::new("init", format!("{}: {why}", path.display()));
        let file = WeightsFile::open(&path).map_err(|error| FieldError::new("init", error))?;
        let found: BTreeMap<String, Described> =
            file.tensors().map(|tensor| (tensor.name.replace(WRAPPER, ""), tensor.clone())).collect();
        let weights = Plan::new(spec.architecture, spec.image_size, spec.sobel).weights();
        let prefix = common_prefix(&found, &weights);
        let (mut tensors, mut values) = (BTreeMap::new(), Vec::new());
        for weight in &weights {
            let (arch, name) = (spec.architecture, &weight.name);
            let full = format!("{prefix}{name}");
            let tensor = found.get(&full).ok_or_else(|| wrong(format!("has no tensor {full}, which {arch} needs")))?;
            let shape: Vec<usize> = weight.shape.iter().map(|n| *n as usize).collect();
            if tensor.shape != shape {
                let hint = shape_hint(weight, tensor);
                return Err(wrong(format!("{name} has shape {:?}, {arch} needs {shape:?}{hint}", tensor.shape)));
            }
            if ElementKind::of(tensor).is_none() {
                return Err(wrong(format!("{name} is of {:?}, not of f32, f16, bf16 or f64", tensor.dtype)));
            }
            file.read_as_f32(&tensor.name, &mut values).map_err(|error| FieldError::new("init", error))?;
            if !values.iter().all(|value| value.is_finite()) {
                return Err(wrong(format!("{name} has values that are not finite")));
            }
            tensors.insert(name.clone(), (tensor.name.clone(), shape));
        }
        let note = note(file.found_in(), &prefix, found.len() - tensors.len());
        Ok(Some(Self { file, tensors, note }))
    }

    /// Writes the weights into the run's folder, in f32.
    pub(crate) fn publish(&self, volume: &Volume, run: &RunFolder) -> Result<FileRecord, VolumeError> {
        let path = run.init();
        let described = |(name, (_, shape)): (&String, &(String, Vec<usize>))| Described::f32(name, shape);
        let mut values = Vec::new();
        let digest = tensors::publish(&path, self.tensors.iter().map(described).collect(), |name, out| {
            let (theirs, _) = &self.tensors[name];
            self.file.read_as_f32(theirs, &mut values)?;
            out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            Ok(())
        })?;
        volume.record(&path, digest)
    }
}

/// What stands before the names of a network's tensors in a file: of several possibilities that under which most of them are,
/// then the preferred one, then the shortest. Empty where there is none.
fn common_prefix(found: &BTreeMap<String, Described>, weights: &[WeightSpec]) -> String {
    let Some(first) = weights.first() else { return String::new() };
    let candidates = found.keys().filter_map(|name| name.strip_suffix(&first.name));
    let candidates = candidates.filter(|prefix| prefix.is_empty() || prefix.ends_with('.'));
    let rank = |prefix: &&str| {
        let n_there = weights.iter().filter(|weight| found.contains_key(&format!("{prefix}{}", weight.name))).count();
        let preference = PREFERRED.iter().rev().position(|end| prefix.ends_with(end)).map_or(0, |at| at + 1);
        (n_there, preference, std::cmp::Reverse(prefix.len()))
    };
    candidates.max_by_key(rank).unwrap_or_default().to_owned()
}

fn shape_hint(weight: &WeightSpec, tensor: &Described) -> &'static str {
    match weight.shape.as_slice() {
        [_, 2, ..] if tensor.shape.get(1) == Some(&3) => "; weights of colours need --no-sobel",
        [_, 3, ..] if tensor.shape.get(1) == Some(&2) => "; weights of edges need the Sobel filter",
        _ => "",
    }
}

fn note(found_in: &[String], prefix: &str, n_left_out: usize) -> String {
    let mut parts = Vec::new();
    if !found_in.is_empty() {
        parts.push(format!("found in '{}'", found_in.join("' in '")));
    }
    if !prefix.is_empty() {
        parts.push(format!("under the prefix '{prefix}'"));
    }
    if n_left_out > 0 {
        parts.push(format!("{n_left_out} other tensors are left out"));
    }
    if parts.is_empty() { String::new() } else { format!("the first weights: {}", parts.join(", ")) }
}
