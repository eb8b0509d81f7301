//! `.pixels` files: the decoded images of a shard, so that each file is decoded once.
//!
//! ```text
//! pixels of image 0, 1, …       RGB bytes, [height, width, 3] each
//! table                         40 bytes an image: offset, width, height, digest of its file, XXH3-128 of its pixels
//! footer                        number of images, BLAKE3 of the table and that number, "DCPIXEL2"
//! ```
//!
//! All numbers are little-endian. Each image is checked when it is read, so that nobody reads a whole file to trust one
//! image of it, and a damaged image costs no other. As with [`crate::npy`], files are read by position, not mapped.

use crate::VolumeError;
use crate::publish::{AtomicFile, Digest};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use twox_hash::XxHash3_128;

const MAGIC: &[u8; 8] = b"DCPIXEL2";

/// Bytes of an entry of the table.
pub const ENTRY: u64 = 40;

/// Number of images, BLAKE3, magic.
const FOOTER: u64 = 8 + 32 + 8;

/// An image of a `.pixels` file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    offset: u64,
    /// Width in pixels; 0 for an image that could not be decoded.
    pub width: u32,
    /// Height in pixels; 0 for an image that could not be decoded.
    pub height: u32,
    /// The digest of the image's file, as in `digests/`.
    pub digest: i64,
    checksum: [u8; 16],
}

impl Entry {
    /// Size of its pixels in bytes.
    pub fn bytes(&self) -> usize {
        self.width as usize * self.height as usize * 3
    }

    fn to_bytes(self) -> [u8; ENTRY as usize] {
        let mut bytes = [0; ENTRY as usize];
        bytes[..8].copy_from_slice(&self.offset.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.width.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.height.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.digest.to_le_bytes());
        bytes[24..].copy_from_slice(&self.checksum);
        bytes
    }

    fn from_bytes(bytes: &[u8; ENTRY as usize]) -> Self {
        Self {
            offset: u64::from_le_bytes(part(bytes, 0)),
            width: u32::from_le_bytes(part(bytes, 8)),
            height: u32::from_le_bytes(part(bytes, 12)),
            digest: i64::from_le_bytes(part(bytes, 16)),
            checksum: part(bytes, 24),
        }
    }
}

/// `N` bytes from `at` on.
fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut part = [0; N];
    part.copy_from_slice(&bytes[at..at + N]);
    part
}

/// What 16 bytes tell of pixels. Against disks, not against malice, so that it takes less time than reading them.
fn checksum(pixels: &[u8]) -> [u8; 16] {
    XxHash3_128::oneshot(pixels).to_le_bytes()
}

/// An open file whose table was found right.
pub struct PixelsFile {
    path: PathBuf,
    file: File,
    entries: Vec<Entry>,
}

impl PixelsFile {
    /// Opens a file and reads its table.
    ///
    /// # Errors
    /// [`VolumeError::Missing`] when it is not there, [`VolumeError::Corrupt`] when its table is not what was written.
    pub fn open(path: &Path) -> Result<Self, VolumeError> {
        let failed = |error| VolumeError::io(path)(error);
        let damaged = || VolumeError::corrupt(path, "its table is damaged");
        let file = File::open(path).map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len();
        let mut footer = [0; FOOTER as usize];
        let table_end = bytes.checked_sub(FOOTER).ok_or_else(damaged)?;
        file.read_exact_at(&mut footer, table_end).map_err(failed)?;
        let n = u64::from_le_bytes(part(&footer, 0));
        let table_bytes = n.checked_mul(ENTRY).filter(|table| *table <= table_end).ok_or_else(damaged)?;
        let mut table = vec![0; table_bytes as usize];
        file.read_exact_at(&mut table, table_end - table_bytes).map_err(failed)?;
        if footer[40..] != *MAGIC || footer[8..40] != table_hash(&table, n) {
            return Err(damaged());
        }
        let entries = table.as_chunks().0.iter().map(Entry::from_bytes).collect();
        Ok(Self { path: path.to_owned(), file, entries })
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its images, in order of their rows.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Reads the pixels of an image into `out`, whose length changes to theirs.
    ///
    /// # Errors
    /// [`VolumeError::Corrupt`] when they are not what was written.
    pub fn read(&self, entry: &Entry, out: &mut Vec<u8>) -> Result<(), VolumeError> {
        // Only what is new is filled with zeros.
        out.resize(entry.bytes(), 0);
        self.file.read_exact_at(out, entry.offset).map_err(VolumeError::io(&self.path))?;
        match checksum(out) == entry.checksum {
            true => Ok(()),
            false => Err(VolumeError::corrupt(&self.path, "an image is damaged")),
        }
    }

    /// Reads all of it, to see whether it is what was written.
    ///
    /// # Errors
    /// As [`PixelsFile::read`].
    pub fn check(&self) -> Result<(), VolumeError> {
        let mut pixels = Vec::new();
        self.entries.iter().try_for_each(|entry| self.read(entry, &mut pixels))
    }
}

fn table_hash(table: &[u8], n: u64) -> [u8; 32] {
    *blake3::Hasher::new().update(table).update(&n.to_le_bytes()).finalize().as_bytes()
}

/// A file that is being written, an image after the other.
pub struct PixelsWriter {
    path: PathBuf,
    file: AtomicFile,
    offset: u64,
    table: Vec<u8>,
}

impl PixelsWriter {
    /// Starts a file that will appear at `path`, whose folder must be there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(path: &Path) -> Result<Self, VolumeError> {
        Ok(Self { path: path.to_owned(), file: AtomicFile::create(path)?, offset: 0, table: Vec::new() })
    }

