//! The last committed epoch: which it is, its files once they were found to be what its manifest says, its clusters.

use crate::error::ReportError;
use deepcluster_images::decode::{Expected, UNKNOWN};
use deepcluster_volume::committed::CommittedEpoch;
use deepcluster_volume::digests::known_digests;
use deepcluster_volume::image_list::{self, ImageEntry};
use deepcluster_volume::records::{RunRecord, read_record};
use deepcluster_volume::{RunFolder, VolumeError, npy};

/// The last committed epoch of a run folder.
pub(crate) fn last_epoch(run: &RunFolder) -> Result<CommittedEpoch, ReportError> {
    if !run.is_there() {
        return Err(ReportError::NotARun(run.path().to_owned()));
    }
    CommittedEpoch::last(run)?.ok_or_else(|| ReportError::NothingYet(run.path().to_owned()))
}

/// Everything that is known of the clusters of an epoch.
pub(crate) struct Clustered {
    /// Where it comes from.
    pub(crate) last: CommittedEpoch,
    /// The images of the run, `[N]`.
    pub(crate) images: Vec<ImageEntry>,
    /// From which level of folders classes come, as the run's spec has it.
    pub(crate) classes_from: u32,
    /// What the run read of each image, `[N]`; another content is another image. UNKNOWN where it has read none.
    digests: Vec<i64>,
    /// Squared distance of each image to its centroid, `[N]`; of no use for a skipped one.
    pub(crate) distances: Vec<f32>,
    /// Centroids in the whitened space.
    pub(crate) centroids: Centroids,
    /// For each cluster the rows of its images, nearest to the centroid first.
    pub(crate) members: Vec<Vec<u32>>,
}

/// Centroids, or other points: `[rows, width]` in C order.
pub(crate) struct Centroids {
    /// Numbers of a point.
    pub(crate) width: usize,
    /// All numbers, each of them finite.
    pub(crate) values: Vec<f32>,
}

impl Centroids {
    /// One of them; empty where there is none.
    pub(crate) fn row(&self, row: usize) -> &[f32] {
        self.values.get(row * self.width..(row + 1) * self.width).unwrap_or_default()
    }
}

impl Clustered {
    /// Reads and verifies it.
    pub(crate) fn read(run: &RunFolder) -> Result<Self, ReportError> {
        let last = last_epoch(run)?;
        let record: RunRecord = read_record(&run.run_json())?;
        let images = image_list::read_known(&run.images_csv(), &record.resolved.images_csv)?;
        let labels_path = last.verified("labels.npy")?;
        let labels = npy::read_i32(&labels_path)?;
        let distances_path = last.verified("distances.npy")?;
        let (_, distances) = npy::read_f32(&distances_path)?;
        let centroids_path = last.verified("centroids.npy")?;
        let (shape, mut values) = npy::read_f32(&centroids_path)?;
        let [k, width] = shape[..] else {
            return Err(VolumeError::corrupt(&centroids_path, "is no matrix").into());
        };
        // A centroid that is not finite has no place among the others; it must not take theirs away.
        values.iter_mut().filter(|value| !value.is_finite()).for_each(|value| *value = 0.0);
        if labels.len() != images.len() || distances.len() != images.len() {
            let why = format!("does not have the {} images of {}", images.len(), run.images_csv().display());
            return Err(VolumeError::corrupt(&labels_path, why).into());
        }
        let mut members: Vec<Vec<u32>> = vec![Vec::new(); k];
        for (row, label) in (0..).zip(&labels) {
            let Ok(cluster) = usize::try_from(*label) else { continue };
            let of_cluster = members.get_mut(cluster);
            of_cluster
                .ok_or_else(|| VolumeError::corrupt(&labels_path, format!("has a label {label} of {k} clusters")))?
                .push(row);
        }
        let distance = |row: &u32| distances.get(*row as usize).copied().unwrap_or(f32::NAN);
        for rows in &mut members {
            rows.sort_by(|a, b| distance(a).total_cmp(&distance(b)).then(a.cmp(b)));
        }
        let digests = known_digests(run, record.spec.shard_images as usize, images.len());
        let classes_from = record.spec.classes_from;
        Ok(Self { last, images, classes_from, digests, distances, centroids: Centroids { width, values }, members })
    }

