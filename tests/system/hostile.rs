//! Image folders as they should not be: what cannot be read is named, the rest is trained on.

use crate::support::{Followed, deepcluster, python, text};
use deepcluster_volume::image_list;
use std::fs;
use std::path::Path;

/// A tenth of the images is broken in sixty ways; three more go wrong between two epochs, which a cache would not notice.
#[test]
fn hostile_images_are_skipped_with_their_reasons() {
    let folder = tempfile::tempdir().unwrap();
    let (images, volume) = (folder.path().join("images"), folder.path().join("volume"));
    let counts = python("make_hostile.py", [&images]);
    let counts: Vec<usize> = counts.split_whitespace().map(|count| count.parse().unwrap()).collect();
    let [n_bad, n_odd] = counts[..] else { panic!("{counts:?}") };
    assert!(n_bad >= 58);
    let good = images.join("good");
    deepcluster(["demo-images", text(&good), "--count", "640", "--size", "32"]).good();
    let flags = "--arch resnet18 --image-size 32 --k 8 --epochs 2 --batch 64 --lr 0.01 --device cpu --cache-limit 0 --json";
    let arguments = ["train", text(&images), "--out", text(&volume)].into_iter().chain(flags.split(' '));
    let mut train = Followed::start(&arguments.map(str::to_owned).collect::<Vec<_>>());
    train.wait_for_phase(0, "train");
    let (deleted, replaced) = (good.join("stripes/00001.png"), good.join("stripes/00011.png"));
    fs::remove_file(&deleted).unwrap();
    fs::copy(images.join("odd/1x1.png"), &replaced).unwrap();
    // Of the same size: a byte behind the pixels is another.
    let same_size = good.join("stripes/00021.png");
    let mut bytes = fs::read(&same_size).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    deepcluster_volume::publish::publish_bytes(&same_size, &bytes).unwrap();
    let (events, code) = train.finish();
    assert_eq!(code, Some(0));
    let said = events.iter().rfind(|event| event["event"] == "images").unwrap();
    assert_eq!((said["skipped"].as_u64(), said["severity"].as_str()), (Some(3), Some("warning")), "{said}");

    let list = image_list::read(&volume.join("runs/run-0001/images.csv")).unwrap();
    assert_eq!(list.len(), 640 + n_bad + n_odd);
    for image in &list {
        let path = image.as_path();
        let reason = image.skipped.as_deref();
        if path.starts_with("bad") {
            assert!(reason.is_some_and(|reason| !reason.is_empty()), "{} was read", path.display());
        } else if path == Path::new("good/stripes/00001.png") {
            assert!(reason.unwrap().contains("No such file"), "{reason:?}");
        } else if ["good/stripes/00011.png", "good/stripes/00021.png"].iter().any(|replaced| path == Path::new(replaced)) {
            assert!(reason.unwrap().contains("replaced"), "{reason:?}");
        } else {
            assert_eq!(reason, None, "{}", path.display());
        }
    }
    println!("{n_bad} hostile files skipped, {n_odd} odd ones read");
    for log in ["extractor-0", "trainer", "coordinator"] {
        let log = fs::read_to_string(volume.join(format!("logs/{log}.log"))).unwrap();
        assert!(!log.contains("ended:"), "a service died: {log}");
    }
}
