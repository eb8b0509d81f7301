//! Models that are read again.

use crate::proto::{Extent, GraphProto, ModelProto, NodeProto, TypeValue, ValueInfoProto};
use crate::{Assignment, Input, OnnxError, Output, model};
use deepcluster_domain::{Architecture, Plan};
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};

const RESNET: (Architecture, bool) = (Architecture::ResNet18, false);
const ALEXNET: (Architecture, bool) = (Architecture::AlexNet, true);

/// A network for small images, and the model of it in which a weight is its number in the plan, over and over.
fn written((architecture, sobel): (Architecture, bool), input: Input, output: Output) -> (Plan, ModelProto) {
    let plan = Plan::new(architecture, 64, sobel);
    let lengths: BTreeMap<String, usize> =
        plan.weights().into_iter().map(|spec| (spec.name, spec.shape.iter().product::<i64>() as usize)).collect();
    let mut number = 0.0_f32;
    let mut weight = |name: &str| {
        number += 1.0;
        lengths.get(name).map(|length| vec![number; *length]).ok_or("unknown")
    };
    let bytes = model(&plan, input, output, &[("epoch", "7".to_owned())], &mut weight).unwrap();
    (plan, ModelProto::decode(bytes.as_slice()).unwrap())
}

fn assignment(width: usize) -> Assignment {
    Assignment { mean: vec![0.5; width], projection: vec![0.25; 3 * width], centroids: vec![2.0; 5 * 3], dims: 3 }
}

fn ops(graph: &GraphProto) -> Vec<&str> {
    graph.node.iter().map(|node| node.op_type.as_str()).collect()
}

fn shape(value: &ValueInfoProto) -> (String, i32, Vec<i64>) {
    let Some(TypeValue::Tensor(tensor)) = value.r#type.clone().unwrap().value else { panic!("{value:?}") };
    let extents = tensor.shape.unwrap().dim.into_iter().map(|dim| match dim.value.unwrap() {
        Extent::Value(value) => value,
        Extent::Param(name) => {
            assert_eq!(name, "n");
            -1
        }
    });
    (value.name.clone(), tensor.elem_type, extents.collect())
}

fn attribute(node: &NodeProto, name: &str) -> Vec<i64> {
    let found = node.attribute.iter().find(|attribute| attribute.name == name).unwrap();
    found.i.into_iter().chain(found.ints.iter().copied()).collect()
}

/// Every value is made once and before it is read, and every constant is read.
fn assert_sound(graph: &GraphProto) {
    let constants: BTreeSet<&str> = graph.initializer.iter().map(|tensor| tensor.name.as_str()).collect();
    let mut known: BTreeSet<&str> = graph.input.iter().map(|value| value.name.as_str()).collect();
    known.extend(constants.iter().copied());
    assert_eq!(known.len(), graph.initializer.len() + graph.input.len());
    let (mut read, mut names) = (BTreeSet::new(), BTreeSet::new());
    for node in &graph.node {
        for input in &node.input {
            assert!(known.contains(input.as_str()), "{node:?}");
            read.insert(input.as_str());
        }
        for output in &node.output {
            assert!(known.insert(output), "{node:?}");
        }
        assert!(names.insert(node.name.as_str()), "{node:?}");
    }
    assert!(constants.is_subset(&read), "{:?}", constants.difference(&read));
    assert!(graph.output.iter().all(|value| known.contains(value.name.as_str())));
}

#[test]
fn alexnet_is_a_chain_with_its_weights() {
    let (plan, file) = written(ALEXNET, Input::Pixels, Output::Features);
    assert_eq!((file.ir_version, file.opset_import[0].version, file.producer_name.as_str()), (8, 17, "deepcluster"));
    let props: Vec<_> = file.metadata_props.iter().map(|entry| (entry.key.as_str(), entry.value.as_str())).collect();
    assert_eq!(props, [("image_size", "64"), ("input", "pixels"), ("epoch", "7")]);
    let graph = file.graph.unwrap();
    assert_sound(&graph);
    let block = ["Conv", "BatchNormalization", "Relu"];
    let mut expected = vec!["Div", "Sub", "Div", "Conv", "Conv"];
    for pooled in [true, true, false, false, true] {
        expected.extend(block);
        expected.extend(pooled.then_some("MaxPool"));
    }
    expected.extend(["Flatten", "Gemm", "Relu", "Gemm"]);
    assert_eq!(ops(&graph), expected);
    for pair in graph.node.windows(2) {
        assert_eq!(pair[1].input[0], pair[0].output[0]);
    }
    assert_eq!(graph.node.last().unwrap().output, ["features"]);
    for (number, (spec, tensor)) in plan.weights().iter().zip(&graph.initializer).enumerate() {
        assert_eq!((&tensor.name, &tensor.dims), (&spec.name, &spec.shape));
        assert_eq!(tensor.raw_data.len() as i64, 4 * spec.shape.iter().product::<i64>());
        assert_eq!(tensor.raw_data[..4], (number as f32 + 1.0).to_le_bytes());
    }
    let conv = graph.node.iter().find(|node| node.name == "features.0").unwrap();
    assert_eq!(conv.input[1..], ["features.0.weight", "features.0.bias"]);
    assert_eq!([attribute(conv, "kernel_shape"), attribute(conv, "strides")], [[11, 11], [4, 4]]);
    assert_eq!(attribute(conv, "pads"), [2; 4]);
    let norm = graph.node.iter().find(|node| node.name == "features.1").unwrap();
    assert_eq!(norm.input[1..], ["weight", "bias", "running_mean", "running_var"].map(|leaf| format!("features.1.{leaf}")));
    assert_eq!(norm.attribute[0].f, Some(1e-5));
}

