//! The cluster atlas as one picture: a row of images for each of the largest clusters.

use crate::atlas::{AtlasOptions, Card, atlas};
use crate::error::ReportError;
use crate::thumbs;
use deepcluster_volume::RunFolder;
use image::imageops;
use image::{ImageFormat, Rgb, RgbImage};
use std::io::Cursor;
use std::path::Path;

/// Clusters in the picture; two columns of rows.
const MAX_CLUSTERS: usize = 24;

/// Images of a cluster, nearest to the centroid first.
const IMAGES_PER_CLUSTER: usize = 8;

/// Side of an image in pixels.
const SIDE: u32 = 64;

/// Pixels between rows, and four times that between columns.
const GAP: u32 = 6;

const BACKGROUND: Rgb<u8> = Rgb([255, 255, 255]);

/// The atlas of a run's last committed epoch as a PNG. `images_root` is the folder that image paths are relative to. Images that
/// cannot be read are grey.
///
/// # Errors
/// When nothing is committed yet, or a file of the epoch is not what its manifest says.
pub fn atlas_png(run: &RunFolder, images_root: &Path) -> Result<Vec<u8>, ReportError> {
    let options = AtlasOptions { nearest: IMAGES_PER_CLUSTER, far: 0, thumb: SIDE, first: 0, most: MAX_CLUSTERS };
    let picture = draw(&atlas(run, images_root, options)?);
    let mut bytes = Vec::new();
    picture.write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png)?;
    Ok(bytes)
}

fn draw(cards: &[Card]) -> RgbImage {
    let columns = if cards.len() > 1 { 2 } else { 1 };
    let rows = (cards.len() as u32).div_ceil(columns).max(1);
    let row_width = IMAGES_PER_CLUSTER as u32 * SIDE;
    let (width, height) = (columns * row_width + (columns + 1) * 4 * GAP, rows * (SIDE + GAP) + GAP);
    let mut picture = RgbImage::from_pixel(width, height, BACKGROUND);
    for (position, card) in (0..).zip(cards) {
        let left = position % columns * (row_width + 4 * GAP) + 4 * GAP;
        let top = position / columns * (SIDE + GAP) + GAP;
        for (column, square) in (0..).zip(thumbs::squares(&card.nearest)) {
            let left: u32 = left + column * SIDE;
            imageops::replace(&mut picture, &square, i64::from(left), i64::from(top));
        }
    }
    picture
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::made_up_run;

    #[test]
    fn atlas_png_shows_a_row_of_images_for_each_cluster() {
        let folder = tempfile::tempdir().unwrap();
        let made = made_up_run(folder.path());
        let png = atlas_png(&made.run, &made.images).unwrap();
        let picture = image::load_from_memory(&png).unwrap().into_rgb8();
        // Three clusters hold images: two rows of two columns.
        assert_eq!(picture.dimensions(), (2 * 8 * 64 + 3 * 24, 2 * (64 + 6) + 6));
        let is_drawn = |x, y| *picture.get_pixel(x, y) != BACKGROUND;
        assert!(is_drawn(24 + 32, 6 + 32), "the first image of the largest cluster");
        assert!(is_drawn(24 + 512 + 24 + 32, 6 + 32), "the first image of the second cluster");
        assert!(is_drawn(24 + 32, 6 + 70 + 32), "the third cluster, in the second row");
        assert!(!is_drawn(24 + 64 + 32, 6 + 70 + 32), "the third cluster has one image");
    }
}
