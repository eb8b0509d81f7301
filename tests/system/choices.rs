//! What a run may choose beside the recipe's defaults: another clustering, a top layer that is kept, weights to start from, and
//! files for TensorBoard.

use crate::support::{deepcluster, finished_run, pictures, python, text, train_arguments};
use deepcluster_volume::npy;
use deepcluster_volume::tensors::{self, Described, TensorsFile, read_f32};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A run on the pictures with further arguments, which replace those of the same name.
fn train(volume: &Path, more: &[&str]) -> PathBuf {
    let mut arguments = train_arguments(volume);
    for pair in more.chunks(2) {
        if let Some(at) = arguments.iter().position(|argument| argument == pair[0]) {
            arguments.drain(at..at + 2);
        }
        arguments.extend(pair.iter().filter(|word| !word.is_empty()).map(|word| (*word).to_owned()));
    }
    deepcluster(arguments).good();
    volume.join("runs/run-0001")
}

fn top_layer(epoch: &Path) -> (Vec<usize>, Vec<f32>) {
    let mut values = Vec::new();
    let file = TensorsFile::open(&epoch.join("checkpoint.safetensors")).unwrap();
    file.read_as_f32("top_layer.weight", &mut values).unwrap();
    (file.find("top_layer.weight").unwrap().shape.clone(), values)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn power_iteration_clustering_finds_its_number_of_clusters() {
    let volume = tempfile::tempdir().unwrap();
    let mut arguments = train_arguments(volume.path());
    let k = arguments.iter().position(|argument| argument == "--k").unwrap();
    arguments.drain(k..k + 2);
    // Fewer dimensions than images, or all would be equally far from each other.
    arguments.extend(["--clustering", "pic", "--pca", "8"].map(str::to_owned));
    let said = deepcluster(&arguments).good();
    let run = volume.path().join("runs/run-0001");
    for number in 0..2 {
        let epoch = run.join(format!("epochs/{number:04}"));
        let labels = npy::read_i32(&epoch.join("labels.npy")).unwrap();
        let clusters: BTreeSet<i32> = labels.iter().copied().collect();
        let (shape, centroids) = npy::read_f32(&epoch.join("centroids.npy")).unwrap();
        assert_eq!(clusters, (0..shape[0] as i32).collect(), "labels without gaps, as many as centroids");
        assert!((2..=100).contains(&clusters.len()), "{} clusters of 200 images", clusters.len());
        assert_eq!(top_layer(&epoch).0[0], clusters.len());
        assert!(centroids.iter().all(|value| value.is_finite()));
        assert!(said.contains(&format!("\"nonempty\":{}", clusters.len())), "{said}");
    }
    let out = tempfile::tempdir().unwrap();
    let page = out.path().join("report.html");
    deepcluster(["report", text(&run), "--to", text(&page)]).good();
    let page = std::fs::read_to_string(&page).unwrap();
    assert!(page.contains("Clusters found in each epoch") && !page.contains("k-means objective"));
    assert!(page.contains("clusters found; the largest holds") && !page.contains("ln k") && !page.contains("% of k"));
    let picture = pictures().join("stripes").read_dir().unwrap().next().unwrap().unwrap().path();
    assert_eq!(deepcluster(["assign", text(&run), text(&picture)]).good().lines().count(), 2);
    let broken = deepcluster(["assign", text(&run), text(&run.join("images.csv"))]);
    assert!(broken.code == Some(2) && broken.stderr.contains("images.csv"), "{}", broken.stderr);
    assert!(!run.join("assign").try_exists().unwrap(), "nothing is left");
    deepcluster(["verify", text(volume.path())]).good();

    arguments.extend(["--k".to_owned(), "7".to_owned()]);
    let refused = deepcluster(&arguments);
    assert!(refused.code == Some(2) && refused.stderr.contains("k means nothing to pic"), "{}", refused.stderr);
}

/// With a rate of nearly nothing the top layer stays as the epoch began with it.
#[test]
fn the_top_layer_keeps_the_rows_of_clusters_that_were_there() {
    for matched in [true, false] {
        let volume = tempfile::tempdir().unwrap();
        let more: &[&str] = if matched { &["--lr", "1e-12", "--match-labels", ""] } else { &["--lr", "1e-12"] };
        let run = train(volume.path(), more);
        let ([before, after], lineage) = (
            ["0000", "0001"].map(|epoch| top_layer(&run.join("epochs").join(epoch))),
            json(&run.join("epochs/0001/lineage.json")),
        );
        let width = before.0[1];
        let row = |layer: &(Vec<usize>, Vec<f32>), row: usize| layer.1[row * width..(row + 1) * width].to_vec();
        let clusters = lineage["clusters"].as_array().unwrap();
        let heirs: Vec<(usize, usize)> =
            clusters.iter().enumerate().filter_map(|(at, named)| Some((at, named["from"].as_u64()? as usize))).collect();
        assert!(heirs.len() >= 5, "the network has not changed, so the clusters are nearly the same: {lineage}");
        for (now, from) in heirs {
            let pairs = row(&after, now).into_iter().zip(row(&before, from));
            let farthest = pairs.map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
            assert_eq!(farthest < 1e-6, matched, "cluster {now}, which was {from}, differs by {farthest}");
        }
        // Names are those of the first epoch's numbers, none twice.
        let names: BTreeSet<u64> = clusters.iter().map(|named| named["name"].as_u64().unwrap()).collect();
        assert_eq!(names.len(), clusters.len());
    }
}

#[test]
fn weights_of_somebody_else_start_a_run_and_wrong_ones_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let (exported, theirs) = (folder.path().join("ours.safetensors"), folder.path().join("theirs.safetensors"));
    deepcluster(["export", text(&finished_run().folder()), "--to", text(&exported)]).good();
    // As torch.nn.DataParallel names the features of the released models.
    let file = TensorsFile::open(&exported).unwrap();
    let wrapped = |tensor: &Described| Described { name: tensor.name.replace("features.", "features.module."), ..tensor.clone() };
    let described: Vec<Described> = file.tensors().map(wrapped).collect();
    tensors::publish(&theirs, described, |name, out| file.read(&name.replace("module.", ""), out)).unwrap();

    let volume = folder.path().join("volume");
    let run = train(&volume, &["--epochs", "2", "--lr", "1e-12", "--init", text(&theirs)]);
    let init = read_f32(&run.join("init.safetensors")).unwrap();
    let mut values = Vec::new();
    let trained = TensorsFile::open(&run.join("epochs/0001/checkpoint.safetensors")).unwrap();
    for name in ["features.0.weight", "features.14.bias", "classifier.4.weight"] {
        file.read_as_f32(name, &mut values).unwrap();
        assert_eq!(init[name].values, values, "{name} was taken over");
        let mut after = Vec::new();
        trained.read_as_f32(name, &mut after).unwrap();
        let largest = values.iter().zip(&after).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
        assert!(largest < 1e-6, "{name} has moved by {largest}");
    }
    assert!(!init.contains_key("top_layer.weight"), "weights of the network alone");
    deepcluster(["verify", text(&volume)]).good();

    let refused = |more: &[&str]| {
        let mut arguments = train_arguments(&folder.path().join("other"));
        arguments.extend(more.iter().map(|word| (*word).to_owned()));
        let outcome = deepcluster(arguments);
        assert_eq!(outcome.code, Some(2), "{}{}", outcome.stdout, outcome.stderr);
        outcome.stderr
    };
    let sentence = refused(&["--init", text(&theirs), "--no-sobel"]);
    let expected =
        "features.0.weight has shape [96, 2, 11, 11], alexnet needs [96, 3, 11, 11]; weights of edges need the Sobel filter";
    assert!(sentence.contains(expected) && sentence.contains(text(&theirs)), "{sentence}");
    let sentence = refused(&["--init", text(&theirs), "--arch", "resnet18"]);
    assert!(sentence.contains("has no tensor conv1.weight, which resnet18 needs"), "{sentence}");
    assert!(refused(&["--init", "/no/such.safetensors"]).contains("--init /no/such.safetensors"));
    assert!(refused(&["--init", text(&pictures().join("stripes"))]).contains("stripes"));
    let other = volume.join("runs/run-0001/run.json");
    assert!(refused(&["--init", text(&other)]).contains("run.json: it does not begin as safetensors files do"));

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let sentence = refused(&["--http", &taken.local_addr().unwrap().to_string()]);
    assert!(sentence.contains("--http: cannot listen on 127.0.0.1"), "{sentence}");
    assert!(!folder.path().join("other/runs/run-0001").is_dir(), "nothing began");
}

