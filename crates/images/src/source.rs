//! Where the pixels of an image come from: the cache, else its file.

use crate::decode::{self, Expected, UNKNOWN, Unreadable};
use crate::transform::{Pixels, Transformer, View};
use deepcluster_volume::image_list::TRUNCATED;
use deepcluster_volume::pixels::PixelsFile;
use image::RgbImage;
use std::collections::BTreeSet;
use std::ops::AddAssign;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An image and where to look for it.
#[derive(Clone)]
pub struct Source {
    /// Where its file lies.
    pub path: PathBuf,
    /// What the file was when it was listed: another one that took its place since is no image of the run.
    pub expected: Expected,
    /// Where its working image may lie.
    pub cached: Option<Cached>,
}

/// A place in the cache.
#[derive(Clone)]
pub struct Cached {
    /// The file of its shard.
    pub file: Arc<PixelsFile>,
    /// Its number in that file.
    pub index: usize,
}

/// How images were read: what a cache is to make better, and what a test can count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reads {
    /// Images that were decoded.
    pub decoded: u64,
    /// Images that came from the cache.
    pub cached: u64,
    /// Files of the cache in which an image was damaged, or that of another file; it was decoded again.
    pub unfit: BTreeSet<PathBuf>,
}

impl Reads {
    /// Opens a file of the cache. None where there is none, or a damaged one.
    pub fn open(&mut self, path: &Path) -> Option<Arc<PixelsFile>> {
        let opened = PixelsFile::open(path);
        if let Err(error) = &opened {
            tracing::warn!(%error, "the images of a shard are decoded again");
            self.unfit.insert(path.to_owned());
        }
        opened.ok().map(Arc::new)
    }
}

impl AddAssign for Reads {
    fn add_assign(&mut self, other: Self) {
        self.decoded += other.decoded;
        self.cached += other.cached;
        self.unfit.extend(other.unfit);
    }
}

/// Reads images on one thread; keeps its buffers between them.
pub(crate) struct Reader {
    transformer: Transformer,
    content: Vec<u8>,
    pixels: Vec<u8>,
    /// The shorter side of working images.
    side: u32,
    /// Whether working images that had to be decoded are kept for the cache.
    keeps: bool,
}

/// What became of an image.
pub(crate) struct Outcome {
    /// The digest of its file.
    pub(crate) digest: i64,
    pub(crate) reads: Reads,
    /// Its working image, for the cache.
    pub(crate) kept: Option<RgbImage>,
    /// What is to be said of how it was decoded.
    pub(crate) remark: Option<String>,
}

impl Reader {
    pub(crate) fn new(side: u32, keeps: bool) -> Self {
        Self { transformer: Transformer::default(), content: Vec::new(), pixels: Vec::new(), side, keeps }
    }

    /// Writes a view of an image to `out`.
    pub(crate) fn view(&mut self, source: &Source, view: View, size: u32, out: &mut [u8]) -> Result<Outcome, Unreadable> {
        // A digest that the run knows is that of the image that the cache holds, or the image is another: the file need not tell.
        let is_known = source.expected.digest != UNKNOWN;
        let digest = if is_known { source.expected.digest } else { self.read_file(source)? };
        let mut outcome = Outcome { digest, reads: Reads::default(), kept: None, remark: None };
        if let Some((width, height)) = self.read_cached(source, digest, &mut outcome.reads) {
            self.transformer.view(Pixels { width, height, rgb: &self.pixels }, view, size, out)?;
            return Ok(outcome);
        }
        if is_known {
            self.read_file(source)?;
        }
        let decoded = decode::decode(&self.content)?;
        outcome.remark = decoded.remark;
        let image = self.transformer.working(decoded.image, self.side)?;
        outcome.reads.decoded = 1;
        self.transformer.view(Pixels::of(&image), view, size, out)?;
        // Another run could not tell from the cache that rows are missing.
        let is_whole = !outcome.remark.as_ref().is_some_and(|remark| remark.starts_with(TRUNCATED));
        outcome.kept = (self.keeps && is_whole).then_some(image);
        Ok(outcome)
    }

    /// Reads a file into `content`; its digest.
    fn read_file(&mut self, source: &Source) -> Result<i64, Unreadable> {
        decode::read(&source.path, Some(source.expected), &mut self.content)
    }

    /// Reads a working image into `pixels`, if the cache has one that was made of this file; its size.
    fn read_cached(&mut self, source: &Source, digest: i64, reads: &mut Reads) -> Option<(u32, u32)> {
        let Cached { file, index } = source.cached.as_ref()?;
        let entry = file.entries().get(*index).filter(|entry| entry.width > 0 && entry.height > 0)?;
        if entry.digest != digest {
            reads.unfit.insert(file.path().to_owned());
            return None;
        }
        match file.read(entry, &mut self.pixels) {
            Ok(()) => {
                reads.cached = 1;
                Some((entry.width, entry.height))
            }
            Err(error) => {
                tracing::warn!(%error, "the image is decoded again");
                reads.unfit.insert(file.path().to_owned());
                None
            }
        }
    }
}
