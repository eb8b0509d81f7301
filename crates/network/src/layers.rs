//! Activations of layers on the way to the embedding: what linear probes, neighbours and retrieval look at.

use crate::forward::Mode;
use crate::{Network, NetworkError};
use deepcluster_domain::Tap;
use deepcluster_domain::layers::pooled_side;
use tch::{Kind, Tensor};

/// The levels of regional maximum activations (Tolias, Sicre, Jégou 2016), as the paper's retrieval has them.
const REGION_LEVELS: i64 = 3;

impl Network {
    /// Activations of RGB bytes `[n, size, size, 3]` in eval mode behind each of `taps`, which come in order of the layers: maps
    /// `[n, channels, side, side]` or rows `[n, width]`, in f32.
    ///
    /// # Errors
    /// When libtorch is out of memory.
    pub fn activations(&self, pixels: &[u8], taps: &[Tap]) -> Result<Vec<Tensor>, NetworkError> {
        let _no_grad = tch::no_grad_guard();
        self.tapped(self.seen(pixels)?, taps)
    }

    /// From the input of the first layer. No layer behind the last tap is computed.
    pub(crate) fn tapped(&self, seen: Tensor, taps: &[Tap]) -> Result<Vec<Tensor>, NetworkError> {
        let mut taken = Vec::with_capacity(taps.len());
        let (mut x, mut from) = (seen, 0);
        for tap in taps {
            x = self.run(&self.plan.layers[from.min(tap.behind)..tap.behind], x, Mode::Eval)?;
            from = tap.behind;
            let activations = if tap.rectify { x.f_relu()? } else { x.shallow_clone() };
            taken.push(activations.f_totype(Kind::Float)?);
        }
        Ok(taken)
    }
}

impl Network {
    /// Shape of a layer's activations of one image: `[1, channels, side, side]` or `[1, width]`.
    ///
    /// # Errors
    /// When libtorch is out of memory.
    pub fn layer_shape(&self, tap: &Tap) -> Result<Vec<i64>, NetworkError> {
        let side = self.plan.image_size as usize;
        let taken = self.activations(&vec![0; side * side * 3], std::slice::from_ref(tap))?;
        Ok(taken.first().map(Tensor::size).unwrap_or_default())
    }

    /// One layer of RGB bytes `[n, size, size, 3]`, max-pooled to about `values`: f32 `[n, width]` in C order.
    ///
    /// # Errors
    /// When libtorch is out of memory.
    pub fn layer_features(&self, pixels: &[u8], tap: &Tap, values: u32) -> Result<Vec<f32>, NetworkError> {
        let _no_grad = tch::no_grad_guard();
        let taken = self.activations(pixels, std::slice::from_ref(tap))?;
        taken.first().map_or(Ok(Vec::new()), |taken| to_vec(&max_pooled(taken, values)?))
    }

    /// Regional maximum activations of a layer, of one whole image of RGB bytes `[height, width, 3]`: one value a channel.
    ///
    /// # Errors
    /// When libtorch is out of memory.
    pub fn regional_maxima(&self, pixels: &[u8], size: (u32, u32), tap: &Tap) -> Result<Vec<f32>, NetworkError> {
        let _no_grad = tch::no_grad_guard();
        let taken = self.tapped(self.seen_whole(pixels, size)?, std::slice::from_ref(tap))?;
        taken.first().map_or(Ok(Vec::new()), |maps| to_vec(&regional_maxima(maps)?))
    }
}

pub(crate) fn to_vec(tensor: &Tensor) -> Result<Vec<f32>, NetworkError> {
    let tensor = tensor.f_to(tch::Device::Cpu)?.f_contiguous()?;
    let mut values = vec![0.0; tensor.numel()];
    tensor.f_copy_data(&mut values, tensor.numel())?;
    Ok(values)
}

/// Rows `[n, about values]` of maps, by maxima over windows; rows stay as they are.
///
/// # Errors
/// When libtorch is out of memory.
pub fn max_pooled(activations: &Tensor, values: u32) -> Result<Tensor, NetworkError> {
    let rows = match activations.size().as_slice() {
        [_, channels, side, _] => {
            let pooled = pooled_side(*channels, *side, values);
            match pooled == *side {
                true => activations.f_flatten(1, -1)?,
                false => activations.f_adaptive_max_pool2d([pooled, pooled])?.0.f_flatten(1, -1)?,
            }
        }
        _ => activations.shallow_clone(),
    };
    Ok(rows.f_contiguous()?)
}

/// Number of values that [`max_pooled`] leaves of a layer, which has shape `[_, channels, side, side]` or `[_, width]`.
pub fn pooled_width(shape: &[i64], values: u32) -> i64 {
    match shape {
        [_, channels, side, _] => channels * pooled_side(*channels, *side, values).pow(2),
        [_, width] => *width,
        _ => 0,
    }
}

