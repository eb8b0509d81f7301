//! The cluster atlas: what each cluster of the last epoch looks like, what is in it, and which ones are like it.

use crate::error::ReportError;
use crate::last::Clustered;
use crate::lineage::Lineages;
use crate::{nearest, thumbs};
use deepcluster_images::classes::folder;
use deepcluster_images::{class_level, folder_classes};
use deepcluster_volume::RunFolder;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::path::Path;

/// Neighbours that a card names.
const NEIGHBOURS: usize = 5;

/// How much of a clustering is shown, and how large.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AtlasOptions {
    /// Images nearest to the centroid, of each cluster.
    pub nearest: usize,
    /// Images farthest from the centroid, of each cluster.
    pub far: usize,
    /// Side of a thumbnail in pixels.
    pub thumb: u32,
    /// Clusters that are passed over, of those that hold images, the largest first.
    pub first: usize,
    /// Clusters that are shown after those.
    pub most: usize,
}

impl AtlasOptions {
    /// What lets the whole atlas of `k` clusters stay within about 40 MB.
    pub fn for_clusters(k: usize) -> Self {
        let (nearest, far, thumb) = match k {
            0..=200 => (12, 4, 80),
            201..=1000 => (8, 4, 64),
            1001..=3000 => (4, 4, 48),
            _ => (3, 1, 32),
        };
        Self { nearest, far, thumb, first: 0, most: 10_000 }
    }
}

/// A cluster as the atlas shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Card {
    /// Its number in the last epoch.
    pub cluster: u32,
    /// Its name through all epochs, as "c0042"; its number where its ancestors are not known.
    pub name: String,
    /// Images in it.
    pub size: usize,
    /// Share of its most frequent class, in (0, 1]; none where the images lie in no class folders.
    pub purity: Option<f64>,
    /// That class: the name of its folder.
    pub class: Option<String>,
    /// Mean of the squared distances of its images to the centroid.
    pub mean_distance: f64,
    /// The clusters with the nearest centroids, nearest first; at most five.
    pub neighbours: Vec<u32>,
    /// What it was in each epoch that is still known, the oldest first, itself last.
    pub history: Vec<Ancestor>,
    /// The images nearest to the centroid, nearest first.
    pub nearest: Vec<Picture>,
    /// The images farthest from the centroid, farthest first; none that is among the nearest.
    pub far: Vec<Picture>,
}

/// An image of a card.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    /// Its path, relative to the folder of the images.
    pub path: String,
    /// Squared distance to the centroid, as in labels.csv.
    pub distance: f64,
    /// A thumbnail, square.
    pub jpeg: Vec<u8>,
    /// Why the thumbnail is grey: the image can no longer be read.
    pub unreadable: Option<String>,
}

/// A cluster in one of the epochs before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ancestor {
    /// The epoch.
    pub epoch: u32,
    /// Its number there.
    pub cluster: u32,
    /// Images that it has in common with its own ancestor in the epoch before; 0 when it was new.
    pub shared: usize,
    /// Images that it had.
    pub size: usize,
}

/// Cards of the last committed epoch, the largest cluster first. `images_root` is the folder that image paths are relative to.
///
/// # Errors
/// When nothing is committed yet, or a file of the epoch is not what its manifest says. An image that cannot be read is none:
/// it is shown grey.
pub fn atlas(run: &RunFolder, images_root: &Path, options: AtlasOptions) -> Result<Vec<Card>, ReportError> {
    let clustered = Clustered::read(run)?;
    let lineages = Lineages::read(run, &clustered.last);
    cards(&clustered, &lineages, images_root, options)
}

/// The same from what was read already.
pub(crate) fn cards(
    clustered: &Clustered,
    lineages: &Lineages,
    images_root: &Path,
    options: AtlasOptions,
) -> Result<Vec<Card>, ReportError> {
    let filled = clustered.by_size();
    let shown: Vec<usize> = filled.iter().skip(options.first).take(options.most).copied().collect();
    let classes = folder_classes(&clustered.images, clustered.classes_from);
    let neighbours = nearest::nearest(&clustered.centroids, &shown, &filled, NEIGHBOURS);
    let picked: Vec<Picked> = shown.iter().map(|cluster| Picked::of(clustered.rows(*cluster), options)).collect();
    let rows: Vec<u32> = picked.iter().flat_map(|picked| picked.nearest.iter().chain(&picked.far)).copied().collect();
    let mut pictures = thumbs::pictures(clustered, images_root, &rows, options.thumb)?.into_iter();
    let mut cards = Vec::with_capacity(shown.len());
    for ((cluster, near), picked) in shown.iter().zip(neighbours).zip(&picked) {
        let number = *cluster as u32;
        let (class, purity) = classes.as_ref().and_then(|classes| purity(clustered, classes, *cluster)).unzip();
        cards.push(Card {
            cluster: number,
            name: lineages.name(number),
            size: clustered.size(*cluster),
            purity,
            class,
            mean_distance: mean_distance(clustered, *cluster),
            neighbours: near.iter().map(|near| near.row as u32).collect(),
            history: lineages.history(number),
            nearest: pictures.by_ref().take(picked.nearest.len()).collect(),
            far: pictures.by_ref().take(picked.far.len()).collect(),
        });
    }
    Ok(cards)
}

