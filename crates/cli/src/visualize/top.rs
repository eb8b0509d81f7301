//! The images that excite each filter most, found in one pass over the features of all of them.

use crate::failure::Failure;
use deepcluster_proto::v1::ExtractResult;
use deepcluster_service::requests::record_of;
use deepcluster_volume::Volume;
use deepcluster_volume::image_list::ImageEntry;
use deepcluster_volume::npy::ArrayFile;
use std::collections::HashSet;

/// Images of a filter (paper, figure 4).
const TOP: usize = 9;

/// Rows of features that are read at a time.
const ROWS: usize = 1024;

/// An image and how much it excites a filter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Excited {
    /// Its row in the list of images.
    pub image: usize,
    /// The largest activation on the filter's map.
    pub activation: f32,
}

/// For each of some filters of a layer the images that excite it most, in order; of equals the first. What leaves a filter cold is
/// not among them. `results` are of the shards of `images` in order: a value for each filter of the layer.
///
/// # Errors
/// When features are not what their record says, or are not of these images and filters.
pub fn most_exciting(
    volume: &Volume,
    images: &[ImageEntry],
    results: &[ExtractResult],
    filters: &[u32],
) -> Result<Vec<Vec<Excited>>, Failure> {
    let mut tops: Vec<Vec<Excited>> = vec![Vec::new(); filters.len()];
    let mut values = Vec::new();
    let mut shard_begins = 0;
    for result in results {
        let record = record_of("features", result.features.as_ref()).map_err(|error| Failure::other(error.to_string()))?;
        let features = ArrayFile::open(&volume.verified(&record)?)?;
        let width = features.width();
        if filters.iter().any(|filter| *filter as usize >= width) {
            return Err(Failure::other(format!("{} has {width} values of an image", record.path)));
        }
        let unreadable: HashSet<u64> = result.skipped.iter().map(|image| image.index).collect();
        for first in (0..features.rows()).step_by(ROWS) {
            features.read_f32_rows(first, ROWS.min(features.rows() - first), &mut values)?;
            for (image, row) in (shard_begins + first..).zip(values.chunks_exact(width.max(1))) {
                let takes_part = images.get(image).is_some_and(|entry| entry.skipped.is_none());
                if !takes_part || unreadable.contains(&(image as u64)) {
                    continue;
                }
                for (top, filter) in tops.iter_mut().zip(filters) {
                    keep(top, Excited { image, activation: row.get(*filter as usize).copied().unwrap_or_default() });
                }
            }
        }
        shard_begins += features.rows();
    }
    if shard_begins != images.len() {
        return Err(Failure::other(format!("there are features of {shard_begins} images, not of {}", images.len())));
    }
    Ok(tops)
}

/// Takes an image in if it is among the most exciting so far.
fn keep(top: &mut Vec<Excited>, new: Excited) {
    if !(new.activation.is_finite() && new.activation > 0.0) {
        return;
    }
    let place = top.partition_point(|other| other.activation >= new.activation);
    if place < TOP {
        top.insert(place, new);
        top.truncate(TOP);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use deepcluster_proto::v1::SkippedImage;
    use deepcluster_service::requests::file_to_wire;
    use deepcluster_volume::npy;

    #[test]
    fn the_most_exciting_images_of_all_shards_are_found_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let volume = Volume::new(folder.path());
        // Two filters; the second one responds to few.
        let n = 40;
        let value = |image: usize| [(image * 7 % n) as f32, if image.is_multiple_of(10) { 1.0 } else { 0.0 }];
        let shard = |name: &str, images: std::ops::Range<usize>, skipped: &[u64]| {
            let path = folder.path().join(name);
            let values: Vec<f32> = images.clone().flat_map(value).collect();
            npy::publish_f32(&path, &[images.len(), 2], &values).unwrap();
            let skipped = skipped.iter().map(|index| SkippedImage { index: *index, reason: "gone".to_owned() }).collect();
            let features = Some(file_to_wire(&volume.record_existing(&path).unwrap()));
            ExtractResult { features, skipped, ..ExtractResult::default() }
        };
        let entry = |image: usize| ImageEntry {
            path: format!("{image}.png").into_bytes(),
            bytes: 1,
            width: 1,
            height: 1,
            remark: None,
            skipped: (image == 17).then(|| "no image".to_owned()),
        };
        let images: Vec<ImageEntry> = (0..n).map(entry).collect();
        // Image 17 has the largest value, 39, and image 34 the next one.
        let results = [shard("0.npy", 0..25, &[]), shard("1.npy", 25..n, &[34])];
        let tops = most_exciting(&volume, &images, &results, &[0, 1, 0]).unwrap();
        let activations: Vec<f32> = tops[0].iter().map(|top| top.activation).collect();
        assert_eq!(activations, [37.0, 36.0, 35.0, 34.0, 33.0, 32.0, 31.0, 30.0, 29.0]);
        assert!(tops[0].iter().all(|top| value(top.image)[0] == top.activation), "{tops:?}");
        assert_eq!(tops[1].iter().map(|top| top.image).collect::<Vec<_>>(), [0, 10, 20, 30], "of equals the first comes first");
        assert_eq!(tops[2], tops[0]);
        assert!(most_exciting(&volume, &images, &results, &[2]).is_err());
        assert!(most_exciting(&volume, &images, &results[..1], &[0]).is_err());
    }
}
