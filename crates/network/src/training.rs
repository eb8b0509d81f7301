//! One epoch of supervised training on pseudo-labels (recipe, steps 5 and 6).

use crate::checkpoint::{self, Contents, TrainingProgress};
use crate::forward::Mode;
use crate::sgd::{SgdOptions, Trained, descend};
use crate::weights::{Tensors, draw_top_layer};
use crate::{Network, NetworkError};
use deepcluster_domain::{Purpose, Seeds};
use deepcluster_volume::publish::Digest;
use std::path::Path;
use tch::{Reduction, Tensor};

/// A network in training, with a top layer of its own.
pub struct TrainingPass {
    /// Its tensors are those that the layers use.
    network: Network,
    /// The body's weights.
    body: Vec<Trained>,
    /// Weight and bias.
    top_layer: [Trained; 2],
    sgd: SgdOptions,
    seeds: Seeds,
    mode: Mode,
    n_steps: i64,
}

/// Takes over the rows of clusters that come from one of the epoch before.
fn keep_rows(fresh: &[Tensor; 2], before: &[Tensor; 2], kept: &[Option<u32>]) -> Result<(), NetworkError> {
    let _no_grad = tch::no_grad_guard();
    let (k, n_before) = (fresh[1].size()[0], before[1].size()[0]);
    let pairs = (0..k).zip(kept).filter_map(|(to, from)| Some((to, i64::from((*from)?))));
    let (to, from): (Vec<i64>, Vec<i64>) = pairs.filter(|(_, from)| *from < n_before).unzip();
    if to.is_empty() {
        return Ok(());
    }
    let index = |rows: &[i64]| Tensor::f_from_slice(rows)?.f_to(fresh[0].device());
    let (to, from) = (index(&to)?, index(&from)?);
    for (fresh, before) in fresh.iter().zip(before) {
        let _ = fresh.shallow_clone().f_index_copy_(0, &to, &before.f_index_select(0, &from)?)?;
    }
    Ok(())
}

impl TrainingPass {
    /// Prepares an epoch: a fresh top layer for `k` clusters, but for the rows of clusters that come from one of the checkpoint's by
    /// `kept` (empty for none); momentum from the checkpoint where there is one.
    ///
    /// # Errors
    /// When the checkpoint lacks a buffer, or libtorch is out of memory.
    pub fn start(
        network: Network,
        k: u32,
        sgd: SgdOptions,
        seeds: Seeds,
        checkpoint: Option<&Path>,
        kept: &[Option<u32>],
    ) -> Result<Self, NetworkError> {
        let device = network.runtime.device;
        let top_layer = draw_top_layer(network.plan.embedding, i64::from(k), seeds, device)?;
        if let Some(path) = checkpoint.filter(|_| kept.iter().any(Option::is_some)) {
            keep_rows(&top_layer, &checkpoint::load_any_top_layer(path, network.plan.embedding, device)?, kept)?;
        }
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
            Some(path) => checkpoint::load_momentum_if_any(path, &network.plan, network.runtime.device)?,
            None => Tensors::new(),
        };
        let kind = network.runtime.kind;
        let mut body = Vec::new();
        for spec in network.plan.weights().into_iter().filter(|spec| spec.start.is_trained()) {
            let Some(tensor) = network.tensors.get_mut(&spec.name) else { continue };
            let stored = momentum.get(&spec.name);
            let trained = Trained::with_momentum(spec.name, tensor.shallow_clone(), kind, stored)?;
            *tensor = trained.used.shallow_clone();
            body.push(trained);
        }
        let [weight, bias] = top_layer;
        let top_layer = |name: &str, tensor| Trained::new(name.to_owned(), tensor, kind, None);
        let top_layer = [top_layer("weight", weight)?, top_layer("bias", bias)?];
        let n_steps = checkpoint.map_or(Ok(0), checkpoint::n_steps)?;
        Ok(Self { network, body, top_layer, sgd, seeds, mode: Mode::TRAIN, n_steps })
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
        self.learn(self.network.seen(pixels)?, labels, step)
    }

    /// As [`TrainingPass::step`], on normalised images `[n, 3, size, size]`.
    ///
    /// # Errors
    /// As there.
    pub fn step_on(&mut self, images: &Tensor, labels: &[i64], step: u64) -> Result<f64, NetworkError> {
        self.learn(self.network.seen_of_normalised(images)?, labels, step)
    }

    /// From the input of the first layer.
    fn learn(&mut self, seen: Tensor, labels: &[i64], step: u64) -> Result<f64, NetworkError> {
        // Dropout draws from (seed, epoch, step), so that a resumed epoch draws the same.
        tch::manual_seed(self.seeds.number(Purpose::Dropout, step) as i64);
        let labels = Tensor::f_from_slice(labels)?.f_to(self.network.runtime.device)?;
        let [weight, bias] = &self.top_layer;
        let logits = self.network.logits(seen, self.mode, [&weight.used, &bias.used])?;
        let loss = logits.f_cross_entropy_loss::<&Tensor>(&labels, None, Reduction::Mean, -100, 0.0)?;
        let used: Vec<&Tensor> = self.body.iter().chain(&self.top_layer).map(|trained| &trained.used).collect();
        let gradients = Tensor::f_run_backward(&[&loss], &used, false, false)?;
        let trained = self.body.iter_mut().chain(&mut self.top_layer);
        descend(trained, &gradients, &self.sgd, self.network.runtime.device)?;
        self.n_steps += 1;
        Ok(loss.f_double_value(&[])?)
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
        let clone = |(name, tensor): (&String, &Tensor)| (name.clone(), tensor.shallow_clone());
        let mut network: Tensors = self.network.tensors.iter().map(clone).collect();
        network.extend(self.body.iter().map(|trained| clone((&trained.name, &trained.master))));
        let momentum = self.body.iter().filter_map(|trained| Some(clone((&trained.name, trained.momentum.as_ref()?)))).collect();
        let contents = Contents {
            plan: &self.network.plan,
            network: &network,
            top_layer: &self.top_layer.each_ref().map(|trained| trained.master.shallow_clone()),
            momentum: &momentum,
            n_steps: self.n_steps,
            progress,
        };
        checkpoint::publish(path, &contents)
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
