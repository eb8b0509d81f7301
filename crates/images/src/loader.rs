//! Batches prepared by background threads while the network computes, in order and bounded.

use crate::Unreadable;
use crate::decode::UNKNOWN;
use crate::source::{Outcome, Reader, Reads, Source};
use crate::transform::View;
use deepcluster_volume::VolumeError;
use deepcluster_volume::pixels::PixelsWriter;
use deepcluster_volume::publish::Digest;
use rayon::prelude::*;
use std::io;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

/// Batches that wait ready; more would only take memory.
const READY: usize = 2;

/// One image to load.
#[derive(Clone)]
pub struct Request {
    /// Where it comes from; none for an image that is known to be unreadable and keeps its place only.
    pub source: Option<Source>,
    /// What of it is wanted.
    pub view: View,
}

/// Pixels of consecutive requests. Dropped, it leaves its memory to a later one.
pub struct Batch {
    /// Position of the first of them.
    pub first: usize,
    /// Number of images.
    pub len: usize,
    /// RGB bytes `[len, size, size, 3]`; zero where an image could not be read.
    pub pixels: Vec<u8>,
    /// Digests of the files; [`UNKNOWN`] where one could not be read.
    pub digests: Vec<i64>,
    /// Positions that could not be read now, and why.
    pub unreadable: Vec<(usize, Unreadable)>,
    /// Positions of which something is to be said that was noticed when they were decoded, and what.
    pub remarks: Vec<(usize, String)>,
    /// How they were read.
    pub reads: Reads,
    spent: Spent,
}

/// Memory of batches that are no longer needed.
type Spent = Arc<Mutex<Vec<Vec<u8>>>>;

impl Drop for Batch {
    fn drop(&mut self) {
        self.spent.lock().unwrap_or_else(PoisonError::into_inner).push(std::mem::take(&mut self.pixels));
    }
}

/// How to load.
#[derive(Clone, Copy, Debug)]
pub struct LoaderOptions {
    /// Images of a batch.
    pub batch: usize,
    /// Side of the square that is wanted, in pixels.
    pub size: u32,
    /// The longest that the shorter side of a working image may be, in pixels.
    pub cache_side: u32,
    /// Threads that read and decode.
    pub threads: usize,
    /// Batches at the beginning that are left out, because an earlier pass has had them.
    pub skip: usize,
}

/// An iterator over batches that are prepared ahead.
pub struct BatchLoader {
    batches: Receiver<Batch>,
    loader: JoinHandle<Option<Digest>>,
}

impl BatchLoader {
    /// Starts loading `n` images, of which `request` tells one after the other; their working images go to `cache` as well.
    /// Dropping the loader stops it.
    ///
    /// # Errors
    /// When the threads cannot be started.
    pub fn start(
        n: usize,
        request: impl Fn(usize) -> Request + Send + 'static,
        options: LoaderOptions,
        cache: Option<PixelsWriter>,
    ) -> io::Result<Self> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(options.threads)
            .thread_name(|index| format!("decode-{index}"))
            .build()
            .map_err(io::Error::other)?;
        let (sender, batches) = sync_channel(READY);
        let reader = || Mutex::new(Reader::new(options.cache_side, cache.is_some()));
        let work = Work { options, readers: (0..options.threads.max(1)).map(|_| reader()).collect(), spent: Spent::default() };
        let loader = thread::Builder::new().name("loader".to_owned()).spawn(move || {
            let mut cache = cache.map(CacheWriter);
            for first in (options.skip * options.batch..n).step_by(options.batch) {
                let requests: Vec<Request> = (first..n.min(first + options.batch)).map(&request).collect();
                let (batch, kept) = pool.install(|| work.load(&requests, first));
                cache = cache.and_then(|cache| cache.push(&batch.digests, &kept));
                // Nobody is listening any more: the work was cancelled.
                if sender.send(batch).is_err() {
                    return None;
                }
            }
            cache.and_then(CacheWriter::commit)
        })?;
        Ok(Self { batches, loader })
    }

    /// What was written to the cache, once all batches were taken; none where nothing could be.
    pub fn into_cached(self) -> Option<Digest> {
        drop(self.batches);
        self.loader.join().ok().flatten()
    }
}

impl Iterator for BatchLoader {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        self.batches.recv().ok()
    }
}

struct Work {
    options: LoaderOptions,
    /// One for each thread.
    readers: Vec<Mutex<Reader>>,
    spent: Spent,
}

