//! The epoch's state machine: from what is durably done follows what comes next.
//!
//! ```text
//! Extract (missing shards) ──► Cluster ──► Train ──► Commit
//! ```
//!
//! The coordinator holds no other state about an epoch. After a crash it reads what is done from the volume, asks
//! here what comes next, and goes on.

use crate::ShardId;

/// What of an epoch is durably done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochProgress {
    /// One entry a shard: are its features there?
    pub shards: Vec<bool>,
    /// Are the pseudo-labels there?
    pub clustered: bool,
    /// Is the checkpoint there?
    pub trained: bool,
}

/// What comes next in an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Compute the features of these shards, in any order and on any extractor.
    Extract(Vec<ShardId>),
    /// Turn the features into pseudo-labels.
    Cluster,
    /// Teach the network the pseudo-labels.
    Train,
    /// Everything is there: write the manifest.
    Commit,
}

impl EpochProgress {
    /// An epoch of which nothing is done.
    pub fn fresh(n_shards: usize) -> Self {
        Self { shards: vec![false; n_shards], clustered: false, trained: false }
    }

    /// What comes next. Features are not needed again once there are labels, nor labels once there is a checkpoint.
    pub fn next(&self) -> Step {
        if self.trained && self.clustered {
            return Step::Commit;
        }
        if self.clustered {
            return Step::Train;
        }
        let missing: Vec<ShardId> =
            self.shards.iter().enumerate().filter(|(_, done)| !**done).map(|(shard, _)| ShardId(shard as u32)).collect();
        if missing.is_empty() { Step::Cluster } else { Step::Extract(missing) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_walks_through_its_steps_and_resumes_at_each() {
        let mut epoch = EpochProgress::fresh(3);
        epoch.shards[1] = true;
        assert_eq!(epoch.next(), Step::Extract(vec![ShardId(0), ShardId(2)]));
        epoch.shards = vec![true; 3];
        assert_eq!(epoch.next(), Step::Cluster);
        epoch.clustered = true;
        assert_eq!(epoch.next(), Step::Train);
        // Features that got lost after clustering are not missed.
        epoch.shards[0] = false;
        assert_eq!(epoch.next(), Step::Train);
        epoch.trained = true;
        assert_eq!(epoch.next(), Step::Commit);
    }

    #[test]
    fn a_checkpoint_without_labels_is_not_trusted() {
        let epoch = EpochProgress { shards: vec![true], clustered: false, trained: true };
        assert_eq!(epoch.next(), Step::Cluster);
    }
}
