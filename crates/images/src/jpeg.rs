//! JPEG, by libjpeg-turbo: what stands behind the end of the first picture counts for nothing, any coding and sampling is read,
//! and of a file that is cut off the rows that are there.

use crate::decode::{Decoded, MAX_ALLOCATION, Unreadable};
use deepcluster_volume::image_list::TRUNCATED;
use image::RgbImage;
use std::io::{self, Read, Seek, SeekFrom};
use turbojpeg::{Colorspace, DecompressHeader, Decompressor, Image, PixelFormat};

/// Most scans of a progressive file: real ones have about ten, and each costs a pass over the whole image.
const MAX_SCANS: u32 = 500;

/// The marker that ends a picture.
const END_OF_IMAGE: [u8; 2] = [0xff, 0xd9];

/// Whether a sample may be one that the file does not hold: those are 128, or 127 after the conversion of colours with black.
fn is_grey(sample: &u8) -> bool {
    matches!(sample, 127 | 128)
}

/// Width and height, from the first frame header: segments are walked from the front, so that neither thumbnails inside of them
/// nor what follows the picture is looked at.
///
/// # Errors
/// When there is no such header.
pub(crate) fn dimensions(file: &mut (impl Read + Seek)) -> Result<(u32, u32), Unreadable> {
    let cut = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => Unreadable("the file is cut off before the picture begins".to_owned()),
        _ => Unreadable(error.to_string()),
    };
    let mut two = [0; 2];
    file.read_exact(&mut two).map_err(cut)?;
    loop {
        let mut byte = [0];
        // Fill bytes may stand before a marker.
        while byte[0] != 0xff {
            file.read_exact(&mut byte).map_err(cut)?;
        }
        while byte[0] == 0xff {
            file.read_exact(&mut byte).map_err(cut)?;
        }
        match byte[0] {
            // Markers without a segment.
            0x00 | 0x01 | 0xd0..=0xd8 => continue,
            0xd9 | 0xda => return Err(Unreadable("the JPEG has no frame header".to_owned())),
            _ => file.read_exact(&mut two).map_err(cut)?,
        }
        let length = u16::from_be_bytes(two);
        // All frame headers but DHT, JPG and DAC, which lie between them.
        if matches!(byte[0], 0xc0..=0xcf) && !matches!(byte[0], 0xc4 | 0xc8 | 0xcc) {
            let mut frame = [0; 5];
            file.read_exact(&mut frame).map_err(cut)?;
            return Ok((u16::from_be_bytes([frame[3], frame[4]]).into(), u16::from_be_bytes([frame[1], frame[2]]).into()));
        }
        file.seek(SeekFrom::Current(i64::from(length) - 2)).map_err(cut)?;
    }
}

/// Decodes a file. Where its last rows are missing, they are grey and the image has a remark.
///
/// # Errors
/// When it is damaged, or less than half of the rows are there.
pub(crate) fn decode(content: &[u8]) -> Result<Decoded, Unreadable> {
    let mut decompressor = Decompressor::new().map_err(|error| unreadable(&error))?;
    decompressor.set_scan_limit(MAX_SCANS).map_err(|error| unreadable(&error))?;
    let header = decompressor.read_header(content).map_err(|error| unreadable(&error))?;
    let has_black = matches!(header.colorspace, Colorspace::CMYK | Colorspace::YCCK);
    let format = if has_black { PixelFormat::CMYK } else { PixelFormat::RGB };
    check_memory(&header, format)?;
    let (mut samples, outcome) = decompress(&mut decompressor, content, &header, format);
    let rows = Rows { samples: &samples, pitch: header.width * format.size(), channels: format.size() };
    let remark = match outcome {
        Ok(()) => None,
        Err(error) if !is_warning(&error) => return Err(unreadable(&error)),
        Err(error) if !is_cut(&error) => None,
        // Of a picture in several passes, and of arithmetic coding, missing data are no grey.
        Err(_) if header.is_progressive || header.is_arithmetic => {
            let whole = [content, &END_OF_IMAGE].concat();
            match decompress(&mut decompressor, &whole, &header, format).1 {
                Ok(()) => None,
                Err(_) => {
                    Some(rows.remark()?.unwrap_or_else(|| format!("{TRUNCATED}the data end early, so that details are missing")))
                }
            }
        }
        Err(_) => rows.remark()?,
    };
    if has_black {
        samples = rgb_of_cmyk(&samples);
    }
    let image = RgbImage::from_raw(header.width as u32, header.height as u32, samples);
    let image = image.ok_or_else(|| Unreadable("the JPEG has no pixels".to_owned()))?;
    Ok(Decoded { image, remark })
}

