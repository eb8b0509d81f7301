//! The sprite of a projection: all thumbnails on one sheet, row by row, as many in a row as there are rows.

use crate::projector::ProjectionError;
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};

/// Longest side of a sheet that the projector takes, in pixels.
pub const MAX_SHEET: usize = 8192;

/// Thumbnails of the vectors of a projection.
#[derive(Clone, Debug)]
pub struct Sprite {
    /// Side of one thumbnail, in pixels.
    pub side: u32,
    /// The pixels of each thumbnail, one per vector and in their order: RGB, `[side, side, 3]`.
    pub pngs_rgb: Vec<Vec<u8>>,
}

impl Sprite {
    /// The largest side that so many thumbnails can have, in pixels; 0 when there are too many for any.
    pub fn largest_side(thumbnails: usize) -> u32 {
        // At most MAX_SHEET.
        (MAX_SHEET / per_row(thumbnails).max(1)) as u32
    }

    /// The sheet as PNG, square; places behind the last thumbnail are black.
    pub(crate) fn sheet(&self) -> Result<Vec<u8>, ProjectionError> {
        let (side, thumbnails) = (self.side as usize, self.pngs_rgb.len());
        let columns = per_row(thumbnails);
        let sheet = columns.saturating_mul(side);
        if sheet == 0 || sheet > MAX_SHEET {
            let largest = Self::largest_side(thumbnails);
            return Err(ProjectionError::Sheet { thumbnails, side, largest });
        }
        let line = side * 3;
        if let Some(index) = self.pngs_rgb.iter().position(|pixels| pixels.len() != side * line) {
            return Err(ProjectionError::Thumbnail { index, bytes: self.pngs_rgb[index].len(), wanted: side * line });
        }
        let mut pixels = vec![0; sheet * sheet * 3];
        for (index, thumbnail) in self.pngs_rgb.iter().enumerate() {
            let (top, left) = (index / columns * side, index % columns * side);
            for (y, from) in thumbnail.chunks_exact(line).enumerate() {
                let at = ((top + y) * sheet + left) * 3;
                pixels[at..at + line].copy_from_slice(from);
            }
        }
        let mut png = Vec::new();
        PngEncoder::new(&mut png).write_image(&pixels, sheet as u32, sheet as u32, ExtendedColorType::Rgb8)?;
        Ok(png)
    }
}

/// Thumbnails in a row of the sheet: the square root of their number, rounded up.
fn per_row(thumbnails: usize) -> usize {
    let root = thumbnails.isqrt();
    if root * root == thumbnails { root } else { root + 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thumbnails_lie_row_by_row_on_a_square() {
        let thumbnail = |index: u8| [index, 100, 200].repeat(4);
        let sprite = Sprite { side: 2, pngs_rgb: (1..=5).map(thumbnail).collect() };
        let sheet = image::load_from_memory(&sprite.sheet().unwrap()).unwrap().to_rgb8();
        assert_eq!(sheet.dimensions(), (6, 6));
        let red = |x: u32, y: u32| sheet.get_pixel(2 * x, 2 * y + 1).0[0];
        assert_eq!([red(0, 0), red(2, 0), red(0, 1), red(1, 1), red(2, 1), red(0, 2)], [1, 3, 4, 5, 0, 0]);
    }

    #[test]
    fn sheets_that_no_projector_shows_are_refused() {
        assert_eq!((Sprite::largest_side(10_000), Sprite::largest_side(10_001), Sprite::largest_side(1)), (81, 81, 8192));
        assert_eq!(Sprite::largest_side(0), 8192);
        let too_large = Sprite { side: 82, pngs_rgb: vec![Vec::new(); 10_000] };
        let said = too_large.sheet().unwrap_err().to_string();
        assert!(said.contains("1 to 81 pixels"), "{said}");
        let cut = Sprite { side: 2, pngs_rgb: vec![vec![0; 12], vec![0; 11]] };
        assert!(cut.sheet().unwrap_err().to_string().contains("thumbnail 1 has 11 bytes, not 12"));
    }
}
