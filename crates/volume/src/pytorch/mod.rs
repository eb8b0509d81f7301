//! Files of `torch.save` since PyTorch 1.6: a ZIP archive with a pickle of what was saved and the numbers beside it. Tensors are
//! read, nothing is executed.

mod pickle;
mod values;

use crate::VolumeError;
use crate::tensors::{Described, ElementKind};
use half::{bf16, f16};
use safetensors::tensor::Dtype;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use values::{Dict, StoredTensor, Value};
use zip::{CompressionMethod, ZipArchive};

/// How an archive begins.
const ZIP: [u8; 4] = *b"PK\x03\x04";

/// How files of PyTorch before 1.6 begin: a pickle of its magic number.
const OLD: [u8; 6] = *b"\x80\x02\x8a\x0a\x6c\xfc";

/// Largest pickle: that of a network of ten thousand tensors has 2 MB.
const MAX_PICKLE: u64 = 64 << 20;

/// Under which names programs save the tensors of a network beside other things, the best first.
const PLACES: [&str; 9] = ["state_dict", "model", "teacher", "student", "model_state_dict", "ema", "net", "network", "encoder"];

/// An open file.
pub struct PytorchFile {
    path: PathBuf,
    tensors: BTreeMap<String, (Described, TensorLocation)>,
    /// The names under which the tensors were found, from the outside; empty where they lie in the file itself.
    pub found_in: Vec<String>,
}

/// Where the numbers of a tensor lie.
struct TensorLocation {
    /// First byte of the storage in the file, and how many it has.
    start: u64,
    bytes: u64,
    /// In elements.
    offset: usize,
    stride: Vec<usize>,
}

impl PytorchFile {
    /// Whether a file begins as those of `torch.save` do, of whatever version.
    pub fn is_one(path: &Path) -> bool {
        let mut head = [0; 6];
        let read = File::open(path).and_then(|mut file| file.read_exact(&mut head));
        read.is_ok() && (head.starts_with(&ZIP) || head == OLD)
    }

    /// Opens a file and finds its tensors.
    ///
    /// # Errors
    /// When it is missing, damaged, of an old version, or holds no tensors by name.
    pub fn open(path: &Path) -> Result<Self, VolumeError> {
        let corrupt = |why: &dyn std::fmt::Display| VolumeError::corrupt(path, why);
        let mut file = File::open(path).map_err(VolumeError::io(path))?;
        let size = file.metadata().map_err(VolumeError::io(path))?.len();
        let mut head = [0; 6];
        file.read_exact(&mut head).map_err(|error| corrupt(&error))?;
        if head == OLD {
            return Err(corrupt(
                &"it is in the format of PyTorch before 1.6; in Python, torch.save(torch.load(FILE), FILE) brings it to today's",
            ));
        }
        let mut archive = ZipArchive::new(file).map_err(|error| corrupt(&format!("it is no whole ZIP archive: {error}")))?;
        let names: Vec<String> = archive.file_names().filter_map(|name| Some(name.ok()?.into_owned())).collect();
        let pickle_name = names.iter().find(|name| *name == "data.pkl" || name.ends_with("/data.pkl"));
        let pickle_name = pickle_name.ok_or_else(|| corrupt(&"it is a ZIP archive without data.pkl, so none of torch.save"))?;
        let folder = pickle_name.trim_end_matches("data.pkl").to_owned();
        let code = [format!("{folder}constants.pkl"), format!("{folder}code/")];
        if names.iter().any(|name| code.iter().any(|start| name.starts_with(start))) {
            return Err(corrupt(&"it is a TorchScript program; save its state_dict() with torch.save"));
        }
        let mut bytes = Vec::new();
        let pickle = archive.by_name(pickle_name).map_err(|error| corrupt(&error))?;
        if pickle.size() > MAX_PICKLE || pickle.compression() != CompressionMethod::Stored {
            return Err(corrupt(&"its data.pkl is compressed, or too large"));
        }
        pickle.take(MAX_PICKLE).read_to_end(&mut bytes).map_err(|error| corrupt(&error))?;
        let pickle = pickle::load(&bytes).map_err(|why| corrupt(&why))?;
        let (found_in, dict) = tensors_in(&pickle.root, 2)
            .ok_or_else(|| corrupt(&"it holds no tensors by name; save the network's state_dict(), not the network itself"))?;
        let mut found = Self { path: path.to_owned(), tensors: BTreeMap::new(), found_in };
        for (key, value) in dict.pairs.borrow().iter() {
            if let (Value::Text(name), Value::Tensor(tensor)) = (key, value) {
                let place =
                    place_of(&mut archive, size, &folder, tensor).map_err(|why| corrupt(&format!("tensor {name} {why}")))?;
                found.tensors.insert(
                    name.to_string(),
                    (Described { name: name.to_string(), dtype: place.0, shape: tensor.shape.clone() }, place.1),
                );
            }
        }
        Ok(found)
    }

    /// What the file holds, in order of the names.
    pub fn tensors(&self) -> impl Iterator<Item = &Described> {
        self.tensors.values().map(|(described, _)| described)
    }

