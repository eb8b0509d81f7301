//! Any supported file to RGB bytes, or one clause that says why not.

use image::{DynamicImage, ImageDecoder, ImageReader, Limits, RgbImage};
use std::fs;
use std::io::{BufReader, Cursor};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Most pixels of an image, as Pillow has it before it calls an image a decompression bomb.
const MAX_PIXELS: u64 = 178_956_970;

/// Largest memory that a decoder may take, in bytes: the largest image at four bytes a pixel, and room to work.
const MAX_ALLOCATION: u64 = 1 << 30;

/// How many times an image may be longer than wide; beyond that its resized form would not fit any memory.
const MAX_ASPECT: u32 = 200;

/// Why an image cannot be used, as one clause.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unreadable(pub String);

impl Unreadable {
    fn because(why: impl std::fmt::Display) -> Self {
        Self(why.to_string())
    }
}

/// Size in bytes, width and height of an image, from its header alone.
///
/// # Errors
/// When there is no such file, it is no image, or one that [`decode`] would refuse for its size.
pub fn probe(path: &Path) -> Result<(u64, u32, u32), Unreadable> {
    let bytes = regular_file(path)?;
    let file = fs::File::open(path).map_err(Unreadable::because)?;
    let reader = ImageReader::new(BufReader::new(file)).with_guessed_format().map_err(Unreadable::because)?;
    let (width, height) = no_panic(|| reader.into_dimensions().map_err(Unreadable::because))?;
    check_size(width, height)?;
    Ok((bytes, width, height))
}

/// Decodes an image to RGB.
///
/// What the format is, its content says, not its name. Orientation tags, colour profiles and alpha are ignored, 16-bit
/// samples lose their lower half, and of an animation the first frame counts.
///
/// # Errors
/// When the file cannot be read as an image, or is too large in pixels.
pub fn decode(path: &Path) -> Result<RgbImage, Unreadable> {
    regular_file(path)?;
    let content = fs::read(path).map_err(Unreadable::because)?;
    if content.is_empty() {
        return Err(Unreadable::because("the file is empty"));
    }
    no_panic(|| decode_bytes(&content))
}

fn decode_bytes(content: &[u8]) -> Result<RgbImage, Unreadable> {
    let mut reader = ImageReader::new(Cursor::new(content)).with_guessed_format().map_err(Unreadable::because)?;
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_ALLOCATION);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(Unreadable::because)?;
    let (width, height) = decoder.dimensions();
    check_size(width, height)?;
    let image = DynamicImage::from_decoder(decoder).map_err(Unreadable::because)?;
    Ok(image.into_rgb8())
}

/// The size of a file that can be opened without waiting for anybody: no pipe, no device, no folder.
fn regular_file(path: &Path) -> Result<u64, Unreadable> {
    let metadata = fs::metadata(path).map_err(Unreadable::because)?;
    if metadata.is_file() { Ok(metadata.len()) } else { Err(Unreadable::because("not a regular file")) }
}

fn check_size(width: u32, height: u32) -> Result<(), Unreadable> {
    if width == 0 || height == 0 {
        return Err(Unreadable::because("the image has no pixels"));
    }
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(Unreadable::because(format!("{width} x {height} pixels are more than {MAX_PIXELS}")));
    }
    if width.max(height) / width.min(height) > MAX_ASPECT {
        return Err(Unreadable::because(format!("{width} x {height} is more than {MAX_ASPECT} times longer than wide")));
    }
    Ok(())
}

/// A decoder that panics on a hostile file must not take the service along.
fn no_panic<T>(work: impl FnOnce() -> Result<T, Unreadable>) -> Result<T, Unreadable> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(Unreadable::because("the decoder gave up on this file")))
}