/// Rows of the images that a card shows.
struct Picked {
    nearest: Vec<u32>,
    far: Vec<u32>,
}

impl Picked {
    /// From the rows of a cluster, nearest first.
    fn of(rows: &[u32], options: AtlasOptions) -> Self {
        let (nearest, rest) = rows.split_at(options.nearest.min(rows.len()));
        Self { nearest: nearest.to_vec(), far: rest.iter().rev().take(options.far).copied().collect() }
    }
}

fn mean_distance(clustered: &Clustered, cluster: usize) -> f64 {
    let rows = clustered.rows(cluster);
    let sum: f64 = rows.iter().filter_map(|row| clustered.distances.get(*row as usize)).map(|d| f64::from(*d)).sum();
    sum / rows.len().max(1) as f64
}

/// The most frequent class of a cluster, and its share; the first one by name of several.
fn purity(clustered: &Clustered, classes: &[i32], cluster: usize) -> Option<(String, f64)> {
    let rows = clustered.rows(cluster);
    // How often each class occurs, and an image of it.
    let mut counts: BTreeMap<i32, (usize, u32)> = BTreeMap::new();
    for row in rows {
        counts.entry(*classes.get(*row as usize)?).or_insert((0, *row)).0 += 1;
    }
    let (_, (count, row)) = counts.iter().max_by_key(|(class, (count, _))| (*count, Reverse(**class)))?;
    let path = &clustered.images.get(*row as usize)?.path;
    let folder = folder(path, class_level(&clustered.images, clustered.classes_from)?)?;
    Some((String::from_utf8_lossy(folder).into_owned(), *count as f64 / rows.len() as f64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::made_up_run;

    const OPTIONS: AtlasOptions = AtlasOptions { nearest: 2, far: 2, thumb: 16, first: 0, most: 100 };

    #[test]
    fn cards_say_what_is_in_a_cluster_and_who_is_near() {
        let folder = tempfile::tempdir().unwrap();
        let made = made_up_run(folder.path());
        let cards = atlas(&made.run, &made.images, OPTIONS).unwrap();
        assert_eq!(cards.iter().map(|card| (card.cluster, card.size)).collect::<Vec<_>>(), [(1, 7), (0, 3), (3, 1)]);
        let second = &cards[1];
        assert_eq!((second.name.as_str(), second.class.as_deref(), second.purity), ("c0000", Some("cats & kittens"), Some(1.0)));
        assert_eq!(second.neighbours, [1, 3]);
        assert!((second.mean_distance - 0.2).abs() < 1e-6, "{}", second.mean_distance);
        let paths = |pictures: &[Picture]| pictures.iter().map(|picture| picture.path.clone()).collect::<Vec<_>>();
        assert_eq!(paths(&second.nearest), ["cats & kittens/02.png", "cats & kittens/01.png"]);
        assert_eq!(paths(&second.far), ["cats & kittens/00.png"]);
        assert_eq!((cards[0].nearest.len(), cards[0].far.len()), (2, 2));
        let purity = cards[0].purity.unwrap();
        assert!((purity - 5.0 / 7.0).abs() < 1e-12 && cards[0].class.as_deref() == Some("dogs"), "{purity}");

        let page = atlas(&made.run, &made.images, AtlasOptions { first: 1, most: 1, ..OPTIONS }).unwrap();
        assert_eq!(page, cards[1..2]);
    }

    #[test]
    fn an_image_that_went_is_grey_and_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let made = made_up_run(folder.path());
        std::fs::remove_file(made.images.join("cats & kittens/02.png")).unwrap();
        let cards = atlas(&made.run, &made.images, OPTIONS).unwrap();
        let gone = &cards[1].nearest[0];
        assert!(gone.unreadable.as_ref().unwrap().contains("No such file"), "{:?}", gone.unreadable);
        assert_eq!(thumbs::squares(std::slice::from_ref(gone))[0].dimensions(), (16, 16));
        assert!(cards[1].nearest[1].unreadable.is_none());
    }
}