    /// Reads the numbers of a tensor as f32 in C order, in the place of what `out` held.
    ///
    /// # Errors
    /// When there is none of that name, it holds no numbers that become f32, or it cannot be read.
    pub fn read_as_f32(&self, name: &str, out: &mut Vec<f32>) -> Result<(), VolumeError> {
        let corrupt = |why: String| VolumeError::corrupt(&self.path, why);
        let (described, place) = self.tensors.get(name).ok_or_else(|| corrupt(format!("has no tensor {name}")))?;
        let kind = ElementKind::of(described).ok_or_else(|| corrupt(format!("has no numbers named {name}")))?;
        let mut file = File::open(&self.path).map_err(VolumeError::io(&self.path))?;
        file.seek(SeekFrom::Start(place.start)).map_err(VolumeError::io(&self.path))?;
        let mut bytes = vec![0; place.bytes as usize];
        file.read_exact(&mut bytes).map_err(|error| corrupt(error.to_string()))?;
        let value = |at: usize| match kind {
            ElementKind::F32 => bytes.as_chunks::<4>().0.get(at).map(|bytes| f32::from_le_bytes(*bytes)),
            ElementKind::F16 => bytes.as_chunks::<2>().0.get(at).map(|bytes| f16::from_le_bytes(*bytes).to_f32()),
            ElementKind::Bf16 => bytes.as_chunks::<2>().0.get(at).map(|bytes| bf16::from_le_bytes(*bytes).to_f32()),
            ElementKind::F64 => bytes.as_chunks::<8>().0.get(at).map(|bytes| f64::from_le_bytes(*bytes) as f32),
        };
        out.clear();
        let n: usize = described.shape.iter().product();
        let mut index = vec![0; described.shape.len()];
        for _ in 0..n {
            let at = place.offset + index.iter().zip(&place.stride).map(|(index, stride)| index * stride).sum::<usize>();
            out.push(value(at).ok_or_else(|| corrupt(format!("tensor {name} is longer than its storage")))?);
            for axis in (0..index.len()).rev() {
                index[axis] += 1;
                if index[axis] < described.shape[axis] {
                    break;
                }
                index[axis] = 0;
            }
        }
        Ok(())
    }
}

/// The dict that holds tensors by name, and the names that lead to it.
fn tensors_in(value: &Value, levels: u32) -> Option<(Vec<String>, Rc<Dict>)> {
    let Value::Dict(dict) = value else { return None };
    let pairs = dict.pairs.borrow();
    // Beside a state_dict there may be tensors that are none of the network, as the best accuracy.
    for place in if levels > 0 { PLACES.as_slice() } else { &[] } {
        let inner = pairs.iter().find(|(key, _)| matches!(key, Value::Text(key) if &**key == *place));
        if let Some((mut names, found)) = inner.and_then(|(_, value)| tensors_in(value, levels - 1)) {
            names.insert(0, (*place).to_owned());
            return Some((names, found));
        }
    }
    let has_tensors = pairs.iter().any(|pair| matches!(pair, (Value::Text(_), Value::Tensor(_))));
    has_tensors.then(|| (Vec::new(), Rc::clone(dict)))
}

/// Type and place of a tensor, once it was found to lie inside of its storage.
fn place_of(
    archive: &mut ZipArchive<File>,
    file_size: u64,
    folder: &str,
    tensor: &StoredTensor,
) -> Result<(Dtype, TensorLocation), String> {
    let dtype = match &*tensor.storage.kind {
        "FloatStorage" => Dtype::F32,
        "HalfStorage" => Dtype::F16,
        "BFloat16Storage" => Dtype::BF16,
        "DoubleStorage" => Dtype::F64,
        "LongStorage" => Dtype::I64,
        "IntStorage" => Dtype::I32,
        "ShortStorage" => Dtype::I16,
        "CharStorage" => Dtype::I8,
        "ByteStorage" => Dtype::U8,
        "BoolStorage" => Dtype::BOOL,
        other => return Err(format!("is of a kind that is not read ({other})")),
    };
    let entry = archive.by_name(&format!("{folder}data/{}", tensor.storage.key)).map_err(|_| "has no numbers in the file")?;
    if entry.compression() != CompressionMethod::Stored {
        return Err("is compressed, which torch.save does not do".to_owned());
    }
    let start = entry.data_start().ok_or("has no place in the file")?;
    // What the archive claims is not yet in the file.
    if entry.size() != entry.compressed_size() || start.checked_add(entry.size()).is_none_or(|end| end > file_size) {
        return Err("is cut off".to_owned());
    }
    let place = TensorLocation { start, bytes: entry.size(), offset: tensor.offset, stride: tensor.stride.clone() };
    let mut last = Some(tensor.offset);
    for (n, stride) in tensor.shape.iter().zip(&tensor.stride) {
        if *n == 0 {
            return Ok((dtype, place));
        }
        last = last.and_then(|last| last.checked_add((n - 1).checked_mul(*stride)?));
    }
    let size = (dtype.bitsize() / 8) as u64;
    // Views that show an element many times could be larger than the file by any factor.
    let n = tensor.shape.iter().try_fold(1_u64, |product, n| product.checked_mul(*n as u64));
    let fits = last.and_then(|last| (last as u64).checked_add(1)?.checked_mul(size)).is_some_and(|end| end <= place.bytes);
    if !fits || n.and_then(|n| n.checked_mul(size)).is_none_or(|bytes| bytes > place.bytes) {
        return Err("is longer than its storage".to_owned());
    }
    Ok((dtype, place))
}
