//! Batches prepared by background threads while the network computes, in order and bounded.

use crate::decode::{Expected, UNKNOWN, Unreadable, decode};
use crate::transform::{Transformer, View};
use rayon::prelude::*;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

/// Batches that wait ready; more would only take memory.
const READY: usize = 2;

/// One image to load.
#[derive(Clone, Debug)]
pub struct Request {
    /// Where it lies; none for an image that is known to be unreadable and keeps its place only.
    pub path: Option<PathBuf>,
    /// What the file was when it was listed: another one that took its place since is no image of the run.
    pub expected: Expected,
    /// What of it is wanted.
    pub view: View,
}

/// Pixels of consecutive requests.
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
}

/// How to load.
#[derive(Clone, Copy, Debug)]
pub struct LoaderOptions {
    /// Images of a batch.
    pub batch: usize,
    /// Side of the square that is wanted, in pixels.
    pub size: u32,
    /// Threads that decode.
    pub threads: usize,
    /// Batches at the beginning that are left out, because an earlier pass has had them.
    pub skip: usize,
}

/// An iterator over batches that are prepared ahead.
pub struct BatchLoader {
    batches: Receiver<Batch>,
}

impl BatchLoader {
    /// Starts loading. Dropping the loader stops it.
    ///
    /// # Errors
    /// When the threads cannot be started.
    pub fn start(requests: Vec<Request>, options: LoaderOptions) -> std::io::Result<Self> {
        let LoaderOptions { batch, size, threads, skip } = options;
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("decode-{index}"))
            .build()
            .map_err(std::io::Error::other)?;
        let (sender, batches) = sync_channel(READY);
        thread::Builder::new().name("loader".to_owned()).spawn(move || {
            for (index, chunk) in requests.chunks(batch).enumerate().skip(skip) {
                let loaded = pool.install(|| load(chunk, index * batch, size));
                // Nobody is listening any more: the work was cancelled.
                if sender.send(loaded).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { batches })
    }
}

impl Iterator for BatchLoader {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        self.batches.recv().ok()
    }
}

fn load(requests: &[Request], first: usize, size: u32) -> Batch {
    let image_bytes = size as usize * size as usize * 3;
    let mut pixels = vec![0; requests.len() * image_bytes];
    let mut digests = vec![UNKNOWN; requests.len()];
    let unreadable = pixels
        .par_chunks_exact_mut(image_bytes)
        .zip(&mut digests)
        .zip(requests)
        .enumerate()
        .map_init(Transformer::default, |transformer, (offset, ((out, digest), request))| {
            let path = request.path.as_ref()?;
            let done = decode(path, Some(request.expected)).and_then(|decoded| {
                transformer.view(&decoded.image, request.view, size, out)?;
                *digest = decoded.digest;
                Ok(())
            });
            done.err().map(|why| (first + offset, why))
        })
        .flatten_iter()
        .collect();
    Batch { first, len: requests.len(), pixels, digests, unreadable }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_come_in_order_and_name_what_cannot_be_read() {
        let folder = tempfile::tempdir().unwrap();
        let mut requests = Vec::new();
        for index in 0..7_u8 {
            let path = folder.path().join(format!("{index}.png"));
            if index == 3 {
                deepcluster_volume::publish::publish_bytes(&path, b"\x89PNG\r\n\x1a\n broken").unwrap();
            } else {
                image::RgbImage::from_pixel(5, 5, image::Rgb([index * 10, 0, 0])).save(&path).unwrap();
            }
            let expected = Expected { bytes: std::fs::metadata(&path).unwrap().len(), digest: UNKNOWN };
            requests.push(Request { path: (index != 5).then_some(path), expected, view: View::Center });
        }
        let options = LoaderOptions { batch: 3, size: 8, threads: 2, skip: 0 };
        let rest: Vec<Batch> = BatchLoader::start(requests.clone(), LoaderOptions { skip: 2, ..options }).unwrap().collect();
        assert_eq!(rest.iter().map(|b| (b.first, b.len)).collect::<Vec<_>>(), [(6, 1)]);
        let batches: Vec<Batch> = BatchLoader::start(requests, options).unwrap().collect();
        assert_eq!(batches.iter().map(|b| (b.first, b.len)).collect::<Vec<_>>(), [(0, 3), (3, 3), (6, 1)]);
        let known: Vec<bool> = batches.iter().flat_map(|b| b.digests.iter().map(|digest| *digest != UNKNOWN)).collect();
        assert_eq!(known, [true, true, true, false, true, false, true]);
        let reds: Vec<u8> = batches.iter().flat_map(|b| b.pixels.chunks(8 * 8 * 3).map(|image| image[0])).collect();
        assert_eq!(reds, [0, 10, 20, 0, 40, 0, 60]);
        let unreadable: Vec<usize> = batches.iter().flat_map(|b| b.unreadable.iter().map(|(at, _)| *at)).collect();
        assert_eq!(unreadable, [3]);
    }
}
