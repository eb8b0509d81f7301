//! Any supported file to RGB bytes, or one clause that says why not.

use crate::format::{HEAD_BYTES, recognise};
use crate::{jpeg, tiff};
use deepcluster_volume::image_list::DARK;
use image::error::ImageError;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage};
use std::fs;
use std::io::{BufReader, Cursor, ErrorKind, Read, Seek};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// By which decoders images become pixels: 1 was zune-jpeg, 2 is libjpeg-turbo. They differ by a few levels in some pixels, so a
/// run that goes on with others than it began with does not end in the same bytes.
pub const DECODERS: u32 = 2;

/// Most pixels of an image, as Pillow has it before it calls an image a decompression bomb.
const MAX_PIXELS: u64 = 178_956_970;

/// How the reason begins for a file that is no longer the one that was listed.
pub const REPLACED: &str = "the file was replaced";

/// Largest file: more than any image of [`MAX_PIXELS`] takes.
const MAX_BYTES: u64 = 1 << 30;

/// Largest memory that a decoder may take, in bytes: the largest image at four bytes a pixel, and room to work.
pub(crate) const MAX_ALLOCATION: u64 = 1 << 30;

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

/// An image, and what is to be said of how it was read.
#[derive(Clone, Debug)]
pub struct Decoded {
    /// Its pixels.
    pub image: RgbImage,
    /// As "truncated: the last 12 of 64 rows are missing"; none of nearly all images.
    pub remark: Option<String>,
}

/// Size in bytes, width and height of an image, from its header alone.
///
/// # Errors
/// When there is no such file, it is no image, or one that [`decode`] would refuse for its size.
pub fn probe(path: &Path) -> Result<(u64, u32, u32), Unreadable> {
    let bytes = regular_file(path)?;
    let file = fs::File::open(path).map_err(Unreadable::because)?;
    let (width, height) = no_panic(|| dimensions(BufReader::new(file)))?;
    check_size(width, height)?;
    Ok((bytes, width, height))
}

fn dimensions(mut file: BufReader<fs::File>) -> Result<(u32, u32), Unreadable> {
    let mut head = Vec::new();
    file.by_ref().take(HEAD_BYTES as u64).read_to_end(&mut head).map_err(Unreadable::because)?;
    if head.is_empty() {
        return Err(Unreadable::because("the file is empty"));
    }
    let format = recognise(&head)?;
    file.rewind().map_err(Unreadable::because)?;
    match format {
        ImageFormat::Jpeg => jpeg::dimensions(&mut file),
        ImageFormat::Tiff => tiff::dimensions(file),
        _ => ImageReader::with_format(file, format).into_dimensions().map_err(|error| unreadable(format, &error)),
    }
}

/// What a file should be that was seen before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Its size.
    pub bytes: u64,
    /// The digest of its content, [`UNKNOWN`] when that was never taken.
    pub digest: i64,
}

pub use deepcluster_volume::digests::UNKNOWN;

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
pub fn decode(content: &[u8]) -> Result<Decoded, Unreadable> {
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

fn decode_bytes(content: &[u8]) -> Result<Decoded, Unreadable> {
    match recognise(&content[..content.len().min(HEAD_BYTES)])? {
        ImageFormat::Jpeg => {
            let (width, height) = jpeg::dimensions(&mut Cursor::new(content))?;
            check_size(width, height)?;
            jpeg::decode(content)
        }
        ImageFormat::Tiff => tiff::decode(content),
        format => decode_other(content, format),
    }
}

fn decode_other(content: &[u8], format: ImageFormat) -> Result<Decoded, Unreadable> {
    let mut reader = ImageReader::with_format(Cursor::new(content), format);
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_ALLOCATION);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(|error| unreadable(format, &error))?;
    let (width, height) = decoder.dimensions();
    check_size(width, height)?;
    let image = DynamicImage::from_decoder(decoder).map_err(|error| unreadable(format, &error))?;
    let brightest = match &image {
        DynamicImage::ImageLuma16(image) => image.as_raw().iter().copied().max(),
        DynamicImage::ImageRgb16(image) => image.as_raw().iter().copied().max(),
        // Alpha is not to be counted.
        DynamicImage::ImageLumaA16(image) => image.pixels().map(|pixel| pixel.0[0]).max(),
        DynamicImage::ImageRgba16(image) => image.pixels().flat_map(|pixel| [pixel.0[0], pixel.0[1], pixel.0[2]]).max(),
        _ => None,
    };
    Ok(Decoded { image: image.into_rgb8(), remark: brightest.and_then(dark_remark) })
}

