//! What kind of file something is, by its first bytes: the formats that are read, and sentences about those that are not.

use crate::decode::Unreadable;
use image::ImageFormat;

/// As many bytes as [`recognise`] wants to see of a file.
pub(crate) const HEAD_BYTES: usize = 1024;

/// The format of a file that starts like this, if it is one that is read.
///
/// # Errors
/// One clause that says what the file is instead, and what turns it into an image that is read.
pub(crate) fn recognise(head: &[u8]) -> Result<ImageFormat, Unreadable> {
    // Not known to the guesser below: classic TIFF has 42 where BigTIFF has 43.
    if head.starts_with(b"II+\0") || head.starts_with(b"MM\0+") {
        return Ok(ImageFormat::Tiff);
    }
    if let Some(sentence) = foreign(head) {
        return Err(Unreadable(sentence.to_owned()));
    }
    match image::guess_format(head) {
        Ok(
            format @ (ImageFormat::Jpeg
            | ImageFormat::Png
            | ImageFormat::Gif
            | ImageFormat::WebP
            | ImageFormat::Bmp
            | ImageFormat::Tiff),
        ) => Ok(format),
        Ok(other) => {
            let name = format!("{other:?}").to_ascii_uppercase();
            Err(Unreadable(format!("it is a {name} file, which is not read; convert it to PNG or JPEG")))
        }
        Err(_) if head.iter().all(|byte| *byte == 0) => Err(Unreadable("the file begins with zeros only".to_owned())),
        Err(_) => Err(Unreadable("it is no image file of a known format".to_owned())),
    }
}

/// What a file is that people take for an image, or get in the place of one; none if it is no such file.
fn foreign(head: &[u8]) -> Option<&'static str> {
    if head.get(4..8) == Some(b"ftyp") {
        return Some(match head.get(8..12)? {
            b"heic" | b"heix" | b"hevc" | b"hevx" | b"heim" | b"heis" | b"mif1" | b"msf1" => {
                "it is a HEIC photo, which is not read; `heif-convert IN.heic OUT.jpg` converts it"
            }
            b"avif" | b"avis" => "it is an AVIF image, which is not read; `avifdec IN.avif OUT.png` converts it",
            b"crx " => "it is a raw photo of a camera (CR3), which is not read; develop it to JPEG",
            _ => "it is a video (MP4 or MOV), not an image; `ffmpeg -i IN OUT%06d.png` makes images of it",
        });
    }
    let starts: [(&[u8], &str); 14] = [
        (b"\xff\x0a", JPEG_XL),
        (b"\0\0\0\x0cJXL \r\n", JPEG_XL),
        (b"\0\0\0\x0cjP  \r\n", JPEG_2000),
        (b"\xff\x4f\xff\x51", JPEG_2000),
        (b"%PDF", "it is a PDF document, not an image; `pdftoppm -png IN.pdf OUT` makes images of its pages"),
        (b"8BPS", "it is a Photoshop document, which is not read; export it as PNG or JPEG"),
        (b"\x1aE\xdf\xa3", "it is a video (Matroska or WebM), not an image; `ffmpeg -i IN OUT%06d.png` makes images of it"),
        (b"PK\x03\x04", "it is a ZIP archive, not an image; unpack it"),
        (b"\x1f\x8b", "it is a gzip archive, not an image; unpack it"),
        (b"version https://git-lfs", "it is a Git LFS pointer, not the image itself; `git lfs pull` fetches that"),
        (b"II\x55\0", "it is a raw photo of a camera (RW2), which is not read; develop it to JPEG"),
        (b"IIRO", "it is a raw photo of a camera (ORF), which is not read; develop it to JPEG"),
        (b"FUJIFILMCCD-RAW", "it is a raw photo of a camera (RAF), which is not read; develop it to JPEG"),
        (b"SIMPLE  =", "it is a FITS file, which is not read; convert it to TIFF or PNG"),
    ];
    if let Some((_, sentence)) = starts.into_iter().find(|(start, _)| head.starts_with(start)) {
        return Some(sentence);
    }
    // CR2 photos are TIFF files by their first bytes, whose first image is a thumbnail.
    if head.starts_with(b"II*\0") && head.get(8..10) == Some(b"CR") {
        return Some("it is a raw photo of a camera (CR2), which is not read; develop it to JPEG");
    }
    markup(head)
}

