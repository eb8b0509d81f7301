//! Weights that a run starts from: a file of somebody else, taken over into the run under the names that checkpoints have.

use deepcluster_domain::{Plan, RunSpec};
use deepcluster_proto::FieldError;
use deepcluster_volume::layout::resolve_below;
use deepcluster_volume::tensors::{self, Described, ElementKind, TensorsFile};
use deepcluster_volume::{FileRecord, RunFolder, Volume, VolumeError};
use std::collections::BTreeMap;
use std::path::Path;

/// What `torch.nn.DataParallel` puts before or into names: the released models have it behind `features`.
const WRAPPER: &str = "module.";

/// A file of weights that fits a run's network.
pub(crate) struct Init {
    file: TensorsFile,
    /// By the names that checkpoints have: the names that the file has, and shapes.
    tensors: BTreeMap<String, (String, Vec<usize>)>,
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
        let file = TensorsFile::open(&path).map_err(|error| FieldError::new("init", error))?;
        let found: BTreeMap<String, Described> =
            file.tensors().map(|tensor| (tensor.name.replace(WRAPPER, ""), tensor.clone())).collect();
        let (mut tensors, mut values) = (BTreeMap::new(), Vec::new());
        for weight in Plan::new(spec.architecture, spec.image_size, spec.sobel).weights() {
            let (arch, name) = (spec.architecture, &weight.name);
            let tensor = found.get(name).ok_or_else(|| wrong(format!("has no tensor {name}, which {arch} needs")))?;
            let shape: Vec<usize> = weight.shape.iter().map(|n| *n as usize).collect();
            if tensor.shape != shape {
                let hint = match weight.shape.as_slice() {
                    [_, 2, ..] if tensor.shape.get(1) == Some(&3) => "; weights of colours need --no-sobel",
                    [_, 3, ..] if tensor.shape.get(1) == Some(&2) => "; weights of edges need the Sobel filter",
                    _ => "",
                };
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
        Ok(Some(Self { file, tensors }))
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