/// What is to be said of an image of 16 bits whose largest sample is this: a camera or scanner that has 12 bits and writes them
/// as they are makes a picture that is nearly black.
pub(crate) fn dark_remark(largest: u16) -> Option<String> {
    const FEW: u16 = 1 << 13;
    (largest < FEW).then(|| format!("{DARK}its samples of 16 bits do not exceed {largest}, so that it is nearly black"))
}

/// What is wrong with a file, in words of ours: a decoder's are for those who write decoders.
fn unreadable(format: ImageFormat, error: &ImageError) -> Unreadable {
    let name = format.extensions_str().first().copied().unwrap_or_default().to_ascii_uppercase();
    let is_cut = |error: &(dyn std::error::Error + 'static)| {
        let mut cause = Some(error);
        while let Some(error) = cause {
            let io = error.downcast_ref::<std::io::Error>();
            if io.is_some_and(|error| error.kind() == ErrorKind::UnexpectedEof) {
                return true;
            }
            cause = error.source();
        }
        false
    };
    Unreadable(match error {
        error if is_cut(error) => "the file is cut off".to_owned(),
        ImageError::Unsupported(_) => format!("it is a {name} of a kind that is not read; save it as an ordinary PNG"),
        ImageError::Limits(_) => format!("the {name} needs more memory than 1 GB"),
        _ => format!("the {name} is damaged"),
    })
}

/// The size of a file that can be opened without waiting for anybody: no pipe, no device, no folder.
fn regular_file(path: &Path) -> Result<u64, Unreadable> {
    let metadata = fs::metadata(path).map_err(Unreadable::because)?;
    if metadata.is_file() { Ok(metadata.len()) } else { Err(Unreadable::because("not a regular file")) }
}

