//! Pictures to try the system on: ten classes of shapes and textures, drawn under photograph-like nuisance.
//!
//! A class is a pattern of edges (see [`patterns`]). Everything else about a picture is drawn at random: colours,
//! contrast and which of ink and paper is the darker, pose and scale, lighting, unevenness, things in the way, blur and
//! noise. So features of an untrained network mostly tell apart the nuisance, and training has something to learn.

mod patterns;

use deepcluster_volume::VolumeError;
use deepcluster_volume::publish::publish_bytes;
use image::{ImageFormat, Rgb, RgbImage};
use patterns::{Form, PATTERNS, Pattern, Point, turbulence};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use std::f32::consts::TAU;
use std::io::Cursor;
use std::path::Path;

type Colour = [f32; 3];

/// What to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DemoImages {
    /// How many pictures, over all classes together.
    pub count: u32,
    /// Height and width of each, in pixels.
    pub size: u32,
    /// Another seed draws other pictures.
    pub seed: u64,
    /// JPEG instead of PNG.
    pub jpeg: bool,
}

/// Why the pictures could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// Too small to show a pattern, or too large to be of use.
    #[error("size {0} is not in 16..=1024")]
    Size(u32),
    /// Too few for a picture of each class, or more than the file names are made for.
    #[error("count {0} is not in 10..=1000000")]
    Count(u32),
    /// A picture could not be encoded.
    #[error("picture {index}: {source}")]
    Image {
        /// Which picture.
        index: u32,
        /// What the encoder said.
        source: image::ImageError,
    },
    /// A picture could not be written; the message names the file.
    #[error(transparent)]
    Volume(#[from] VolumeError),
}

impl DemoImages {
    /// Writes `count` pictures into ten folders below `folder`; picture i is of class i % 10, as in
    /// `stripes/00011.png`. The same options give the same bytes. Says how many were written.
    ///
    /// # Errors
    /// When the options are out of range, or a file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<u32, DemoError> {
        self.check()?;
        (0..self.count).into_par_iter().try_for_each(|index| {
            let path = folder.join(pattern(index).name).join(format!("{index:05}.{}", if self.jpeg { "jpg" } else { "png" }));
            publish_bytes(&path, &self.encoded(index)?)?;
            Ok::<(), DemoError>(())
        })?;
        Ok(self.count)
    }

    fn check(&self) -> Result<(), DemoError> {
        if !(16..=1024).contains(&self.size) {
            return Err(DemoError::Size(self.size));
        }
        if !(10..=1_000_000).contains(&self.count) {
            return Err(DemoError::Count(self.count));
        }
        Ok(())
    }

    /// Picture `index` as a file. It depends on no other picture, so they can be drawn in any order.
    fn encoded(&self, index: u32) -> Result<Vec<u8>, DemoError> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(index.into());
        let picture = Scene::draw(pattern(index), &mut rng).photograph(self.size, &mut rng);
        let mut file = Cursor::new(Vec::new());
        let format = if self.jpeg { ImageFormat::Jpeg } else { ImageFormat::Png };
        picture.write_to(&mut file, format).map_err(|source| DemoError::Image { index, source })?;
        Ok(file.into_inner())
    }
}

fn pattern(index: u32) -> &'static Pattern {
    &PATTERNS[index as usize % PATTERNS.len()]
}

/// All that is to be seen in a picture, in a plane where the picture covers 0..1 both ways.
struct Scene {
    ink_at: fn(Point, Form) -> bool,
    form: Form,
    pose: Pose,
    ink: Colour,
    paper: Colour,
    /// How far the surface strays from its colour, and how many hills that has from side to side.
    uneven: [f32; 2],
    /// The way towards the light; the longer, the more of a gradient.
    light: Point,
    clutter: Vec<Clutter>,
}

