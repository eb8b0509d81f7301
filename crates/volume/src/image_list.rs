//! `images.csv`: the images of a run in the order of their rows in every label and feature file.

use crate::publish::AtomicFile;
use crate::{VolumeError, names};
use csv::ByteRecord;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// One image of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageEntry {
    /// Path relative to the folder of images, as the bytes of its name, which need not be UTF-8.
    pub path: Vec<u8>,
    /// Size of the file.
    pub bytes: u64,
    /// Width in pixels; 0 when its header could not be read.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Why it takes no part, if so.
    pub skipped: Option<String>,
    /// What is to be said of an image that takes part: begins with one of [`REMARKS`].
    pub remark: Option<String>,
}

/// How the remark on an image begins whose last rows are missing.
pub const TRUNCATED: &str = "truncated: ";

/// How the remark on an image begins that is nearly black.
pub const DARK: &str = "dark: ";

/// How the remarks on images begin, which images.csv has in the column of their status.
pub const REMARKS: [&str; 2] = [TRUNCATED, DARK];

impl ImageEntry {
    /// Its path for the file system.
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.path))
    }
}

const OK: &str = "ok";
const HEADER: [&str; 6] = ["index", "path", "bytes", "width", "height", "status"];

/// The list as CSV, and the BLAKE3 of that in hexadecimal.
///
/// # Errors
/// None that memory does not cause.
pub fn to_csv(images: &[ImageEntry]) -> io::Result<(Vec<u8>, String)> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(HEADER)?;
    for (index, image) in images.iter().enumerate() {
        let mut record = ByteRecord::new();
        record.push_field(index.to_string().as_bytes());
        record.push_field(names::escape(&image.path).as_bytes());
        for number in [image.bytes, image.width.into(), image.height.into()] {
            record.push_field(number.to_string().as_bytes());
        }
        record.push_field(image.skipped.as_deref().or(image.remark.as_deref()).unwrap_or(OK).as_bytes());
        writer.write_byte_record(&record)?;
    }
    let text = writer.into_inner().map_err(|error| error.into_error())?;
    let checksum = blake3::hash(&text).to_hex().to_string();
    Ok((text, checksum))
}

/// Reads the list.
///
/// # Errors
/// When it is missing or is no such list; the message names the line.
pub fn read(path: &Path) -> Result<Vec<ImageEntry>, VolumeError> {
    read_known(path, &[])
}

/// Reads the list, whose checksum must be one of these; where there are none, it is not looked at.
///
/// # Errors
/// As [`read`]; when it is not what was written.
pub fn read_known(path: &Path, checksums: &[String]) -> Result<Vec<ImageEntry>, VolumeError> {
    let text = fs::read(path).map_err(VolumeError::io(path))?;
    if !checksums.is_empty() && !checksums.contains(&blake3::hash(&text).to_hex().to_string()) {
        return Err(VolumeError::corrupt(path, "its checksum is not the recorded one"));
    }
    let mut images = Vec::new();
    for (index, record) in csv::Reader::from_reader(text.as_slice()).byte_records().enumerate() {
        let record = record.map_err(|error| csv_error(path, error))?;
        let entry = parse(&record, index).ok_or_else(|| VolumeError::corrupt(path, format!("row {index} is no image")))?;
        images.push(entry);
    }
    Ok(images)
}

fn parse(record: &ByteRecord, index: usize) -> Option<ImageEntry> {
    let text = |column: usize| std::str::from_utf8(record.get(column)?).ok();
    if text(0)?.parse() != Ok(index) {
        return None;
    }
    let status = Some(text(5)?).filter(|status| *status != OK).map(str::to_owned);
    let is_remark = status.as_ref().is_some_and(|status| REMARKS.iter().any(|start| status.starts_with(start)));
    let (remark, skipped) = if is_remark { (status, None) } else { (None, status) };
    Some(ImageEntry {
        path: names::unescape(record.get(1)?),
        bytes: text(2)?.parse().ok()?,
        width: text(3)?.parse().ok()?,
        height: text(4)?.parse().ok()?,
        skipped,
        remark,
    })
}

