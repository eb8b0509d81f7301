//! What a pickle of `torch.save` is made of: tensors and what leads to them.

use std::cell::RefCell;
use std::rc::Rc;

/// Most dimensions of a tensor.
const MAX_AXES: usize = 16;

/// A value of a pickle.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Int(i64),
    Text(Rc<str>),
    Tuple(Rc<(u32, Vec<Value>)>),
    Dict(Rc<Dict>),
    /// A class or function, by module and name.
    Global(Rc<str>),
    Storage(Storage),
    Tensor(Rc<StoredTensor>),
    /// Anything else.
    Other,
}

/// Pairs in the order of the file.
#[derive(Debug, Default)]
pub(crate) struct Dict {
    pub(crate) pairs: RefCell<Vec<(Value, Value)>>,
}

/// Numbers that lie in a file of the archive.
#[derive(Clone, Debug)]
pub(crate) struct Storage {
    /// As "FloatStorage".
    pub(crate) kind: Rc<str>,
    /// Name of the file below `data/`.
    pub(crate) key: Rc<str>,
}

/// A view of a storage.
#[derive(Debug)]
pub(crate) struct StoredTensor {
    pub(crate) storage: Storage,
    /// First element.
    pub(crate) offset: usize,
    pub(crate) shape: Vec<usize>,
    /// In elements.
    pub(crate) stride: Vec<usize>,
}

/// ('storage', class, key, location, number of elements)
pub(super) fn storage_of(id: &Value) -> Option<Storage> {
    let Value::Tuple(id) = id else { return None };
    let [Value::Text(_), Value::Global(class), Value::Text(key), ..] = id.1.as_slice() else { return None };
    let kind = class.strip_prefix("torch.")?;
    Some(Storage { kind: kind.into(), key: Rc::clone(key) })
}

/// Classes of dicts.
pub(super) const DICTS: [&str; 2] = ["collections.OrderedDict", "collections.defaultdict"];

pub(super) fn constructed(class: &Value, arguments: &Value) -> Value {
    let (Value::Global(class), Value::Tuple(arguments)) = (class, arguments) else { return Value::Other };
    let arguments = &arguments.1;
    match &**class {
        "torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor" => {
            tensor_of(arguments).map_or(Value::Other, |tensor| Value::Tensor(Rc::new(tensor)))
        }
        "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state" => {
            arguments.first().cloned().unwrap_or(Value::Other)
        }
        _ => Value::Other,
    }
}

/// (storage, offset, shape, stride, …)
fn tensor_of(arguments: &[Value]) -> Option<StoredTensor> {
    let [Value::Storage(storage), Value::Int(offset), Value::Tuple(shape), Value::Tuple(stride), ..] = arguments else {
        return None;
    };
    if shape.1.len() > MAX_AXES || stride.1.len() > MAX_AXES {
        return None;
    }
    let numbers = |values: &[Value]| -> Option<Vec<usize>> {
        let number = |value: &Value| if let Value::Int(number) = value { usize::try_from(*number).ok() } else { None };
        values.iter().map(number).collect()
    };
    let (shape, stride) = (numbers(&shape.1)?, numbers(&stride.1)?);
    (shape.len() == stride.len()).then_some(StoredTensor {
        storage: storage.clone(),
        offset: usize::try_from(*offset).ok()?,
        shape,
        stride,
    })
}
