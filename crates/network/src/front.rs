//! From pixels to what the first layer sees: normalisation, and the Sobel filter where the network has one.

use crate::NetworkError;
use crate::weights::channels_last;
use deepcluster_domain::Plan;
use deepcluster_domain::input::{MEAN, SOBEL_GREY, SOBEL_KERNELS, STD};
use tch::{Device, Kind, Tensor};

/// So many pixels go through at a time on a CPU: few enough to stay in the cores' caches from one operation to the next.
const PIXELS_AT_ONCE: i64 = 400_000;

/// What the values of an image are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Values {
    /// RGB from 0 to 255.
    Bytes,
    /// RGB less the mean, divided by the standard deviation.
    Normalised,
}

/// The fixed beginning of a network.
///
/// Normalising, making grey and the two gradients are linear, so one convolution and one addition do all of it. What is added
/// is not the same everywhere: the Sobel filter sees zeros around the normalised image, and these are not black.
pub(crate) struct Front {
    /// `[2, 3, 3, 3]` with the Sobel filter, else a factor of each channel `[1, 3, 1, 1]`.
    factor: Tensor,
    /// `[1, 2, height, width]` or `[1, 3, 1, 1]`.
    shift: Tensor,
    sobel: bool,
}

impl Front {
    /// The front of a plan for images of such values.
    ///
    /// # Errors
    /// When libtorch is out of memory.
    pub(crate) fn new(plan: &Plan, values: Values, device: Device) -> Result<Self, NetworkError> {
        Self::of_size(plan, values, device, (plan.image_size, plan.image_size))
    }

    /// The same for images of another (width, height).
    ///
    /// # Errors
    /// When libtorch is out of memory.
    pub(crate) fn of_size(plan: &Plan, values: Values, device: Device, size: (u32, u32)) -> Result<Self, NetworkError> {
        let _no_grad = tch::no_grad_guard();
        let (scale, shift) = match values {
            Values::Bytes => (STD.map(|std| 1.0 / (255.0 * std)), [0, 1, 2].map(|channel| -MEAN[channel] / STD[channel])),
            Values::Normalised => ([1.0; 3], [0.0; 3]),
        };
        let per_channel = |values: &[f32; 3]| Tensor::f_from_slice(values)?.f_view([1, 3, 1, 1]);
        let (mut factor, mut added) = (per_channel(&scale)?, per_channel(&shift)?);
        if plan.sobel {
            let kernels = Tensor::f_from_slice(&SOBEL_KERNELS)?.f_view([2, 1, 3, 3])?;
            let grey = per_channel(&SOBEL_GREY)?;
            factor = channels_last(&kernels.f_mul(&grey.f_mul(&factor)?)?)?;
            let (width, height) = (i64::from(size.0), i64::from(size.1));
            let shift_of_grey = grey.f_mul(&added)?.f_sum(Kind::Float)?;
            let everywhere = shift_of_grey.f_expand([1, 1, height, width], false)?;
            added = channels_last(&everywhere.f_conv2d::<&Tensor>(&kernels, None, 1, 1, 1, 1)?)?;
        }
        Ok(Self { factor: factor.f_to(device)?, shift: added.f_to(device)?, sobel: plan.sobel })
    }

    /// Input of the first layer in `kind` and channels-last, from images `[n, 3, size, size]`. No gradients flow back.
    ///
    /// # Errors
    /// When the shape does not fit, or libtorch is out of memory.
    pub(crate) fn apply(&self, images: &Tensor, kind: Kind) -> Result<Tensor, NetworkError> {
        let _no_grad = tch::no_grad_guard();
        let (n, _, height, width) = images.size4()?;
        let channels = if self.sobel { 2 } else { 3 };
        let seen = Tensor::f_empty([n, height, width, channels], (kind, images.device()))?.f_permute([0, 3, 1, 2])?;
        let at_once = match images.device() {
            Device::Cpu => (PIXELS_AT_ONCE / (height * width).max(1)).clamp(1, n.max(1)),
            _ => n.max(1),
        };
        for first in (0..n).step_by(at_once as usize) {
            let part = |tensor: &Tensor| tensor.f_narrow(0, first, at_once.min(n - first));
            let x = part(images)?.f_totype(Kind::Float)?;
            part(&seen)?.f_copy_(&self.linear(&x)?)?;
        }
        Ok(seen)
    }

    /// The same in f32, all images at once, from images in f32. Gradients flow back.
    ///
    /// # Errors
    /// When the shape does not fit, or libtorch is out of memory.
    pub(crate) fn linear(&self, images: &Tensor) -> Result<Tensor, NetworkError> {
        let mut y = match self.sobel {
            true => images.f_conv2d::<&Tensor>(&self.factor, None, 1, 1, 1, 1)?,
            false => images.f_mul(&self.factor)?,
        };
        Ok(y.f_add_(&self.shift)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use deepcluster_domain::Architecture;

    /// The steps of the recipe one by one, as torchvision and the original have them.
    #[test]
    fn one_convolution_does_what_the_steps_do_one_by_one() {
        let pixels: Vec<u8> = (0..3 * 40 * 40 * 3).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let images = Tensor::from_slice(&pixels).view([3, 40, 40, 3]).permute([0, 3, 1, 2]);
        let per_channel = |values: [f32; 3]| Tensor::from_slice(&values).view([1, 3, 1, 1]);
        let normalised = (images.to_kind(Kind::Float) / 255.0 - per_channel(MEAN)) / per_channel(STD);
        let grey = normalised.mean_dim([1i64].as_slice(), true, Kind::Float);
        let kernels = Tensor::from_slice(&SOBEL_KERNELS).view([2, 1, 3, 3]);
        let edges = grey.conv2d::<Tensor>(&kernels, None, 1, 1, 1, 1);
        for (sobel, expected) in [(true, edges), (false, normalised.shallow_clone())] {
            let plan = Plan::new(Architecture::ResNet18, 40, sobel);
            for (values, images) in [(Values::Bytes, &images), (Values::Normalised, &normalised)] {
                let seen = Front::new(&plan, values, Device::Cpu).unwrap().apply(images, Kind::Float).unwrap();
                let largest = expected.abs().max().double_value(&[]);
                let error = (seen - &expected).abs().max().double_value(&[]) / largest;
                assert!(error < 1e-6, "{values:?}, Sobel {sobel}: {error}");
            }
        }
    }
}
