//! Linear probes: logistic regression on frozen activations, one for each layer, all taught by the same passes of the network.
//!
//! Paper, section 4.2, and `eval_linear.py` of the authors' release: activations max-pooled to about 9,000 values, SGD with
//! momentum, and a rate that decays as lr / √(1 + lr · decay · t), t the number of steps. A probe may see standardised values:
//! less their running mean, divided by their running deviation, as batch norm without weights has them.

use crate::checkpoint::{self, TrainingProgress};
use crate::layers::{max_pooled, pooled_width};
use crate::weights::Tensors;
use crate::{Network, NetworkError};
use deepcluster_domain::plan::{Start, WeightSpec};
use deepcluster_domain::{Purpose, Seeds, Tap};
use deepcluster_volume::publish::Digest;
use std::path::Path;
use tch::{Kind, Tensor};

/// How much of the running statistics each batch replaces, as PyTorch's batch norm.
const STATISTICS_MOMENTUM: f64 = 0.1;

/// Keeps values that never vary from being divided by nothing.
const EPSILON: f64 = 1e-5;

/// Parts of a probe, by the names in its file.
const LEAVES: [&str; 6] = ["weight", "bias", "running_mean", "running_var", "momentum.weight", "momentum.bias"];

/// How probes learn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProbeOptions {
    /// Classes to tell apart.
    pub n_classes: u32,
    /// About how many values of a layer are seen.
    pub values: u32,
    /// Whether values are standardised.
    pub standardise: bool,
    /// Learning rate at the beginning.
    pub learning_rate: f64,
    /// Momentum.
    pub momentum: f64,
    /// Weight decay, which the rate's decay follows, too.
    pub weight_decay: f64,
}

/// How many images a probe got right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hits {
    /// The true class came first.
    pub top1: u64,
    /// It came among the first five.
    pub top5: u64,
    /// Images.
    pub n: u64,
}

/// The probes of one network.
pub struct Probes {
    network: Network,
    options: ProbeOptions,
    taps: Vec<Tap>,
    heads: Vec<Tensors>,
}

impl Probes {
    /// Probes of `network` behind `taps`, in order of the layers: fresh ones, or those of a file and how far they were.
    ///
    /// # Errors
    /// When the file is not of these layers and classes, or libtorch is out of memory.
    pub fn new(
        network: Network,
        mut taps: Vec<Tap>,
        options: ProbeOptions,
        seeds: Seeds,
        saved: Option<&Path>,
    ) -> Result<(Self, TrainingProgress), NetworkError> {
        let _no_grad = tch::no_grad_guard();
        taps.sort_by_key(|tap| tap.behind);
        let side = network.plan.image_size as usize;
        let shapes = network.activations(&vec![0; side * side * 3], &taps)?;
        let mut heads = Vec::with_capacity(taps.len());
        for (number, (tap, shape)) in (0..).zip(taps.iter().zip(&shapes)) {
            let width = pooled_width(&shape.size(), options.values);
            let specs = head(&tap.name, i64::from(options.n_classes), width);
            heads.push(match saved {
                Some(path) => checkpoint::load_some(path, &specs, network.runtime.device)?,
                None => draw(specs, seeds, number, &network)?,
            });
        }
        let progress = saved.map_or(Ok(TrainingProgress::default()), checkpoint::load_progress)?;
        Ok((Self { network, options, taps, heads }, progress))
    }

    /// Names of the layers, in order.
    pub fn layers(&self) -> Vec<String> {
        self.taps.iter().map(|tap| tap.name.clone()).collect()
    }

    /// One step on RGB bytes `[n, size, size, 3]` with their classes; the mean cross-entropy of each probe before it.
    ///
    /// # Errors
    /// When libtorch is out of memory.
    pub fn step(&mut self, pixels: &[u8], classes: &[i64], step: u64) -> Result<Vec<f64>, NetworkError> {
        let _no_grad = tch::no_grad_guard();
        let activations = self.network.activations(pixels, &self.taps)?;
        let device = self.network.runtime.device;
        let classes = Tensor::f_from_slice(classes)?.f_to(device)?;
        let ProbeOptions { values, standardise, learning_rate, momentum, weight_decay, .. } = self.options;
        let rate = learning_rate / (1.0 + learning_rate * weight_decay * step as f64).sqrt();
        let mut losses = Vec::with_capacity(self.heads.len());
        for ((tap, head), activations) in self.taps.iter().zip(&mut self.heads).zip(activations) {
            let part = |leaf: &str| find(head, &tap.name, leaf);
            let mut x = max_pooled(&activations, values)?;
            if standardise {
                x = standardised_by_batch(&x, &part("running_mean")?, &part("running_var")?)?;
            }
            let logits = x.f_linear(&part("weight")?, Some(&part("bias")?))?;
            let log_probabilities = logits.f_log_softmax(1, Kind::Float)?;
            let own = log_probabilities.f_gather(1, &classes.f_view([-1, 1])?, false)?;
            losses.push(-own.f_mean(Kind::Float)?.f_double_value(&[])?);
            // The gradient of the mean cross-entropy by the logits: (p − one-hot) / n.
            let rows = classes.f_view([-1, 1])?;
            let minus_one = Tensor::f_full(rows.size(), -1.0, (Kind::Float, device))?;
            let gradient = log_probabilities.f_exp()?.f_scatter_add(1, &rows, &minus_one)?.f_div_scalar(x.size()[0])?;
            let by_weight = gradient.f_transpose(0, 1)?.f_matmul(&x)?;
            let by_bias = gradient.f_sum_dim_intlist([0_i64].as_slice(), false, Kind::Float)?;
            for (leaf, gradient) in [("weight", by_weight), ("bias", by_bias)] {
                let (mut weight, mut buffer) = (part(leaf)?, part(&format!("momentum.{leaf}"))?);
                let _ = buffer.f_mul_scalar_(momentum)?.f_add_(&gradient)?.f_add_(&weight.f_mul_scalar(weight_decay)?)?;
                let _ = weight.f_sub_(&buffer.f_mul_scalar(rate)?)?;
            }
        }
        Ok(losses)
    }