/// Publishes `labels.csv`.
///
/// # Errors
/// When it cannot be written, or the lengths differ.
pub fn publish_labels(path: &Path, images: &[ImageEntry], labels: &[i32], distances: &[f32]) -> Result<(), VolumeError> {
    let mut file = AtomicFile::create(path)?;
    write_labels(&mut file, images, labels, distances).map_err(VolumeError::io(path))?;
    file.commit().map(drop)
}

/// Writes path, cluster and squared distance of every image as CSV; -1 and nothing for a skipped one.
///
/// # Errors
/// When `out` fails, or the lengths differ.
pub fn write_labels(out: &mut impl Write, images: &[ImageEntry], labels: &[i32], distances: &[f32]) -> io::Result<()> {
    write_labels_header(out)?;
    write_label_rows(out, images, labels, distances)
}

/// Writes what stands above the rows.
///
/// # Errors
/// When `out` fails.
pub fn write_labels_header(out: &mut impl Write) -> io::Result<()> {
    let mut writer = csv::Writer::from_writer(out);
    writer.write_record(["path", "cluster", "distance"])?;
    writer.flush()
}

/// Writes the rows alone, of some images after others.
///
/// # Errors
/// As [`write_labels`].
pub fn write_label_rows(out: &mut impl Write, images: &[ImageEntry], labels: &[i32], distances: &[f32]) -> io::Result<()> {
    if labels.len() != images.len() || distances.len() != images.len() {
        return Err(io::Error::other("labels, distances and images differ in number"));
    }
    let mut writer = csv::Writer::from_writer(out);
    for ((image, label), distance) in images.iter().zip(labels).zip(distances) {
        let distance = if *label < 0 { String::new() } else { distance.to_string() };
        writer.write_record([&*names::escape(&image.path), &label.to_string(), &distance])?;
    }
    writer.flush()
}

fn csv_error(path: &Path, error: csv::Error) -> VolumeError {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => VolumeError::io(path)(error),
        other => VolumeError::corrupt(path, format!("{other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_file_name_survives() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("images.csv");
        let image = |path: &[u8], skipped: Option<&str>| ImageEntry {
            path: path.to_vec(),
            bytes: 12,
            width: 3,
            height: 4,
            remark: None,
            skipped: skipped.map(str::to_owned),
        };
        let images = vec![
            image(b"cats/a.jpg", None),
            image(b"with, comma \"and\" quotes\nand a new line.png", Some("truncated, at byte 7")),
            image(b"latin-1 \xe4\xff.bmp", None),
            image("ünïcode/日本.webp".as_bytes(), None),
        ];
        let (csv, checksum) = to_csv(&images).unwrap();
        crate::publish::publish_bytes(&path, &csv).unwrap();
        assert_eq!(read(&path).unwrap(), images);
        assert_eq!(read_known(&path, &["another".to_owned(), checksum]).unwrap(), images);
        assert!(read_known(&path, &["another".to_owned()]).unwrap_err().to_string().contains("checksum"));
        publish_labels(&folder.path().join("labels.csv"), &images, &[3, -1, 0, 1], &[0.5, f32::NAN, 1.0, 2.0]).unwrap();
        let text = std::fs::read_to_string(folder.path().join("labels.csv")).unwrap();
        assert!(
            text.starts_with("path,cluster,distance\ncats/a.jpg,3,0.5\n") && text.contains("latin-1 \\xe4\\xff.bmp,0,"),
            "{text}"
        );
    }

    #[test]
    fn a_list_with_a_hole_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("images.csv");
        crate::publish::publish_bytes(&path, b"index,path,bytes,width,height,status\n1,a.jpg,1,1,1,ok\n").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("row 0"));
    }
}
