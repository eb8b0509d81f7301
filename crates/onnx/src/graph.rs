//! Nodes and constants of a graph, put one behind the other.

use crate::proto::{
    ATTRIBUTE_FLOAT, ATTRIBUTE_INT, ATTRIBUTE_INTS, AttributeProto, Dimension, Extent, FLOAT, NodeProto, TensorProto,
    TensorShapeProto, TensorType, TypeProto, TypeValue, ValueInfoProto,
};

/// A graph that grows.
#[derive(Default)]
pub(crate) struct Graph {
    /// Each after those whose outputs it reads.
    pub(crate) nodes: Vec<NodeProto>,
    /// Weights and other constants.
    pub(crate) initializers: Vec<TensorProto>,
}

impl Graph {
    /// Adds a constant of f32 in C order; an empty shape is that of a single number.
    pub(crate) fn constant(&mut self, name: &str, shape: &[i64], values: &[f32]) {
        let mut raw_data = Vec::with_capacity(size_of_val(values));
        for value in values {
            raw_data.extend_from_slice(&value.to_le_bytes());
        }
        self.initializers.push(TensorProto { dims: shape.to_vec(), data_type: FLOAT, name: name.to_owned(), raw_data });
    }

    /// Adds a node whose one output has the node's name, which it returns.
    pub(crate) fn named(&mut self, name: &str, op: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        self.nodes.push(NodeProto {
            input: inputs.iter().map(|input| (*input).to_owned()).collect(),
            output: vec![name.to_owned()],
            name: name.to_owned(),
            op_type: op.to_owned(),
            attribute: attributes,
        });
        name.to_owned()
    }

    /// The same under a name that is made of the operation and a number.
    pub(crate) fn node(&mut self, op: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        let name = format!("{op}_{}", self.nodes.len());
        self.named(&name, op, inputs, attributes)
    }

    /// Gives a value that no node reads yet the name of an output.
    pub(crate) fn rename(&mut self, value: &str, name: &str) {
        if let Some(node) = self.nodes.iter_mut().find(|node| node.output.iter().any(|output| output == value)) {
            node.output = vec![name.to_owned()];
            return;
        }
        // The input itself, of a network without layers.
        self.named(name, "Identity", &[value], Vec::new());
    }
}

/// An attribute of one real number.
pub(crate) fn float(name: &str, value: f32) -> AttributeProto {
    AttributeProto { name: name.to_owned(), kind: ATTRIBUTE_FLOAT, f: Some(value), ..AttributeProto::default() }
}

/// An attribute of one whole number.
pub(crate) fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto { name: name.to_owned(), kind: ATTRIBUTE_INT, i: Some(value), ..AttributeProto::default() }
}

/// An attribute of whole numbers.
pub(crate) fn ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto { name: name.to_owned(), kind: ATTRIBUTE_INTS, ints: values.to_vec(), ..AttributeProto::default() }
}

/// An input or output `[n, ...rest]`, where n may be another in every call.
pub(crate) fn batch(name: &str, elem_type: i32, rest: &[i64], doc: &str) -> ValueInfoProto {
    let extents = std::iter::once(Extent::Param("n".to_owned())).chain(rest.iter().copied().map(Extent::Value));
    let shape = TensorShapeProto { dim: extents.map(|extent| Dimension { value: Some(extent) }).collect() };
    let tensor = TensorType { elem_type, shape: Some(shape) };
    ValueInfoProto {
        name: name.to_owned(),
        r#type: Some(TypeProto { value: Some(TypeValue::Tensor(tensor)) }),
        doc_string: doc.to_owned(),
    }
}
