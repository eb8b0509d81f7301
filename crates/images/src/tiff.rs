//! TIFF and BigTIFF: all kinds of samples become bytes.
//!
//! Whole numbers of up to 8 bits keep their share of the range, those of 16 bits lose their lower half. Signed and longer ones,
//! and floating-point ones, have no range that says what is white: the image's own is stretched from black to white.

use crate::decode::{Decoded, MAX_ALLOCATION, Unreadable, check_size};
use crate::jpeg::product;
use crate::tiff_directory::{
    COMPRESSION, COMPRESSION_JPEG, Directory, FILL_ORDER, PHOTOMETRIC, PHOTOMETRIC_GREY, PHOTOMETRIC_PALETTE, SAMPLES,
};
use image::RgbImage;
use std::borrow::Cow;
use std::io::{BufRead, Cursor, ErrorKind, Seek};
use tiff::decoder::{BufferLayoutPreference, Decoder, DecodingResult, Limits};
use tiff::tags::Tag;
use tiff::{ColorType, TiffError};

/// Width and height.
///
/// # Errors
/// When the first image of the file has none.
pub(crate) fn dimensions(file: impl BufRead + Seek) -> Result<(u32, u32), Unreadable> {
    // The whole directory is looked at only by `decode`: kinds that are not read have a size, too.
    Decoder::new(file).and_then(|mut decoder| decoder.dimensions()).map_err(|error| unreadable(&error))
}

/// Decodes the first image of a file.
///
/// # Errors
/// When it is damaged, or of a kind that is not read.
pub(crate) fn decode(content: &[u8]) -> Result<Decoded, Unreadable> {
    let mut content = Cow::Borrowed(content);
    let directory = Directory::first(&content);
    if directory.as_ref().and_then(|found| found.short(&content, FILL_ORDER)) == Some(2) {
        return Err(Unreadable("it is a TIFF with the bits of its bytes reversed (FillOrder 2), which is not read".to_owned()));
    }
    // What the decoder makes of JPEG data with two samples a pixel is not what is in them.
    let samples = directory.as_ref().and_then(|found| found.short(&content, SAMPLES));
    if samples == Some(2) && directory.as_ref().and_then(|found| found.short(&content, COMPRESSION)) == Some(COMPRESSION_JPEG) {
        return Err(Unreadable(
            "it is a TIFF with grey, alpha and the compression JPEG, which is not read; save it with LZW".to_owned(),
        ));
    }
    // The decoder refuses palettes; as grey it gives their indices.
    let has_palette = directory.as_ref().and_then(|found| found.short(&content, PHOTOMETRIC)) == Some(PHOTOMETRIC_PALETTE);
    if let (true, Some(directory)) = (has_palette, &directory) {
        directory.set_short(content.to_mut(), PHOTOMETRIC, PHOTOMETRIC_GREY);
    }
    decode_samples(&content, has_palette).map_err(|error| match error {
        Failure::Tiff(error) => unreadable(&error),
        Failure::Unreadable(why) => why,
    })
}

enum Failure {
    Tiff(TiffError),
    Unreadable(Unreadable),
}

impl From<TiffError> for Failure {
    fn from(error: TiffError) -> Self {
        Self::Tiff(error)
    }
}