/// All samples, as far as there are any, and whether there was something to warn of.
fn decompress(
    decompressor: &mut Decompressor,
    content: &[u8],
    header: &DecompressHeader,
    format: PixelFormat,
) -> (Vec<u8>, turbojpeg::Result<()>) {
    let (width, height) = (header.width, header.height);
    let pitch = width * format.size();
    let mut samples = vec![0; pitch * height];
    let outcome = decompressor.decompress(content, Image { pixels: samples.as_mut_slice(), width, pitch, height, format });
    (samples, outcome)
}

/// Makes sure that the image, the coefficients of a progressive one, and the colours of one with black fit into what a decoder may
/// take.
fn check_memory(header: &DecompressHeader, format: PixelFormat) -> Result<(), Unreadable> {
    let channels = format.size() as u64;
    let coefficients = if header.is_progressive { 2 * channels } else { 0 };
    let colours = if channels > 3 { 3 } else { 0 };
    match (header.width * header.height) as u64 * (channels + coefficients + colours) > 2 * MAX_ALLOCATION {
        true => Err(Unreadable("the JPEG needs more memory than 2 GB".to_owned())),
        false => Ok(()),
    }
}

/// The rows of a picture whose data ended too early.
struct Rows<'a> {
    samples: &'a [u8],
    /// Samples of a row, and of a pixel.
    pitch: usize,
    channels: usize,
}

impl Rows<'_> {
    /// What is to be said of them, by those at the bottom that are not there.
    fn remark(&self) -> Result<Option<String>, Unreadable> {
        const BLOCK: usize = 8;
        let height = self.samples.len() / self.pitch;
        let missing = self.samples.chunks_exact(self.pitch).rev().take_while(|row| row.iter().all(is_grey)).count();
        let block = BLOCK * self.channels;
        let ends_in_grey = self.pitch > block && self.samples.iter().rev().take(block).all(is_grey);
        match missing {
            0 if ends_in_grey => Ok(Some(format!("{TRUNCATED}the end of the last of {height} rows is missing"))),
            0 => Ok(None),
            _ if missing * 2 > height => {
                Err(Unreadable(format!("the file is cut off: only {} of {height} rows are there", height - missing)))
            }
            _ => Ok(Some(format!("{TRUNCATED}the last {missing} of {height} rows are missing"))),
        }
    }
}

/// Whether a warning is one that the data ended too early.
fn is_cut(error: &turbojpeg::Error) -> bool {
    let message = error.to_string();
    message.contains("Premature end of JPEG file") || message.contains("premature end of data segment")
}

/// Whether the whole picture was decoded nevertheless: what libjpeg-turbo warns of ("jerror.h", JWRN), it goes on after.
fn is_warning(error: &turbojpeg::Error) -> bool {
    const WARNINGS: [&str; 7] = [
        "Premature end of JPEG file",
        "Corrupt JPEG data",
        "Invalid SOS parameters",
        "Inconsistent progression sequence",
        "Unknown Adobe color transform",
        "Application transferred too many scanlines",
        "Warning: unknown JFIF revision",
    ];
    match error {
        turbojpeg::Error::TurboJpegError(message) => WARNINGS.iter().any(|warning| message.contains(warning)),
        _ => false,
    }
}

fn unreadable(error: &turbojpeg::Error) -> Unreadable {
    let message = error.to_string();
    Unreadable(if message.contains("recision") {
        "the JPEG has samples of 12 or 16 bits, which are not read; convert it to one of 8 bits".to_owned()
    } else if ["Premature end", "missing SOS", "contains no image"].iter().any(|words| message.contains(words)) {
        "the file is cut off before the picture begins".to_owned()
    } else {
        "the JPEG is damaged".to_owned()
    })
}

/// As Adobe writes them, and Pillow takes all such files: 255 is no ink.
fn rgb_of_cmyk(samples: &[u8]) -> Vec<u8> {
    let mut rgb = Vec::with_capacity(samples.len() / 4 * 3);
    for pixel in samples.chunks_exact(4) {
        for ink in &pixel[..3] {
            rgb.push(product(*ink, pixel[3]));
        }
    }
    rgb
}

/// a · b ÷ 255, rounded.
pub(crate) fn product(a: u8, b: u8) -> u8 {
    let product = u32::from(a) * u32::from(b) + 128;
    (((product >> 8) + product) >> 8) as u8
}