impl Scene {
    fn draw(pattern: &Pattern, rng: &mut ChaCha8Rng) -> Self {
        // Contrast varies more than anything else: it is most of what an untrained network sees.
        let contrast = log_range(rng, 0.2, 0.9);
        let middle = 0.45 + 0.05 * rng.random_range(-1.0..=1.0f32);
        let sign = if rng.random() { 0.5 } else { -0.5 };
        let glow = rng.random_range(0.0..0.4f32);
        Self {
            ink_at: pattern.ink,
            form: Form { salt: rng.random(), weight: rng.random(), twist: rng.random() },
            pose: Pose::draw(1.0 / log_range(rng, 4.0, 6.5), 1.2, 0.25, rng),
            ink: tinted(middle + sign * contrast, rng),
            paper: tinted(middle - sign * contrast, rng),
            uneven: [rng.random_range(0.0..0.3) * contrast, rng.random_range(1.0..4.0)],
            light: direction(rng).map(|along| along * glow),
            clutter: (0..rng.random_range(0..=2u32)).map(|_| Clutter::draw(rng)).collect(),
        }
    }

    /// The light that comes from a point.
    fn colour(&self, at: Point) -> Colour {
        let lit = 1.0 + self.light[0] * (at[0] - 0.5) + self.light[1] * (at[1] - 0.5);
        if let Some(thing) = self.clutter.iter().find(|thing| thing.covers(at)) {
            return thing.colour.map(|part| part * lit);
        }
        let surface = if (self.ink_at)(self.pose.inverse(at), self.form) { self.ink } else { self.paper };
        let [height, hills] = self.uneven;
        let stray = height * (turbulence(at.map(|along| along * hills), self.form.salt ^ 0x5EED) - 0.5);
        surface.map(|part| (part + stray) * lit)
    }

    /// What a camera makes of the scene: four rays a pixel, a lens that blurs, a sensor with noise.
    fn photograph(&self, size: u32, rng: &mut ChaCha8Rng) -> RgbImage {
        let ray = |pixel: u32, half: u32| (pixel as f32 + 0.25 + 0.5 * half as f32) / size as f32;
        let mut pixels: Vec<Colour> = (0..size * size)
            .map(|pixel| {
                let rays = (0..4).map(|half| self.colour([ray(pixel % size, half % 2), ray(pixel / size, half / 2)]));
                rays.fold([0.0; 3], |sum, colour| [0, 1, 2].map(|part| sum[part] + colour[part] / 4.0))
            })
            .collect();
        // In pixels of a picture of 64, so that size alone does not change what is to be recognised.
        blur(&mut pixels, size as usize, rng.random_range(0.0..0.7) * size as f32 / 64.0);
        let grain = rng.random_range(0.0..0.02f32);
        RgbImage::from_fn(size, size, |x, y| {
            Rgb(pixels[(y * size + x) as usize].map(|part| {
                // Three uniform numbers are normal enough.
                let noise = (0..3).map(|_| rng.random_range(-1.0..1.0f32)).sum::<f32>();
                ((part + grain * noise) * 255.0).round() as u8
            }))
        })
    }
}

/// Where, how large and how turned something lies in the picture.
struct Pose {
    middle: Point,
    /// Cosine and sine of the turn.
    turn: Point,
    /// Half the extent both ways, or the length of one period.
    extent: Point,
}

impl Pose {
    /// Anywhere in the picture, turned by at most `tilt` radians; one extent is up to `stretch` times the other.
    fn draw(extent: f32, stretch: f32, tilt: f32, rng: &mut ChaCha8Rng) -> Self {
        let stretch = log_range(rng, 1.0 / stretch, stretch).sqrt();
        Self {
            middle: [rng.random(), rng.random()],
            turn: {
                let t = rng.random_range(-tilt..=tilt);
                [t.cos(), t.sin()]
            },
            extent: [extent * stretch, extent / stretch],
        }
    }

    /// From the picture to the thing's own coordinates.
    fn inverse(&self, at: Point) -> Point {
        let [x, y] = [at[0] - self.middle[0], at[1] - self.middle[1]];
        let [cosine, sine] = self.turn;
        [(cosine * x + sine * y) / self.extent[0], (cosine * y - sine * x) / self.extent[1]]
    }
}

/// A thing in the way, of a kind that every class has.
struct Clutter {
    pose: Pose,
    round: bool,
    colour: Colour,
}

