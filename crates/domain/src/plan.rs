//! What the networks look like: layers as data, with the names that their weights have in a PyTorch state_dict.

use crate::Architecture;
use crate::geometry::{HIDDEN, embedding_width, feature_map_side};

/// One layer, or a few that belong together.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "fields are the usual ones of such layers; kernels and strides are square")]
pub enum Layer {
    /// 2-D convolution.
    Conv { name: String, from: i64, to: i64, kernel: i64, stride: i64, padding: i64, bias: bool },
    /// Batch norm over channels.
    BatchNorm { name: String, channels: i64 },
    /// Rectifier.
    Relu,
    /// Maximum over a window.
    MaxPool { kernel: i64, stride: i64, padding: i64 },
    /// Mean over all pixels, `[n, c, h, w]` → `[n, c]`.
    AveragePool,
    /// `[n, c, h, w]` → `[n, c·h·w]`.
    Flatten,
    /// Zeroes half of the values in training.
    Dropout,
    /// Fully connected.
    Linear { name: String, from: i64, to: i64 },
    /// body(x) + shortcut(x), then a rectifier; an empty shortcut is the identity.
    Residual { body: Vec<Layer>, shortcut: Vec<Layer> },
}

/// A network up to its embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Whether the fixed Sobel filter comes first.
    pub sobel: bool,
    /// Side of the square input in pixels.
    pub image_size: u32,
    /// From the (filtered) image to the embedding, which is not rectified.
    pub layers: Vec<Layer>,
    /// Whether a rectifier stands between the embedding and the top layer.
    pub relu_before_top: bool,
    /// Width of the embedding.
    pub embedding: i64,
}

/// A weight or statistic of the body.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightSpec {
    /// Name in a PyTorch state_dict.
    pub name: String,
    /// Its shape.
    pub shape: Vec<i64>,
    /// What it starts as.
    pub start: Start,
}

/// What a weight starts as (recipe).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Start {
    /// N(0, std), trained.
    Normal(f64),
    /// 0, trained.
    Zero,
    /// 1, trained.
    One,
    /// 0, kept by batch norm.
    RunningMean,
    /// 1, kept by batch norm.
    RunningVar,
}

impl Start {
    /// Whether SGD changes it.
    pub fn is_trained(self) -> bool {
        matches!(self, Self::Normal(_) | Self::Zero | Self::One)
    }
}

impl Plan {
    /// The plan of an architecture for square images.
    pub fn new(architecture: Architecture, image_size: u32, sobel: bool) -> Self {
        let channels = if sobel { 2 } else { 3 };
        let side = i64::from(feature_map_side(architecture, image_size));
        let layers = match architecture {
            Architecture::AlexNet => alexnet(channels, side),
            Architecture::Vgg16 => vgg16(channels, side),
            Architecture::ResNet18 => resnet(channels, Block::Basic, [2, 2, 2, 2]),
            Architecture::ResNet50 => resnet(channels, Block::Bottleneck, [3, 4, 6, 3]),
        };
        Self {
            sobel,
            image_size,
            layers,
            relu_before_top: matches!(architecture, Architecture::AlexNet | Architecture::Vgg16),
            embedding: i64::from(embedding_width(architecture)),
        }
    }

    /// Every weight and statistic of the body, in order of the layers.
    pub fn weights(&self) -> Vec<WeightSpec> {
        let mut weights = Vec::new();
        collect(&self.layers, &mut weights);
        weights
    }
}