/// Regional maximum activations of maps `[n, channels, h, w]`: maxima over squares of three sizes that overlap by about 40 %,
/// each to unit length, summed up, and the sum to unit length: `[n, channels]`.
///
/// # Errors
/// When libtorch is out of memory.
pub fn regional_maxima(maps: &Tensor) -> Result<Tensor, NetworkError> {
    let (_, _, height, width) = maps.size4()?;
    let mut sum = unit_length(&maps.f_amax([2_i64, 3].as_slice(), false)?)?;
    for (top, left, side) in regions(height, width) {
        let region = maps.f_narrow(2, top, side)?.f_narrow(3, left, side)?;
        sum = sum.f_add(&unit_length(&region.f_amax([2_i64, 3].as_slice(), false)?)?)?;
    }
    unit_length(&sum)
}

fn unit_length(rows: &Tensor) -> Result<Tensor, NetworkError> {
    let norm = rows.f_norm_scalaropt_dim(2, [1_i64].as_slice(), true)?.f_clamp_min(1e-12)?;
    Ok(rows.f_div(&norm)?)
}

/// Squares of a map as (top, left, side): at level l, l of them along the shorter side, of side 2 · shorter / (l + 1), and so
/// many more along the longer one that neighbours overlap by about 40 % at the first level.
fn regions(height: i64, width: i64) -> Vec<(i64, i64, i64)> {
    let shorter = height.min(width);
    let longer = height.max(width);
    // How many squares of the shorter side lie along the longer one.
    let overlap = |n: i64| {
        let stride = (longer - shorter) as f64 / (n - 1).max(1) as f64;
        ((shorter as f64 - stride) / shorter as f64 - 0.4).abs()
    };
    let more = match longer == shorter {
        true => 0,
        false => (2..=7).min_by(|a, b| overlap(*a).total_cmp(&overlap(*b))).unwrap_or(2) - 1,
    };
    let mut squares = Vec::new();
    for level in 1..=REGION_LEVELS {
        let side = (2 * shorter / (level + 1)).max(1);
        let starts = |length: i64, n: i64| -> Vec<i64> {
            let step = if n > 1 { (length - side) as f64 / (n - 1) as f64 } else { 0.0 };
            (0..n).map(|at| (at as f64 * step).floor() as i64).collect()
        };
        let (rows, columns) = if height < width { (level, level + more) } else { (level + more, level) };
        for top in starts(height, rows) {
            squares.extend(starts(width, columns).into_iter().map(|left| (top, left, side)));
        }
    }
    squares
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Runtime;
    use deepcluster_domain::{Architecture, DeviceChoice, Precision, RunSpec};

    #[test]
    fn the_last_layer_is_the_embedding_and_folding_changes_nothing() {
        let spec = RunSpec { architecture: Architecture::ResNet18, image_size: 33, ..RunSpec::default() };
        let runtime = Runtime::prepare(DeviceChoice::Cpu, Precision::F32, 2).unwrap();
        let network = Network::load(&spec, runtime, None).unwrap();
        let folded = network.folded().unwrap();
        let pixels: Vec<u8> = (0..2 * 33 * 33 * 3).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let embedding = Tensor::from_slice(&network.features(&pixels).unwrap()).view([2, 512]);
        let taken = network.activations(&pixels, &network.plan.taps()).unwrap();
        let again = folded.activations(&pixels, &folded.plan.taps()).unwrap();
        assert_eq!(taken.last().unwrap().size(), [2, 512]);
        for (tensor, other) in taken.iter().chain([&embedding]).zip(again.iter().chain(again.last())) {
            let scale = tensor.abs().max().double_value(&[]);
            assert!((tensor - other).abs().max().double_value(&[]) < 1e-5 * scale, "{:?}", tensor.size());
        }
        // Alone, a layer is what it is among the others.
        let tap = network.plan.tap("layer2").unwrap();
        assert_eq!(network.activations(&pixels, &[tap]).unwrap()[0], taken[2]);
    }

    #[test]
    fn pooling_takes_maxima() {
        let maps = Tensor::arange(2 * 3 * 4 * 4, (Kind::Float, tch::Device::Cpu)).view([2, 3, 4, 4]);
        let rows = max_pooled(&maps, 12).unwrap();
        assert_eq!(rows.size(), [2, 12]);
        assert_eq!(rows.double_value(&[0, 0]), 5.0);
        assert_eq!(pooled_width(&maps.size(), 12), 12);
        assert_eq!(max_pooled(&maps, 100_000).unwrap().size(), [2, 48]);
    }

    #[test]
    fn regions_lie_inside_and_cover_the_map() {
        for (height, width) in [(6, 6), (1, 1), (12, 20), (30, 7)] {
            let squares = regions(height, width);
            let mut covered = vec![false; (height * width) as usize];
            for (top, left, side) in &squares {
                assert!(top + side <= height && left + side <= width, "{height} x {width}: {top} {left} {side}");
                for row in *top..top + side {
                    (*left..left + side).for_each(|column| covered[(row * width + column) as usize] = true);
                }
            }
            assert!(covered.iter().all(|covered| *covered), "{height} x {width}");
        }
        // Levels of 1, 4 and 9 squares of a square map.
        assert_eq!(regions(6, 6).len(), 14);
        let maps = Tensor::ones([1, 4, 6, 6], (Kind::Float, tch::Device::Cpu));
        let maxima = regional_maxima(&maps).unwrap();
        assert!((maxima.double_value(&[0, 0]) - 0.5).abs() < 1e-5, "four equal values of length 1");
    }
}
