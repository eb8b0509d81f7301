//! One epoch of supervised training on pseudo-labels (recipe, steps 5 and 6).

use crate::checkpoint::{self, Contents, TrainingProgress};
use crate::forward::Mode;
use crate::weights::{Tensors, draw_top_layer};
use crate::{Network, NetworkError};
use deepcluster_domain::{Purpose, Seeds};
use deepcluster_volume::publish::Digest;
use std::path::Path;
use tch::{Kind, Reduction, Tensor};

/// The numbers of both SGDs. The top layer's has no momentum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SgdOptions {
    /// Learning rate.
    pub learning_rate: f64,
    /// Momentum of the body.
    pub momentum: f64,
    /// Weight decay of every weight, biases and batch norm included.
    pub weight_decay: f64,
}

/// A network in training, with a top layer of its own.
pub struct TrainingPass {
    network: Network,
    top_layer: [Tensor; 2],
    /// Names of the trained weights of the body, in the order of `weights`.
    names: Vec<String>,
    /// Trained weights: the body's, then the top layer's two.
    weights: Vec<Tensor>,
    momentum: Tensors,
    sgd: SgdOptions,
    seeds: Seeds,
    mode: Mode,
    n_steps: i64,
}

impl TrainingPass {
    /// Prepares an epoch: a fresh top layer for `k` clusters, momentum from the checkpoint where there is one.
    ///
    /// # Errors
    /// When the checkpoint lacks a buffer, or libtorch is out of memory.
    pub fn start(
        network: Network,
        k: u32,
        sgd: SgdOptions,
        seeds: Seeds,
        checkpoint: Option<&Path>,
    ) -> Result<Self, NetworkError> {
        let device = network.runtime.device;
        let top_layer = draw_top_layer(network.plan.embedding, i64::from(k), seeds, device)?;
        Self::with_top_layer(network, top_layer, sgd, seeds, checkpoint)
    }

    /// Goes on with an epoch from what [`TrainingPass::save`] wrote, to which `network` belongs; and how far it was.
    ///
    /// # Errors
    /// When the file is not one of this network and `k`, or libtorch is out of memory.
    pub fn go_on(
        network: Network,
        k: u32,
        sgd: SgdOptions,
        seeds: Seeds,
        saved: &Path,
    ) -> Result<(Self, TrainingProgress), NetworkError> {
        let progress = checkpoint::load_progress(saved)?;
        let top_layer = checkpoint::load_top_layer(saved, network.plan.embedding, i64::from(k), network.runtime.device)?;
        Ok((Self::with_top_layer(network, top_layer, sgd, seeds, Some(saved))?, progress))
    }

    /// As [`TrainingPass::start`], with a given top layer.
    ///
    /// # Errors
    /// As there.
    pub fn with_top_layer(
        mut network: Network,
        top_layer: [Tensor; 2],
        sgd: SgdOptions,
        seeds: Seeds,
        checkpoint: Option<&Path>,
    ) -> Result<Self, NetworkError> {
        let momentum = match checkpoint {
            Some(path) => checkpoint::load_momentum(path, &network.plan, network.runtime.device)?,
            None => Tensors::new(),
        };
        let mut names = Vec::new();
        let mut weights = Vec::new();
        for spec in network.plan.weights().into_iter().filter(|spec| spec.start.is_trained()) {
            let Some(tensor) = network.tensors.get_mut(&spec.name) else { continue };
            *tensor = tensor.f_set_requires_grad(true)?;
            weights.push(tensor.shallow_clone());
            names.push(spec.name);
        }
        let top_layer = [top_layer[0].f_set_requires_grad(true)?, top_layer[1].f_set_requires_grad(true)?];
        weights.extend(top_layer.iter().map(Tensor::shallow_clone));
        // Buffers take the memory order of their weights, or every update would have to reorder them.
        let momentum = names
            .iter()
            .zip(&weights)
            .map(|(name, weight)| {
                let mut buffer = weight.f_detach()?.f_zeros_like()?;
                if let Some(stored) = momentum.get(name) {
                    buffer.f_copy_(stored)?;
                }
                Ok((name.clone(), buffer))
            })
            .collect::<Result<Tensors, NetworkError>>()?;
        let n_steps = checkpoint.map_or(Ok(0), checkpoint::n_steps)?;
        Ok(Self { network, top_layer, names, weights, momentum, sgd, seeds, mode: Mode::TRAIN, n_steps })
    }

    /// Trains without dropout, as the parity cases do.
    pub fn without_dropout(mut self) -> Self {
        self.mode = Mode::Train { dropout: 0.0 };
        self
    }

    /// One step on RGB bytes `[n, size, size, 3]` with their pseudo-labels; the mean cross-entropy.
    ///
    /// # Errors
    /// When libtorch is out of memory.
    pub fn step(&mut self, pixels: &[u8], labels: &[i64], step: u64) -> Result<f64, NetworkError> {
        let images = self.network.runtime.input(pixels, self.network.plan.image_size)?;
        self.step_on(&images, labels, step)
    }