fn collect(layers: &[Layer], weights: &mut Vec<WeightSpec>) {
    for layer in layers {
        match layer {
            Layer::Conv { name, from, to, kernel, bias, .. } => {
                let std = (2.0 / (kernel * kernel * to) as f64).sqrt();
                weights.push(spec(name, "weight", &[*to, *from, *kernel, *kernel], Start::Normal(std)));
                if *bias {
                    weights.push(spec(name, "bias", &[*to], Start::Zero));
                }
            }
            Layer::BatchNorm { name, channels } => {
                let starts = [
                    ("weight", Start::One),
                    ("bias", Start::Zero),
                    ("running_mean", Start::RunningMean),
                    ("running_var", Start::RunningVar),
                ];
                weights.extend(starts.map(|(leaf, start)| spec(name, leaf, &[*channels], start)));
            }
            Layer::Linear { name, from, to } => {
                weights.push(spec(name, "weight", &[*to, *from], Start::Normal(0.01)));
                weights.push(spec(name, "bias", &[*to], Start::Zero));
            }
            Layer::Residual { body, shortcut } => {
                collect(body, weights);
                collect(shortcut, weights);
            }
            Layer::Relu | Layer::MaxPool { .. } | Layer::AveragePool | Layer::Flatten | Layer::Dropout => {}
        }
    }
}

fn spec(layer: &str, leaf: &str, shape: &[i64], start: Start) -> WeightSpec {
    WeightSpec { name: format!("{layer}.{leaf}"), shape: shape.to_vec(), start }
}

fn conv(name: String, from: i64, to: i64, kernel: i64, stride: i64, padding: i64) -> Layer {
    Layer::Conv { name, from, to, kernel, stride, padding, bias: true }
}

/// 96-256-384-384-256 with batch norm; convs at `features.0, 4, 8, 11, 14`, each followed by its norm.
fn alexnet(channels: i64, side: i64) -> Vec<Layer> {
    let mut layers = Vec::new();
    let mut from = channels;
    for (index, to, kernel, stride, padding, pool) in [
        (0, 96, 11, 4, 2, true),
        (4, 256, 5, 1, 2, true),
        (8, 384, 3, 1, 1, false),
        (11, 384, 3, 1, 1, false),
        (14, 256, 3, 1, 1, true),
    ] {
        layers.push(conv(format!("features.{index}"), from, to, kernel, stride, padding));
        layers.push(Layer::BatchNorm { name: format!("features.{}", index + 1), channels: to });
        layers.push(Layer::Relu);
        if pool {
            layers.push(Layer::MaxPool { kernel: 3, stride: 2, padding: 0 });
        }
        from = to;
    }
    layers.extend([Layer::Flatten, Layer::Dropout]);
    layers.extend(hidden_layers(256 * side * side, "classifier.1", "classifier.4"));
    layers
}

/// The usual 13 convs with 2×2 pools.
fn vgg16(channels: i64, side: i64) -> Vec<Layer> {
    let mut layers = Vec::new();
    let (mut from, mut index) = (channels, 0);
    for (to, convs) in [(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)] {
        for _ in 0..convs {
            layers.push(conv(format!("features.{index}"), from, to, 3, 1, 1));
            layers.push(Layer::BatchNorm { name: format!("features.{}", index + 1), channels: to });
            layers.push(Layer::Relu);
            from = to;
            index += 3;
        }
        layers.push(Layer::MaxPool { kernel: 2, stride: 2, padding: 0 });
        index += 1;
    }
    layers.push(Layer::Flatten);
    layers.extend(hidden_layers(512 * side * side, "classifier.0", "classifier.3"));
    layers
}

fn hidden_layers(from: i64, first: &str, second: &str) -> [Layer; 4] {
    let width = i64::from(HIDDEN);
    [
        Layer::Linear { name: first.to_owned(), from, to: width },
        Layer::Relu,
        Layer::Dropout,
        Layer::Linear { name: second.to_owned(), from: width, to: width },
    ]
}

#[derive(Clone, Copy, PartialEq)]
enum Block {
    /// Two 3×3 convs.
    Basic,
    /// 1×1, 3×3, 1×1 with four times the channels; the stride sits on the 3×3, as torchvision has it.
    Bottleneck,
}

