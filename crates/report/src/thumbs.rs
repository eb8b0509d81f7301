//! Thumbnails: squares cut from images, and the one picture that shows all of a cluster's.

use crate::atlas::Picture;
use crate::error::ReportError;
use crate::last::Clustered;
use deepcluster_images::decode::{self, Expected, Unreadable};
use deepcluster_images::transform::Transformer;
use deepcluster_volume::layout::resolve_below;
use image::codecs::jpeg::JpegEncoder;
use image::imageops::{self, FilterType};
use image::{ImageFormat, Rgb, RgbImage};
use rayon::prelude::*;
use std::path::Path;

/// JPEG quality of what is shown.
const SHOWN: u8 = 70;

/// JPEG quality of thumbnails, which are put together into what is shown and encoded once more.
const KEPT: u8 = 85;

/// Where no picture is.
const GREY: Rgb<u8> = Rgb([150, 150, 150]);

/// Pixels between the rows of nearest and of far images.
const GAP: u32 = 4;

/// Makes squares from files, on one thread; keeps its buffers between them.
#[derive(Default)]
pub(crate) struct Thumbnailer {
    transformer: Transformer,
    content: Vec<u8>,
}

impl Thumbnailer {
    /// The middle of an image below `root`, `side` pixels square. The file must be the `expected` one where that is known.
    pub(crate) fn square(
        &mut self,
        root: &Path,
        path: &Path,
        expected: Option<Expected>,
        side: u32,
    ) -> Result<RgbImage, Unreadable> {
        let path = resolve_below(root, path).map_err(|error| Unreadable(error.to_string()))?;
        decode::read(&path, expected, &mut self.content)?;
        let image = self.transformer.working(decode::decode(&self.content)?.image, side)?;
        let short = image.width().min(image.height());
        let (left, top) = ((image.width() - short) / 2, (image.height() - short) / 2);
        let square = imageops::crop_imm(&image, left, top, short, short).to_image();
        // Only what is smaller than a thumbnail still has another size.
        Ok(if short == side { square } else { imageops::resize(&square, side, side, FilterType::Triangle) })
    }
}

/// Where no picture is.
pub(crate) fn grey(side: u32) -> RgbImage {
    RgbImage::from_pixel(side, side, GREY)
}

/// Thumbnails of images by their rows, in the same order. One that cannot be read any more is grey.
pub(crate) fn pictures(clustered: &Clustered, root: &Path, rows: &[u32], side: u32) -> Result<Vec<Picture>, ReportError> {
    rows.par_iter()
        .map_init(Thumbnailer::default, |thumbnailer, row| -> Result<Picture, ReportError> {
            let row = *row as usize;
            let (square, unreadable, path) = match clustered.images.get(row) {
                Some(image) => {
                    let made = thumbnailer.square(root, image.as_path(), clustered.expected(row), side);
                    let path = String::from_utf8_lossy(&image.path).into_owned();
                    made.map_or_else(
                        |why| (grey(side), Some(why.to_string()), path.clone()),
                        |square| (square, None, path.clone()),
                    )
                }
                None => (grey(side), Some("no such image".to_owned()), String::new()),
            };
            let distance = clustered.distances.get(row).map_or(f64::NAN, |distance| f64::from(*distance));
            Ok(Picture { path, distance, jpeg: jpeg(&square, KEPT)?, unreadable })
        })
        .collect()
}

/// An image as a JPEG.
pub(crate) fn jpeg(image: &RgbImage, quality: u8) -> Result<Vec<u8>, image::ImageError> {
    let mut bytes = Vec::new();
    image.write_with_encoder(JpegEncoder::new_with_quality(&mut bytes, quality))?;
    Ok(bytes)
}

/// A picture that shows several.
pub(crate) struct Strip {
    pub(crate) jpeg: Vec<u8>,
    pub(crate) width: u32,
    pub(crate) height: u32,
}