pub(crate) fn check_size(width: u32, height: u32) -> Result<(), Unreadable> {
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

    fn noise(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| image::Rgb([((x * 37) ^ (y * 91)) as u8, (x * y) as u8, (x + y) as u8]))
    }

    fn written(image: &RgbImage, format: ImageFormat) -> Vec<u8> {
        let mut content = Vec::new();
        image.write_to(&mut Cursor::new(&mut content), format).unwrap();
        content
    }

    #[test]
    fn of_a_jpeg_that_is_cut_off_the_rows_that_are_there_are_read() {
        let whole = written(&noise(64, 64), ImageFormat::Jpeg);
        let expected = decode_bytes(&whole).unwrap();
        assert_eq!((expected.image.dimensions(), &expected.remark), ((64, 64), &None));
        let without_end = decode_bytes(&whole[..whole.len() - 2]).unwrap();
        assert_eq!((without_end.image, without_end.remark), (expected.image.clone(), None));
        let cut = decode_bytes(&whole[..whole.len() * 3 / 4]).unwrap();
        let remark = cut.remark.unwrap();
        assert!(remark.starts_with("truncated: the last ") && remark.ends_with(" of 64 rows are missing"), "{remark}");
        assert_eq!(
            cut.image.rows().next().unwrap().collect::<Vec<_>>(),
            expected.image.rows().next().unwrap().collect::<Vec<_>>()
        );
        let why = decode_bytes(&whole[..whole.len() / 3]).unwrap_err().to_string();
        assert!(why.starts_with("the file is cut off: only ") && why.ends_with(" of 64 rows are there"), "{why}");
        let why = decode_bytes(&whole[..40]).unwrap_err().to_string();
        assert_eq!(why, "the file is cut off before the picture begins");
    }

    #[test]
    fn what_stands_behind_a_jpeg_counts_for_nothing() {
        let picture = written(&noise(64, 48), ImageFormat::Jpeg);
        let expected = decode_bytes(&picture).unwrap().image;
        let cut_picture = &picture[..picture.len() / 2];
        let video = b"\0\0\0\x18ftypmp42\xff\xda\0\x0c\x03\xff\xd9\xff\xda".as_slice();
        for behind in [b"\0\xff\xda".as_slice(), b"trailing bytes", cut_picture, video] {
            let content = [picture.as_slice(), behind].concat();
            let found = decode_bytes(&content).unwrap();
            assert_eq!((found.image, found.remark), (expected.clone(), None));
        }
    }

    #[test]
    fn decoders_errors_are_told_in_our_words() {
        for format in [ImageFormat::Png, ImageFormat::Gif, ImageFormat::Bmp, ImageFormat::Tiff, ImageFormat::WebP] {
            let whole = written(&noise(40, 30), format);
            assert_eq!(decode_bytes(&whole).unwrap().image.dimensions(), (40, 30), "{format:?}");
            for kept in [whole.len() / 2, 30] {
                let why = decode_bytes(&whole[..kept]).unwrap_err().to_string();
                let is_clause = why.starts_with("the file is cut off") || why.ends_with(" is damaged");
                assert!(is_clause, "{format:?}, {kept} bytes: {why}");
            }
        }
        let mut wrong = written(&noise(40, 30), ImageFormat::Png);
        wrong[60] ^= 0x55;
        assert_eq!(decode_bytes(&wrong).unwrap_err().to_string(), "the PNG is damaged");
    }

    #[test]
    fn a_progressive_jpeg_that_is_cut_off_has_a_remark() {
        // Written by libjpeg-turbo, since the image crate writes none.
        let image = noise(64, 64);
        let mut compressor = turbojpeg::Compressor::new().unwrap();
        compressor.set_progressive(true).unwrap();
        let pixels = turbojpeg::Image {
            pixels: image.as_raw().as_slice(),
            width: 64,
            pitch: 192,
            height: 64,
            format: turbojpeg::PixelFormat::RGB,
        };
        let whole = compressor.compress_to_vec(pixels).unwrap();
        assert_eq!(decode_bytes(&whole).unwrap().remark, None);
        assert_eq!(decode_bytes(&whole[..whole.len() - 2]).unwrap().remark, None, "only its end is missing");
        // Cut within a table it is refused; within a pass it is read, and never without a word.
        let mut n_read = 0;
        for kept in (whole.len() / 2..whole.len() - 40).step_by(97) {
            let Ok(cut) = decode_bytes(&whole[..kept]) else { continue };
            n_read += 1;
            assert!(cut.remark.as_ref().is_some_and(|remark| remark.starts_with("truncated: ")), "{kept}: {:?}", cut.remark);
        }
        assert!(n_read > 3, "{n_read} were read");
    }

    #[test]
    fn lossless_jpegs_are_read_and_those_of_12_bits_are_named() {
        let image = noise(40, 30);
        let mut compressor = turbojpeg::Compressor::new().unwrap();
        compressor.set_lossless(true).unwrap();
        let pixels = turbojpeg::Image {
            pixels: image.as_raw().as_slice(),
            width: 40,
            pitch: 120,
            height: 30,
            format: turbojpeg::PixelFormat::RGB,
        };
        let lossless = compressor.compress_to_vec(pixels).unwrap();
        assert_eq!(decode_bytes(&lossless).unwrap().image, image);
        let mut twelve = written(&image, ImageFormat::Jpeg);
        let frame = twelve.windows(2).position(|marker| marker == [0xff, 0xc0]).unwrap();
        twelve[frame + 4] = 12;
        let why = decode_bytes(&twelve).unwrap_err().to_string();
        assert!(why.contains("12 or 16 bits"), "{why}");
    }

    #[test]
    fn pictures_of_12_bits_in_16_are_remarked_on() {
        let image = image::ImageBuffer::from_fn(8, 8, |x, y| image::Luma([(x * 512 + y) as u16]));
        let mut content = Vec::new();
        DynamicImage::ImageLuma16(image).write_to(&mut Cursor::new(&mut content), ImageFormat::Png).unwrap();
        let remark = decode_bytes(&content).unwrap().remark.unwrap();
        assert_eq!(remark, "dark: its samples of 16 bits do not exceed 3591, so that it is nearly black");
    }
}
