//! Classification of images that may show several classes: a top layer and the fully connected layers, or the whole network,
//! taught by binary cross-entropy.
//!
//! By `eval_voc_classif.py` of the authors' release: the fully connected layers start anew with biases of 0.1, batch norm keeps
//! its running statistics, the gradient is cut to a length of 10, the learning rate is halved now and then, and an image's
//! score is the mean over views of what comes before the sigmoid. Unlike there, convolutions that learn start from what the
//! network has learned (the paper's column "all"), where the release draws them anew.

use crate::checkpoint::{self, OPTIMIZER, TrainingProgress};
use crate::forward::Mode;
use crate::sgd::{SgdOptions, Trained, descend};
use crate::weights::{Tensors, channels_last, first_value};
use crate::{Network, NetworkError};
use deepcluster_domain::plan::{Layer, Start, WeightSpec};
use deepcluster_domain::{Plan, Purpose, Seeds};
use deepcluster_volume::publish::Digest;
use std::path::Path;
use tch::{Kind, Reduction, Tensor};

/// The longest that a gradient may be, over all weights together.
const LONGEST_GRADIENT: f64 = 10.0;

/// What biases of layers that start anew start as.
const FIRST_BIAS: f64 = 0.1;

/// Names of the top layer's weight and bias.
const TOP_LAYER: [&str; 2] = ["top_layer.weight", "top_layer.bias"];

/// What learns, and how.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FinetuneOptions {
    /// Classes, of which an image shows any number.
    pub n_classes: u32,
    /// Whether the convolutions and norms learn, too.
    pub all_layers: bool,
    /// Of every weight that learns; the rate is the first one.
    pub sgd: SgdOptions,
    /// After so many steps the rate is halved, again and again.
    pub halve_every: u64,
}

/// A network that learns to tell what images show.
pub struct Finetuning {
    /// Its tensors are those that the layers use.
    network: Network,
    /// What learns, in order of the layers.
    body: Vec<Trained>,
    /// Weight and bias.
    top_layer: [Trained; 2],
    options: FinetuneOptions,
    seeds: Seeds,
    mode: Mode,
}

impl Finetuning {
    /// Prepares `network`: with layers that start anew, or as [`Finetuning::publish`] has left it in a file; and how far it was.
    ///
    /// # Errors
    /// When the file is not one of this network and these options, or libtorch is out of memory.
    pub fn new(
        network: Network,
        options: FinetuneOptions,
        seeds: Seeds,
        saved: Option<&Path>,
    ) -> Result<(Self, TrainingProgress), NetworkError> {
        // Layers that do not learn are looked at in eval mode alone.
        let mut network = if options.all_layers { network } else { network.folded()? };
        let (device, kind) = (network.runtime.device, network.runtime.kind);
        let specs = learning(&network.plan, options.all_layers);
        let top_specs = top_layer(network.plan.embedding, options.n_classes);
        let (stored, progress) = match saved {
            Some(path) => {
                let both = specs.iter().chain(&top_specs).flat_map(|spec| [spec.clone(), momentum_of(spec)]);
                let stored = checkpoint::load_some(path, &both.collect::<Vec<_>>(), device)?;
                (stored, checkpoint::load_progress(path)?)
            }
            None => {
                let fresh = specs.iter().filter(|spec| starts_anew(&network.plan, spec)).chain(&top_specs);
                tch::manual_seed(seeds.number(Purpose::TopLayer, 0) as i64);
                let first =
                    |spec: &WeightSpec| Ok::<_, NetworkError>((spec.name.clone(), first_value_of_new(spec)?.f_to(device)?));
                (fresh.map(first).collect::<Result<Tensors, NetworkError>>()?, TrainingProgress::default())
            }
        };
        let trained = |spec: &WeightSpec, master: Tensor| {
            Trained::with_momentum(spec.name.clone(), master, kind, stored.get(&momentum_of(spec).name))
        };
        let mut body = Vec::with_capacity(specs.len());
        for spec in &specs {
            let Some(tensor) = network.tensors.get_mut(&spec.name) else { continue };
            let master = match stored.get(&spec.name) {
                Some(stored) => channels_last(stored)?,
                None => tensor.shallow_clone(),
            };
            let weight = trained(spec, master)?;
            *tensor = weight.used.shallow_clone();
            body.push(weight);
        }
        let [weight, bias] = &top_specs;
        let top = |spec: &WeightSpec| trained(spec, found(&stored, &spec.name)?);
        let top_layer = [top(weight)?, top(bias)?];
        Ok((Self { network, body, top_layer, options, seeds, mode: Mode::FINETUNE }, progress))
    }