fn decode_samples(content: &[u8], has_palette: bool) -> Result<Decoded, Failure> {
    let mut limits = Limits::default();
    limits.decoding_buffer_size = MAX_ALLOCATION as usize;
    limits.intermediate_buffer_size = MAX_ALLOCATION as usize;
    let mut decoder = Decoder::new(Cursor::new(content))?.with_limits(limits);
    let (width, height) = decoder.dimensions()?;
    check_size(width, height).map_err(Failure::Unreadable)?;
    let colour = decoder.colortype()?;
    let palette = if has_palette { Some(decoder.get_tag_u16_vec(Tag::ColorMap)?) } else { None };
    let mut samples = DecodingResult::U8(Vec::new());
    let layout = decoder.read_image_to_buffer(&mut samples)?;
    let n_samples = usize::from(colour.num_samples());
    let shape = Shape { width: width as usize, height: height as usize, n_samples, bits: colour.bit_depth(), layout };
    let remark = dark_remark(&samples);
    let bytes = if has_palette { shape.unpacked(samples, false) } else { shape.bytes(samples) };
    let bytes = bytes.map_err(Failure::Unreadable)?;
    let mut rgb = Vec::with_capacity(shape.width * shape.height * 3);
    for pixel in bytes.chunks_exact(n_samples) {
        rgb.extend_from_slice(&match (&palette, colour) {
            (Some(palette), _) => from_palette(palette, pixel[0]),
            (None, ColorType::Gray(_) | ColorType::GrayA(_) | ColorType::Multiband { num_samples: 2, .. }) => [pixel[0]; 3],
            (None, ColorType::RGB(_) | ColorType::RGBA(_)) => [pixel[0], pixel[1], pixel[2]],
            (None, ColorType::CMYK(_) | ColorType::CMYKA(_)) => {
                [0, 1, 2].map(|ink: usize| product(255 - pixel[ink], 255 - pixel[3]))
            }
            (None, ColorType::YCbCr(_)) => rgb_of_ycbcr([pixel[0], pixel[1], pixel[2]]),
            (None, other) => return Err(Failure::Unreadable(no_colour(other))),
        });
    }
    let image = RgbImage::from_raw(width, height, rgb).ok_or_else(|| Failure::Unreadable(damaged()))?;
    Ok(Decoded { image, remark })
}

/// What is to be said of samples of 16 bits that use only the lower part of the range.
fn dark_remark(samples: &DecodingResult) -> Option<String> {
    match samples {
        DecodingResult::U16(values) => crate::decode::dark_remark(values.iter().copied().max()?),
        _ => None,
    }
}

/// How the samples of an image lie in memory.
struct Shape {
    width: usize,
    height: usize,
    n_samples: usize,
    /// Of a sample.
    bits: u8,
    layout: BufferLayoutPreference,
}

impl Shape {
    /// One byte for each sample, `[height, width, n_samples]`.
    fn bytes(&self, samples: DecodingResult) -> Result<Vec<u8>, Unreadable> {
        let bytes = match &samples {
            DecodingResult::U8(_) => return self.unpacked(samples, true),
            DecodingResult::U16(values) => values.iter().map(|value| ((u32::from(*value) + 128) / 257) as u8).collect(),
            DecodingResult::U32(values) => stretched(values, f64::from),
            DecodingResult::U64(values) => stretched(values, |value| value as f64),
            DecodingResult::I8(values) => stretched(values, f64::from),
            DecodingResult::I16(values) => stretched(values, f64::from),
            DecodingResult::I32(values) => stretched(values, f64::from),
            DecodingResult::I64(values) => stretched(values, |value| value as f64),
            DecodingResult::F16(values) => stretched(values, |value| f64::from(f32::from(value))),
            DecodingResult::F32(values) => stretched(values, f64::from),
            DecodingResult::F64(values) => stretched(values, |value| value),
        };
        self.interleaved(bytes)
    }

    /// Samples of at most 8 bits, of which a byte may hold several; each row begins a new byte. `to_range` makes the largest
    /// one white, else they stay as they are.
    fn unpacked(&self, samples: DecodingResult, to_range: bool) -> Result<Vec<u8>, Unreadable> {
        let DecodingResult::U8(packed) = samples else { return Err(damaged()) };
        if self.bits == 8 {
            return self.interleaved(packed);
        }
        if !matches!(self.bits, 1 | 2 | 4) {
            return Err(Unreadable(format!("it is a TIFF with {} bits a sample, which is not read", self.bits)));
        }
        let (bits, n_planes) = (usize::from(self.bits), self.layout.planes.max(1));
        let in_row = if n_planes > 1 { self.width } else { self.width * self.n_samples };
        let largest = (1_usize << bits) - 1;
        let scale = if to_range { 255 / largest } else { 1 };
        let mut bytes = Vec::with_capacity(in_row * self.height * n_planes);
        for row in packed.chunks_exact((in_row * bits).div_ceil(8)).take(self.height * n_planes) {
            for at in 0..in_row {
                let shift = 8 - bits - at * bits % 8;
                bytes.push(((usize::from(row[at * bits / 8]) >> shift & largest) * scale) as u8);
            }
        }
        self.interleaved(bytes)
    }