    /// What the file of an image should be, so that no other picture is shown in its place.
    pub(crate) fn expected(&self, row: usize) -> Option<Expected> {
        let digest = self.digests.get(row).copied().unwrap_or(UNKNOWN);
        self.images.get(row).map(|image| Expected { bytes: image.bytes, digest })
    }

    /// Clusters that hold images, the largest first.
    pub(crate) fn by_size(&self) -> Vec<usize> {
        let mut clusters: Vec<usize> = (0..self.members.len()).filter(|cluster| self.size(*cluster) > 0).collect();
        clusters.sort_by_key(|cluster| (usize::MAX - self.size(*cluster), *cluster));
        clusters
    }

    /// Clusters that hold nothing.
    pub(crate) fn empty(&self) -> Vec<usize> {
        (0..self.members.len()).filter(|cluster| self.size(*cluster) == 0).collect()
    }

    /// Images of a cluster.
    pub(crate) fn size(&self, cluster: usize) -> usize {
        self.rows(cluster).len()
    }

    /// Rows of the images of a cluster, nearest to the centroid first.
    pub(crate) fn rows(&self, cluster: usize) -> &[u32] {
        self.members.get(cluster).map(Vec::as_slice).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::made_up_run;
    use deepcluster_domain::{EpochId, ShardId};
    use deepcluster_volume::records::{DigestsRecord, VERSION, publish_record};
    use deepcluster_volume::{FileRecord, publish};

    #[test]
    fn an_image_is_known_by_its_content_unless_the_digests_are_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let made = made_up_run(folder.path());
        let digest = |row: usize| Clustered::read(&made.run).unwrap().expected(row).unwrap().digest;
        assert_eq!(digest(3), UNKNOWN);
        let path = made.run.digests(ShardId(0));
        publish::create_folder(&made.run.all_digests()).unwrap();
        let written = npy::publish_i64(&path, &(100..112).collect::<Vec<i64>>()).unwrap();
        let file = FileRecord { path: "of no use".to_owned(), bytes: written.bytes, blake3: written.blake3 };
        let known = DigestsRecord { version: VERSION, shards: [(0, file)].into() };
        publish_record(&made.run.digests_json(), &known).unwrap();
        assert_eq!((digest(0), digest(3)), (100, 103));
        assert!(Clustered::read(&made.run).unwrap().expected(12).is_none());
        npy::publish_i64(&path, &[7; 12]).unwrap();
        assert_eq!(digest(3), UNKNOWN);
    }

    #[test]
    fn clusters_are_read_once_their_files_are_what_the_manifest_says() {
        let folder = tempfile::tempdir().unwrap();
        let made = made_up_run(folder.path());
        let clustered = Clustered::read(&made.run).unwrap();
        assert_eq!(clustered.by_size(), [1, 0, 3]);
        assert_eq!(clustered.empty(), [2]);
        assert_eq!(clustered.rows(0), [2, 1, 0]);
        assert_eq!(clustered.centroids.row(3), [9.0, 9.0, 0.0]);
        assert!(clustered.centroids.row(4).is_empty());

        let labels = made.run.epoch(EpochId(1)).labels();
        npy::publish_i32(&labels, &[0; 12]).unwrap();
        let refused = Clustered::read(&made.run).err().unwrap().to_string();
        assert!(refused.contains("labels.npy") && refused.contains("checksum"), "{refused}");
        assert!(matches!(last_epoch(&RunFolder::at(folder.path())), Err(ReportError::NotARun(_))));
    }
}
