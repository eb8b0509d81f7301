//! The two image transforms of the recipe, as torchvision and Pillow compute them, on working images.
//!
//! A working image is what the cache keeps of an image: the whole of it, shrunk until its shorter side is not longer than the
//! run's cache side. Views are cut from it whether a cache is there or not, so that one changes nothing but the time.

use crate::decode::Unreadable;
use deepcluster_domain::geometry::{self, resize_side, shrunk};
use deepcluster_domain::{Purpose, Seeds};
use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::RgbImage;
use rand::Rng;

/// Which square of an image the network sees.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum View {
    /// For clustering, no randomness: shorter side to size · 256 / 224, then the centre.
    Center,
    /// For training: random resized crop and flip, drawn from the step's own stream.
    Random {
        /// Seeds of the run and epoch.
        seeds: Seeds,
        /// Position in the training list.
        step: u64,
    },
    /// For teaching linear probes, as the authors' eval_linear.py has it: shorter side to size · 256 / 224, of the square in its
    /// centre a part at random, and a flip.
    Shifted {
        /// Seeds of the probes and their epoch.
        seeds: Seeds,
        /// Position in the training list.
        step: u64,
    },
    /// For teaching what images show, as the authors' eval_voc_classif.py has it: a square of 10–50 % of the image, and a flip.
    Square {
        /// Seeds of the lesson and its pass.
        seeds: Seeds,
        /// Position in the training list.
        step: u64,
    },
    /// One of torchvision's ten crops: after resizing as for the centre, the corners (top left, top right, bottom left, bottom
    /// right), the centre, and from 5 on their mirror images.
    TenCrop(u8),
}

/// A rectangle in pixels of the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Crop {
    left: u32,
    top: u32,
    width: u32,
    height: u32,
}

/// Pixels of somebody else: RGB bytes `[height, width, 3]`.
#[derive(Clone, Copy)]
pub struct Pixels<'a> {
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
    /// The bytes.
    pub rgb: &'a [u8],
}

impl<'a> Pixels<'a> {
    /// Those of an image.
    pub fn of(image: &'a RgbImage) -> Self {
        Self { width: image.width(), height: image.height(), rgb: image.as_raw() }
    }
}

/// Makes views; keeps its buffers between images.
#[derive(Default)]
pub struct Transformer {
    resizer: Resizer,
    resized: Vec<u8>,
}

impl Transformer {
    /// The working image of an image: antialiased bilinear, its shorter side `side` pixels, or as it is when that is not longer.
    ///
    /// # Errors
    /// When the resizer refuses the geometry.
    pub fn working(&mut self, image: RgbImage, side: u32) -> Result<RgbImage, Unreadable> {
        let (width, height) = shrunk(image.width(), image.height(), side);
        if (width, height) == image.dimensions() {
            return Ok(image);
        }
        let mut smaller = RgbImage::new(width, height);
        resize(&mut self.resizer, Pixels::of(&image), None, (width, height), &mut smaller)?;
        Ok(smaller)
    }

    /// The whole of an image, its longer side `longer` pixels, and its shorter side `least` at least, or a narrow one would leave a
    /// network nothing.
    ///
    /// # Errors
    /// When the resizer refuses the geometry.
    pub fn fitted(&mut self, image: &RgbImage, longer: u32, least: u32) -> Result<RgbImage, Unreadable> {
        let scaled = |side: u32| (u64::from(side) * u64::from(longer) / u64::from(image.width().max(image.height()))) as u32;
        let (width, height) = (scaled(image.width()).max(least), scaled(image.height()).max(least));
        let mut fitted = RgbImage::new(width, height);
        resize(&mut self.resizer, Pixels::of(image), None, (width, height), &mut fitted)?;
        Ok(fitted)
    }

    /// Writes one view of a working image as RGB bytes `[size, size, 3]` into `out`.
    ///
    /// # Errors
    /// When the resizer refuses the geometry.
    pub fn view(&mut self, image: Pixels<'_>, view: View, size: u32, out: &mut [u8]) -> Result<(), Unreadable> {
        match view {
            View::Center => self.part(image, size, out, centred),
            View::Shifted { seeds, step } => {
                let mut rng = seeds.rng(Purpose::Augmentation, step);
                let mut shift = |room: u32, short: u32| half_to_even(room - (short - size)) + rng.random_range(0..=short - size);
                self.part(image, size, out, |rooms, short| rooms.map(|room| shift(room, short)))?;
                if rng.random_bool(0.5) {
                    flip_horizontally(out, size as usize);
                }
                Ok(())
            }
            View::TenCrop(number) => {
                let corner = |rooms: [u32; 2], short| match number % 5 {
                    4 => centred(rooms, short),
                    corner => [rooms[0] * u32::from(corner % 2), rooms[1] * u32::from(corner / 2)],
                };
                self.part(image, size, out, corner)?;
                if number >= 5 {
                    flip_horizontally(out, size as usize);
                }
                Ok(())
            }
            View::Random { seeds, step } => self.at_random(image, Crops::ANY, seeds, step, size, out),
            View::Square { seeds, step } => self.at_random(image, Crops::SQUARE, seeds, step, size, out),
        }
    }

