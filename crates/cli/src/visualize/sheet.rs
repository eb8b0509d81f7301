//! A picture that shows a filter: on the left the images that excite it most, on the right what gradient ascent made.

use crate::failure::Failure;
use deepcluster_images::decode::{self, Expected, UNKNOWN};
use deepcluster_images::transform::{Pixels, Transformer};
use deepcluster_images::{Unreadable, View};
use deepcluster_volume::image_list::ImageEntry;
use deepcluster_volume::layout::resolve_below;
use image::imageops::{self, FilterType};
use image::{ImageFormat, Rgb, RgbImage};
use std::io::Cursor;
use std::path::Path;

/// Where no picture is.
const GREY: Rgb<u8> = Rgb([150, 150, 150]);

/// Images side by side, and in a column.
const SIDE_BY_SIDE: u32 = 3;

/// Largest side of an image, in pixels.
const LARGEST: u32 = 224;

/// Makes such pictures; keeps its buffers between them.
pub struct Sheets<'a> {
    root: &'a Path,
    side: u32,
    cache_side: u32,
    transformer: Transformer,
    content: Vec<u8>,
}

impl<'a> Sheets<'a> {
    /// For images below `root`, of which the network sees a square of `side` pixels, cut from images whose shorter side is at most
    /// `cache_side`.
    pub fn new(root: &'a Path, side: u32, cache_side: u32) -> Self {
        Self { root, side, cache_side, transformer: Transformer::default(), content: Vec::new() }
    }

    /// The sheet of a filter. An image that cannot be read any more is grey.
    pub fn sheet(&mut self, images: &[&ImageEntry], ascent: &RgbImage) -> RgbImage {
        let side = self.side.min(LARGEST);
        let large = side * SIDE_BY_SIDE;
        let mut sheet = RgbImage::from_pixel(2 * large, large, GREY);
        for (at, image) in (0..SIDE_BY_SIDE * SIDE_BY_SIDE).zip(images) {
            if let Ok(seen) = self.seen(image) {
                let (left, top) = (at % SIDE_BY_SIDE * side, at / SIDE_BY_SIDE * side);
                let seen = imageops::resize(&seen, side, side, FilterType::Triangle);
                imageops::replace(&mut sheet, &seen, i64::from(left), i64::from(top));
            }
        }
        let ascent = imageops::resize(ascent, large, large, FilterType::Triangle);
        imageops::replace(&mut sheet, &ascent, i64::from(large), 0);
        sheet
    }

    /// What the network sees of an image.
    fn seen(&mut self, image: &ImageEntry) -> Result<RgbImage, Unreadable> {
        let path = resolve_below(self.root, image.as_path()).map_err(|error| Unreadable(error.to_string()))?;
        decode::read(&path, Some(Expected { bytes: image.bytes, digest: UNKNOWN }), &mut self.content)?;
        let working = self.transformer.working(decode::decode(&self.content)?.image, self.cache_side)?;
        let mut seen = RgbImage::new(self.side, self.side);
        self.transformer.view(Pixels::of(&working), View::Center, self.side, &mut seen)?;
        Ok(seen)
    }
}

/// A picture as a PNG.
///
/// # Errors
/// When it cannot be encoded.
pub fn png(picture: &RgbImage) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let encoded = picture.write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png);
    encoded.map_err(|error| Failure::other(format!("a picture cannot be encoded: {error}")))?;
    Ok(bytes)
}
