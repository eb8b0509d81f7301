//! Images of whoever asks: no list names them, and no cache has them.

use crate::decode::{self, Unreadable};
use crate::transform::{Pixels, Transformer, View};
use rayon::prelude::*;
use std::path::PathBuf;

/// Where an image is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Given {
    /// The content of its file.
    Content(Vec<u8>),
    /// Its file.
    Path(PathBuf),
}

/// Centre views of images, cut as for clustering: RGB bytes `[images, size, size, 3]`, zero where an image could not be read, and
/// for each image why not, if so. Computes on rayon's threads. `cache_side` is the longest that the shorter side of a working
/// image may be, in pixels.
pub fn centre_views(images: &[Given], size: u32, cache_side: u32) -> (Vec<u8>, Vec<Option<Unreadable>>) {
    let image_bytes = size as usize * size as usize * 3;
    let mut pixels = vec![0; images.len() * image_bytes];
    let unreadable = pixels
        .par_chunks_exact_mut(image_bytes)
        .zip(images)
        .map_init(Transformer::default, |transformer, (out, image)| {
            let outcome = centre_view(transformer, image, size, cache_side, out);
            outcome.inspect_err(|_| out.fill(0)).err()
        })
        .collect();
    (pixels, unreadable)
}

fn centre_view(
    transformer: &mut Transformer,
    image: &Given,
    size: u32,
    cache_side: u32,
    out: &mut [u8],
) -> Result<(), Unreadable> {
    let decoded = match image {
        Given::Content(content) if content.is_empty() => return Err(Unreadable("the file is empty".to_owned())),
        Given::Content(content) => decode::decode(content)?.image,
        Given::Path(path) => {
            let mut content = Vec::new();
            decode::read(path, None, &mut content)?;
            decode::decode(&content)?.image
        }
    };
    let working = transformer.working(decoded, cache_side)?;
    transformer.view(Pixels::of(&working), View::Center, size, out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{ImageFormat, Rgb, RgbImage};
    use std::io::Cursor;

    #[test]
    fn contents_and_files_give_the_same_views_and_broken_ones_a_reason() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("one.png");
        let picture = RgbImage::from_fn(90, 60, |x, y| Rgb([(x * 2) as u8, (y * 4) as u8, (x ^ y) as u8]));
        let mut content = Vec::new();
        picture.write_to(&mut Cursor::new(&mut content), ImageFormat::Png).unwrap();
        deepcluster_volume::publish::publish_bytes(&path, &content).unwrap();
        let broken = Given::Content(content[..content.len() / 2].to_vec());
        let images = [
            Given::Content(content),
            broken,
            Given::Path(path),
            Given::Path(folder.path().join("none.png")),
            Given::Content(Vec::new()),
        ];
        let (pixels, unreadable) = centre_views(&images, 32, 36);
        let views: Vec<&[u8]> = pixels.chunks_exact(32 * 32 * 3).collect();
        assert!(views[0] == views[2] && views[0].iter().any(|value| *value > 0));
        assert!([1, 3, 4].into_iter().all(|at| views[at].iter().all(|value| *value == 0)));
        let reasons: Vec<bool> = unreadable.iter().map(Option::is_some).collect();
        assert_eq!(reasons, [false, true, false, true, true]);
    }
}