#[test]
fn tensorboard_reads_its_files() {
    let volume = tempfile::tempdir().unwrap();
    let run = train(volume.path(), &["--tensorboard", ""]);
    let read: Value = serde_json::from_str(&python("tensorboard_reader.py", [&run.join("tensorboard")])).unwrap();
    let events = std::fs::read_to_string(run.join("events.jsonl")).unwrap();
    let epochs: Vec<Value> = events
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|event: &Value| event["event"] == "epoch")
        .collect();
    let losses = read["scalars"]["loss/train"].as_array().unwrap();
    assert_eq!(losses.len(), 2);
    for (point, epoch) in losses.iter().zip(&epochs) {
        assert_eq!(point[0], epoch["epoch"]);
        assert!((point[1].as_f64().unwrap() - epoch["loss"].as_f64().unwrap()).abs() < 1e-5, "{point} and {epoch}");
    }
    assert_eq!(read["scalars"]["nmi/last_epoch"].as_array().unwrap().len(), 1, "the first epoch has none before it");
    let sizes = read["histograms"]["clusters/size"].as_array().unwrap();
    assert_eq!((sizes.len(), sizes[1][1].as_f64()), (2, Some(10.0)));
    let images = read["images"].as_object().unwrap();
    assert!(images.keys().any(|tag| tag.starts_with("atlas/c")), "{images:?}");
    assert!(images.values().flat_map(|shown| shown.as_array().unwrap()).all(|shown| shown[3] == true), "{images:?}");
    let projector = &read["projector"];
    assert!(projector["config_ok"] == true && projector["metadata_rows"] == projector["tensors"][0], "{projector}");
}