#[test]
fn resnet_adds_its_shortcuts() {
    let (plan, file) = written(RESNET, Input::Normalised, Output::Features);
    let graph = file.graph.unwrap();
    assert_sound(&graph);
    let dims = |name: &str| graph.initializer.iter().find(|tensor| tensor.name == name).unwrap().dims.clone();
    assert_eq!(dims("layer2.0.downsample.0.weight"), [128, 64, 1, 1]);
    assert_eq!(graph.initializer.len(), plan.weights().len());
    let adds: Vec<&NodeProto> = graph.node.iter().filter(|node| node.op_type == "Add").collect();
    assert_eq!(adds.len(), 8);
    // The first block's shortcut is the identity: what the pool gives.
    let pool = graph.node.iter().find(|node| node.op_type == "MaxPool").unwrap();
    assert_eq!(adds[0].input, ["layer1.0.bn2".to_owned(), pool.output[0].clone()]);
    assert_eq!(adds[2].input, ["layer2.0.bn2", "layer2.0.downsample.1"]);
    let downsample = graph.node.iter().find(|node| node.name == "layer2.0.downsample.0").unwrap();
    let conv = graph.node.iter().find(|node| node.name == "layer2.0.conv1").unwrap();
    assert_eq!((downsample.input.len(), &downsample.input[0]), (2, &conv.input[0]));
    assert_eq!(ops(&graph)[graph.node.len() - 3..], ["Relu", "GlobalAveragePool", "Flatten"]);
    assert_eq!(shape(&graph.output[0]), ("features".to_owned(), 1, vec![-1, 512]));
}

#[test]
fn every_network_can_be_written_from_every_input() {
    for (kind, input, channels, front) in [
        (ALEXNET, Input::Pixels, 3, 5),
        (ALEXNET, Input::Normalised, 3, 2),
        (ALEXNET, Input::Seen, 2, 0),
        (RESNET, Input::Pixels, 3, 3),
        (RESNET, Input::Normalised, 3, 0),
        (RESNET, Input::Seen, 3, 0),
        ((Architecture::ResNet50, true), Input::Seen, 2, 0),
        ((Architecture::Vgg16, false), Input::Pixels, 3, 3),
    ] {
        let graph = written(kind, input, Output::Features).1.graph.unwrap();
        assert_sound(&graph);
        assert_eq!(shape(&graph.input[0]), ("images".to_owned(), 1, vec![-1, channels, 64, 64]), "{kind:?}, {input:?}");
        let first_weight = graph.initializer[0].name.as_str();
        let first_layer = graph.node.iter().position(|node| node.input.iter().any(|input| input == first_weight));
        assert_eq!(first_layer, Some(front), "{kind:?}, {input:?}");
    }
}

#[test]
fn clusters_stand_beside_the_features() {
    let graph = written(RESNET, Input::Seen, Output::Clusters(assignment(512))).1.graph.unwrap();
    assert_sound(&graph);
    let [features, cluster, distance] = graph.output.as_slice() else { panic!("{:?}", graph.output) };
    assert_eq!(shape(features), ("features".to_owned(), 1, vec![-1, 512]));
    assert_eq!(shape(cluster), ("cluster".to_owned(), 7, vec![-1]));
    assert_eq!(shape(distance), ("distance".to_owned(), 1, vec![-1]));
    let constants: BTreeMap<&str, _> = graph.initializer.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    assert_eq!(constants["whiten.mean"].dims, [512]);
    assert_eq!(constants["whiten.projection"].dims, [3, 512]);
    assert_eq!(constants["centroids"].dims, [5, 3]);
    // Three times 2².
    assert_eq!(constants["centroids.squares"].raw_data, 12.0_f32.to_le_bytes().repeat(5));
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let plan = Plan::new(Architecture::ResNet18, 64, false);
    let refused = |output: Output, bad: &str, answer: Result<Vec<f32>, &'static str>| {
        let lengths: BTreeMap<String, i64> =
            plan.weights().into_iter().map(|spec| (spec.name, spec.shape.iter().product())).collect();
        let mut weight = |name: &str| if name == bad { answer.clone() } else { Ok(vec![0.0; lengths[name] as usize]) };
        model(&plan, Input::Pixels, output, &[], &mut weight).map(|bytes| bytes.len()).unwrap_err()
    };
    let missing = refused(Output::Features, "bn1.bias", Err("not in the checkpoint"));
    assert!(matches!(&missing, OnnxError::Weight { name, source } if name == "bn1.bias" && *source == "not in the checkpoint"));
    let cases = [
        (Output::Features, "layer1.0.conv1.weight", "layer1.0.conv1.weight has 7 numbers, not 36864"),
        (Output::Clusters(assignment(511)), "", "mean has 511 numbers, not 512"),
        (Output::Clusters(Assignment { dims: 4, ..assignment(512) }), "", "projection has 1536 numbers, not 2048"),
        (Output::Clusters(Assignment { centroids: vec![1.0; 8], ..assignment(512) }), "", "8 numbers are no centroids of 3"),
        (Output::Clusters(Assignment { centroids: vec![], ..assignment(512) }), "", "0 numbers are no centroids of 3"),
    ];
    for (output, bad, expected) in cases {
        let said = refused(output, bad, Ok(vec![0.0; 7])).to_string();
        assert!(said.contains(expected), "{said}");
    }
}
