//! Names of clusters that last: who in this epoch is whose heir.

use crate::epoch::{EpochRunner, failed};
use deepcluster_domain::lineage::Lineage;
use deepcluster_volume::lineage_record::LineageRecord;
use deepcluster_volume::records::{publish_record, read_record};
use deepcluster_volume::{FileRecord, VolumeError, npy};
use tonic::Status;

impl EpochRunner<'_> {
    /// Names the `k` clusters of this epoch after those of the epoch before, and publishes that.
    pub(crate) fn name_clusters(&self, labels: &FileRecord, k: u32) -> Result<FileRecord, Status> {
        self.lineage(labels, k).map_err(failed)
    }

    fn lineage(&self, labels: &FileRecord, k: u32) -> Result<FileRecord, VolumeError> {
        let volume = &self.workshop.volume;
        let labels_of = |record: &FileRecord| npy::read_i32(&volume.verified(record)?);
        let now = labels_of(labels)?;
        let lineage = match &self.last {
            None => Lineage::first(&now, k),
            Some(last) => {
                let before = labels_of(&last.files.labels)?;
                let named = match &last.files.lineage {
                    Some(file) => Lineage::from(read_record::<LineageRecord>(&volume.verified(file)?)?),
                    // The epoch is older than names are.
                    None => Lineage::first(&before, before.iter().max().map_or(0, |largest| (largest + 1) as u32)),
                };
                named.next(&before, &now, k)
            }
        };
        let path = self.folder.lineage_json();
        publish_record(&path, &LineageRecord::new(self.epoch, &lineage))?;
        volume.record_existing(&path)
    }
}
