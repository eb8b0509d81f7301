//! A small run folder, made by the tests themselves through the volume, and a view of a healthy run.

use crate::view::RunView;
use deepcluster_domain::{Clustering, EpochId, RunSpec};
use deepcluster_images::{FindOptions, find_images};
use deepcluster_volume::events::{EventLog, Severity};
use deepcluster_volume::publish::{create_folder, publish_bytes};
use deepcluster_volume::records::{
    EpochFiles, EpochManifest, EpochScores, ReadsRecord, ResolvedRecord, RunRecord, RunState, SpecRecord, VERSION, publish_record,
};
use deepcluster_volume::tensors::{self, F32Tensor};
use deepcluster_volume::{RunFolder, Volume, image_list, npy};
use image::{Rgb, RgbImage};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub(crate) struct MadeUp {
    pub(crate) run: RunFolder,
    pub(crate) images: PathBuf,
}

/// Cluster of each image: cluster 2 is empty, and the last image cannot be read.
const LABELS: [i32; 12] = [0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 3, -1];

/// Two epochs of four clusters, of eleven images in two folders and one that is damaged.
pub(crate) fn made_up_run(folder: &Path) -> MadeUp {
    let images = folder.join("images");
    for row in 0..12_u8 {
        let class = if row < 5 { "cats & kittens" } else { "dogs" };
        create_folder(&images.join(class)).unwrap();
        let path = images.join(class).join(format!("{row:02}.png"));
        if row == 11 {
            publish_bytes(&path, b"no image").unwrap();
        } else {
            RgbImage::from_fn(40, 30, |x, y| Rgb([row * 20, x as u8 * 6, y as u8 * 8])).save(&path).unwrap();
        }
    }
    let volume = Volume::new(folder.join("volume"));
    let run = volume.run(&"made-up".parse().unwrap());
    let found = find_images(&images, FindOptions::default()).unwrap().images;
    let (csv, checksum) = image_list::to_csv(&found).unwrap();
    publish_bytes(&run.images_csv(), &csv).unwrap();
    publish_record(&run.run_json(), &record(checksum)).unwrap();
    let (mut log, _) = EventLog::open(&run.events_jsonl()).unwrap();
    for epoch in 0..2 {
        // Below ln 4, that of guessing.
        let of_few = EpochScores { loss: 1.25 - 0.25 * f64::from(epoch), ..scores(epoch) };
        log.append("epoch", Severity::Info, serde_json::to_value(of_few).unwrap()).unwrap();
    }
    last_epoch(&volume, &run);
    MadeUp { run, images }
}

fn record(images_csv: String) -> RunRecord {
    RunRecord {
        version: VERSION,
        run_id: "made-up".to_owned(),
        created: 0,
        spec: SpecRecord::from(&RunSpec { epochs: 2, ..RunSpec::default() }),
        resolved: ResolvedRecord { k: 4, n_images: 12, n_skipped: 1, images_csv: vec![images_csv], ..ResolvedRecord::default() },
        state: RunState::Finished,
        message: String::new(),
        epochs_done: 2,
        request_id: String::new(),
        priority: 0,
        labels: BTreeMap::new(),
        note: "a <note>".to_owned(),
        traceparent: String::new(),
    }
}

fn last_epoch(volume: &Volume, run: &RunFolder) {
    let folder = run.epoch(EpochId(1));
    create_folder(folder.path()).unwrap();
    let distances: Vec<f32> = vec![0.3, 0.2, 0.1, 0.5, 0.4, 0.3, 0.2, 0.1, 0.6, 0.7, 0.0, f32::NAN];
    let centroids = [0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.5, 0.0, 0.0, 9.0, 9.0, 0.0];
    let tensor = |shape: &[usize]| F32Tensor {
        shape: shape.to_vec(),
        values: (0..shape.iter().product::<usize>()).map(|n| n as f32).collect(),
    };
    let whiten = BTreeMap::from([("mean", tensor(&[3]))]);
    let checkpoint = BTreeMap::from([("features.0.weight", tensor(&[6, 2, 3, 3])), ("features.0.bias", tensor(&[6]))]);
    let record = |path: PathBuf, digest| volume.record(&path, digest).unwrap();
    let files = EpochFiles {
        labels: record(folder.labels(), npy::publish_i32(&folder.labels(), &LABELS).unwrap()),
        distances: record(folder.distances(), npy::publish_f32(&folder.distances(), &[12], &distances).unwrap()),
        whiten: record(folder.whiten(), tensors::publish_f32(&folder.whiten(), &whiten).unwrap()),
        centroids: record(folder.centroids(), npy::publish_f32(&folder.centroids(), &[4, 3], &centroids).unwrap()),
        checkpoint: record(folder.checkpoint(), tensors::publish_f32(&folder.checkpoint(), &checkpoint).unwrap()),
        lineage: None,
        whitened: None,
    };
    let manifest = EpochManifest { version: VERSION, epoch: 1, files, scores: scores(1) };
    publish_record(&folder.epoch_json(), &manifest).unwrap();
}

/// What an epoch of a healthy run scores.
pub(crate) fn scores(epoch: u32) -> EpochScores {
    EpochScores {
        epoch,
        images: 1980,
        loss: 4.0 - 0.5 * f64::from(epoch),
        kmeans_objective: 900.0 - 10.0 * f64::from(epoch),
        nonempty: 99,
        largest_share: 0.05,
        effective_clusters: Some(80.0),
        nmi_last: (epoch > 0).then(|| 0.4 + 0.1 * f64::from(epoch)),
        nmi_classes: Some(0.3 + 0.05 * f64::from(epoch)),
        ami_classes: Some(0.2),
        nmi_chance: Some(0.03),
        extract_s: 1.0,
        cluster_s: 2.0,
        train_s: 3.0,
        reads: ReadsRecord::default(),
    }
}

/// Four epochs of a hundred clusters.
pub(crate) fn healthy_view() -> RunView {
    RunView {
        run_id: "made-up".to_owned(),
        state: "finished".to_owned(),
        message: String::new(),
        clustering: Clustering::KMeans,
        k: 100,
        dims: 256,
        batch: 64,
        n_images: 2000,
        n_skipped: 20,
        epochs: 4,
        scores: (0..4).map(scores).collect(),
        warnings: Vec::new(),
        faults: Vec::new(),
    }
}
