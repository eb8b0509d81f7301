//! Pictures in; labels, weights and evidence out, read back by this project and by Python.

use crate::support::{deepcluster, finished_run, pictures, python, text};
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;

#[test]
fn every_committed_epoch_is_one_line_with_all_scores() {
    let run = finished_run();
    let epochs: Vec<&Value> = run.events.iter().filter(|event| event["event"] == "epoch").collect();
    assert_eq!(epochs.len(), 2);
    for (number, epoch) in epochs.iter().enumerate() {
        assert_eq!(epoch["epoch"], number);
        assert_eq!(epoch["images"], 200);
        for name in ["loss", "kmeans_objective", "largest_share", "nmi_classes", "ami_classes"] {
            assert!(epoch[name].as_f64().is_some_and(f64::is_finite), "{name} in {epoch}");
        }
        for name in ["extract_s", "cluster_s", "train_s"] {
            assert!(epoch[name].as_f64().is_some_and(|seconds| seconds > 0.0), "{name} in {epoch}");
        }
        assert!((1..=10).contains(&epoch["nonempty"].as_u64().unwrap()));
    }
    assert!(epochs[0]["nmi_last"].is_null());
    assert!((0.0..=1.0).contains(&epochs[1]["nmi_last"].as_f64().unwrap()));
    let stored = std::fs::read_to_string(run.folder().join("events.jsonl")).unwrap();
    let stored: Vec<Value> = stored.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(stored, run.events);
}

#[test]
fn the_volume_is_laid_out_as_promised() {
    let folder = finished_run().folder();
    for name in ["run.json", "images.csv", "events.jsonl", "labels.csv"] {
        assert!(folder.join(name).is_file(), "{name}");
    }
    for epoch in ["0000", "0001"] {
        let mut names: Vec<String> = std::fs::read_dir(folder.join("epochs").join(epoch))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        let clusters = ["centroids.npy", "checkpoint.safetensors", "distances.npy", "epoch.json", "labels.npy"];
        assert_eq!(names, [&clusters[..], &["lineage.json", "whiten.safetensors", "whitened.npy"]].concat());
    }
}

#[test]
fn numpy_and_safetensors_read_what_we_write() {
    let run = finished_run();
    let exported = run.volume.path().join("weights.safetensors");
    deepcluster(["export", text(&run.folder()), "--to", text(&exported)]).good();
    let said = python("foreign_reader.py", [&run.folder(), &exported]);
    assert!(said.contains("all is well"), "{said}");
}

#[test]
fn labels_are_those_of_the_last_epoch() {
    let folder = finished_run().folder();
    let printed = deepcluster(["labels", text(&folder)]).good();
    assert_eq!(printed, std::fs::read_to_string(folder.join("labels.csv")).unwrap());
    let json = deepcluster(["labels", text(&folder), "--json"]).good();
    assert_eq!(json.lines().count(), 200);
    let first: Value = serde_json::from_str(json.lines().next().unwrap()).unwrap();
    let row: Vec<&str> = printed.lines().nth(1).unwrap().split(',').collect();
    assert_eq!((first["path"].as_str().unwrap(), first["cluster"].to_string().as_str()), (row[0], row[1]));
}

/// Images of the run, given as if they were new, come back with the labels that the run gave them.
#[test]
fn assigned_images_of_the_run_get_their_own_labels() {
    let folder = finished_run().folder();
    let _owner = finished_run().owner.lock();
    let labels = deepcluster(["labels", text(&folder)]).good();
    let labels: HashMap<&str, (&str, f64)> = labels
        .lines()
        .skip(1)
        .map(|line| {
            let mut parts = line.split(',');
            (parts.next().unwrap(), (parts.next().unwrap(), parts.next().unwrap().parse().unwrap()))
        })
        .collect();
    let some: Vec<_> = labels.keys().take(12).map(|path| pictures().join(path)).collect();
    let assigned = deepcluster(["assign", text(&folder)].into_iter().chain(some.iter().map(|path| text(path)))).good();
    assert_eq!(assigned.lines().count(), 13);
    for line in assigned.lines().skip(1) {
        let parts: Vec<&str> = line.split(',').collect();
        let path = Path::new(parts[0]).strip_prefix(pictures()).unwrap();
        let (cluster, distance) = labels[text(path)];
        assert_eq!(parts[1], cluster, "{line}");
        assert!((parts[2].parse::<f64>().unwrap() - distance).abs() < 1e-2, "{line}, was {distance}");
    }
    assert!(!folder.join("assign").join("0").is_dir());
}

#[test]
fn an_image_that_cannot_be_assigned_is_named() {
    let folder = finished_run().folder();
    let _owner = finished_run().owner.lock();
    let broken = finished_run().volume.path().join("broken.jpg");
    deepcluster_volume::publish::publish_bytes(&broken, b"no image").unwrap();
    let good = pictures().join("stripes").read_dir().unwrap().next().unwrap().unwrap().path();
    let outcome = deepcluster(["assign", text(&folder), text(&good), text(&broken)]);
    assert_eq!(outcome.code, Some(2), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("broken.jpg"), "{}", outcome.stderr);
    assert_eq!(outcome.stdout.lines().count(), 3, "{}", outcome.stdout);
    let missing = deepcluster(["assign", text(&folder), "/no/such.jpg"]);
    assert_eq!(missing.code, Some(2));
    assert!(missing.stderr.contains("/no/such.jpg"), "{}", missing.stderr);
}

/// A folder stands for all images below it. One of them that cannot be read gets a row, and is no failure of the command.
#[test]
fn a_folder_is_assigned_whole() {
    let folder = finished_run().folder();
    let _owner = finished_run().owner.lock();
    let images = tempfile::tempdir().unwrap();
    let below = images.path().join("below");
    std::fs::create_dir(&below).unwrap();
    for picture in pictures().join("stripes").read_dir().unwrap().take(5) {
        let picture = picture.unwrap().path();
        std::fs::copy(&picture, below.join(picture.file_name().unwrap())).unwrap();
    }
    deepcluster_volume::publish::publish_bytes(&images.path().join("broken.jpg"), b"no image").unwrap();
    let single = pictures().join("stripes").read_dir().unwrap().next().unwrap().unwrap().path();
    let printed = deepcluster(["assign", text(&folder), text(images.path()), text(&single)]).good();
    let rows: Vec<&str> = printed.lines().collect();
    assert_eq!((rows.len(), rows[0]), (8, "path,cluster,distance"), "{printed}");
    assert!(rows[1..6].iter().all(|row| row.starts_with(text(&below))) && rows[7].starts_with(text(&single)), "{printed}");
    assert_eq!(rows[6], format!("{},-1,", text(&images.path().join("broken.jpg"))));

    let json = deepcluster(["assign", text(&folder), text(images.path()), "--json"]).good();
    let lines: Vec<Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 6, "{json}");
    assert!(lines[5]["cluster"].is_null() && lines[5]["skipped"].is_string(), "{json}");
    assert!(lines[..5].iter().all(|line| line["cluster"].is_u64() && line["skipped"].is_null()), "{json}");
}
