//! What was read wrong once, or spoiled on the volume, does not end a run for ever.

use crate::recovery::same_as_undisturbed;
use crate::support::{Followed, deepcluster, finished_run, pictures, program, text, train_arguments};
use deepcluster_volume::events::EventLog;
use deepcluster_volume::image_list;
use deepcluster_volume::publish::publish_bytes;
use deepcluster_volume::records::{RunRecord, RunState, publish_record, read_record};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

/// A copy of the undisturbed run's volume.
fn copied() -> TempDir {
    let _owner = finished_run().owner.lock();
    let copy = tempfile::tempdir().unwrap();
    let from = format!("{}/.", text(finished_run().volume.path()));
    assert!(Command::new("cp").args(["-a", &from, text(copy.path())]).status().unwrap().success());
    copy
}

/// Flips a bit in the middle of a file, where it lies.
fn spoil(path: &Path) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let middle = file.metadata().unwrap().len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, middle).unwrap();
    file.write_all_at(&[byte[0] ^ 1], middle).unwrap();
}

#[test]
fn damaged_epochs_are_refused_by_readers_and_made_anew_by_resume() {
    let volume = copied();
    let run = volume.path().join("runs/run-0001");
    let epoch = run.join("epochs/0001");
    let out = volume.path().join("weights.safetensors");
    type Damage = fn(&Path);
    let table: [(Damage, &[&str]); 4] = [
        (|epoch| spoil(&epoch.join("checkpoint.safetensors")), &["export"]),
        (|epoch| spoil(&epoch.join("labels.npy")), &["labels"]),
        (|epoch| drop(publish_bytes(&epoch.join("epoch.json"), b"{\"version\":")), &["labels", "export"]),
        (|epoch| fs::remove_dir_all(epoch).unwrap(), &["labels", "export"]),
    ];
    for (damage, readers) in table {
        damage(&epoch);
        for reader in readers {
            let outcome = match *reader {
                "labels" => deepcluster(["labels", text(&run)]),
                _ => deepcluster(["export", text(&run), "--to", text(&out)]),
            };
            assert_eq!(outcome.code, Some(2), "{}", outcome.stderr);
            assert!(outcome.stderr.contains("epochs/0001/") && outcome.stderr.contains("resume"), "{}", outcome.stderr);
            assert!(!out.try_exists().unwrap());
        }
        deepcluster(["resume", text(volume.path()), "run-0001"]).good();
        same_as_undisturbed(volume.path());
        deepcluster(["labels", text(&run)]).good();
    }
    let events = fs::read_to_string(run.join("events.jsonl")).unwrap();
    assert_eq!(events.matches("going back to epoch 1").count(), 4, "{events}");
}

/// The newest checkpoint is damaged while the run goes on from it.
#[test]
fn a_run_goes_back_by_itself_from_an_epoch_that_is_damaged_meanwhile() {
    let volume = tempfile::tempdir().unwrap();
    let mut train = Followed::start(&train_arguments(volume.path()));
    train.wait_for(|event| event["event"] == "epoch");
    spoil(&volume.path().join("runs/run-0001/epochs/0000/checkpoint.safetensors"));
    let (events, code) = train.finish();
    assert_eq!(code, Some(0), "{events:?}");
    assert!(events.iter().any(|event| event["message"].to_string().contains("going back to epoch 0")), "{events:?}");
    same_as_undisturbed(volume.path());
}

#[test]
fn damage_is_found_by_verify_and_dropped_by_its_repair() {
    let volume = copied();
    let verify = |repair: bool| match repair {
        true => deepcluster(["verify", text(volume.path()), "--json", "--repair"]),
        false => deepcluster(["verify", text(volume.path()), "--json"]),
    };
    let run = volume.path().join("runs/run-0001");
    let good = verify(false).good();
    assert!(good.contains("\"good_epochs\":[0,1],\"damaged_epochs\":[]"), "{good}");
    spoil(&run.join("epochs/0001/centroids.npy"));
    publish_bytes(&run.join("epochs/0001/.labels.npy.7-1.tmp"), b"half").unwrap();
    let mut events = fs::read(run.join("events.jsonl")).unwrap();
    events.extend_from_slice(b"{\"event\":\"torn");
    publish_bytes(&run.join("events.jsonl"), &events).unwrap();
    let found = verify(false);
    assert_eq!(found.code, Some(1));
    for word in ["epochs/0001/centroids.npy: its checksum", "\"damaged_epochs\":[1]", "labels.npy.7-1.tmp", "torn"] {
        assert!(found.stdout.contains(word), "{word} in {}", found.stdout);
    }
    assert!(run.join("epochs/0001").is_dir(), "looking changes nothing");
    assert_eq!(verify(true).code, Some(0));
    assert!(!run.join("epochs/0001").try_exists().unwrap());
    deepcluster(["resume", text(volume.path())]).good();
    same_as_undisturbed(volume.path());
    // The last clusters belong to the network of the epoch before, so that one is needed too.
    spoil(&run.join("epochs/0000/checkpoint.safetensors"));
    assert_eq!(verify(true).code, Some(0));
    deepcluster(["resume", text(volume.path())]).good();
    same_as_undisturbed(volume.path());
    spoil(&run.join("digests/00001.npy"));
    assert!(verify(false).stdout.contains("digests/00001.npy: its checksum"));
    assert_eq!(deepcluster(["verify", text(volume.path()), "run-0009"]).code, Some(2));
}

