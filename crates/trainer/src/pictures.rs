//! The images that a request names, and where each of them is looked for.

use crate::Place;
use deepcluster_images::decode::{Expected, UNKNOWN};
use deepcluster_images::find::check_there;
use deepcluster_images::{Cached, Reads, Source};
use deepcluster_proto::FieldError;
use deepcluster_proto::v1::{CachedShard, DigestsOfShard, ImageList};
use deepcluster_service::requests::{self, volume_status};
use deepcluster_volume::image_list::{self, ImageEntry};
use deepcluster_volume::npy;
use deepcluster_volume::pixels::PixelsFile;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use tonic::Status;

/// A list of images, and what is known of them.
pub(crate) struct Pictures {
    folder: PathBuf,
    pub(crate) entries: Vec<ImageEntry>,
    /// What the files contained when they were first read, for as many images as that is known of.
    digests: Vec<i64>,
    /// Decoded images by the first of their rows.
    cache: BTreeMap<usize, Arc<PixelsFile>>,
    /// Files of the cache that could not be opened.
    pub(crate) unfit: Reads,
}

impl Pictures {
    pub(crate) fn of(
        place: &Place,
        images: Option<&ImageList>,
        digests_of: &[DigestsOfShard],
        cached: &[CachedShard],
    ) -> Result<Self, Status> {
        let images = images.ok_or_else(|| FieldError::new("images", "is missing"))?;
        let folder = requests::images_folder(&place.images, &images.root)?;
        let list = requests::verified(&place.volume, "images.list", images.list.as_ref())?;
        let entries = image_list::read(&list).map_err(|error| volume_status(&error))?;
        let mut digests = vec![UNKNOWN; entries.len()];
        for of_shard in digests_of {
            let path = requests::verified(&place.volume, "digests", of_shard.file.as_ref())?;
            let known = npy::read_i64(&path).map_err(|error| volume_status(&error))?;
            let first = of_shard.first_image as usize;
            let rows = first.checked_add(known.len()).and_then(|end| digests.get_mut(first..end));
            rows.ok_or_else(|| FieldError::new("digests", "are not of these images"))?.copy_from_slice(&known);
        }
        let (mut cache, mut unfit) = (BTreeMap::new(), Reads::default());
        for cached in cached {
            let path = place.volume.resolve(&cached.path).map_err(|error| FieldError::new("cache", error))?;
            cache.extend(unfit.open(&path).map(|file| (cached.first_image as usize, file)));
        }
        Ok(Self { folder, entries, digests, cache, unfit })
    }

    pub(crate) fn check_there(&self) -> Result<(), FieldError> {
        check_there(&self.folder, &self.entries).map_err(|error| FieldError::new("images", error))
    }

    /// Where an image is looked for.
    pub(crate) fn source(&self, image: usize) -> Source {
        let entry = &self.entries[image];
        let shard = self.cache.range(..=image).next_back();
        let cached = shard.map(|(first, file)| Cached { file: Arc::clone(file), index: image - first });
        let expected = Expected { bytes: entry.bytes, digest: self.digests[image] };
        Source { path: self.folder.join(entry.as_path()), expected, cached }
    }
}
