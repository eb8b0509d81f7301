//! Pictures of what filters respond to, by gradient ascent on the pixels (paper, section 4.2; Yosinski, Clune, Nguyen, Fuchs,
//! Lipson 2015).
//!
//! A picture begins as faint noise on grey. Each step goes up the gradient of the mean of what stands before the
//! filter's rectifier, leaky, since noise excites no filter, and then a little back towards grey (L2 decay). Every few steps the picture is blurred: what a convnet responds to most would otherwise be
//! high frequencies that no photograph has.

use crate::forward::Mode;
use crate::layers::to_vec;
use crate::{Network, NetworkError};
use deepcluster_domain::plan::Layer;
use deepcluster_domain::{Purpose, Seeds, Tap};
use tch::{Device, Kind, Tensor};

/// What pictures are drawn back to, of 0 to 255.
const GREY: f64 = 127.5;

/// Standard deviation of the noise that pictures begin as, of 0 to 255.
const NOISE: f64 = 20.0;

/// The share of its distance to grey that a pixel loses in a step.
const DECAY: f64 = 0.02;

const BLUR_EVERY: u32 = 4;

/// A Gaussian of standard deviation 0.5 at -1, 0 and 1 pixels.
const BLUR: [f32; 3] = [0.107, 0.786, 0.107];

/// Keeps a gradient that is zero everywhere from being divided by nothing.
const LEAST: f64 = 1e-20;

/// Pictures of some filters of one layer on their way, each for itself.
pub struct Ascent<'a> {
    network: &'a Network,
    tap: &'a Tap,
    /// int64 `[n, 1]`.
    filters: Tensor,
    /// RGB from 0 to 255, f32 `[n, 3, size, size]`.
    pictures: Tensor,
    /// `[3, 1, 3, 3]`.
    blur: Tensor,
    learning_rate: f64,
    steps: u32,
}

impl<'a> Ascent<'a> {
    /// Noise for each of `filters`, which are numbers of channels (or values) of the layer at `tap`. A step changes the pixels of a
    /// picture by `learning_rate` of 0 to 255 in the root of the mean square. `network` computes in f32.
    ///
    /// # Errors
    /// When there are no filters, or libtorch is out of memory.
    pub fn start(
        network: &'a Network,
        tap: &'a Tap,
        filters: &[u32],
        learning_rate: f64,
        seeds: Seeds,
    ) -> Result<Self, NetworkError> {
        let _no_grad = tch::no_grad_guard();
        let (side, device) = (i64::from(network.plan.image_size), network.runtime.device);
        let mut noise = Vec::with_capacity(filters.len());
        for filter in filters {
            // Drawn for each by itself, so that it does not matter which filters keep it company.
            tch::manual_seed(seeds.number(Purpose::Ascent, u64::from(*filter)) as i64);
            noise.push(Tensor::f_empty([3, side, side], (Kind::Float, Device::Cpu))?.f_normal_(GREY, NOISE)?);
        }
        let pictures = Tensor::f_stack(&noise, 0)?.f_clamp(0.0, 255.0)?.f_to(device)?;
        let numbers: Vec<i64> = filters.iter().map(|filter| i64::from(*filter)).collect();
        let filters = Tensor::f_from_slice(&numbers)?.f_view([-1, 1])?.f_to(device)?;
        let line = Tensor::f_from_slice(&BLUR)?;
        let square = line.f_view([3, 1])?.f_mul(&line.f_view([1, 3])?)?;
        let blur = square.f_expand([3, 1, 3, 3], false)?.f_contiguous()?.f_to(device)?;
        Ok(Self { network, tap, filters, pictures, blur, learning_rate, steps: 0 })
    }

    /// One step up.
    ///
    /// # Errors
    /// When a filter is not of the layer, or libtorch is out of memory.
    pub fn step(&mut self) -> Result<(), NetworkError> {
        let pictures = self.pictures.f_detach()?.f_set_requires_grad(true)?;
        // A filter that the noise does not excite has no slope behind its rectifier; a leaky one shows it the way.
        let climbed = self.means(&self.unrectified(&pictures)?.f_leaky_relu()?)?.f_sum(Kind::Float)?;
        let gradients = Tensor::f_run_backward(&[&climbed], &[&pictures], false, false)?;
        let _no_grad = tch::no_grad_guard();
        let Some(gradient) = gradients.first() else { return Ok(()) };
        // A gradient that is no number says nothing about where to go.
        let gradient = gradient.f_nan_to_num(0.0_f64, 0.0_f64, 0.0_f64)?;
        let mean_square = gradient.f_square()?.f_mean_dim([1_i64, 2, 3].as_slice(), true, Kind::Float)?;
        let step = gradient.f_div(&mean_square.f_sqrt()?.f_clamp_min(LEAST)?)?.f_mul_scalar(self.learning_rate)?;
        let from_grey = self.pictures.f_add(&step)?.f_sub_scalar(GREY)?.f_mul_scalar(1.0 - DECAY)?;
        let mut next = from_grey.f_add_scalar(GREY)?;
        self.steps += 1;
        if self.steps.is_multiple_of(BLUR_EVERY) {
            let padded = next.f_replication_pad2d([1, 1, 1, 1])?;
            next = padded.f_conv2d::<&Tensor>(&self.blur, None, 1, 0, 1, 3)?;
        }
        self.pictures = next.f_clamp(0.0, 255.0)?;
        Ok(())
    }