    fn at_random(
        &mut self,
        image: Pixels<'_>,
        crops: Crops,
        seeds: Seeds,
        step: u64,
        size: u32,
        out: &mut [u8],
    ) -> Result<(), Unreadable> {
        let mut rng = seeds.rng(Purpose::Augmentation, step);
        let crop = random_crop(image.width, image.height, crops, &mut rng);
        let flip = rng.random_bool(0.5);
        resize(&mut self.resizer, image, Some(crop), (size, size), out)?;
        if flip {
            flip_horizontally(out, size as usize);
        }
        Ok(())
    }

    /// Antialiased bilinear resize of the whole image, then a square of the result, whose left and top follow from the room beside
    /// and below it and from the shorter side. A working image of the default cache side needs no more resizing.
    fn part(
        &mut self,
        image: Pixels<'_>,
        size: u32,
        out: &mut [u8],
        place: impl FnOnce([u32; 2], u32) -> [u32; 2],
    ) -> Result<(), Unreadable> {
        let short = resize_side(size);
        if image.width.min(image.height) == short {
            copy_part(image, size, out, place([image.width - size, image.height - size], short));
            return Ok(());
        }
        let (width, height) = geometry::resized(image.width, image.height, short);
        self.resized.resize(width as usize * height as usize * 3, 0);
        resize(&mut self.resizer, image, None, (width, height), &mut self.resized)?;
        let place = place([width - size, height - size], short);
        copy_part(Pixels { width, height, rgb: &self.resized }, size, out, place);
        Ok(())
    }
}

fn centred(rooms: [u32; 2], _short: u32) -> [u32; 2] {
    rooms.map(half_to_even)
}

fn copy_part(image: Pixels<'_>, size: u32, out: &mut [u8], place: [u32; 2]) {
    let [left, top] = place.map(|pixels| pixels as usize);
    let (row, size) = (image.width as usize * 3, size as usize * 3);
    for (y, target) in out.chunks_exact_mut(size).enumerate() {
        let at = (top + y) * row + left * 3;
        target.copy_from_slice(&image.rgb[at..at + size]);
    }
}

/// Antialiased bilinear, as Pillow does it: pixels outside of the crop do not shine in.
fn resize(
    resizer: &mut Resizer,
    image: Pixels<'_>,
    crop: Option<Crop>,
    to: (u32, u32),
    out: &mut [u8],
) -> Result<(), Unreadable> {
    let failed = |error: &dyn std::fmt::Display| Unreadable(format!("cannot be resized: {error}"));
    let source = ImageRef::new(image.width, image.height, image.rgb, PixelType::U8x3).map_err(|e| failed(&e))?;
    let mut target = Image::from_slice_u8(to.0, to.1, out, PixelType::U8x3).map_err(|e| failed(&e))?;
    let mut options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear));
    if let Some(Crop { left, top, width, height }) = crop {
        options = options.crop(left.into(), top.into(), width.into(), height.into());
    }
    resizer.resize(&source, &mut target, &options).map_err(|e| failed(&e))
}

/// Which crops are drawn.
#[derive(Clone, Copy)]
struct Crops {
    /// The least and the largest share of the image's area.
    area: [f64; 2],
    /// The least and the largest width ÷ height.
    aspect: [f64; 2],
}

impl Crops {
    const ANY: Self = Self { area: [0.08, 1.0], aspect: [3.0 / 4.0, 4.0 / 3.0] };
    const SQUARE: Self = Self { area: [0.1, 0.5], aspect: [1.0, 1.0] };
}

/// torchvision's RandomResizedCrop: uniform area, log-uniform aspect, ten tries, then a centre crop.
fn random_crop(width: u32, height: u32, crops: Crops, rng: &mut impl Rng) -> Crop {
    let ([least, most], [min_aspect, max_aspect]) = (crops.area, crops.aspect);
    let area = f64::from(width) * f64::from(height);
    for _ in 0..10 {
        let target = area * rng.random_range(least..=most);
        let aspect = rng.random_range(min_aspect.ln()..=max_aspect.ln()).exp();
        let w = (target * aspect).sqrt().round() as u32;
        let h = (target / aspect).sqrt().round() as u32;
        if (1..=width).contains(&w) && (1..=height).contains(&h) {
            let top = rng.random_range(0..=height - h);
            let left = rng.random_range(0..=width - w);
            return Crop { left, top, width: w, height: h };
        }
    }
    let aspect = f64::from(width) / f64::from(height);
    let (w, h) = if aspect < min_aspect {
        (width, (f64::from(width) / min_aspect).round() as u32)
    } else if aspect > max_aspect {
        ((f64::from(height) * max_aspect).round() as u32, height)
    } else {
        (width, height)
    };
    Crop { left: (width - w) / 2, top: (height - h) / 2, width: w, height: h }
}

