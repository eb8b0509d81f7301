//! Any supported file to RGB bytes, or one clause that says why not.

use image::{DynamicImage, ImageDecoder, ImageReader, Limits, RgbImage};
use std::fs;
use std::io::{BufReader, Cursor, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Most pixels of an image, as Pillow has it before it calls an image a decompression bomb.
const MAX_PIXELS: u64 = 178_956_970;

/// How the reason begins for a file that is no longer the one that was listed.
pub const REPLACED: &str = "the file was replaced";

/// Largest file: more than any image of [`MAX_PIXELS`] takes.
const MAX_BYTES: u64 = 1 << 30;

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

/// What a file should be that was seen before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Its size.
    pub bytes: u64,
    /// The digest of its content, [`UNKNOWN`] when that was never taken.
    pub digest: i64,
}

/// No digest.
pub const UNKNOWN: i64 = 0;

/// Reads a file into `content`, and takes its digest: the first eight bytes of BLAKE3, never [`UNKNOWN`].
///
/// # Errors
/// When it cannot be read, is too large, or is not the file that is `expected`.
pub fn read(path: &Path, expected: Option<Expected>, content: &mut Vec<u8>) -> Result<i64, Unreadable> {
    let found = regular_file(path)?;
    if let Some(Expected { bytes, .. }) = expected.filter(|expected| expected.bytes != found) {
        return Err(Unreadable(format!("{REPLACED}: it has {found} bytes, and had {bytes} when it was listed")));
    }
    if found > MAX_BYTES {
        return Err(Unreadable(format!("the file has {found} bytes, more than {MAX_BYTES}")));
    }
    content.clear();
    fs::File::open(path).and_then(|mut file| file.read_to_end(content)).map_err(Unreadable::because)?;
    if content.is_empty() {
        return Err(Unreadable::because("the file is empty"));
    }
    let digest = digest(content);
    if expected.is_some_and(|expected| expected.digest != UNKNOWN && expected.digest != digest) {
        return Err(Unreadable(format!("{REPLACED}: its content is another than in the first epoch")));
    }
    Ok(digest)
}

/// Decodes the content of a file to RGB.
///
/// What the format is, the content says, not a name. Orientation tags, colour profiles and alpha are ignored, 16-bit
/// samples lose their lower half, and of an animation the first frame counts.
///
/// # Errors
/// When it cannot be read as an image, or has too many pixels.
pub fn decode(content: &[u8]) -> Result<RgbImage, Unreadable> {
    no_panic(|| decode_bytes(content))
}

fn digest(content: &[u8]) -> i64 {
    let mut first = [0; 8];
    first.copy_from_slice(&blake3::hash(content).as_bytes()[..8]);
    match i64::from_le_bytes(first) {
        UNKNOWN => 1,
        digest => digest,
    }
}

fn decode_bytes(content: &[u8]) -> Result<RgbImage, Unreadable> {
    if is_cut_jpeg(content) {
        return Err(Unreadable::because("the file is cut off"));
    }
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

/// A JPEG whose last scan has no end: the decoder would fill in grey for what is missing. Scans hold no markers in their data,
/// so the last start of a scan tells, whatever thumbnails came before.
fn is_cut_jpeg(content: &[u8]) -> bool {
    const JPEG: [u8; 3] = [0xff, 0xd8, 0xff];
    const START_OF_SCAN: [u8; 2] = [0xff, 0xda];
    const END_OF_IMAGE: [u8; 2] = [0xff, 0xd9];
    let end = content.windows(2).rposition(|marker| marker == END_OF_IMAGE).unwrap_or(0);
    content.starts_with(&JPEG) && content[end..].windows(2).any(|marker| marker == START_OF_SCAN)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jpeg_that_is_cut_off_is_unreadable() {
        let mut whole = Vec::new();
        let noise = RgbImage::from_fn(64, 64, |x, y| image::Rgb([((x * 37) ^ (y * 91)) as u8, (x * y) as u8, (x + y) as u8]));
        noise.write_to(&mut Cursor::new(&mut whole), image::ImageFormat::Jpeg).unwrap();
        assert_eq!(decode_bytes(&whole).unwrap().dimensions(), (64, 64));
        for kept in [whole.len() - 2, whole.len() * 3 / 4, whole.len() / 2] {
            assert!(decode_bytes(&whole[..kept]).is_err(), "{kept} of {} bytes", whole.len());
        }
        // What some cameras write behind the image is no part of it.
        whole.extend_from_slice(b"trailing bytes");
        assert!(decode_bytes(&whole).is_ok());
    }
}