const JPEG_XL: &str = "it is a JPEG XL image, which is not read; `djxl IN.jxl OUT.png` converts it";
const JPEG_2000: &str = "it is a JPEG 2000 image, which is not read; `opj_decompress -i IN.jp2 -o OUT.png` converts it";

/// Texts between angle brackets.
fn markup(head: &[u8]) -> Option<&'static str> {
    let text = String::from_utf8_lossy(&head[..head.len().min(HEAD_BYTES)]).to_ascii_lowercase();
    let text = text.trim_start_matches(|sign: char| sign.is_whitespace() || sign == '\u{feff}');
    if !text.starts_with('<') {
        None
    } else if text.contains("<svg") {
        Some("it is an SVG drawing, which is not read; `rsvg-convert IN.svg -o OUT.png` draws it")
    } else if text.starts_with("<!doctype html") || text.contains("<html") || text.contains("<head") || text.contains("<body") {
        Some("it is an HTML page under the name of an image, as a download that failed leaves it")
    } else {
        Some("it is a text in XML, not an image")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_that_is_not_read_is_named_with_what_converts_it() {
        for (head, word) in [
            (b"\0\0\0\x18ftypheic\0\0\0\0".as_slice(), "heif-convert"),
            (b"\0\0\0\x18ftypmif1\0\0\0\0", "HEIC"),
            (b"\0\0\0\x1cftypavif\0\0\0\0", "avifdec"),
            (b"\0\0\0\x1cftypisom\0\0\0\0", "video"),
            (b"\0\0\0\x0cJXL \r\n\x87\n", "djxl"),
            (b"\xff\x0a\xfa\x1f", "JPEG XL"),
            (b"\0\0\0\x0cjP  \r\n\x87\n", "opj_decompress"),
            (b"\xff\x4f\xff\x51\0\x2f", "JPEG 2000"),
            (b"<?xml version=\"1.0\"?>\n<svg width=\"1\">", "rsvg-convert"),
            (b"\n <svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
            (b"%PDF-1.7", "pdftoppm"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "git lfs pull"),
            (b"<!DOCTYPE html><html><head>", "HTML page"),
            (b"<html>", "HTML page"),
            (b"8BPS\0\x01", "Photoshop"),
            (b"II*\0\x10\0\0\0CR\x02\0", "CR2"),
            (b"P6\n3 2\n255\n", "PNM"),
            (b"qoif\0\0", "QOI"),
            (&[0; 64], "zeros"),
            (b"hello, this is a text", "no image file of a known format"),
        ] {
            let sentence = recognise(head).unwrap_err().to_string();
            assert!(sentence.contains(word), "'{word}' is missing in: {sentence}");
        }
    }

    #[test]
    fn formats_that_are_read_are_recognised() {
        for (head, format) in [
            (b"\xff\xd8\xff\xe0".as_slice(), ImageFormat::Jpeg),
            (b"\x89PNG\r\n\x1a\n", ImageFormat::Png),
            (b"GIF89a", ImageFormat::Gif),
            (b"RIFF\x10\0\0\0WEBPVP8 ", ImageFormat::WebP),
            (b"BM\x10\0\0\0", ImageFormat::Bmp),
            (b"II*\0", ImageFormat::Tiff),
            (b"MM\0+\0\x08\0\0", ImageFormat::Tiff),
        ] {
            assert_eq!(recognise(head).unwrap(), format);
        }
    }
}