    /// How many images each probe gets right; `crops` neighbouring views are one image, whose probabilities are averaged.
    ///
    /// # Errors
    /// When libtorch is out of memory.
    pub fn hits(&self, pixels: &[u8], classes: &[i64], crops: usize) -> Result<Vec<Hits>, NetworkError> {
        let _no_grad = tch::no_grad_guard();
        let activations = self.network.activations(pixels, &self.taps)?;
        let classes = Tensor::f_from_slice(classes)?.f_to(self.network.runtime.device)?.f_view([-1, 1])?;
        let n_classes = i64::from(self.options.n_classes);
        let mut hits = Vec::with_capacity(self.heads.len());
        for ((tap, head), activations) in self.taps.iter().zip(&self.heads).zip(activations) {
            let part = |leaf: &str| find(head, &tap.name, leaf);
            let mut x = max_pooled(&activations, self.options.values)?;
            if self.options.standardise {
                x = standardised(&x, &part("running_mean")?, &part("running_var")?)?;
            }
            let probabilities = x.f_linear(&part("weight")?, Some(&part("bias")?))?.f_softmax(1, Kind::Float)?;
            let averaged =
                probabilities.f_view([-1, crops as i64, n_classes])?.f_mean_dim([1_i64].as_slice(), false, Kind::Float)?;
            let (_, best) = averaged.f_topk(5.min(n_classes), 1, true, true)?;
            let right = best.f_eq_tensor(&classes)?.f_totype(Kind::Int64)?;
            let count = |tensor: Tensor| Ok::<_, NetworkError>(tensor.f_sum(Kind::Int64)?.f_int64_value(&[])? as u64);
            let top1 = count(right.f_narrow(1, 0, 1)?)?;
            hits.push(Hits { top1, top5: count(right)?, n: classes.size()[0] as u64 });
        }
        Ok(hits)
    }

    /// Publishes the probes and how far they are.
    ///
    /// # Errors
    /// When a number is not finite, or the file cannot be written.
    pub fn publish(&self, path: &Path, progress: &TrainingProgress) -> Result<Digest, NetworkError> {
        let all = self.heads.iter().flatten().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect();
        checkpoint::publish_some(path, &all, progress)
    }
}

fn head(layer: &str, n_classes: i64, width: i64) -> Vec<WeightSpec> {
    let shapes = [vec![n_classes, width], vec![n_classes], vec![width], vec![width], vec![n_classes, width], vec![n_classes]];
    let spec = |(leaf, shape): (&str, Vec<i64>)| {
        let start = match leaf {
            "weight" => Start::Normal(0.01),
            "running_var" => Start::One,
            _ => Start::Zero,
        };
        WeightSpec { name: format!("{layer}.{leaf}"), shape, start }
    };
    LEAVES.into_iter().zip(shapes).map(spec).collect()
}

fn draw(specs: Vec<WeightSpec>, seeds: Seeds, number: u64, network: &Network) -> Result<Tensors, NetworkError> {
    // Each probe has numbers of its own, whatever the others are.
    tch::manual_seed(seeds.number(Purpose::TopLayer, number) as i64);
    specs.iter().map(|spec| Ok((spec.name.clone(), crate::weights::first_value(spec)?.f_to(network.runtime.device)?))).collect()
}

fn find(head: &Tensors, layer: &str, leaf: &str) -> Result<Tensor, NetworkError> {
    let name = format!("{layer}.{leaf}");
    let tensor = head.get(&name).ok_or_else(|| NetworkError::Torch(format!("the probe has no {name}")))?;
    Ok(tensor.shallow_clone())
}