impl Work {
    /// A batch, and the working images that go to the cache.
    fn load(&self, requests: &[Request], first: usize) -> (Batch, Vec<Option<image::RgbImage>>) {
        let size = self.options.size;
        let image_bytes = size as usize * size as usize * 3;
        let mut pixels = self.spent.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        // No longer than needed, and only new memory is filled with zeros.
        pixels.resize(requests.len() * image_bytes, 0);
        let outcomes: Vec<Result<Option<Outcome>, Unreadable>> = pixels
            .par_chunks_exact_mut(image_bytes)
            .zip(requests)
            .map(|(out, request)| {
                let Some(source) = &request.source else {
                    out.fill(0);
                    return Ok(None);
                };
                let thread = rayon::current_thread_index().unwrap_or(0);
                let mut reader = self.readers[thread].lock().unwrap_or_else(PoisonError::into_inner);
                reader.view(source, request.view, size, out).map(Some).inspect_err(|_| out.fill(0))
            })
            .collect();
        let mut batch = Batch {
            first,
            len: requests.len(),
            pixels,
            digests: Vec::with_capacity(requests.len()),
            unreadable: Vec::new(),
            remarks: Vec::new(),
            reads: Reads::default(),
            spent: Arc::clone(&self.spent),
        };
        let mut kept = Vec::with_capacity(requests.len());
        for (offset, outcome) in outcomes.into_iter().enumerate() {
            let outcome = outcome.unwrap_or_else(|why| {
                batch.unreadable.push((first + offset, why));
                None
            });
            batch.digests.push(outcome.as_ref().map_or(UNKNOWN, |outcome| outcome.digest));
            kept.push(outcome.and_then(|outcome| {
                batch.reads += outcome.reads;
                batch.remarks.extend(outcome.remark.map(|remark| (first + offset, remark)));
                outcome.kept
            }));
        }
        (batch, kept)
    }
}

/// Writes working images to the cache for as long as that works: it is no reason for an epoch to fail.
struct CacheWriter(PixelsWriter);

impl CacheWriter {
    fn push(mut self, digests: &[i64], kept: &[Option<image::RgbImage>]) -> Option<Self> {
        let written = digests.iter().zip(kept).try_for_each(|(digest, image)| match image {
            Some(image) => self.0.push(image.dimensions(), *digest, image.as_raw()),
            None => self.0.push((0, 0), UNKNOWN, &[]),
        });
        Self::or_without(written.map(|()| self))
    }

    fn commit(self) -> Option<Digest> {
        Self::or_without(self.0.commit())
    }

