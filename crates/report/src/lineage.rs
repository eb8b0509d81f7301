//! What became of clusters from epoch to epoch: `lineage.json`, where epochs have one.

use crate::atlas::Ancestor;
use deepcluster_domain::EpochId;
use deepcluster_volume::lineage_record::{LineageRecord, NamedRecord};
use deepcluster_volume::records::read_record;
use deepcluster_volume::{RunFolder, committed::CommittedEpoch};
use std::collections::BTreeMap;

/// The file's own name.
const LINEAGE: &str = "lineage.json";

/// The lineages of the last epochs, as far back as there are any.
pub(crate) struct Lineages {
    last: EpochId,
    of_epochs: BTreeMap<EpochId, LineageRecord>,
}

impl Lineages {
    /// Reads them, from the last epoch backwards, as far as they are there and what their epochs' manifests say.
    pub(crate) fn read(run: &RunFolder, last: &CommittedEpoch) -> Self {
        let mut of_epochs = BTreeMap::new();
        let mut next = Some(last.clone());
        while let Some(epoch) = next {
            let lineage = epoch.verified(LINEAGE).and_then(|path| read_record::<LineageRecord>(&path));
            // What became of clusters is worth no failure of a page.
            let Ok(lineage) = lineage else { break };
            of_epochs.insert(epoch.epoch, lineage);
            next = epoch.before(run).ok().flatten();
        }
        Self { last: last.epoch, of_epochs }
    }

    fn origin(&self, epoch: EpochId, cluster: u32) -> Option<&NamedRecord> {
        self.of_epochs.get(&epoch)?.clusters.get(cluster as usize)
    }

    /// What a cluster of the last epoch is called, through all epochs.
    pub(crate) fn name(&self, cluster: u32) -> String {
        format!("c{:04}", self.origin(self.last, cluster).map_or(cluster, |origin| origin.name))
    }

    /// What a cluster of the last epoch was in each epoch, the oldest first.
    pub(crate) fn history(&self, cluster: u32) -> Vec<Ancestor> {
        let mut history = Vec::new();
        let mut next = Some((self.last, cluster));
        while let Some((epoch, cluster)) = next {
            let Some(NamedRecord { from, shared, size, .. }) = self.origin(epoch, cluster) else { break };
            history.push(Ancestor { epoch: epoch.0, cluster, shared: *shared, size: *size });
            next = epoch.previous().zip(*from);
        }
        history.reverse();
        history
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::scores;
    use deepcluster_domain::lineage::{Lineage, Named};
    use deepcluster_volume::records::{EpochFiles, EpochManifest, VERSION, publish_record};
    use deepcluster_volume::{FileRecord, Volume};

    #[test]
    fn a_cluster_is_followed_back_as_far_as_its_ancestors_are_known() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunFolder::at(folder.path());
        let volume = Volume::new(folder.path());
        let write = |epoch: u32, clusters: Vec<Named>| {
            let folder = run.epoch(EpochId(epoch));
            let lineage = Lineage { clusters, next_name: 8 };
            publish_record(&folder.lineage_json(), &LineageRecord::new(EpochId(epoch), &lineage)).unwrap();
            let record = volume.record_existing(&folder.lineage_json()).unwrap();
            let other = || FileRecord { path: "elsewhere".to_owned(), ..record.clone() };
            let files = EpochFiles {
                labels: other(),
                distances: other(),
                whiten: other(),
                centroids: other(),
                checkpoint: other(),
                lineage: Some(record.clone()),
                whitened: None,
            };
            let manifest = EpochManifest { version: VERSION, epoch, files, scores: scores(epoch) };
            publish_record(&folder.epoch_json(), &manifest).unwrap();
            CommittedEpoch::of(&run, EpochId(epoch)).unwrap()
        };
        write(1, vec![Named { name: 5, from: None, shared: 0, size: 9 }]);
        let new = Named { name: 7, from: None, shared: 0, size: 1 };
        let last = write(2, vec![new, Named { name: 5, from: Some(0), shared: 8, size: 10 }]);
        let lineages = Lineages::read(&run, &last);
        assert_eq!([lineages.name(0), lineages.name(1), lineages.name(2)], ["c0007", "c0005", "c0002"]);
        let ancestors =
            [Ancestor { epoch: 1, cluster: 0, shared: 0, size: 9 }, Ancestor { epoch: 2, cluster: 1, shared: 8, size: 10 }];
        assert_eq!(lineages.history(1), ancestors);
        assert_eq!(lineages.history(0).len(), 1);
        // One that is not what its manifest says is passed over, and all before it.
        deepcluster_volume::publish::publish_bytes(&run.epoch(EpochId(2)).lineage_json(), b"{}").unwrap();
        let none = Lineages::read(&run, &last);
        assert_eq!((none.name(12), none.history(12)), ("c0012".to_owned(), Vec::new()));
    }
}