/// By the statistics of the batch, which go into the running ones.
fn standardised_by_batch(x: &Tensor, mean: &Tensor, var: &Tensor) -> Result<Tensor, NetworkError> {
    Ok(x.f_batch_norm::<&Tensor>(None, None, Some(mean), Some(var), true, STATISTICS_MOMENTUM, EPSILON, false)?)
}

fn standardised(x: &Tensor, mean: &Tensor, var: &Tensor) -> Result<Tensor, NetworkError> {
    Ok(x.f_batch_norm::<&Tensor>(None, None, Some(mean), Some(var), false, STATISTICS_MOMENTUM, EPSILON, false)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Runtime;
    use deepcluster_domain::{Architecture, DeviceChoice, EpochId, Precision, RunSpec};

    const OPTIONS: ProbeOptions =
        ProbeOptions { n_classes: 3, values: 200, standardise: false, learning_rate: 0.1, momentum: 0.9, weight_decay: 0.01 };

    fn network() -> Network {
        let spec = RunSpec { architecture: Architecture::ResNet18, image_size: 20, sobel: false, ..RunSpec::default() };
        let runtime = Runtime::prepare(DeviceChoice::Cpu, Precision::F32, 1).unwrap();
        Network::load(&spec, runtime, None).unwrap().folded().unwrap()
    }

    fn probes(names: &[&str], options: ProbeOptions, saved: Option<&Path>) -> (Probes, TrainingProgress) {
        let network = network();
        let taps = names.iter().map(|name| network.plan.tap(name).unwrap()).collect();
        Probes::new(network, taps, options, Seeds::new(1, EpochId(0)), saved).unwrap()
    }

    /// Six images in three colours.
    fn lesson() -> (Vec<u8>, Vec<i64>) {
        let image = |n: usize| (0..400).flat_map(move |at| (0..3).map(move |c| if c == n % 3 { 200 } else { (at % 50) as u8 }));
        ((0..6).flat_map(image).collect(), (0..6).map(|n| n % 3).collect())
    }

    /// The steps of our own formulas against libtorch's gradients and PyTorch's rule for SGD.
    #[test]
    fn a_step_is_that_of_autograd() {
        let (pixels, classes) = lesson();
        let (mut probes, _) = probes(&["layer1"], OPTIONS, None);
        let tap = probes.taps[0].clone();
        let x = max_pooled(&probes.network.activations(&pixels, &[tap]).unwrap()[0], 200).unwrap();
        let mut weight = find(&probes.heads[0], "layer1", "weight").unwrap().copy().set_requires_grad(true);
        let mut buffer = weight.zeros_like();
        for step in 0..3 {
            let bias = find(&probes.heads[0], "layer1", "bias").unwrap().copy();
            let loss = x.linear(&weight, Some(&bias)).cross_entropy_for_logits(&Tensor::from_slice(&classes));
            loss.backward();
            let said = probes.step(&pixels, &classes, step).unwrap()[0];
            assert!((loss.double_value(&[]) - said).abs() < 1e-5, "{said}");
            let rate = 0.1 / (1.0 + 0.1 * 0.01 * step as f64).sqrt();
            tch::no_grad(|| {
                buffer = &buffer * 0.9 + weight.grad() + &weight * 0.01;
                weight = (&weight - &buffer * rate).detach().set_requires_grad(true);
            });
        }
        let ours = find(&probes.heads[0], "layer1", "weight").unwrap();
        assert!((ours - &weight).abs().max().double_value(&[]) < 1e-5);
    }

    #[test]
    fn probes_learn_and_go_on_from_their_file() {
        let (pixels, classes) = lesson();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("probes.safetensors");
        let options = ProbeOptions { standardise: true, ..OPTIONS };
        let (mut one, _) = probes(&["layer2", "layer1"], options, None);
        assert_eq!(one.layers(), ["layer1", "layer2"], "in order of the network");
        (0..30).for_each(|step| drop(one.step(&pixels, &classes, step).unwrap()));
        assert_eq!(one.hits(&pixels, &classes, 1).unwrap(), [Hits { top1: 6, top5: 6, n: 6 }; 2]);
        let as_crops = one.hits(&[pixels.clone(), pixels.clone()].concat(), &[0, 2, 1, 0, 2, 1], 2).unwrap();
        assert!(as_crops.iter().all(|hits| hits.n == 6 && hits.top5 == 6));
        let progress = TrainingProgress { steps: 30, ..TrainingProgress::default() };
        one.publish(&path, &progress).unwrap();
        let (mut other, went) = probes(&["layer1", "layer2"], options, Some(&path));
        assert_eq!(went, progress);
        assert_eq!(one.step(&pixels, &classes, 30).unwrap(), other.step(&pixels, &classes, 30).unwrap());
        let network = network();
        let tap = network.plan.tap("layer3").unwrap();
        let refused = Probes::new(network, vec![tap], options, Seeds::new(1, EpochId(0)), Some(&path));
        assert!(refused.err().unwrap().to_string().contains("has no tensor layer3."));
    }
}
