//! Files of every version that was ever written, as they were written: they must be read for ever.
#![allow(clippy::unwrap_used, reason = "a test")]

use deepcluster_domain::{EpochId, RunSpec, SaveEvery};
use deepcluster_volume::events::EventLog;
use deepcluster_volume::records::{EpochManifest, PendingEpoch, RunRecord, RunState, read_record};
use deepcluster_volume::{RunFolder, image_list};
use std::path::Path;

fn golden(version: &str) -> RunFolder {
    RunFolder::at(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(version))
}

#[test]
fn version_1_is_read() {
    let run = golden("v1");
    let record: RunRecord = read_record(&run.run_json()).unwrap();
    assert_eq!((record.state, record.epochs_done, record.resolved.n_images), (RunState::Running, 2, 40));
    let spec = RunSpec::try_from(record.spec).unwrap();
    assert_eq!((spec.seed, spec.batch, spec.learning_rate), (5, 8, 0.05));
    assert_eq!(spec.checkpoint_every, SaveEvery::Seconds(300), "runs older than the choice do as the default says");
    assert_eq!(image_list::read(&run.images_csv()).unwrap().len(), 40);

    let manifest: EpochManifest = read_record(&run.epoch(EpochId(1)).epoch_json()).unwrap();
    assert_eq!((manifest.epoch, manifest.scores.images), (1, 40));
    let files = manifest.files.all();
    assert_eq!(files.iter().map(|file| file.blake3.len()).collect::<Vec<_>>(), [64; 5]);
    assert_eq!(manifest.files.whitened, None, "epochs older than the file have none");
    assert_eq!(manifest.scores.effective_clusters, None, "epochs older than the figure have none");

    let pending: PendingEpoch = read_record(&run.epoch(EpochId(2)).pending_json()).unwrap();
    assert_eq!((pending.shards.len(), pending.retries), (2, 0));
    let clustering = pending.clustering.unwrap();
    assert_eq!((clustering.dims, clustering.files().len()), (39, 4));
    assert!(pending.training.is_none() && pending.training_so_far.is_none());

    let events = EventLog::read(&run.events_jsonl()).unwrap();
    assert_eq!(events.iter().filter(|event| event.kind == "epoch").count(), 2);
}