impl Clutter {
    fn draw(rng: &mut ChaCha8Rng) -> Self {
        let grey = rng.random();
        Self { pose: Pose::draw(log_range(rng, 0.04, 0.14), 4.0, TAU / 2.0, rng), round: rng.random(), colour: tinted(grey, rng) }
    }

    fn covers(&self, at: Point) -> bool {
        let [x, y] = self.pose.inverse(at);
        if self.round { x * x + y * y < 1.0 } else { x.abs().max(y.abs()) < 1.0 }
    }
}

/// A colour about as bright as a grey, of any hue.
fn tinted(grey: f32, rng: &mut ChaCha8Rng) -> Colour {
    let strength = rng.random_range(0.0..0.3);
    let hue = rng.random_range(0.0..TAU);
    [0.0, 1.0, 2.0].map(|part: f32| grey + strength * (hue + part * TAU / 3.0).cos())
}

fn direction(rng: &mut ChaCha8Rng) -> Point {
    let turn = rng.random_range(0.0..TAU);
    [turn.cos(), turn.sin()]
}

/// Between two numbers, where doubling is equally likely anywhere.
fn log_range(rng: &mut ChaCha8Rng, from: f32, to: f32) -> f32 {
    rng.random_range(from.ln()..=to.ln()).exp()
}

/// A Gaussian blur, along the rows and then along the columns; the edge is repeated beyond itself.
fn blur(pixels: &mut Vec<Colour>, size: usize, sigma: f32) {
    let reach = (2.5 * sigma).ceil() as isize;
    let weights: Vec<f32> = (-reach..=reach).map(|off| (-0.5 * (off as f32 / sigma.max(1e-3)).powi(2)).exp()).collect();
    let total: f32 = weights.iter().sum();
    for (stride, across) in [(1, size), (size, 1)] {
        let source = std::mem::take(pixels);
        *pixels = (0..size * size)
            .map(|pixel| {
                let along = (pixel / stride % size) as isize;
                let line = pixel / across % size * across;
                let mut sum = [0.0; 3];
                for (off, weight) in (-reach..=reach).zip(&weights) {
                    let from = source[line + (along + off).clamp(0, size as isize - 1) as usize * stride];
                    sum = [0, 1, 2].map(|part| sum[part] + from[part] * weight / total);
                }
                sum
            })
            .collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FEW: DemoImages = DemoImages { count: 20, size: 32, seed: 1, jpeg: false };

    #[test]
    fn the_same_options_draw_the_same_pictures() {
        for index in 0..20 {
            assert_eq!(FEW.encoded(index).unwrap(), FEW.encoded(index).unwrap());
        }
    }

    #[test]
    fn another_seed_or_another_index_draws_another_picture() {
        let other = DemoImages { seed: 2, ..FEW };
        assert_ne!(FEW.encoded(3).unwrap(), other.encoded(3).unwrap());
        assert_ne!(FEW.encoded(3).unwrap(), FEW.encoded(13).unwrap());
    }

    #[test]
    fn ten_folders_hold_the_pictures() {
        let folder = std::env::temp_dir().join(format!("deepcluster-demo-images-{}", std::process::id()));
        assert_eq!(FEW.write(&folder).unwrap(), 20);
        let classes: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(classes.len(), 10);
        for class in classes {
            assert_eq!(std::fs::read_dir(class).unwrap().count(), 2);
        }
        let picture = image::open(folder.join("stripes/00011.png")).unwrap();
        assert_eq!((picture.width(), picture.height()), (32, 32));
        assert_eq!(FEW.write(&folder).unwrap(), 20, "what is there already is written over");
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn options_out_of_range_are_refused() {
        for size in [0, 15, 1025] {
            assert!(matches!(DemoImages { size, ..FEW }.write(Path::new("nowhere")), Err(DemoError::Size(_))));
        }
        for count in [0, 9, 1_000_001] {
            assert!(matches!(DemoImages { count, ..FEW }.write(Path::new("nowhere")), Err(DemoError::Count(_))));
        }
    }
}
