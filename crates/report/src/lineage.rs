//! What became of clusters from epoch to epoch: `lineage.json`, where epochs have one.

use crate::atlas::Ancestor;
use deepcluster_domain::EpochId;
use deepcluster_volume::{RunFolder, VolumeError};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The version of `lineage.json` that this program reads.
const VERSION: u32 = 1;

/// `lineage.json` of an epoch.
#[derive(Deserialize)]
struct Lineage {
    version: u32,
    clusters: Vec<Origin>,
}

/// Where a cluster comes from.
#[derive(Clone, Copy, Deserialize)]
struct Origin {
    /// Its stable number.
    name: u32,
    /// Its number in the epoch before; none when it is new.
    from: Option<u32>,
    /// Images that it has in common with that one.
    shared: usize,
    /// Images that it has.
    size: usize,
}

/// The lineages of the last epochs, as far back as there are any.
pub(crate) struct Lineages {
    last: EpochId,
    of_epochs: BTreeMap<EpochId, Lineage>,
}

impl Lineages {
    /// Reads them, from the last epoch backwards.
    pub(crate) fn read(run: &RunFolder, last: EpochId) -> Result<Self, VolumeError> {
        let mut of_epochs = BTreeMap::new();
        let mut next = Some(last);
        while let Some(epoch) = next {
            let Some(lineage) = read(&run.epoch(epoch).path().join("lineage.json"))? else { break };
            of_epochs.insert(epoch, lineage);
            next = epoch.previous();
        }
        Ok(Self { last, of_epochs })
    }

    fn origin(&self, epoch: EpochId, cluster: u32) -> Option<Origin> {
        self.of_epochs.get(&epoch)?.clusters.get(cluster as usize).copied()
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
            let Some(Origin { from, shared, size, .. }) = self.origin(epoch, cluster) else { break };
            history.push(Ancestor { epoch: epoch.0, cluster, shared, size });
            next = epoch.previous().zip(from);
        }
        history.reverse();
        history
    }
}

/// None where there is no such file.
fn read(path: &Path) -> Result<Option<Lineage>, VolumeError> {
    match fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(VolumeError::io(path)(error)),
        Ok(text) => {
            let lineage: Lineage = serde_json::from_slice(&text).map_err(|error| VolumeError::corrupt(path, error))?;
            if lineage.version != VERSION {
                let why = format!("has version {}, this program reads version {VERSION}", lineage.version);
                return Err(VolumeError::corrupt(path, why));
            }
            Ok(Some(lineage))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use deepcluster_volume::publish::publish_bytes;

    #[test]
    fn a_cluster_is_followed_back_as_far_as_its_ancestors_are_known() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunFolder::at(folder.path());
        let write = |epoch: u32, text: &str| {
            publish_bytes(&run.epoch(EpochId(epoch)).path().join("lineage.json"), text.as_bytes()).unwrap();
        };
        write(1, r#"{"version":1,"epoch":1,"clusters":[{"name":5,"from":null,"shared":0,"size":9}]}"#);
        let new = r#"{"name":7,"from":null,"shared":0,"size":1}"#;
        let old = r#"{"name":5,"from":0,"shared":8,"size":10}"#;
        write(2, &format!("{{\"version\":1,\"epoch\":2,\"clusters\":[{new},{old}]}}"));
        let lineages = Lineages::read(&run, EpochId(2)).unwrap();
        assert_eq!([lineages.name(0), lineages.name(1), lineages.name(2)], ["c0007", "c0005", "c0002"]);
        let ancestors =
            [Ancestor { epoch: 1, cluster: 0, shared: 0, size: 9 }, Ancestor { epoch: 2, cluster: 1, shared: 8, size: 10 }];
        assert_eq!(lineages.history(1), ancestors);
        assert_eq!(lineages.history(0).len(), 1);
        let none = Lineages::read(&run, EpochId(3)).unwrap();
        assert_eq!((none.name(12), none.history(12)), ("c0012".to_owned(), Vec::new()));
    }
}
