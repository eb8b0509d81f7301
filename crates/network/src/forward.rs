//! One pass through the layers.

use crate::front::{Front, Values};
use crate::weights::{Tensors, channels_last, draw};
use crate::{NetworkError, Runtime, checkpoint};
use deepcluster_domain::plan::Layer;
use deepcluster_domain::{Plan, RunSpec};
use std::path::Path;
use tch::{Kind, Tensor};

/// Share of the values that dropout zeroes.
const DROPOUT: f64 = 0.5;

/// What batch norm adds to a variance.
pub(crate) const NORM_EPSILON: f64 = 1e-5;

/// How the layers that differ between training and use behave.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mode {
    /// Running statistics, no dropout.
    Eval,
    /// Statistics of the batch (which update the running ones), dropout with this share.
    Train {
        /// Share of the values that dropout zeroes.
        dropout: f64,
    },
    /// Running statistics, which stay as they are, and dropout with this share: a network that has learned goes on with
    /// other images.
    Finetune {
        /// Share of the values that dropout zeroes.
        dropout: f64,
    },
}

impl Mode {
    /// Training as the recipe has it.
    pub const TRAIN: Self = Self::Train { dropout: DROPOUT };

    /// Finetuning as the authors have it.
    pub const FINETUNE: Self = Self::Finetune { dropout: DROPOUT };

    fn is_train(self) -> bool {
        matches!(self, Self::Train { .. })
    }
}

/// A network with its weights, on one device, for the use of one thread.
pub struct Network {
    /// Its layout.
    pub plan: Plan,
    /// Where and how it computes.
    pub runtime: Runtime,
    /// Weights and batch-norm statistics, without the top layer.
    pub tensors: Tensors,
    front: Front,
}

impl Network {
    /// A network with the weights of a checkpoint, or with first weights when there is none.
    ///
    /// # Errors
    /// When the checkpoint lacks a tensor or has one of another shape, or libtorch is out of memory.
    pub fn load(spec: &RunSpec, runtime: Runtime, checkpoint: Option<&Path>) -> Result<Self, NetworkError> {
        let plan = Plan::new(spec.architecture, spec.image_size, spec.sobel);
        let tensors = match checkpoint {
            Some(path) => checkpoint::load_network(path, &plan, runtime.device)?,
            None => draw(&plan, spec.seed, runtime.device)?,
        };
        Self::new(plan, runtime, tensors)
    }

    /// A network with the given weights.
    ///
    /// # Errors
    /// When libtorch is out of memory.
    pub fn new(plan: Plan, runtime: Runtime, tensors: Tensors) -> Result<Self, NetworkError> {
        let tensors = tensors
            .into_iter()
            .map(|(name, tensor)| Ok((name, channels_last(&tensor)?)))
            .collect::<Result<Tensors, NetworkError>>()?;
        let front = Front::new(&plan, Values::Bytes, runtime.device)?;
        Ok(Self { plan, runtime, tensors, front })
    }

    /// Embeddings of a batch of RGB bytes `[n, size, size, 3]` in eval mode: f32 `[n, embedding]` in C order, before any
    /// rectifier (recipe, step 1).
    ///
    /// # Errors
    /// When libtorch is out of memory.
    pub fn features(&self, pixels: &[u8]) -> Result<Vec<f32>, NetworkError> {
        let _no_grad = tch::no_grad_guard();
        let embedding = self.through_layers(self.seen(pixels)?, Mode::Eval)?;
        let features = embedding.f_to(tch::Device::Cpu)?.f_contiguous()?;
        let mut values = vec![0.0; features.numel()];
        features.f_copy_data(&mut values, features.numel())?;
        Ok(values)
    }

    /// From normalised images `[n, 3, size, size]` to embeddings `[n, embedding]` in f32.
    ///
    /// # Errors
    /// When the shape does not fit, or libtorch is out of memory.
    pub fn embed(&self, images: &Tensor, mode: Mode) -> Result<Tensor, NetworkError> {
        self.through_layers(self.seen_of_normalised(images)?, mode)
    }

    /// Input of the first layer from normalised images: themselves, or grey and then horizontal and vertical gradient, where
    /// `[n, 3, h, w]` becomes `[n, 2, h, w]`.
    ///
    /// # Errors
    /// When libtorch is out of memory.
    pub fn seen_of_normalised(&self, images: &Tensor) -> Result<Tensor, NetworkError> {
        Front::new(&self.plan, Values::Normalised, self.runtime.device)?.apply(images, self.runtime.kind)
    }