    /// Samples of a pixel beside each other, also where each kind of them lies in a plane of its own.
    fn interleaved(&self, bytes: Vec<u8>) -> Result<Vec<u8>, Unreadable> {
        let n_pixels = self.width * self.height;
        if bytes.len() < n_pixels * self.n_samples {
            return Err(Unreadable("the file is cut off".to_owned()));
        }
        if self.layout.planes <= 1 {
            return Ok(bytes);
        }
        let mut interleaved = Vec::with_capacity(n_pixels * self.n_samples);
        for pixel in 0..n_pixels {
            interleaved.extend((0..self.n_samples).map(|sample| bytes[sample * n_pixels + pixel]));
        }
        Ok(interleaved)
    }
}

/// Values to bytes: the least one becomes 0, the largest 255, and what is no number 0.
fn stretched<T: Copy>(values: &[T], number: impl Fn(T) -> f64) -> Vec<u8> {
    let finite = || values.iter().map(|value| number(*value)).filter(|value| value.is_finite());
    let (low, high) = (finite().fold(f64::INFINITY, f64::min), finite().fold(f64::NEG_INFINITY, f64::max));
    let scale = if high > low { 255.0 / (high - low) } else { 0.0 };
    values.iter().map(|value| ((number(*value) - low) * scale).round() as u8).collect()
}

/// A palette holds all reds, then all greens, then all blues, of 16 bits each.
fn from_palette(palette: &[u16], index: u8) -> [u8; 3] {
    let n = palette.len() / 3;
    [0, 1, 2].map(|colour| palette.get(colour * n + usize::from(index)).map_or(0, |value| (value >> 8) as u8))
}

/// By the coefficients of JFIF.
fn rgb_of_ycbcr([y, cb, cr]: [u8; 3]) -> [u8; 3] {
    let (y, cb, cr) = (f32::from(y), f32::from(cb) - 128.0, f32::from(cr) - 128.0);
    [y + 1.402 * cr, y - 0.344_136 * cb - 0.714_136 * cr, y + 1.772 * cb].map(|value| value.round().clamp(0.0, 255.0) as u8)
}

fn no_colour(colour: ColorType) -> Unreadable {
    Unreadable(match colour {
        ColorType::Lab(_) => "it is a TIFF in Lab colours, which is not read; convert it to RGB".to_owned(),
        ColorType::Multiband { num_samples, .. } => {
            format!("it is a TIFF with {num_samples} bands, which is not read; write three of them to an RGB image")
        }
        _ => "it is a TIFF in colours that are not read; convert it to RGB".to_owned(),
    })
}

fn damaged() -> Unreadable {
    Unreadable("the TIFF is damaged".to_owned())
}

fn unreadable(error: &TiffError) -> Unreadable {
    use tiff::TiffUnsupportedError as Unsupported;
    Unreadable(match error {
        TiffError::IoError(error) if error.kind() == ErrorKind::UnexpectedEof => "the file is cut off".to_owned(),
        TiffError::UnsupportedError(kind) => match kind {
            Unsupported::UnsupportedCompressionMethod(method) => {
                format!("it is a TIFF with the compression {method:?}, which is not read; save it with LZW or Deflate")
            }
            Unsupported::UnknownCompressionMethod => {
                "it is a TIFF with a compression that is not read; save it with LZW or Deflate".to_owned()
            }
            Unsupported::ChromaSubsampling => {
                "it is a TIFF with reduced colours (YCbCr subsampling), which is not read; convert it to RGB".to_owned()
            }
            Unsupported::InterpretationWithBits(interpretation, bits) => {
                format!(
                    "it is a TIFF of the kind {interpretation:?} with {} samples, which is not read; convert it to RGB",
                    bits.len()
                )
            }
            _ => "it is a TIFF of a kind that is not read; convert it to RGB of 8 bits".to_owned(),
        },
        TiffError::LimitsExceeded => "the TIFF needs more memory than 1 GB".to_owned(),
        _ => return damaged(),
    })
}
