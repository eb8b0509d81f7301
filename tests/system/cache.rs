//! Decoded images on the volume: each file is decoded once, whatever runs, and nothing depends on it.

use crate::recovery::assert_same;
use crate::support::{Followed, contents, deepcluster, finished_run, pictures, text, train_arguments};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// How the images of each epoch were read: decoded, from the cache.
fn reads(events: &[Value]) -> Vec<(u64, u64)> {
    let epochs = events.iter().filter(|event| event["event"] == "epoch");
    let of = |epoch: &Value| (epoch["reads"]["decoded"].as_u64().unwrap(), epoch["reads"]["cached"].as_u64().unwrap());
    epochs.map(of).collect()
}

fn train(volume: &Path, more: &[&str]) -> Vec<Value> {
    let mut arguments = train_arguments(volume);
    for flag in more.chunks(2) {
        // In the place of the usual one.
        if let Some(at) = arguments.iter().position(|argument| argument == flag[0]) {
            arguments.drain(at..at + 2);
        }
        arguments.extend(flag.iter().map(|word| (*word).to_owned()));
    }
    let (events, code) = Followed::start(&arguments).finish();
    assert_eq!(code, Some(0), "{more:?}");
    events
}

/// All files of the cache.
fn shards(volume: &Path) -> Vec<PathBuf> {
    let Ok(folders) = fs::read_dir(volume.join("cache")) else { return Vec::new() };
    let files = folders.flat_map(|folder| fs::read_dir(folder.unwrap().path()).unwrap());
    let mut shards: Vec<PathBuf> =
        files.map(|file| file.unwrap().path()).filter(|path| path.extension().is_some_and(|e| e == "pixels")).collect();
    shards.sort();
    shards
}

/// A run, another one of the same images, and one without a cache.
#[test]
fn each_file_is_decoded_once_for_all_runs_and_the_cache_changes_nothing() {
    let first = finished_run();
    assert_eq!(reads(&first.events), [(200, 200), (0, 400)]);
    assert_eq!(shards(first.volume.path()).len(), 4);

    let other = tempfile::tempdir().unwrap();
    let without = train(other.path(), &["--cache-limit", "0"]);
    assert_eq!(reads(&without), [(400, 0), (400, 0)]);
    assert!(!other.path().join("cache").try_exists().unwrap());
    let epochs = other.path().join("runs/run-0001/epochs");
    assert_same(&contents(&first.folder().join("epochs")), &contents(&epochs));

    assert_eq!(reads(&train(other.path(), &["--epochs", "1"])), [(200, 200)]);
    assert_eq!(reads(&train(other.path(), &["--epochs", "1", "--k", "12"])), [(0, 400)]);
    // Another side is another cache.
    assert_eq!(reads(&train(other.path(), &["--epochs", "1", "--cache-side", "64"])), [(200, 200)]);
    assert_eq!(fs::read_dir(other.path().join("cache")).unwrap().count(), 2);
    // The same files elsewhere are other images; a limit makes those go that were not used for longest.
    let copies = other.path().join("copies");
    fs::create_dir(&copies).unwrap();
    for picture in fs::read_dir(pictures().join("stripes")).unwrap() {
        let picture = picture.unwrap().path();
        fs::copy(&picture, copies.join(picture.file_name().unwrap())).unwrap();
    }
    let flags = "--image-size 64 --k 4 --epochs 1 --batch 8 --device cpu --json --cache-limit 3MB";
    let arguments = ["train", text(&copies), "--out", text(other.path())].into_iter().chain(flags.split(' '));
    let (events, code) = Followed::start(&arguments.map(str::to_owned).collect::<Vec<_>>()).finish();
    assert_eq!((code, reads(&events)), (Some(0), vec![(20, 20)]));
    let said = events.iter().find(|event| event["event"] == "cache").unwrap();
    assert!(said["message"].as_str().unwrap().contains("removed to make room"), "{said}");
    assert_eq!(fs::read_dir(other.path().join("cache")).unwrap().count(), 2);
}

/// Half of the shards fit; a warning says so.
#[test]
fn what_does_not_fit_is_decoded_in_every_epoch() {
    let volume = tempfile::tempdir().unwrap();
    // 64 pictures of 64 x 64 pixels take 0.8 MB.
    let events = train(volume.path(), &["--cache-limit", "1.6MB"]);
    assert_eq!(shards(volume.path()).len(), 2);
    let [(decoded, cached), (decoded_later, cached_later)] = reads(&events)[..] else { panic!("{events:?}") };
    assert_eq!((decoded + cached, decoded_later + cached_later), (400, 400));
    // All once; later the 72 others; and those of them drawn for training, which are as many on average.
    assert!((201..400).contains(&decoded) && (73..200).contains(&decoded_later), "{decoded}, {decoded_later}");
    let said: Vec<&Value> = events.iter().filter(|event| event["event"] == "cache").collect();
    assert_eq!(said.len(), 1, "{said:?}");
    let message = said[0]["message"].as_str().unwrap();
    assert!(message.contains("2 of 4 shards are kept") && said[0]["severity"] == "warning", "{message}");
}