/// What a run is known by: nothing of it is passed over in silence, and what else tells the same is made anew.
#[test]
fn damaged_records_of_a_run_are_found_and_made_anew_where_that_is_possible() {
    let volume = copied();
    let run = volume.path().join("runs/run-0001");
    let verify = |flags: &[&str]| deepcluster(["verify", text(volume.path())].into_iter().chain(flags.iter().copied()));
    type Damage = fn(&Path);
    let table: [(Damage, &str); 4] = [
        (|run| fs::remove_file(run.join("run.json")).unwrap(), "run.json"),
        (|run| spoil(&run.join("run.json")), "run.json"),
        (|run| spoil(&run.join("labels.csv")), "labels.csv"),
        (|run| fs::remove_file(run.join("labels.csv")).unwrap(), "labels.csv"),
    ];
    for (damage, name) in table {
        let before = fs::read(run.join(name)).unwrap();
        damage(&run);
        let found = verify(&[]);
        assert_eq!(found.code, Some(1), "{name}");
        assert!(found.stdout.contains(name), "{}", found.stdout);
        if name == "run.json" {
            let train = deepcluster(train_arguments(volume.path()));
            assert_eq!(train.code, Some(2), "{}", train.stderr);
            assert!(train.stderr.contains("run-0001/run.json") && train.stderr.contains("verify"), "{}", train.stderr);
            assert!(!volume.path().join("runs/run-0002").try_exists().unwrap());
            assert_eq!(deepcluster(["labels", text(&run)]).code, Some(2));
        }
        verify(&["--repair"]).good();
        if name == "labels.csv" {
            assert_eq!(fs::read(run.join(name)).unwrap(), before);
        }
        same_as_undisturbed(volume.path());
        deepcluster(["labels", text(&run)]).good();
    }
    let record: RunRecord = read_record(&run.join("run.json")).unwrap();
    assert_eq!((record.state, record.epochs_done), (RunState::Finished, 2));
    // Events that are gone keep nothing else from being mended.
    fs::remove_file(run.join("events.jsonl")).unwrap();
    spoil(&run.join("labels.csv"));
    assert_eq!(verify(&[]).code, Some(1));
    verify(&["--repair"]).good();
    // Which image is which nothing else tells.
    let list = fs::read_to_string(run.join("images.csv")).unwrap();
    publish_bytes(&run.join("images.csv"), list.replacen("stripes", "strides", 1).as_bytes()).unwrap();
    let found = verify(&["--repair"]);
    assert_eq!(found.code, Some(1));
    assert!(found.stderr.contains("beyond repair"), "{}", found.stderr);
    let labels = deepcluster(["labels", text(&run)]);
    assert_eq!(labels.code, Some(2));
    assert!(labels.stderr.contains("images.csv: its checksum"), "{}", labels.stderr);
}

/// A list that nobody vouches for is not taken for the run's.
#[test]
fn a_damaged_record_and_a_damaged_list_together_are_beyond_repair() {
    let volume = copied();
    let run = volume.path().join("runs/run-0001");
    spoil(&run.join("run.json"));
    let list = fs::read_to_string(run.join("images.csv")).unwrap();
    publish_bytes(&run.join("images.csv"), list.replacen("stripes", "strides", 1).as_bytes()).unwrap();
    let found = deepcluster(["verify", text(volume.path()), "--repair"]);
    assert_eq!(found.code, Some(1), "{}", found.stdout);
    assert!(found.stderr.contains("beyond repair"), "{}", found.stderr);
    publish_bytes(&run.join("images.csv"), list.as_bytes()).unwrap();
    deepcluster(["verify", text(volume.path()), "--repair"]).good();
}

/// Events tell what happened; a run does not go on from them, nor stop because of them.
#[test]
fn damaged_events_keep_no_run_from_going_on() {
    let volume = copied();
    let run = volume.path().join("runs/run-0001");
    fs::remove_dir_all(run.join("epochs/0001")).unwrap();
    let events = fs::read_to_string(run.join("events.jsonl")).unwrap();
    let n_events = events.lines().count();
    let fourth = events.lines().nth(3).unwrap();
    publish_bytes(&run.join("events.jsonl"), events.replace(fourth, &fourth[..9]).as_bytes()).unwrap();
    deepcluster(["resume", text(volume.path()), "run-0001"]).good();
    same_as_undisturbed(volume.path());
    let events = EventLog::read(&run.join("events.jsonl")).unwrap();
    assert_eq!(events[3].kind, "lost");
    assert_eq!(events[4].json, fs::read_to_string(finished_run().folder().join("events.jsonl")).unwrap().lines().nth(4).unwrap());
    assert!(events[n_events].json.contains("line 4 is no event"), "{}", events[n_events].json);
}