fn resnet(channels: i64, block: Block, blocks: [usize; 4]) -> Vec<Layer> {
    let mut layers = conv_bn("conv1", "bn1", channels, 64, 7, 2, 3);
    layers.push(Layer::Relu);
    layers.push(Layer::MaxPool { kernel: 3, stride: 2, padding: 1 });
    let mut from = 64;
    for (stage, (width, n)) in [64, 128, 256, 512].into_iter().zip(blocks).enumerate() {
        for index in 0..n {
            let stride = if stage > 0 && index == 0 { 2 } else { 1 };
            let name = format!("layer{}.{index}", stage + 1);
            let to = if block == Block::Basic { width } else { width * 4 };
            layers.push(residual(&name, block, from, width, to, stride));
            from = to;
        }
    }
    layers.push(Layer::AveragePool);
    layers
}

fn residual(name: &str, block: Block, from: i64, width: i64, to: i64, stride: i64) -> Layer {
    let numbered = |n: usize, from, to, kernel, stride| {
        conv_bn(&format!("{name}.conv{n}"), &format!("{name}.bn{n}"), from, to, kernel, stride, kernel / 2)
    };
    let stages = match block {
        Block::Basic => vec![numbered(1, from, width, 3, stride), numbered(2, width, to, 3, 1)],
        Block::Bottleneck => {
            vec![numbered(1, from, width, 1, 1), numbered(2, width, width, 3, stride), numbered(3, width, to, 1, 1)]
        }
    };
    let shortcut = if from != to || stride != 1 {
        conv_bn(&format!("{name}.downsample.0"), &format!("{name}.downsample.1"), from, to, 1, stride, 0)
    } else {
        Vec::new()
    };
    Layer::Residual { body: stages.join(&Layer::Relu), shortcut }
}

fn conv_bn(conv: &str, bn: &str, from: i64, to: i64, kernel: i64, stride: i64, padding: i64) -> Vec<Layer> {
    vec![
        Layer::Conv { name: conv.to_owned(), from, to, kernel, stride, padding, bias: false },
        Layer::BatchNorm { name: bn.to_owned(), channels: to },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn n_trained(architecture: Architecture, size: u32, sobel: bool) -> i64 {
        let weights = Plan::new(architecture, size, sobel).weights();
        weights.iter().filter(|w| w.start.is_trained()).map(|w| w.shape.iter().product::<i64>()).sum()
    }

    #[test]
    fn networks_have_as_many_weights_as_in_pytorch() {
        // torchvision's counts less their fully connected layer: 11,689,512 - 513,000 and 25,557,032 - 2,049,000.
        assert_eq!(n_trained(Architecture::ResNet18, 64, false), 11_176_512);
        assert_eq!(n_trained(Architecture::ResNet50, 64, false), 23_508_032);
        // torchvision's vgg16_bn less its last layer of 4,097,000.
        assert_eq!(n_trained(Architecture::Vgg16, 224, false), 138_365_992 - 4_097_000);
    }

    #[test]
    fn names_are_those_of_the_official_checkpoints() {
        let names =
            |architecture| -> Vec<String> { Plan::new(architecture, 224, true).weights().into_iter().map(|w| w.name).collect() };
        let alexnet = names(Architecture::AlexNet);
        assert_eq!(
            alexnet[..6],
            [
                "features.0.weight",
                "features.0.bias",
                "features.1.weight",
                "features.1.bias",
                "features.1.running_mean",
                "features.1.running_var"
            ]
        );
        assert_eq!(alexnet.last().map(String::as_str), Some("classifier.4.bias"));
        assert!(names(Architecture::Vgg16).contains(&"features.41.running_var".to_owned()));
        let resnet = names(Architecture::ResNet50);
        for name in ["conv1.weight", "layer2.0.downsample.1.running_mean", "layer4.2.conv3.weight"] {
            assert!(resnet.contains(&name.to_owned()), "{name}");
        }
        let first_linear =
            Plan::new(Architecture::AlexNet, 64, true).weights().into_iter().find(|w| w.name == "classifier.1.weight");
        assert_eq!(first_linear.unwrap().shape, [4096, 256]);
    }
}
