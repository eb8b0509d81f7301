//! A run for TensorBoard: an event file for each epoch, and the centroids for its embedding projector.
//!
//! Event files carry the number of their epoch in their names, so that one that is written again takes its own place, and a
//! running TensorBoard finds each new one.

use crate::atlas::{AtlasOptions, Card, cards};
use crate::error::ReportError;
use crate::last::Clustered;
use crate::lineage::Lineages;
use crate::thumbs::{self, strip};
use deepcluster_domain::EpochId;
use deepcluster_tensorboard::{EventFile, Projection, Sprite, projector};
use deepcluster_volume::RunFolder;
use deepcluster_volume::records::{EpochScores, RunRecord};
use std::path::Path;

/// Clusters whose images an event file shows: the largest.
const SHOWN: usize = 24;

/// Images of each of them, nearest to the centroid and farthest from it.
const NEAREST: usize = 8;
const FAR: usize = 4;

/// Side of an image in an event file, in pixels.
const SIDE: u32 = 64;

/// Most centroids in the projector: the largest clusters.
const MOST_POINTS: usize = 10_000;

/// Largest side of a thumbnail in the projector, in pixels.
const SPRITE_SIDE: u32 = 48;

/// A file by its name.
pub type NamedFile = (String, Vec<u8>);

/// Name of an epoch's event file. TensorBoard reads them in order of their names.
pub fn event_file_name(record: &RunRecord, epoch: EpochId) -> String {
    EventFile::name((record.created + u64::from(epoch.0)) as f64)
}

/// The scores of an epoch as an event file, `wall_time` seconds after 1970; of the last epoch, also its clusters.
///
/// # Errors
/// When a file of the epoch is not what its manifest says.
pub fn event_file(
    run: &RunFolder,
    images_root: &Path,
    scores: &EpochScores,
    wall_time: f64,
    with_clusters: bool,
) -> Result<Vec<u8>, ReportError> {
    let mut file = EventFile::new(wall_time);
    let step = i64::from(scores.epoch);
    let figures = [
        ("loss/train", Some(scores.loss)),
        ("clusters/objective", Some(scores.kmeans_objective)),
        ("clusters/nonempty", Some(scores.nonempty as f64)),
        ("clusters/effective", scores.effective_clusters),
        ("clusters/largest_share", Some(scores.largest_share)),
        ("nmi/last_epoch", scores.nmi_last),
        ("nmi/classes", scores.nmi_classes),
        ("nmi/classes_by_chance", scores.nmi_chance),
        ("ami/classes", scores.ami_classes),
        ("seconds/extract", Some(scores.extract_s)),
        ("seconds/cluster", Some(scores.cluster_s)),
        ("seconds/train", Some(scores.train_s)),
    ];
    for (tag, value) in figures {
        if let Some(value) = value {
            file.scalar(tag, step, wall_time, value);
        }
    }
    if with_clusters {
        let clustered = Clustered::read(run)?;
        let sizes: Vec<f64> = clustered.members.iter().map(|members| members.len() as f64).collect();
        file.histogram("clusters/size", step, wall_time, &sizes);
        let options = AtlasOptions { nearest: NEAREST, far: FAR, thumb: SIDE, first: 0, most: SHOWN };
        let lineages = Lineages::read(run, &clustered.last);
        for card in cards(&clustered, &lineages, images_root, options)? {
            let groups = [thumbs::squares(&card.nearest), thumbs::squares(&card.far)];
            if let Some(strip) = strip(&groups, (NEAREST + FAR) as u32) {
                file.image(&format!("atlas/{}", card.name), step, wall_time, strip.width, strip.height, strip.jpeg);
            }
        }
    }
    Ok(file.finish())
}

/// The centroids of the last epoch for the embedding projector: points with the names, sizes and classes of their clusters, and
/// the image nearest to each. None where centroids are no points to look at, of one dimension alone.
///
/// # Errors
/// When a file of the epoch is not what its manifest says.
pub fn projection(run: &RunFolder, images_root: &Path) -> Result<Option<Vec<NamedFile>>, ReportError> {
    let clustered = Clustered::read(run)?;
    let lineages = Lineages::read(run, &clustered.last);
    let n = clustered.by_size().len().min(MOST_POINTS);
    let side = SPRITE_SIDE.min(Sprite::largest_side(n));
    if n == 0 || clustered.centroids.width < 2 || side == 0 {
        return Ok(None);
    }
    let options = AtlasOptions { nearest: 1, far: 0, thumb: side, first: 0, most: n };
    let cards = cards(&clustered, &lineages, images_root, options)?;
    let mut vectors = Vec::with_capacity(n * clustered.centroids.width);
    for card in &cards {
        vectors.extend_from_slice(clustered.centroids.row(card.cluster as usize));
    }
    let labels: Vec<Vec<String>> = cards.iter().map(row).collect();
    let thumbnail = |card: &Card| {
        let square = thumbs::squares(&card.nearest).into_iter().next();
        square.unwrap_or_else(|| thumbs::grey(side)).into_raw()
    };
    let sprite = Sprite { side, pngs_rgb: cards.iter().map(thumbnail).collect() };
    let projection = Projection {
        name: "centroids",
        dims: clustered.centroids.width,
        vectors: &vectors,
        labels: &labels,
        columns: &["cluster", "size", "class", "purity"],
        sprite: Some(sprite),
    };
    Ok(Some(projector(&projection)?))
}

fn row(card: &Card) -> Vec<String> {
    let purity = card.purity.map_or(String::new(), |purity| format!("{purity:.3}"));
    vec![card.name.clone(), card.size.to_string(), card.class.clone().unwrap_or_default(), purity]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{made_up_run, scores};

    #[test]
    fn files_have_names_in_order_and_their_content_follows_from_the_run() {
        let folder = tempfile::tempdir().unwrap();
        let made = made_up_run(folder.path());
        let (run, images) = (&made.run, made.images.as_path());
        let file = event_file(run, images, &scores(2), 1e9, true).unwrap();
        assert_eq!(file, event_file(run, images, &scores(2), 1e9, true).unwrap());
        let without = event_file(run, images, &scores(2), 1e9, false).unwrap();
        assert!(file.len() > without.len() + 1000, "{} and {} bytes", file.len(), without.len());
        let files = projection(run, images).unwrap().unwrap();
        let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
        for name in ["tensors.tsv", "metadata.tsv", "sprite.png", "projector_config.pbtxt"] {
            assert!(names.contains(&name), "{names:?}");
        }
    }
}
