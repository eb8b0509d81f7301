//! Stochastic gradient descent by PyTorch's rule, whatever it is that learns.

use crate::NetworkError;
use tch::{Device, Kind, Tensor};

/// The numbers of SGD.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SgdOptions {
    /// Learning rate.
    pub learning_rate: f64,
    /// Momentum, of weights that have a buffer for it. An epoch's top layer has none.
    pub momentum: f64,
    /// Weight decay of every weight, biases and batch norm included.
    pub weight_decay: f64,
}

/// So many numbers of a weight are updated at a time: few enough to stay in the cores' caches from one operation to the next.
const UPDATED_AT_ONCE: i64 = 1 << 18;

/// A weight that learns.
pub(crate) struct Trained {
    pub(crate) name: String,
    /// In f32.
    pub(crate) master: Tensor,
    /// What the layers use, and what gradients are taken of: kernels and matrices in the arithmetic of the layers, so that no
    /// step needs to cast them; otherwise the master itself.
    pub(crate) used: Tensor,
    /// None without momentum.
    pub(crate) momentum: Option<Tensor>,
}

impl Trained {
    pub(crate) fn new(name: String, master: Tensor, kind: Kind, momentum: Option<Tensor>) -> Result<Self, NetworkError> {
        let lowered = kind != Kind::Float && master.dim() >= 2;
        let used = if lowered { master.f_totype(kind)? } else { master.shallow_clone() };
        Ok(Self { name, master, used: used.f_set_requires_grad(true)?, momentum })
    }

    /// With the momentum that is stored, or with none yet.
    pub(crate) fn with_momentum(name: String, master: Tensor, kind: Kind, stored: Option<&Tensor>) -> Result<Self, NetworkError> {
        // Buffers take the memory order of their weights, or every update would have to reorder them.
        let mut buffer = master.f_zeros_like()?;
        if let Some(stored) = stored {
            buffer.f_copy_(stored)?;
        }
        Self::new(name, master, kind, Some(buffer))
    }

    /// PyTorch's SGD: g += decay · w; buffer = momentum · buffer + g; w -= rate · buffer. A part after the other, since whole
    /// weights would go through memory once for every operation.
    fn descend(&mut self, gradient: &Tensor, sgd: &Scalars) -> Result<(), NetworkError> {
        let n = self.master.size().first().copied().unwrap_or(1);
        let at_once = match self.master.device() {
            Device::Cpu => (UPDATED_AT_ONCE * n / (self.master.numel() as i64).max(1)).clamp(1, n),
            _ => n,
        };
        for start in (0..n).step_by(at_once as usize) {
            let part = |tensor: &Tensor| tensor.f_narrow(0, start, at_once.min(n - start));
            let (mut weight, mut gradient) = (part(&self.master)?, part(gradient)?.f_totype(Kind::Float)?);
            match &self.momentum {
                Some(buffer) => {
                    let mut buffer = part(buffer)?;
                    let _ = buffer.f_mul_scalar_(sgd.momentum)?;
                    let _ = buffer.f_add_(&gradient)?;
                    let _ = buffer.f_addcmul_(&weight, &sgd.decay)?;
                    let _ = weight.f_addcmul_(&buffer, &sgd.minus_rate)?;
                }
                None => {
                    let _ = gradient.f_addcmul_(&weight, &sgd.decay)?;
                    let _ = weight.f_addcmul_(&gradient, &sgd.minus_rate)?;
                }
            }
            if self.used.kind() != Kind::Float {
                part(&self.used)?.f_copy_(&weight)?;
            }
        }
        Ok(())
    }
}

/// The numbers of SGD on the device.
struct Scalars {
    momentum: f64,
    decay: Tensor,
    minus_rate: Tensor,
}

/// One step of some weights, by their gradients in the same order.
pub(crate) fn descend<'a>(
    trained: impl Iterator<Item = &'a mut Trained>,
    gradients: &[Tensor],
    sgd: &SgdOptions,
    device: Device,
) -> Result<(), NetworkError> {
    let _no_grad = tch::no_grad_guard();
    let scalar = |value: f64| Tensor::f_from_slice(&[value as f32])?.f_to(device);
    let SgdOptions { learning_rate, momentum, weight_decay } = *sgd;
    let scalars = Scalars { momentum, decay: scalar(weight_decay)?, minus_rate: scalar(-learning_rate)? };
    trained.zip(gradients).try_for_each(|(trained, gradient)| trained.descend(gradient, &scalars))
}
