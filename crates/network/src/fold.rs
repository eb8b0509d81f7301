//! Batch norm folded into the convolution before it: the same function in eval mode, with fewer passes over memory.
//!
//! With running statistics a norm is γ (y − mean) / √(var + ε) + β, a scale and a shift of each channel; both go into the
//! convolution's weight and bias.

use crate::forward::NORM_EPSILON;
use crate::weights::Tensors;
use crate::{Network, NetworkError};
use deepcluster_domain::plan::Layer;

impl Network {
    /// This network for eval mode alone: no norms behind convolutions, and weights in the arithmetic of the layers, so that
    /// no batch needs to cast them.
    ///
    /// # Errors
    /// When libtorch is out of memory.
    pub fn folded(&self) -> Result<Self, NetworkError> {
        let _no_grad = tch::no_grad_guard();
        let mut plan = self.plan.clone();
        let mut tensors: Tensors = self.tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect();
        plan.layers = self.fold(&self.plan.layers, &mut tensors)?;
        Self::new(plan, self.runtime, tensors)
    }

    fn fold(&self, layers: &[Layer], tensors: &mut Tensors) -> Result<Vec<Layer>, NetworkError> {
        let mut folded = Vec::with_capacity(layers.len());
        let mut rest = layers.iter().peekable();
        while let Some(layer) = rest.next() {
            let mut layer = layer.clone();
            match &mut layer {
                Layer::Conv { name, bias, .. } => {
                    if let Some(Layer::BatchNorm { name: norm, .. }) = rest.peek() {
                        rest.next();
                        self.absorb(name, *bias, norm, tensors)?;
                        *bias = true;
                    }
                    self.cast_in(name, tensors)?;
                }
                Layer::Linear { name, .. } => self.cast_in(name, tensors)?,
                Layer::Residual { body, shortcut } => {
                    *body = self.fold(body, tensors)?;
                    *shortcut = self.fold(shortcut, tensors)?;
                }
                _ => {}
            }
            folded.push(layer);
        }
        Ok(folded)
    }

    /// Puts a norm's scale and shift into a convolution's weight and bias.
    fn absorb(&self, conv: &str, has_bias: bool, norm: &str, tensors: &mut Tensors) -> Result<(), NetworkError> {
        let [gamma, beta, mean, var] = ["weight", "bias", "running_mean", "running_var"].map(|leaf| self.get(norm, leaf));
        let scale = gamma?.f_mul(&var?.f_add_scalar(NORM_EPSILON)?.f_rsqrt()?)?;
        let weight = self.get(conv, "weight")?.f_mul(&scale.f_view([-1, 1, 1, 1])?)?;
        let minus_mean = mean?.f_neg()?;
        let shift = if has_bias { self.get(conv, "bias")?.f_add(&minus_mean)? } else { minus_mean };
        let bias = shift.f_mul(&scale)?.f_add(beta?)?;
        tensors.insert(format!("{conv}.weight"), weight);
        tensors.insert(format!("{conv}.bias"), bias);
        Ok(())
    }

    fn cast_in(&self, layer: &str, tensors: &mut Tensors) -> Result<(), NetworkError> {
        for leaf in ["weight", "bias"] {
            if let Some(tensor) = tensors.get_mut(&format!("{layer}.{leaf}")) {
                *tensor = tensor.f_totype(self.runtime.kind)?;
            }
        }
        Ok(())
    }
}
