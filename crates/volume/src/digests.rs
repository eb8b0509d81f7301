//! What the image files of a run contained when they were first read.

use crate::records::{DigestsRecord, read_record};
use crate::{FileRecord, RunFolder, npy, publish};
use deepcluster_domain::ShardId;

/// The digest of a file that was never read, or could not be.
pub const UNKNOWN: i64 = 0;

/// The digests of a run's `n` images, as far as they are known and whole: a damaged file would make others of all images.
pub fn known_digests(run: &RunFolder, shard_images: usize, n: usize) -> Vec<i64> {
    let mut digests = vec![UNKNOWN; n];
    let Ok(record) = read_record::<DigestsRecord>(&run.digests_json()) else { return digests };
    for (shard, rows) in (0..).zip(digests.chunks_mut(shard_images.max(1))) {
        let path = run.digests(ShardId(shard));
        let is_whole = |file: &FileRecord| publish::digest(&path).is_ok_and(|found| found.blake3 == file.blake3);
        if !record.shards.get(&shard).is_some_and(is_whole) {
            continue;
        }
        if let Some(found) = npy::read_i64(&path).ok().filter(|found| found.len() == rows.len()) {
            rows.copy_from_slice(&found);
        }
    }
    digests
}