fn flip_horizontally(pixels: &mut [u8], size: usize) {
    for row in pixels.chunks_exact_mut(size * 3) {
        let (pixels, _) = row.as_chunks_mut::<3>();
        pixels.reverse();
    }
}

/// Half of `room`, a half rounded to the even neighbour as Python's `round` does.
fn half_to_even(room: u32) -> u32 {
    (f64::from(room) / 2.0).round_ties_even() as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use deepcluster_domain::EpochId;

    fn seeds() -> Seeds {
        Seeds::new(31, EpochId(0))
    }

    #[test]
    fn random_crops_stay_inside_and_cover_what_they_promise() {
        for (step, (width, height)) in (0..).zip([(32, 32), (500, 375), (1, 1), (20, 900), (900, 20), (2, 3)].repeat(50)) {
            for crops in [Crops::ANY, Crops::SQUARE] {
                let crop = random_crop(width, height, crops, &mut seeds().rng(Purpose::Augmentation, step));
                assert!(crop.width >= 1 && crop.height >= 1, "{crop:?}");
                assert!(crop.left + crop.width <= width && crop.top + crop.height <= height, "{crop:?} in {width} x {height}");
            }
        }
        let shares: Vec<f64> = (0..2000)
            .map(|step| random_crop(400, 400, Crops::ANY, &mut seeds().rng(Purpose::Augmentation, step)))
            .map(|crop| f64::from(crop.width * crop.height) / 160_000.0)
            .collect();
        let mean = shares.iter().sum::<f64>() / shares.len() as f64;
        assert!(shares.iter().all(|share| (0.075..=1.0).contains(share)));
        assert!((0.45..0.56).contains(&mean), "mean area {mean}");
        for step in 0..2000 {
            let crop = random_crop(500, 375, Crops::SQUARE, &mut seeds().rng(Purpose::Augmentation, step));
            let share = f64::from(crop.width * crop.height) / 187_500.0;
            assert!(crop.width == crop.height && (0.099..=0.501).contains(&share), "{crop:?}");
        }
    }

    #[test]
    fn a_view_depends_on_its_step_alone() {
        let image = RgbImage::from_fn(50, 40, |x, y| image::Rgb([x as u8 * 5, y as u8 * 6, (x * y) as u8]));
        let mut transformer = Transformer::default();
        let mut view = |step| {
            let mut out = vec![0; 16 * 16 * 3];
            transformer.view(Pixels::of(&image), View::Random { seeds: seeds(), step }, 16, &mut out).unwrap();
            out
        };
        assert_eq!(view(4), view(4));
        assert_ne!(view(4), view(5));
    }

    /// torchvision's five crops of a 9 × 8 image, shrunk by nothing, and their mirror images.
    #[test]
    fn ten_crops_are_the_corners_and_the_centre() {
        let image = RgbImage::from_fn(9, 8, |x, y| image::Rgb([x as u8, y as u8, 0]));
        let mut transformer = Transformer::default();
        let mut corner = |number| {
            let mut out = vec![0; 7 * 7 * 3];
            transformer.view(Pixels::of(&image), View::TenCrop(number), 7, &mut out).unwrap();
            (out[0], out[1], out[6 * 3])
        };
        assert_eq!([0, 1, 2, 3, 4].map(&mut corner), [(0, 0, 6), (2, 0, 8), (0, 1, 6), (2, 1, 8), (1, 0, 7)]);
        assert_eq!([5, 8].map(corner), [(6, 0, 0), (8, 1, 2)]);
        let shifted: std::collections::HashSet<Vec<u8>> = (0..100)
            .map(|step| {
                let mut out = vec![0; 7 * 7 * 3];
                transformer.view(Pixels::of(&image), View::Shifted { seeds: seeds(), step }, 7, &mut out).unwrap();
                out
            })
            .collect();
        assert_eq!(shifted.len(), 8, "two by two places in the square in the centre, each as it is and mirrored");
    }

    #[test]
    fn flips_mirror_rows() {
        let mut pixels = vec![1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
        flip_horizontally(&mut pixels, 2);
        assert_eq!(pixels, [4, 5, 6, 1, 2, 3, 10, 11, 12, 7, 8, 9]);
        assert_eq!((half_to_even(5), half_to_even(7), half_to_even(32)), (2, 4, 16));
    }

    #[test]
    fn narrow_images_keep_their_centre() {
        let mut transformer = Transformer::default();
        let mut out = vec![0; 64 * 64 * 3];
        for (width, height) in [(1, 1), (1, 150), (150, 1), (3, 70)] {
            let image = RgbImage::from_pixel(width, height, image::Rgb([9, 99, 199]));
            transformer.view(Pixels::of(&image), View::Center, 64, &mut out).unwrap();
            assert!(out.chunks(3).all(|pixel| pixel == [9, 99, 199]), "{width} x {height}");
        }
    }
}