    /// The same from RGB bytes `[n, size, size, 3]`.
    pub(crate) fn seen(&self, pixels: &[u8]) -> Result<Tensor, NetworkError> {
        let size = self.plan.image_size;
        self.front.apply(&self.runtime.images(pixels, (size, size))?, self.runtime.kind)
    }

    /// The same from values of RGB from 0 to 255, `[n, 3, size, size]` in f32, in f32. Gradients flow back.
    pub(crate) fn seen_of_values(&self, rgb: &Tensor) -> Result<Tensor, NetworkError> {
        self.front.linear(rgb)
    }

    /// The same of one image of any (width, height), `[height, width, 3]`.
    pub(crate) fn seen_whole(&self, pixels: &[u8], size: (u32, u32)) -> Result<Tensor, NetworkError> {
        let front = Front::of_size(&self.plan, Values::Bytes, self.runtime.device, size)?;
        front.apply(&self.runtime.images(pixels, size)?, self.runtime.kind)
    }

    /// From the input of the first layer to embeddings in f32.
    pub(crate) fn through_layers(&self, seen: Tensor, mode: Mode) -> Result<Tensor, NetworkError> {
        Ok(self.run(&self.plan.layers, seen, mode)?.f_totype(Kind::Float)?)
    }

    /// From the input of the first layer to what a top layer of this weight and bias makes of the embeddings: `[n, k]` in f32.
    pub(crate) fn logits(&self, seen: Tensor, mode: Mode, [weight, bias]: [&Tensor; 2]) -> Result<Tensor, NetworkError> {
        let mut embedding = self.through_layers(seen, mode)?;
        if self.plan.relu_before_top {
            embedding = embedding.f_relu_()?;
        }
        let kind = self.runtime.kind;
        let [weight, bias] = [weight.f_totype(kind)?, bias.f_totype(kind)?];
        Ok(embedding.f_totype(kind)?.f_linear(&weight, Some(&bias))?.f_totype(Kind::Float)?)
    }

    pub(crate) fn run(&self, layers: &[Layer], mut x: Tensor, mode: Mode) -> Result<Tensor, NetworkError> {
        for layer in layers {
            x = self.layer(layer, x, mode)?;
        }
        Ok(x)
    }

    fn layer(&self, layer: &Layer, mut x: Tensor, mode: Mode) -> Result<Tensor, NetworkError> {
        Ok(match layer {
            Layer::Conv { name, stride, padding, bias, .. } => {
                let bias = if *bias { Some(self.cast(name, "bias")?) } else { None };
                x.f_conv2d(&self.cast(name, "weight")?, bias.as_ref(), *stride, *padding, 1, 1)?
            }
            Layer::BatchNorm { name, .. } => {
                let [weight, bias, mean, var] =
                    ["weight", "bias", "running_mean", "running_var"].map(|leaf| self.get(name, leaf));
                x.f_batch_norm(Some(weight?), Some(bias?), Some(mean?), Some(var?), mode.is_train(), 0.1, NORM_EPSILON, true)?
            }
            Layer::Relu => x.f_relu_()?,
            Layer::MaxPool { kernel, stride, padding } => x.f_max_pool2d(*kernel, *stride, *padding, 1, false)?,
            Layer::AveragePool => x.f_adaptive_avg_pool2d([1, 1])?.f_flatten(1, -1)?,
            Layer::Flatten => x.f_flatten(1, -1)?,
            Layer::Dropout => match mode {
                Mode::Train { dropout } | Mode::Finetune { dropout } => x.f_dropout(dropout, true)?,
                Mode::Eval => x,
            },
            Layer::Linear { name, .. } => x.f_linear(&self.cast(name, "weight")?, Some(&self.cast(name, "bias")?))?,
            Layer::Residual { body, shortcut } => self.residual(body, shortcut, x, mode)?.f_relu_()?,
        })
    }

    /// body(x) + shortcut(x), which a rectifier follows.
    pub(crate) fn residual(&self, body: &[Layer], shortcut: &[Layer], x: Tensor, mode: Mode) -> Result<Tensor, NetworkError> {
        let side = self.run(shortcut, x.shallow_clone(), mode)?;
        Ok(self.run(body, x, mode)?.f_add(&side)?)
    }

    pub(crate) fn get(&self, layer: &str, leaf: &str) -> Result<&Tensor, NetworkError> {
        let name = format!("{layer}.{leaf}");
        self.tensors.get(&name).ok_or_else(|| NetworkError::Torch(format!("the network has no tensor {name}")))
    }

    /// A weight in the arithmetic of the layers; gradients flow back into its f32 master.
    fn cast(&self, layer: &str, leaf: &str) -> Result<Tensor, NetworkError> {
        Ok(self.get(layer, leaf)?.f_totype(self.runtime.kind)?)
    }
}