    /// Mean activation of each filter over its map, behind the rectifier, of the pictures in whole numbers.
    ///
    /// # Errors
    /// As [`Ascent::step`].
    pub fn activations(&self) -> Result<Vec<f32>, NetworkError> {
        let _no_grad = tch::no_grad_guard();
        to_vec(&self.means(&self.unrectified(&self.pictures.f_round()?)?.f_relu()?)?)
    }

    /// The pictures as RGB bytes `[n, size, size, 3]`.
    ///
    /// # Errors
    /// When libtorch is out of memory.
    pub fn pixels(&self) -> Result<Vec<u8>, NetworkError> {
        let _no_grad = tch::no_grad_guard();
        let bytes = self.pictures.f_round()?.f_permute([0, 2, 3, 1])?.f_totype(Kind::Uint8)?;
        let bytes = bytes.f_to(Device::Cpu)?.f_contiguous()?;
        let mut pixels = vec![0_u8; bytes.numel()];
        bytes.f_copy_data(&mut pixels, bytes.numel())?;
        Ok(pixels)
    }

    /// What stands before the rectifier of the layer, for pictures `[n, 3, size, size]`: `[n, channels, side, side]` or
    /// `[n, width]`.
    fn unrectified(&self, pictures: &Tensor) -> Result<Tensor, NetworkError> {
        let seen = self.network.seen_of_values(pictures)?;
        let layers = self.network.plan.layers.get(..self.tap.behind).unwrap_or_default();
        let Some((last, before)) = layers.split_last() else { return Ok(seen) };
        let x = self.network.run(before, seen, Mode::Eval)?;
        match last {
            Layer::Relu => Ok(x),
            Layer::Residual { body, shortcut } => self.network.residual(body, shortcut, x, Mode::Eval),
            other => self.network.run(std::slice::from_ref(other), x, Mode::Eval),
        }
    }

    /// Of each picture's activations the mean of its own filter, `[n]`.
    fn means(&self, activations: &Tensor) -> Result<Tensor, NetworkError> {
        let means = match activations.dim() {
            4 => activations.f_mean_dim([2_i64, 3].as_slice(), false, Kind::Float)?,
            _ => activations.shallow_clone(),
        };
        Ok(means.f_gather(1, &self.filters, false)?.f_flatten(0, -1)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Runtime;
    use deepcluster_domain::{Architecture, DeviceChoice, EpochId, Precision, RunSpec};

    const FILTERS: [u32; 3] = [3, 5, 60];

    #[test]
    fn pictures_excite_their_filters_and_are_the_same_twice() {
        let spec = RunSpec { architecture: Architecture::ResNet18, image_size: 33, ..RunSpec::default() };
        let runtime = Runtime::prepare(DeviceChoice::Cpu, Precision::F32, 2).unwrap();
        let network = Network::load(&spec, runtime, None).unwrap().folded().unwrap();
        for layer in ["conv1", "layer2", "pool"] {
            let tap = network.plan.tap(layer).unwrap();
            let climb = || {
                let mut ascent = Ascent::start(&network, &tap, &FILTERS, 4.0, Seeds::new(7, EpochId(0))).unwrap();
                let before = ascent.activations().unwrap();
                (0..40).for_each(|_| ascent.step().unwrap());
                (before, ascent.activations().unwrap(), ascent.pixels().unwrap())
            };
            let (before, after, pixels) = climb();
            assert_eq!(pixels.len(), FILTERS.len() * 33 * 33 * 3);
            let again = climb();
            assert_eq!((&after, &pixels), (&again.1, &again.2), "{layer}");
            // Of the bytes, by the way that features take.
            let seen = network.activations(&pixels, std::slice::from_ref(&tap)).unwrap().remove(0);
            let means = if seen.dim() == 4 { seen.mean_dim([2_i64, 3].as_slice(), false, Kind::Float) } else { seen };
            for (row, filter) in FILTERS.into_iter().enumerate() {
                assert!(after[row] > 4.0 * before[row] && after[row] > 0.0, "{layer}: {before:?} became {after:?}");
                let mean = means.double_value(&[row as i64, i64::from(filter)]);
                assert!((mean / f64::from(after[row]) - 1.0).abs() < 1e-3, "{layer}, filter {filter}: {mean}, not {after:?}");
            }
        }
    }
}