    fn or_without<T>(written: Result<T, VolumeError>) -> Option<T> {
        written.inspect_err(|error| tracing::warn!(%error, "the images of this shard do not go to the cache")).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::{Cached, Expected};
    use deepcluster_domain::{EpochId, Seeds};
    use deepcluster_volume::pixels::PixelsFile;
    use std::path::Path;
    use std::sync::Arc;

    const OPTIONS: LoaderOptions = LoaderOptions { batch: 3, size: 8, cache_side: 9, threads: 2, skip: 0 };

    /// Seven images of one colour each, of which the fourth is broken and the sixth not wanted.
    fn requests(folder: &Path) -> Vec<Request> {
        let request = |index: u8| {
            let path = folder.join(format!("{index}.png"));
            if index == 3 {
                deepcluster_volume::publish::publish_bytes(&path, b"\x89PNG\r\n\x1a\n broken").unwrap();
            } else {
                image::RgbImage::from_pixel(30, 20, image::Rgb([index * 10, 0, 0])).save(&path).unwrap();
            }
            let expected = Expected { bytes: std::fs::metadata(&path).unwrap().len(), digest: UNKNOWN };
            let source = (index != 5).then_some(Source { path, expected, cached: None });
            Request { source, view: View::Center }
        };
        (0..7).map(request).collect()
    }

    fn start(requests: &[Request], options: LoaderOptions, cache: Option<&Path>) -> BatchLoader {
        let cache = cache.map(|path| PixelsWriter::create(path).unwrap());
        let requests = requests.to_vec();
        BatchLoader::start(requests.len(), move |at| requests[at].clone(), options, cache).unwrap()
    }

    fn reads(batches: &[Batch]) -> Reads {
        batches.iter().fold(Reads::default(), |mut sum, batch| {
            sum += batch.reads.clone();
            sum
        })
    }

    #[test]
    fn batches_come_in_order_and_name_what_cannot_be_read() {
        let folder = tempfile::tempdir().unwrap();
        let requests = requests(folder.path());
        let rest: Vec<Batch> = start(&requests, LoaderOptions { skip: 2, ..OPTIONS }, None).collect();
        assert_eq!(rest.iter().map(|b| (b.first, b.len)).collect::<Vec<_>>(), [(6, 1)]);
        let batches: Vec<Batch> = start(&requests, OPTIONS, None).collect();
        assert_eq!(batches.iter().map(|b| (b.first, b.len)).collect::<Vec<_>>(), [(0, 3), (3, 3), (6, 1)]);
        let known: Vec<bool> = batches.iter().flat_map(|b| b.digests.iter().map(|digest| *digest != UNKNOWN)).collect();
        assert_eq!(known, [true, true, true, false, true, false, true]);
        let reds: Vec<u8> = batches.iter().flat_map(|b| b.pixels.chunks(8 * 8 * 3).map(|image| image[0])).collect();
        assert_eq!(reds, [0, 10, 20, 0, 40, 0, 60]);
        let unreadable: Vec<usize> = batches.iter().flat_map(|b| b.unreadable.iter().map(|(at, _)| *at)).collect();
        assert_eq!(unreadable, [3]);
    }

    #[test]
    fn spent_batches_leave_their_memory_and_nothing_of_their_images() {
        let folder = tempfile::tempdir().unwrap();
        let requests = requests(folder.path());
        let mut places = std::collections::HashSet::new();
        // Again and again, so that memory comes back before the images that cannot be read.
        let again: Vec<Request> = (0..20).flat_map(|_| requests[..6].to_vec()).collect();
        for batch in start(&again, OPTIONS, None) {
            places.insert(batch.pixels.as_ptr());
            let reds: Vec<u8> = batch.pixels.chunks(8 * 8 * 3).map(|image| image[0]).collect();
            assert_eq!(reds, if batch.first % 6 == 0 { [0, 10, 20] } else { [0, 40, 0] });
        }
        assert!(places.len() <= READY + 2, "40 batches lay in {} places", places.len());
    }

    #[test]
    fn the_cache_takes_the_place_of_files_and_changes_no_pixel() {
        let folder = tempfile::tempdir().unwrap();
        let mut requests = requests(folder.path());
        let random = View::Random { seeds: Seeds::new(1, EpochId(0)), step: 4 };
        requests[1].view = random;
        let path = folder.path().join("00000.pixels");
        let mut loader = start(&requests, OPTIONS, Some(&path));
        let from_files: Vec<Batch> = (&mut loader).collect();
        assert!(loader.into_cached().is_some());
        assert_eq!(reads(&from_files), Reads { decoded: 5, ..Reads::default() });

        let file = Arc::new(PixelsFile::open(&path).unwrap());
        let known: Vec<i64> = from_files.iter().flat_map(|batch| batch.digests.clone()).collect();
        for (index, request) in requests.iter_mut().enumerate() {
            let Some(source) = &mut request.source else { continue };
            source.cached = Some(Cached { file: Arc::clone(&file), index });
        }
        // By their content, since no run has seen these files before.
        let first: Vec<Batch> = start(&requests, OPTIONS, None).collect();
        assert_eq!(reads(&first), Reads { cached: 5, ..Reads::default() });
        for (request, digest) in requests.iter_mut().zip(&known) {
            request.source.iter_mut().for_each(|source| source.expected.digest = *digest);
        }
        std::fs::remove_file(folder.path().join("2.png")).unwrap();
        let later: Vec<Batch> = start(&requests, OPTIONS, None).collect();
        assert_eq!(reads(&later), Reads { cached: 5, ..Reads::default() });
        for batches in [&first, &later] {
            assert!(batches.iter().zip(&from_files).all(|(cached, decoded)| cached.pixels == decoded.pixels));
        }
    }

    #[test]
    fn an_image_of_the_cache_that_is_damaged_or_anothers_is_decoded() {
        let folder = tempfile::tempdir().unwrap();
        let mut requests = requests(folder.path());
        let path = folder.path().join("00000.pixels");
        let mut loader = start(&requests, OPTIONS, Some(&path));
        let from_files: Vec<Batch> = (&mut loader).collect();
        loader.into_cached().unwrap();
        let mut content = std::fs::read(&path).unwrap();
        content[0] ^= 1;
        deepcluster_volume::publish::publish_bytes(&path, &content).unwrap();
        let file = Arc::new(PixelsFile::open(&path).unwrap());
        // The first is damaged; the third is asked for where the second lies.
        for (index, at) in [(0, 0), (1, 1), (2, 1)] {
            requests[index].source.as_mut().unwrap().cached = Some(Cached { file: Arc::clone(&file), index: at });
        }
        let again: Vec<Batch> = start(&requests[..3], OPTIONS, None).collect();
        assert_eq!(reads(&again), Reads { decoded: 2, cached: 1, unfit: [path].into() });
        assert_eq!(again[0].pixels, from_files[0].pixels);
    }
}