/// A shard that is damaged in one image, one that is cut short, and one that is gone: they are decoded again, and the epoch
/// comes out as it would have.
#[test]
fn a_damaged_cache_costs_time_and_nothing_else() {
    let volume = tempfile::tempdir().unwrap();
    let mut command = Followed::start(&train_arguments(volume.path()));
    command.wait_for_phase(0, "cluster");
    let files = shards(volume.path());
    assert_eq!(files.len(), 4);
    let mut damaged = fs::read(&files[0]).unwrap();
    damaged[100] ^= 1;
    let put = |path: &Path, content: &[u8]| deepcluster_volume::publish::publish_bytes(path, content).unwrap();
    put(&files[0], &damaged);
    put(&files[1], &fs::read(&files[1]).unwrap()[..5000]);
    fs::remove_file(&files[2]).unwrap();
    let said = deepcluster(["verify", text(volume.path())]).good();
    assert!(said.contains("00000.pixels: an image is damaged"), "{said}");
    assert!(said.contains("00001.pixels: its table is damaged"), "{said}");
    let (events, code) = command.finish();
    assert_eq!(code, Some(0));
    let epochs = volume.path().join("runs/run-0001/epochs");
    assert_same(&contents(&finished_run().folder().join("epochs")), &contents(&epochs));
    assert!(reads(&events).iter().all(|(decoded, _)| *decoded > 0), "{:?}", reads(&events));
    // The damaged image is found when it is first read, which may be in the last epoch.
    let n_left = shards(volume.path()).len();
    assert!(n_left >= 3, "{n_left}");
    let said = deepcluster(["verify", text(volume.path())]).good();
    assert!(said.contains(&format!("cache: {n_left} files of decoded images are good")), "{said}");
}

/// Once its pixels are on the volume, a file may go: what the run began with is what it ends with.
#[test]
fn images_that_are_in_the_cache_are_not_missed() {
    let folder = tempfile::tempdir().unwrap();
    let (images, volume) = (folder.path().join("images"), folder.path().join("volume"));
    deepcluster(["demo-images", text(&images), "--count", "60", "--size", "64"]).good();
    let flags = "--image-size 64 --k 4 --epochs 2 --batch 16 --device cpu --json";
    let arguments = ["train", text(&images), "--out", text(&volume)].into_iter().chain(flags.split(' '));
    let mut command = Followed::start(&arguments.map(str::to_owned).collect::<Vec<_>>());
    command.wait_for_phase(0, "cluster");
    for picture in fs::read_dir(images.join("stripes")).unwrap() {
        fs::remove_file(picture.unwrap().path()).unwrap();
    }
    let (events, code) = command.finish();
    assert_eq!(code, Some(0));
    assert!(!events.iter().any(|event| event["event"] == "images"), "{events:?}");
    assert_eq!(reads(&events)[1], (0, 120));
}

#[test]
fn a_limit_that_is_no_size_is_refused() {
    let volume = tempfile::tempdir().unwrap();
    let mut arguments = train_arguments(volume.path());
    arguments.extend(["--cache-limit".to_owned(), "much".to_owned()]);
    let outcome = deepcluster(arguments);
    assert_eq!(outcome.code, Some(2), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("--cache-limit 'much' is not a size like 200GB"), "{}", outcome.stderr);
}

/// The whole folder goes while it is in use: the images are decoded again, and the next epoch keeps them anew.
#[test]
fn the_cache_may_be_deleted_at_any_time() {
    let volume = tempfile::tempdir().unwrap();
    let mut command = Followed::start(&train_arguments(volume.path()));
    command.wait_for_phase(0, "cluster");
    fs::remove_dir_all(volume.path().join("cache")).unwrap();
    let (events, code) = command.finish();
    assert_eq!(code, Some(0));
    // The files of training are read where the cache was; the second epoch decodes each once.
    assert_eq!(reads(&events)[1], (200, 200), "{:?}", reads(&events));
    assert_eq!(shards(volume.path()).len(), 4);
    let epochs = volume.path().join("runs/run-0001/epochs");
    assert_same(&contents(&finished_run().folder().join("epochs")), &contents(&epochs));
}