    /// As [`TrainingPass::step`], on normalised images `[n, 3, size, size]`.
    ///
    /// # Errors
    /// As there.
    pub fn step_on(&mut self, images: &Tensor, labels: &[i64], step: u64) -> Result<f64, NetworkError> {
        // Dropout draws from (seed, epoch, step), so that a resumed epoch draws the same.
        tch::manual_seed(self.seeds.number(Purpose::Dropout, step) as i64);
        let labels = Tensor::f_from_slice(labels)?.f_to(self.network.runtime.device)?;
        let mut embedding = self.network.embed(images, self.mode)?;
        if self.network.plan.relu_before_top {
            embedding = embedding.f_relu_()?;
        }
        let kind = self.network.runtime.kind;
        let [weight, bias] = [self.top_layer[0].f_totype(kind)?, self.top_layer[1].f_totype(kind)?];
        let logits = embedding.f_totype(kind)?.f_linear(&weight, Some(&bias))?.f_totype(Kind::Float)?;
        let loss = logits.f_cross_entropy_loss::<&Tensor>(&labels, None, Reduction::Mean, -100, 0.0)?;
        let gradients = Tensor::f_run_backward(&[&loss], &self.weights, false, false)?;
        self.descend(&gradients)?;
        self.n_steps += 1;
        Ok(loss.f_double_value(&[])?)
    }

    /// PyTorch's SGD: g += decay · w; buffer = momentum · buffer + g; w -= rate · buffer.
    fn descend(&mut self, gradients: &[Tensor]) -> Result<(), NetworkError> {
        let _no_grad = tch::no_grad_guard();
        let scalar = |value: f64| Tensor::f_from_slice(&[value as f32])?.f_to(self.network.runtime.device);
        let decay = scalar(self.sgd.weight_decay)?;
        let minus_rate = scalar(-self.sgd.learning_rate)?;
        for (index, (weight, gradient)) in self.weights.iter_mut().zip(gradients).enumerate() {
            let mut gradient = gradient.shallow_clone();
            match self.names.get(index).and_then(|name| self.momentum.get_mut(name)) {
                Some(buffer) => {
                    let _ = buffer.f_mul_scalar_(self.sgd.momentum)?;
                    let _ = buffer.f_add_(&gradient)?;
                    let _ = buffer.f_addcmul_(weight, &decay)?;
                    let _ = weight.f_addcmul_(buffer, &minus_rate)?;
                }
                None => {
                    let _ = gradient.f_addcmul_(weight, &decay)?;
                    let _ = weight.f_addcmul_(&gradient, &minus_rate)?;
                }
            }
        }
        Ok(())
    }

    /// Publishes weights, statistics, top layer and momentum.
    ///
    /// # Errors
    /// When a weight is not finite, or the file cannot be written.
    pub fn publish(&self, path: &Path) -> Result<Digest, NetworkError> {
        self.write(path, None)
    }

    /// Publishes the same in the middle of an epoch, with how far it is, for [`TrainingPass::go_on`].
    ///
    /// # Errors
    /// As [`TrainingPass::publish`].
    pub fn save(&self, path: &Path, progress: &TrainingProgress) -> Result<Digest, NetworkError> {
        self.write(path, Some(progress))
    }

    fn write(&self, path: &Path, progress: Option<&TrainingProgress>) -> Result<Digest, NetworkError> {
        self.check_weights()?;
        let contents = Contents {
            plan: &self.network.plan,
            network: &self.network.tensors,
            top_layer: &self.top_layer,
            momentum: &self.momentum,
            n_steps: self.n_steps,
            progress,
        };
        checkpoint::publish(path, &contents)
    }

    /// A network that is broken must not take the place of one that is not.
    fn check_weights(&self) -> Result<(), NetworkError> {
        let _no_grad = tch::no_grad_guard();
        for tensor in self.weights.iter().chain(self.network.tensors.values()) {
            if tensor.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
                return Err(NetworkError::NotFinite { what: "the weights are", step: self.n_steps as u64 });
            }
        }
        Ok(())
    }

    /// Weights may be finite and yet so large that features are not, which the next epoch could not cluster. It is this one
    /// that can begin anew.
    ///
    /// # Errors
    /// When a feature of these images is not finite, or libtorch is out of memory.
    pub fn check_features(&self, pixels: &[u8]) -> Result<(), NetworkError> {
        let features = self.network.features(pixels)?;
        match features.iter().all(|value| value.is_finite()) {
            true => Ok(()),
            false => Err(NetworkError::NotFinite { what: "the features are", step: self.n_steps as u64 }),
        }
    }

    /// The network, for whoever wants to look at it in eval mode.
    pub fn network(&self) -> &Network {
        &self.network
    }
}