    /// One step on RGB bytes `[n, size, size, 3]` with their labels `[n, n_classes]`: 1 where the image shows the class, −1 where
    /// it does not, 0 where that does not count. The binary cross-entropy before it, summed over the classes, of an image.
    ///
    /// # Errors
    /// When libtorch is out of memory.
    pub fn step(&mut self, pixels: &[u8], labels: &[i32], step: u64) -> Result<f64, NetworkError> {
        let device = self.network.runtime.device;
        // Dropout draws from (seed, step), so that what was interrupted draws the same.
        tch::manual_seed(self.seeds.number(Purpose::Dropout, step) as i64);
        let labels = Tensor::f_from_slice(labels)?.f_view([-1, i64::from(self.options.n_classes)])?.f_to(device)?;
        let shown = labels.f_eq(1_i64)?.f_totype(Kind::Float)?;
        let counts = labels.f_ne(0_i64)?.f_totype(Kind::Float)?;
        let [weight, bias] = &self.top_layer;
        let logits = self.network.logits(self.network.seen(pixels)?, self.mode, [&weight.used, &bias.used])?;
        let sum = logits.f_binary_cross_entropy_with_logits::<&Tensor>(&shown, Some(&counts), None, Reduction::Sum)?;
        let n_images = labels.size().first().copied().unwrap_or(1);
        let loss = sum.f_div_scalar(n_images)?;
        let used: Vec<&Tensor> = self.body.iter().chain(&self.top_layer).map(|trained| &trained.used).collect();
        let gradients = cut(Tensor::f_run_backward(&[&loss], &used, false, false)?)?;
        let halved = (step / self.options.halve_every.max(1)).min(1000) as i32;
        let mut sgd = self.options.sgd;
        sgd.learning_rate *= 0.5_f64.powi(halved);
        descend(self.body.iter_mut().chain(&mut self.top_layer), &gradients, &sgd, device)?;
        Ok(loss.f_double_value(&[])?)
    }

    /// Publishes what learns, its momentum, and how far it is.
    ///
    /// # Errors
    /// When a weight is not finite, or the file cannot be written.
    pub fn publish(&self, path: &Path, progress: &TrainingProgress) -> Result<Digest, NetworkError> {
        let mut tensors = Tensors::new();
        for trained in self.body.iter().chain(&self.top_layer) {
            tensors.insert(trained.name.clone(), trained.master.shallow_clone());
            if let Some(momentum) = &trained.momentum {
                tensors.insert(format!("{OPTIMIZER}{}", trained.name), momentum.shallow_clone());
            }
        }
        checkpoint::publish_some(path, &tensors, progress)
    }
}

/// A network that has learned to tell what images show.
pub struct Finetuned {
    network: Network,
    /// Weight and bias.
    top_layer: [Tensor; 2],
    n_classes: u32,
}

