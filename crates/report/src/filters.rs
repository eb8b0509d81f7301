//! The filters of the first layer as a picture.

use crate::error::ReportError;
use deepcluster_volume::committed::CommittedEpoch;
use deepcluster_volume::tensors::TensorsFile;
use image::{ImageFormat, Rgba, RgbaImage};
use safetensors::tensor::Dtype;
use std::io::Cursor;

/// What the weights of a first layer are called: in AlexNet and VGG, and in the ResNets.
const NAMES: [&str; 2] = ["features.0.weight", "conv1.weight"];

/// Tiles side by side: so many filters of three colours, half as many of two edges.
const TILES: u32 = 24;

/// Filters of one layer, `[filters, channels, height, width]`.
pub(crate) struct Filters {
    pub(crate) n: usize,
    pub(crate) channels: usize,
    height: usize,
    width: usize,
    values: Vec<f32>,
}

/// A picture of all filters.
pub(crate) struct Grid {
    pub(crate) png: Vec<u8>,
    pub(crate) width: u32,
    pub(crate) height: u32,
    /// Filters in a row.
    pub(crate) per_row: u32,
}

impl Filters {
    /// Those of the last epoch's network; none when its checkpoint has no layer of a known name.
    pub(crate) fn read(last: &CommittedEpoch) -> Result<Option<Self>, ReportError> {
        let file = TensorsFile::open(&last.verified("checkpoint.safetensors")?)?;
        let Some(found) = NAMES.into_iter().find_map(|name| file.find(name)) else { return Ok(None) };
        let [n, channels, height, width] = found.shape[..] else { return Ok(None) };
        if found.dtype != Dtype::F32 || [n, channels, height, width].contains(&0) {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        file.read(&found.name, &mut bytes)?;
        let (numbers, _) = bytes.as_chunks::<4>();
        Ok(Some(Self { n, channels, height, width, values: numbers.iter().map(|b| f32::from_le_bytes(*b)).collect() }))
    }

    /// All filters, each in its own range from black to white: three channels as colours, others as grey tiles side by side.
    pub(crate) fn grid(&self) -> Result<Grid, ReportError> {
        let tiles = if self.channels == 3 { 1 } else { self.channels as u32 };
        let per_row = (TILES / tiles).max(1).min(self.n as u32);
        let (tile_width, tile_height) = (self.width as u32, self.height as u32);
        // A pixel between tiles, two between filters, as much around all.
        let (step_x, step_y) = (tiles * (tile_width + 1) + 1, tile_height + 2);
        let rows = (self.n as u32).div_ceil(per_row);
        let (width, height) = (per_row * step_x + 1, rows * step_y + 2);
        let mut picture = RgbaImage::new(width, height);
        for (at, filter) in (0..).zip(self.values.chunks_exact(self.channels * self.height * self.width)) {
            let (left, top): (u32, u32) = (at % per_row * step_x + 2, at / per_row * step_y + 2);
            self.draw(filter, &mut picture, (left, top));
        }
        let mut png = Vec::new();
        picture.write_to(&mut Cursor::new(&mut png), ImageFormat::Png)?;
        Ok(Grid { png, width, height, per_row })
    }

    fn draw(&self, filter: &[f32], picture: &mut RgbaImage, (left, top): (u32, u32)) {
        let level = levels(filter);
        let mut put = |x: u32, y: u32, [red, green, blue]: [u8; 3]| {
            if let Some(pixel) = picture.get_pixel_mut_checked(left + x, top + y) {
                *pixel = Rgba([red, green, blue, 255]);
            }
        };
        let plane = self.height * self.width;
        let at = |channel: usize, pixel: usize| level(filter.get(channel * plane + pixel).copied().unwrap_or_default());
        for pixel in 0..plane {
            let (x, y) = ((pixel % self.width) as u32, (pixel / self.width) as u32);
            if self.channels == 3 {
                put(x, y, [at(0, pixel), at(1, pixel), at(2, pixel)]);
                continue;
            }
            for channel in 0..self.channels {
                put(channel as u32 * (self.width as u32 + 1) + x, y, [at(channel, pixel); 3]);
            }
        }
    }
}

/// From the range of these numbers to 0 ..= 255; the middle for what has no place in it.
fn levels(values: &[f32]) -> impl Fn(f32) -> u8 {
    let finite = || values.iter().copied().filter(|value| value.is_finite());
    let (low, high) = (finite().fold(f32::INFINITY, f32::min), finite().fold(f32::NEG_INFINITY, f32::max));
    move |value| {
        let share = (value - low) / (high - low);
        if share.is_finite() { (share * 255.0).round() as u8 } else { 128 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::made_up_run;

    #[test]
    fn filters_of_two_edges_are_two_tiles_in_their_own_range() {
        let folder = tempfile::tempdir().unwrap();
        let made = made_up_run(folder.path());
        let filters = Filters::read(&crate::last::last_epoch(&made.run).unwrap()).unwrap().unwrap();
        assert_eq!((filters.n, filters.channels), (6, 2));
        let grid = filters.grid().unwrap();
        let shown = image::load_from_memory(&grid.png).unwrap().into_rgba8();
        assert_eq!((grid.per_row, shown.dimensions()), (6, (6 * 9 + 1, 7)));
        // Numbers rise from the first of the first tile to the last of the second, in each filter.
        for filter in 0..6 {
            let left = 2 + filter * 9;
            assert_eq!(shown.get_pixel(left, 2).0, [0, 0, 0, 255]);
            assert_eq!(shown.get_pixel(left + 3, 2).0[3], 0, "a gap between the tiles");
            assert_eq!(shown.get_pixel(left + 6, 4).0, [255; 4]);
        }
    }

    #[test]
    fn three_channels_are_colours_and_a_flat_filter_is_grey() {
        let filters = Filters { n: 2, channels: 3, height: 1, width: 1, values: vec![-1.0, 0.0, 1.0, 4.0, 4.0, f32::NAN] };
        let grid = filters.grid().unwrap();
        let shown = image::load_from_memory(&grid.png).unwrap().into_rgba8();
        assert_eq!(shown.get_pixel(2, 2).0, [0, 128, 255, 255]);
        assert_eq!(shown.get_pixel(2 + 3, 2).0, [128, 128, 128, 255]);
    }
}