    /// Adds the next image: RGB bytes `[height, width, 3]`; one without pixels keeps a place only.
    ///
    /// # Errors
    /// When the volume cannot be written.
    pub fn push(&mut self, (width, height): (u32, u32), digest: i64, pixels: &[u8]) -> Result<(), VolumeError> {
        debug_assert_eq!(pixels.len(), width as usize * height as usize * 3, "the size is not that of the pixels");
        let entry = Entry { offset: self.offset, width, height, digest, checksum: checksum(pixels) };
        self.file.write_all(pixels).map_err(VolumeError::io(&self.path))?;
        self.offset += pixels.len() as u64;
        self.table.extend_from_slice(&entry.to_bytes());
        Ok(())
    }

    /// Publishes the file.
    ///
    /// # Errors
    /// As [`AtomicFile::commit_unsynced`].
    pub fn commit(mut self) -> Result<Digest, VolumeError> {
        let n = self.table.len() as u64 / ENTRY;
        let hash = table_hash(&self.table, n);
        for part in [self.table.as_slice(), &n.to_le_bytes(), &hash, MAGIC] {
            self.file.write_all(part).map_err(VolumeError::io(&self.path))?;
        }
        self.file.commit_unsynced()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::publish_bytes;
    use std::fs;

    fn written(folder: &Path) -> PathBuf {
        let path = folder.join("00000.pixels");
        let mut writer = PixelsWriter::create(&path).unwrap();
        writer.push((2, 1), 7, &[1, 2, 3, 4, 5, 6]).unwrap();
        writer.push((0, 0), 0, &[]).unwrap();
        writer.push((1, 1), -9, &[9, 8, 7]).unwrap();
        writer.commit().unwrap();
        path
    }

    #[test]
    fn images_are_read_as_they_were_written() {
        let folder = tempfile::tempdir().unwrap();
        let file = PixelsFile::open(&written(folder.path())).unwrap();
        let sizes: Vec<_> = file.entries().iter().map(|entry| (entry.width, entry.height, entry.digest)).collect();
        assert_eq!(sizes, [(2, 1, 7), (0, 0, 0), (1, 1, -9)]);
        let mut pixels = Vec::new();
        for (entry, expected) in file.entries().iter().zip([&[1, 2, 3, 4, 5, 6][..], &[], &[9, 8, 7]]) {
            file.read(entry, &mut pixels).unwrap();
            assert_eq!(pixels, expected);
        }
        file.check().unwrap();
    }

    #[test]
    fn a_changed_byte_anywhere_is_noticed_and_costs_one_image() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path());
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            publish_bytes(&path, &bad).unwrap();
            let Ok(file) = PixelsFile::open(&path) else {
                assert!(at >= 9, "the table does not hold byte {at}");
                continue;
            };
            let mut pixels = Vec::new();
            let n_bad = file.entries().iter().filter(|entry| file.read(entry, &mut pixels).is_err()).count();
            assert_eq!((n_bad, at < 9), (1, true), "byte {at}");
        }
        for kept in 0..good.len() {
            publish_bytes(&path, &good[..kept]).unwrap();
            assert!(PixelsFile::open(&path).is_err(), "{kept} bytes");
        }
    }
}