impl Finetuned {
    /// `network` with what [`Finetuning::publish`] has written of it.
    ///
    /// # Errors
    /// When the file is not one of this network, or libtorch is out of memory.
    pub fn load(mut network: Network, n_classes: u32, all_layers: bool, trained: &Path) -> Result<Self, NetworkError> {
        let specs = learning(&network.plan, all_layers);
        let top_specs = top_layer(network.plan.embedding, n_classes);
        let all: Vec<WeightSpec> = specs.iter().chain(&top_specs).cloned().collect();
        let mut stored = checkpoint::load_some(trained, &all, network.runtime.device)?;
        let [weight, bias] = TOP_LAYER;
        let top_layer = [found(&stored, weight)?, found(&stored, bias)?];
        stored.retain(|name, _| !TOP_LAYER.contains(&name.as_str()));
        network.tensors.extend(stored);
        Ok(Self { network: network.folded()?, top_layer, n_classes })
    }

    /// Scores of RGB bytes `[n · crops, size, size, 3]`, of which `crops` neighbouring views are one image: `[n, n_classes]` in C
    /// order, the means of what comes before the sigmoid.
    ///
    /// # Errors
    /// When libtorch is out of memory.
    pub fn scores(&self, pixels: &[u8], crops: usize) -> Result<Vec<f32>, NetworkError> {
        let _no_grad = tch::no_grad_guard();
        let [weight, bias] = &self.top_layer;
        let logits = self.network.logits(self.network.seen(pixels)?, Mode::Eval, [weight, bias])?;
        let views = logits.f_view([-1, crops as i64, i64::from(self.n_classes)])?;
        let means = views.f_mean_dim([1_i64].as_slice(), false, Kind::Float)?.f_to(tch::Device::Cpu)?.f_contiguous()?;
        let mut values = vec![0.0; means.numel()];
        means.f_copy_data(&mut values, means.numel())?;
        Ok(values)
    }
}

/// The weights of the body that learn: all, or those of the fully connected layers.
fn learning(plan: &Plan, all_layers: bool) -> Vec<WeightSpec> {
    let learns = |spec: &WeightSpec| spec.start.is_trained() && (all_layers || starts_anew(plan, spec));
    plan.weights().into_iter().filter(learns).collect()
}

/// Whether a weight belongs to a fully connected layer.
fn starts_anew(plan: &Plan, spec: &WeightSpec) -> bool {
    let layer = spec.name.rsplit_once('.').map_or("", |(layer, _)| layer);
    plan.layers.iter().any(|other| matches!(other, Layer::Linear { name, .. } if name == layer))
}

fn top_layer(embedding: i64, n_classes: u32) -> [WeightSpec; 2] {
    let n_classes = i64::from(n_classes);
    let [weight, bias] = TOP_LAYER.map(str::to_owned);
    [
        WeightSpec { name: weight, shape: vec![n_classes, embedding], start: Start::Normal(0.01) },
        WeightSpec { name: bias, shape: vec![n_classes], start: Start::Zero },
    ]
}

fn momentum_of(spec: &WeightSpec) -> WeightSpec {
    WeightSpec { name: format!("{OPTIMIZER}{}", spec.name), ..spec.clone() }
}

fn first_value_of_new(spec: &WeightSpec) -> Result<Tensor, NetworkError> {
    let value = first_value(spec)?;
    match spec.start {
        Start::Zero => Ok(value.f_add_scalar(FIRST_BIAS)?),
        _ => Ok(value),
    }
}

fn found(tensors: &Tensors, name: &str) -> Result<Tensor, NetworkError> {
    let tensor = tensors.get(name).ok_or_else(|| NetworkError::Torch(format!("there is no {name}")))?;
    Ok(tensor.shallow_clone())
}

