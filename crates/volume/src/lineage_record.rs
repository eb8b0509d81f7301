//! `lineage.json`: the lasting names of an epoch's clusters.

use crate::record_file::Versioned;
use crate::records::VERSION;
use deepcluster_domain::EpochId;
use deepcluster_domain::lineage::{Lineage, Named};
use serde::{Deserialize, Serialize};

/// `lineage.json`: what the clusters of an epoch are called, and where they come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LineageRecord {
    /// [`VERSION`].
    pub version: u32,
    /// The epoch's number.
    pub epoch: u32,
    /// The smallest name that no cluster of the run had so far.
    pub next_name: u32,
    /// In order of the clusters' numbers.
    pub clusters: Vec<NamedRecord>,
}

/// A cluster and where it comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NamedRecord {
    /// Its name.
    pub name: u32,
    /// Number of its ancestor in the epoch before; null for a new cluster.
    pub from: Option<u32>,
    /// Images that it shares with its ancestor.
    pub shared: usize,
    /// Images that it has.
    pub size: usize,
}

impl LineageRecord {
    /// Of an epoch.
    pub fn new(epoch: EpochId, lineage: &Lineage) -> Self {
        let record = |named: &Named| {
            let Named { name, from, shared, size } = *named;
            NamedRecord { name, from, shared, size }
        };
        let clusters = lineage.clusters.iter().map(record).collect();
        Self { version: VERSION, epoch: epoch.0, next_name: lineage.next_name, clusters }
    }
}

impl From<LineageRecord> for Lineage {
    fn from(record: LineageRecord) -> Self {
        let named = |record: NamedRecord| {
            let NamedRecord { name, from, shared, size } = record;
            Named { name, from, shared, size }
        };
        Self { clusters: record.clusters.into_iter().map(named).collect(), next_name: record.next_name }
    }
}

impl Versioned for LineageRecord {
    fn version(&self) -> u32 {
        self.version
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::{publish_record, read_record};

    #[test]
    fn a_lineage_survives_the_volume() {
        let lineage = Lineage::first(&[0, 0, 1], 2).next(&[0, 0, 1], &[1, 1, 1], 2);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lineage.json");
        publish_record(&path, &LineageRecord::new(EpochId(7), &lineage)).unwrap();
        let record: LineageRecord = read_record(&path).unwrap();
        let text = serde_json::to_string(&record).unwrap();
        let clusters = r#"{"name":2,"from":null,"shared":0,"size":0},{"name":0,"from":0,"shared":2,"size":3}"#;
        assert_eq!(text, format!(r#"{{"version":1,"epoch":7,"next_name":3,"clusters":[{clusters}]}}"#));
        assert_eq!(Lineage::from(record), lineage);
    }
}