/// Rows of squares in one picture, `columns` of them side by side, with a gap between the groups. None when there are none.
pub(crate) fn strip(groups: &[Vec<RgbImage>], columns: u32) -> Option<Strip> {
    let side = groups.iter().flatten().map(RgbImage::width).max()?;
    let longest = groups.iter().map(|group| group.len() as u32).max()?;
    let columns = columns.clamp(1, longest.max(1));
    let shown: Vec<&Vec<RgbImage>> = groups.iter().filter(|group| !group.is_empty()).collect();
    let rows: u32 = shown.iter().map(|group| (group.len() as u32).div_ceil(columns)).sum();
    let (width, height) = (columns * side, rows * side + GAP * (shown.len() as u32).saturating_sub(1));
    let mut picture = RgbImage::from_pixel(width, height, GREY);
    let mut top = 0;
    for group in shown {
        for (at, square) in (0..).zip(group) {
            let (left, down): (u32, u32) = (at % columns * side, at / columns * side);
            imageops::replace(&mut picture, square, i64::from(left), i64::from(top + down));
        }
        top += (group.len() as u32).div_ceil(columns) * side + GAP;
    }
    Some(Strip { jpeg: jpeg(&picture, SHOWN).ok()?, width, height })
}

/// The squares of thumbnails.
pub(crate) fn squares(pictures: &[Picture]) -> Vec<RgbImage> {
    let square = |picture: &Picture| {
        let read = image::load_from_memory_with_format(&picture.jpeg, ImageFormat::Jpeg);
        read.map_or_else(|_| grey(1), |image| image.into_rgb8())
    };
    pictures.iter().map(square).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use deepcluster_images::decode::UNKNOWN;
    use std::collections::BTreeSet;

    #[test]
    fn squares_are_the_middle_of_images_and_leave_no_root() {
        let folder = tempfile::tempdir().unwrap();
        let stripes = RgbImage::from_fn(90, 30, |x, _| if (30..60).contains(&x) { Rgb([250, 0, 0]) } else { Rgb([0, 0, 250]) });
        stripes.save(folder.path().join("wide.png")).unwrap();
        let mut thumbnailer = Thumbnailer::default();
        for side in [10, 30, 60] {
            let square = thumbnailer.square(folder.path(), Path::new("wide.png"), None, side).unwrap();
            assert_eq!(square.dimensions(), (side, side));
            let [red, _, blue] = square.get_pixel(side / 2, side / 2).0;
            assert!(red > 240 && blue < 10, "{red} {blue} at side {side}");
        }
        let bytes = std::fs::metadata(folder.path().join("wide.png")).unwrap().len();
        for expected in [Expected { bytes: 7, digest: UNKNOWN }, Expected { bytes, digest: 7 }] {
            let other = thumbnailer.square(folder.path(), Path::new("wide.png"), Some(expected), 10).unwrap_err();
            assert!(other.to_string().contains("replaced"), "{other}");
        }
        assert!(thumbnailer.square(folder.path(), Path::new("../wide.png"), None, 10).is_err());
    }

    #[test]
    fn a_strip_holds_every_square_in_its_place() {
        let square = |level: u8| RgbImage::from_pixel(16, 16, Rgb([level; 3]));
        let near: Vec<RgbImage> = [0, 60, 120].map(square).to_vec();
        let strip = strip(&[near, vec![square(250)]], 2).unwrap();
        assert_eq!((strip.width, strip.height), (32, 3 * 16 + GAP));
        let shown = image::load_from_memory(&strip.jpeg).unwrap().into_rgb8();
        let level = |x: u32, y: u32| u32::from(shown.get_pixel(x, y).0[0]).div_ceil(10);
        let levels: BTreeSet<u32> = [level(8, 8), level(24, 8), level(8, 24), level(8, 44)].into();
        assert_eq!(levels.len(), 4, "{levels:?}");
        assert!(level(8, 44) > level(8, 24) && level(8, 24) > level(24, 8));
        assert!(super::strip(&[Vec::new()], 4).is_none());
    }
}