/// A share that was away while the network was trained, without a cache; what training has saved by then must not count for ever.
#[test]
fn images_that_were_away_in_training_are_trained_on_after_a_resume() {
    let folder = tempfile::tempdir().unwrap();
    let [images, away, volume] = ["images", "away", "volume"].map(|name| folder.path().join(name));
    assert!(Command::new("cp").args(["-r", text(pictures()), text(&images)]).status().unwrap().success());
    let flags =
        "--arch resnet18 --image-size 32 --k 10 --batch 8 --epochs 1 --checkpoint-every 1 --device cpu --cache-limit 0 --json";
    let arguments = ["train", text(&images), "--out", text(&volume)].into_iter().chain(flags.split(' '));
    let mut train = Followed::start(&arguments.map(str::to_owned).collect::<Vec<_>>());
    train.wait_for_phase(0, "train");
    let epoch = volume.join("runs/run-0001/epochs/0000");
    let has_saved =
        || fs::read_dir(&epoch).unwrap().any(|file| file.unwrap().file_name().display().to_string().starts_with("training-"));
    while !has_saved() {
        std::thread::yield_now();
    }
    #[expect(clippy::disallowed_methods, reason = "the folder goes away and comes back")]
    fs::rename(&images, &away).unwrap();
    assert_eq!(train.finish().1, Some(2));
    #[expect(clippy::disallowed_methods, reason = "as above")]
    fs::rename(&away, &images).unwrap();
    deepcluster(["resume", text(&volume)]).good();
}

/// Every image was replaced before anything was committed, and there is no cache: the run fails, and takes the new ones when it is resumed.
#[test]
fn images_that_were_replaced_in_the_first_epoch_are_the_runs_after_a_resume() {
    let folder = tempfile::tempdir().unwrap();
    let [images, volume] = ["images", "volume"].map(|name| folder.path().join(name));
    let draw = |size: &str| deepcluster(["demo-images", text(&images), "--count", "40", "--size", size]).good();
    draw("48");
    let flags = "--arch resnet18 --image-size 32 --k 10 --batch 8 --epochs 1 --device cpu --cache-limit 0 --json";
    let arguments = ["train", text(&images), "--out", text(&volume)].into_iter().chain(flags.split(' '));
    let mut train = Followed::start(&arguments.map(str::to_owned).collect::<Vec<_>>());
    train.wait_for_phase(0, "cluster");
    draw("64");
    assert_ne!(train.finish().1, Some(0));
    deepcluster(["resume", text(&volume)]).good();
    let list = image_list::read(&volume.join("runs/run-0001/images.csv")).unwrap();
    assert!(list.iter().all(|image| image.skipped.is_none() && image.width == 64), "{list:?}");
}

#[test]
fn images_that_were_mended_take_part_again() {
    let folder = tempfile::tempdir().unwrap();
    let (images, volume) = (folder.path().join("images"), folder.path().join("volume"));
    let good: Vec<_> = fs::read_dir(pictures().join("stripes")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(good.len() >= 20);
    for (n, picture) in good.iter().take(20).enumerate() {
        let bytes = fs::read(picture).unwrap();
        // A header that promises more than there is shows only when the image is decoded.
        let kept = if n % 4 == 0 { &bytes[..bytes.len() / 2] } else { &bytes[..] };
        publish_bytes(&images.join(format!("{n:02}.png")), kept).unwrap();
    }
    let flags = "--image-size 64 --k 2 --epochs 1 --batch 8 --device cpu";
    let train = || {
        let mut command = Command::new(program("deepcluster"));
        command.args(["train", text(&images), "--out", text(&volume)]).args(flags.split(' '));
        command.output().unwrap()
    };
    for _ in 0..2 {
        let refused = train();
        let sentence = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(2), "{sentence}");
        assert!(sentence.contains("5 of 20") && sentence.contains("00.png"), "{sentence}");
    }
    let list = || image_list::read(&volume.join("runs/run-0001/images.csv")).unwrap();
    assert_eq!(list().iter().filter(|image| image.skipped.is_some()).count(), 5);
    for (n, picture) in good.iter().take(20).enumerate() {
        publish_bytes(&images.join(format!("{n:02}.png")), &fs::read(picture).unwrap()).unwrap();
    }
    let done = train();
    assert_eq!(done.status.code(), Some(0), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(list().iter().all(|image| image.skipped.is_none()));
    assert!(!volume.join("runs/run-0002").try_exists().unwrap());
    assert!(!deepcluster(["labels", text(&volume.join("runs/run-0001"))]).good().contains(",-1,"));
}

#[test]
fn a_cancelled_run_is_not_resumed() {
    let volume = copied();
    let path = volume.path().join("runs/run-0001/run.json");
    let record: RunRecord = read_record(&path).unwrap();
    publish_record(&path, &RunRecord { state: RunState::Cancelled, ..record }).unwrap();
    let outcome = deepcluster(["resume", text(volume.path()), "run-0001"]);
    assert_eq!(outcome.code, Some(2));
    assert!(outcome.stderr.contains("run-0001 is cancelled"), "{}", outcome.stderr);
}
