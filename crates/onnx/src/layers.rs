//! From the input to the embedding: normalisation, the Sobel filter, and the plan's layers as ONNX's operators.

use crate::Input;
use crate::graph::{Graph, float, int, ints};
use crate::proto::AttributeProto;
use deepcluster_domain::Plan;
use deepcluster_domain::input::{MEAN, SOBEL_GREY, SOBEL_KERNELS, STD};
use deepcluster_domain::plan::Layer;

/// What batch norm adds to a variance.
const NORM_EPSILON: f32 = 1e-5;

/// From a value of the given kind to the embedding; returns the value's name.
pub(crate) fn embedding(graph: &mut Graph, plan: &Plan, input: Input, value: &str) -> String {
    let mut x = value.to_owned();
    if input == Input::Pixels {
        x = normalise(graph, &x);
    }
    if plan.sobel && input != Input::Seen {
        x = sobel(graph, &x);
    }
    chain(graph, &plan.layers, x)
}

fn normalise(graph: &mut Graph, x: &str) -> String {
    graph.constant("normalise.range", &[], &[255.0]);
    graph.constant("normalise.mean", &[1, 3, 1, 1], &MEAN);
    graph.constant("normalise.std", &[1, 3, 1, 1], &STD);
    let scaled = graph.named("normalise.scaled", "Div", &[x, "normalise.range"], Vec::new());
    let centred = graph.named("normalise.centred", "Sub", &[&scaled, "normalise.mean"], Vec::new());
    graph.named("normalise", "Div", &[&centred, "normalise.std"], Vec::new())
}

/// Two convolutions, by their names in the official checkpoints: the second sees zeros around the normalised image.
fn sobel(graph: &mut Graph, x: &str) -> String {
    graph.constant("sobel.0.weight", &[1, 3, 1, 1], &SOBEL_GREY);
    graph.constant("sobel.1.weight", &[2, 1, 3, 3], &SOBEL_KERNELS);
    let grey = graph.named("sobel.0", "Conv", &[x, "sobel.0.weight"], window(1, 1, 0));
    graph.named("sobel.1", "Conv", &[&grey, "sobel.1.weight"], window(3, 1, 1))
}

fn chain(graph: &mut Graph, layers: &[Layer], mut x: String) -> String {
    for layer in layers {
        x = one(graph, layer, x);
    }
    x
}

fn one(graph: &mut Graph, layer: &Layer, x: String) -> String {
    match layer {
        Layer::Conv { name, kernel, stride, padding, bias, .. } => {
            let [weight, shift] = ["weight", "bias"].map(|leaf| format!("{name}.{leaf}"));
            let mut inputs = vec![x.as_str(), weight.as_str()];
            if *bias {
                inputs.push(&shift);
            }
            graph.named(name, "Conv", &inputs, window(*kernel, *stride, *padding))
        }
        Layer::BatchNorm { name, .. } => {
            let [weight, bias, mean, var] =
                ["weight", "bias", "running_mean", "running_var"].map(|leaf| format!("{name}.{leaf}"));
            let inputs = [x.as_str(), weight.as_str(), bias.as_str(), mean.as_str(), var.as_str()];
            graph.named(name, "BatchNormalization", &inputs, vec![float("epsilon", NORM_EPSILON)])
        }
        Layer::Relu => graph.node("Relu", &[&x], Vec::new()),
        Layer::MaxPool { kernel, stride, padding } => graph.node("MaxPool", &[&x], window(*kernel, *stride, *padding)),
        Layer::AveragePool => {
            let means = graph.node("GlobalAveragePool", &[&x], Vec::new());
            flatten(graph, &means)
        }
        Layer::Flatten => flatten(graph, &x),
        Layer::Dropout => x,
        Layer::Linear { name, .. } => {
            let [weight, bias] = ["weight", "bias"].map(|leaf| format!("{name}.{leaf}"));
            graph.named(name, "Gemm", &[&x, &weight, &bias], vec![int("transB", 1)])
        }
        Layer::Residual { body, shortcut } => {
            let side = chain(graph, shortcut, x.clone());
            let straight = chain(graph, body, x);
            let sum = graph.node("Add", &[&straight, &side], Vec::new());
            graph.node("Relu", &[&sum], Vec::new())
        }
    }
}

fn flatten(graph: &mut Graph, x: &str) -> String {
    graph.node("Flatten", &[x], vec![int("axis", 1)])
}

/// A square window that moves over the image: what does not fill it at the far edges is left out.
fn window(kernel: i64, stride: i64, padding: i64) -> Vec<AttributeProto> {
    vec![
        ints("kernel_shape", &[kernel, kernel]),
        ints("strides", &[stride, stride]),
        ints("pads", &[padding; 4]),
        ints("dilations", &[1, 1]),
    ]
}