/// Gradients, shortened where they are longer together than they may be.
fn cut(gradients: Vec<Tensor>) -> Result<Vec<Tensor>, NetworkError> {
    let _no_grad = tch::no_grad_guard();
    let square = |gradient: &Tensor| gradient.f_totype(Kind::Float)?.f_square()?.f_sum(Kind::Float);
    let squares = gradients.iter().map(square).collect::<Result<Vec<Tensor>, _>>()?;
    let length = Tensor::f_stack(&squares, 0)?.f_sum(Kind::Float)?.f_double_value(&[])?.sqrt();
    if length <= LONGEST_GRADIENT {
        return Ok(gradients);
    }
    let shorter = |gradient: &Tensor| gradient.f_mul_scalar(LONGEST_GRADIENT / length);
    Ok(gradients.iter().map(shorter).collect::<Result<Vec<Tensor>, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Runtime;
    use deepcluster_domain::{Architecture, DeviceChoice, EpochId, Precision};

    const SGD: SgdOptions = SgdOptions { learning_rate: 0.02, momentum: 0.9, weight_decay: 1e-6 };
    const OPTIONS: FinetuneOptions = FinetuneOptions { n_classes: 2, all_layers: false, sgd: SGD, halve_every: 1000 };

    /// Weights by a formula: libtorch has one generator for all threads, and so for all tests.
    fn network(architecture: Architecture, image_size: u32) -> Network {
        let plan = Plan::new(architecture, image_size, false);
        let value = |spec: &WeightSpec| {
            let n = spec.shape.iter().product::<i64>() as u32;
            let unit =
                |at: u32| f64::from(at.wrapping_mul(2_654_435_761) ^ (at >> 3).wrapping_mul(2_246_822_519)) / f64::from(u32::MAX);
            let values: Vec<f32> = match spec.start {
                Start::Normal(std) => (1..=n).map(|at| ((2.0 * unit(at) - 1.0) * std * 3.0_f64.sqrt()) as f32).collect(),
                Start::Zero | Start::RunningMean => vec![0.0; n as usize],
                Start::One | Start::RunningVar => vec![1.0; n as usize],
            };
            (spec.name.clone(), Tensor::from_slice(&values).view(spec.shape.as_slice()))
        };
        let tensors = plan.weights().iter().map(value).collect();
        Network::new(plan, Runtime::prepare(DeviceChoice::Cpu, Precision::F32, 1).unwrap(), tensors).unwrap()
    }

    fn finetuning(options: FinetuneOptions, saved: Option<&Path>) -> (Finetuning, TrainingProgress) {
        Finetuning::new(network(Architecture::ResNet18, 20), options, Seeds::new(1, EpochId(0)), saved).unwrap()
    }

    /// Four images, one for each way to be red and blue or not; of the last, nobody knows whether it is blue.
    fn lesson() -> (Vec<u8>, Vec<i32>) {
        let image = |n: u8| (0..400_u32).flat_map(move |at| [200 * (n % 2), (at % 50) as u8, 200 * (n / 2)]);
        ((0..4).flat_map(image).collect(), vec![-1, -1, 1, -1, -1, 1, 1, 0])
    }

    #[test]
    fn what_does_not_count_changes_neither_loss_nor_weights() {
        let (pixels, labels) = lesson();
        let (mut one, _) = finetuning(OPTIONS, None);
        let weight = one.top_layer[0].master.copy();
        let bias = one.top_layer[1].master.copy();
        let folded = network(Architecture::ResNet18, 20).folded().unwrap();
        let logits = tch::no_grad(|| folded.logits(folded.seen(&pixels).unwrap(), Mode::Eval, [&weight, &bias]).unwrap());
        let entropy = |at: usize| {
            let logit = logits.double_value(&[at as i64 / 2, at as i64 % 2]);
            (1.0 + (-logit * f64::from(labels[at])).exp()).ln()
        };
        let expected = (0..7).map(entropy).sum::<f64>() / 4.0;
        let said = one.step(&pixels, &labels, 0).unwrap();
        assert!((said - expected).abs() < 1e-5, "{said}, not {expected}");

        let (mut idle, _) = finetuning(OPTIONS, None);
        let before = idle.top_layer[0].master.copy();
        assert_eq!(idle.step(&pixels, &[0; 8], 0).unwrap(), 0.0);
        let change = (&idle.top_layer[0].master - &before).abs().max().double_value(&[]);
        assert!(change < 1e-8, "weight decay alone: {change}");
    }

    #[test]
    fn classes_are_learned_and_go_on_from_their_file() {
        let (pixels, labels) = lesson();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trained.safetensors");
        for all_layers in [false, true] {
            let options = FinetuneOptions { all_layers, ..OPTIONS };
            let (mut one, _) = finetuning(options, None);
            assert_eq!(one.body.is_empty(), !all_layers, "a ResNet has no fully connected layers");
            let losses: Vec<f64> = (0..120).map(|step| one.step(&pixels, &labels, step).unwrap()).collect();
            assert!(losses[119] < 0.7 * losses[0], "{losses:?}");
            let progress = TrainingProgress { steps: 120, ..TrainingProgress::default() };
            one.publish(&path, &progress).unwrap();
            let trained = Finetuned::load(network(Architecture::ResNet18, 20), 2, all_layers, &path).unwrap();
            let scores = trained.scores(&pixels, 1).unwrap();
            assert!(scores[2] > scores[0] && scores[5] > scores[1], "{scores:?}");
            let twice: Vec<u8> = pixels.chunks(1200).flat_map(|image| [image, image].concat()).collect();
            let averaged = trained.scores(&twice, 2).unwrap();
            assert!(
                averaged.iter().zip(&scores).all(|(a, b)| (a - b).abs() < 1e-3 * (1.0 + b.abs())),
                "{averaged:?}, not {scores:?}"
            );
            let (mut other, went) = finetuning(options, Some(&path));
            assert_eq!(went, progress);
            assert_eq!(one.step(&pixels, &labels, 120).unwrap(), other.step(&pixels, &labels, 120).unwrap());
        }
        let other = FinetuneOptions { n_classes: 3, ..OPTIONS };
        let refused = Finetuning::new(network(Architecture::ResNet18, 20), other, Seeds::new(1, EpochId(0)), Some(&path));
        let sentence = refused.err().unwrap().to_string();
        assert!(sentence.contains("top_layer."), "{sentence}");
    }

    #[test]
    fn fully_connected_layers_start_anew_and_nothing_else_changes_until_told() {
        let before = network(Architecture::AlexNet, 64);
        let names =
            |all_layers| -> Vec<String> { learning(&before.plan, all_layers).into_iter().map(|spec| spec.name).collect() };
        assert_eq!(names(false), ["classifier.1.weight", "classifier.1.bias", "classifier.4.weight", "classifier.4.bias"]);
        assert!(names(true).contains(&"features.0.weight".to_owned()) && names(true).contains(&"features.1.bias".to_owned()));
        assert!(!names(true).iter().any(|name| name.contains("running")));
        let options = FinetuneOptions { all_layers: true, ..OPTIONS };
        let (tuned, _) = Finetuning::new(network(Architecture::AlexNet, 64), options, Seeds::new(2, EpochId(0)), None).unwrap();
        let same = |name: &str| {
            let weight = tuned.body.iter().find(|weight| weight.name == name).unwrap();
            weight.master.equal(&before.tensors[name])
        };
        assert!(same("features.0.weight") && !same("classifier.1.weight"));
        let bias = tuned.body.iter().find(|weight| weight.name == "classifier.4.bias").unwrap();
        assert!((bias.master.mean(Kind::Float).double_value(&[]) - 0.1).abs() < 1e-6);
    }

    #[test]
    fn long_gradients_are_cut_and_short_ones_stay() {
        let gradient = |values: &[f32]| Tensor::from_slice(values);
        let short = cut(vec![gradient(&[3.0, 4.0]), gradient(&[0.0])]).unwrap();
        assert_eq!(Vec::<f32>::try_from(&short[0]).unwrap(), [3.0, 4.0]);
        let long = cut(vec![gradient(&[30.0, 0.0]), gradient(&[40.0])]).unwrap();
        assert!((long[0].double_value(&[0]) - 6.0).abs() < 1e-5 && (long[1].double_value(&[0]) - 8.0).abs() < 1e-5);
    }
}
