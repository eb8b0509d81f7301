//! What a finished run is good for: its network in other programs, similar images, images sorted by cluster.

use crate::stack::{Service, until_serving};
use crate::support::{deepcluster, finished_run, pictures, program, python, text};
use deepcluster_domain::RunSpec;
use deepcluster_domain::geometry::resize_side;
use deepcluster_images::View;
use deepcluster_images::decode::decode;
use deepcluster_images::transform::{Pixels, Transformer};
use deepcluster_proto::network_of;
use deepcluster_proto::v1::extractor_client::ExtractorClient;
use deepcluster_proto::v1::{ExtractRequest, FeatureDtype, ImageList, extract_response::Update};
use deepcluster_service::requests::file_to_wire;
use deepcluster_volume::publish::publish_bytes;
use deepcluster_volume::records::{EpochManifest, RunRecord, publish_record, read_record};
use deepcluster_volume::{Volume, image_list, npy};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

const SIDE: u32 = 64;

/// How many images the model and the extractor compute.
const COMPARED: usize = 12;

/// A run on the demo pictures that computes and stores everything in f32.
fn exact_run(flags: &str) -> TempDir {
    let volume = tempfile::tempdir().unwrap();
    let common = "--image-size 64 --k 10 --batch 32 --seed 5 --shard-images 64 --device cpu --precision f32 --feature-dtype f32";
    let arguments = ["train", text(pictures()), "--out", text(volume.path()), "--json"];
    deepcluster(arguments.into_iter().chain(common.split(' ')).chain(flags.split(' '))).good();
    volume
}

fn run_of(volume: &TempDir) -> PathBuf {
    volume.path().join("runs/run-0001")
}

/// Features of the run's first images by the network that its last epoch has left, from the extractor.
async fn extracted(volume: &TempDir, epoch: u32) -> Vec<f32> {
    let (root, run) = (Volume::new(volume.path()), run_of(volume));
    let record: RunRecord = read_record(&run.join("run.json")).unwrap();
    let spec = RunSpec::try_from(record.spec).unwrap();
    let manifest: EpochManifest = read_record(&run.join(format!("epochs/{epoch:04}/epoch.json"))).unwrap();
    let list = root.record_existing(&run.join("images.csv")).unwrap();
    let request = ExtractRequest {
        run_id: "run-0001".to_owned(),
        images: Some(ImageList { root: spec.images.clone(), list: Some(file_to_wire(&list)) }),
        n_images: COMPARED as u64,
        network: Some(network_of(&spec, Some(file_to_wire(&manifest.files.checkpoint)))),
        seed: spec.seed,
        batch: 8,
        feature_dtype: FeatureDtype::F32.into(),
        output: "features.npy".to_owned(),
        ..ExtractRequest::default()
    };
    let extractor = Service::start("extractor", volume.path(), &["--images=/".to_owned()]);
    until_serving(extractor.channel()).await;
    let mut stream = ExtractorClient::new(extractor.channel()).extract(request).await.unwrap().into_inner();
    while let Some(message) = stream.message().await.unwrap() {
        if let Some(Update::Result(result)) = message.update {
            assert!(result.skipped.is_empty(), "{result:?}");
            return npy::read_f32(&volume.path().join("features.npy")).unwrap().1;
        }
    }
    panic!("the extractor ended without a result");
}

/// The view of an image that is clustered: RGB from 0 to 255, `[3, SIDE, SIDE]`.
fn pixels(image: &Path) -> Vec<f32> {
    let mut transformer = Transformer::default();
    let working = transformer.working(decode(&fs::read(image).unwrap()).unwrap().image, resize_side(SIDE)).unwrap();
    let mut bytes = vec![0; (SIDE * SIDE * 3) as usize];
    transformer.view(Pixels::of(&working), View::Center, SIDE, &mut bytes).unwrap();
    let channel = |channel: usize| bytes.iter().skip(channel).step_by(3).map(|byte| f32::from(*byte));
    channel(0).chain(channel(1)).chain(channel(2)).collect()
}

/// ImageNet's statistics taken out of it.
fn normalised(pixels: &[f32]) -> Vec<f32> {
    let statistics = [(0.485_f32, 0.229_f32), (0.456, 0.224), (0.406, 0.225)];
    let channels = pixels.chunks((SIDE * SIDE) as usize).zip(statistics);
    channels.flat_map(|(channel, (mean, std))| channel.iter().map(move |value| (value / 255.0 - mean) / std)).collect()
}

/// Both gradients of the grey image, with zeros around it, `[2, SIDE, SIDE]`.
fn gradients(normalised: &[f32]) -> Vec<f32> {
    const KERNELS: [[[f32; 3]; 3]; 2] =
        [[[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]], [[1.0, 2.0, 1.0], [0.0; 3], [-1.0, -2.0, -1.0]]];
    let (side, all) = (SIDE as usize, (SIDE * SIDE) as usize);
    let grey: Vec<f32> = (0..all).map(|at| (normalised[at] + normalised[at + all] + normalised[at + 2 * all]) / 3.0).collect();
    // Of the image with a margin of one pixel.
    let value = |y: usize, x: usize| match (1..=side).contains(&y) && (1..=side).contains(&x) {
        true => grey[(y - 1) * side + x - 1],
        false => 0.0,
    };
    let mut found = Vec::new();
    for kernel in KERNELS {
        for (y, x) in (0..side).flat_map(|y| (0..side).map(move |x| (y, x))) {
            let rows = kernel.iter().enumerate();
            let factors = rows.flat_map(|(dy, row)| row.iter().enumerate().map(move |(dx, factor)| (dy, dx, *factor)));
            found.push(factors.map(|(dy, dx, factor)| factor * value(y + dy, x + dx)).sum::<f32>());
        }
    }
    found
}

/// Publishes what a model takes of images.
fn publish(path: &Path, images: &[PathBuf], channels: usize, of: impl Fn(&Path) -> Vec<f32>) {
    let values: Vec<f32> = images.iter().flat_map(|image| of(image)).collect();
    npy::publish_f32(path, &[images.len(), channels, SIDE as usize, SIDE as usize], &values).unwrap();
}

fn images_of(run: &Path) -> Vec<PathBuf> {
    let list = image_list::read(&run.join("images.csv")).unwrap();
    list.iter().map(|image| pictures().join(image.as_path())).collect()
}

/// Models of a run for each kind of input compute the extractor's features.
async fn compare(volume: &TempDir, epoch: u32, sobel: bool) {
    let (run, at) = (run_of(volume), |name: &str| volume.path().join(name));
    let ours = extracted(volume, epoch).await;
    let largest = ours.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    let images = &images_of(&run)[..COMPARED];
    let (model, taken, features) = (at("network.bin"), at("taken.npy"), at("of-model.npy"));
    for kind in ["pixels", "normalised", "seen"] {
        deepcluster(["export", text(&run), "--to", text(&model), "--format", "onnx", "--input", kind]).good();
        match kind {
            "pixels" => publish(&taken, images, 3, pixels),
            "seen" if sobel => publish(&taken, images, 2, |image| gradients(&normalised(&pixels(image)))),
            _ => publish(&taken, images, 3, |image| normalised(&pixels(image))),
        }
        python("onnx_reader.py", [&model, &taken, &features]);
        let theirs = npy::read_f32(&features).unwrap().1;
        assert_eq!(ours.len(), theirs.len());
        let off = ours.iter().zip(&theirs).fold(0.0_f32, |off, (ours, theirs)| off.max((ours - theirs).abs()));
        println!("{kind}: {off:e} off, the largest is {largest}");
        assert!(off <= 1e-4 * largest, "{kind}: {off} off, the largest is {largest}");
    }
    // PyTorch's layers with the exported weights, on what the first layer sees, which was taken last.
    if sobel {
        let (weights, expected) = (at("exported.safetensors"), at("ours.npy"));
        deepcluster(["export", text(&run), "--to", text(&weights)]).good();
        npy::publish_f32(&expected, &[images.len(), ours.len() / images.len()], &ours).unwrap();
        let said = python("using_reader.py", [Path::new("features"), &run, &weights, &taken, &expected]);
        println!("{said}");
        assert!(said.contains("all is well"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_onnx_model_computes_features_and_clusters_of_the_run() {
    let volume = exact_run("--epochs 2");
    compare(&volume, 1, true).await;
    let (run, at) = (run_of(&volume), |name: &str| volume.path().join(name));
    let (model, taken, features, clusters) = (at("clusters.onnx"), at("all.npy"), at("of-model.npy"), at("clusters.npy"));
    deepcluster(["export", text(&run), "--to", text(&model), "--assign"]).good();
    publish(&taken, &images_of(&run), 3, pixels);
    python("onnx_reader.py", [&model, &taken, &features, &clusters]);
    let said = python("using_reader.py", [Path::new("clusters"), &run, &model, &clusters]);
    assert!(said.contains("all is well"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_residual_network_is_exported_and_searched_after_one_epoch() {
    let volume = exact_run("--epochs 1 --arch resnet18 --no-sobel");
    compare(&volume, 0, false).await;
    let (run, model) = (run_of(&volume), volume.path().join("clusters.onnx"));
    let refused = deepcluster(["export", text(&run), "--to", text(&model), "--assign"]);
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(refused.stderr.contains("before any training"), "{}", refused.stderr);
    assert!(!model.try_exists().unwrap());

    // Its clusters are those of the network that was drawn from the seed.
    let image = &images_of(&run)[7];
    let json = deepcluster(["neighbours", text(&run), text(image), "-n", "1", "--json"]).good();
    let found: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(pictures().join(found["path"].as_str().unwrap()), *image);
    assert!((found["similarity"].as_f64().unwrap() - 1.0).abs() < 1e-2, "{json}");

    // What a run looks like that is older than whitened features.
    let path = run.join("epochs/0000/epoch.json");
    let mut manifest: EpochManifest = read_record(&path).unwrap();
    manifest.files.whitened = None;
    publish_record(&path, &manifest).unwrap();
    let refused = deepcluster(["neighbours", text(&run), text(image)]);
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(refused.stderr.contains("whitened.npy"), "{}", refused.stderr);
}

#[test]
fn exported_weights_are_those_of_the_epoch_that_was_asked_for() {
    let (run, folder) = (finished_run().folder(), tempfile::tempdir().unwrap());
    let [last, first] = ["last.safetensors", "first.weights"].map(|name| folder.path().join(name));
    deepcluster(["export", text(&run), "--to", text(&last)]).good();
    let json = deepcluster(["export", text(&run), "--to", text(&first), "--epoch", "0", "--json"]).good();
    assert_eq!(serde_json::from_str::<Value>(&json).unwrap()["epoch"], 0);
    let said = python("using_reader.py", [Path::new("weights"), &run, &last, &first]);
    assert!(said.contains("all is well"), "{said}");
    for to in ["/proc/x.onnx", "/proc/x.safetensors"] {
        let refused = deepcluster(["export", text(&run), "--to", to]);
        assert_eq!(refused.code, Some(2), "{}", refused.stderr);
        assert!(refused.stderr.contains(to) && !refused.stderr.contains(".tmp"), "{}", refused.stderr);
    }
    let other = folder.path().join("other.safetensors");
    for (flags, word) in [("--epoch 7", "--epoch 7"), ("--assign", "--format onnx"), ("--format hdf5", "hdf5")] {
        let refused = deepcluster(["export", text(&run), "--to", text(&other)].into_iter().chain(flags.split(' ')));
        assert_eq!(refused.code, Some(2), "{}", refused.stderr);
        assert!(refused.stderr.contains(word), "{}", refused.stderr);
        assert!(!other.try_exists().unwrap());
    }
}

#[test]
fn a_reader_that_goes_early_is_no_error() {
    let run = finished_run().folder();
    for flags in [&["labels"][..], &["labels", "--json"], &["eval", "clusters"]] {
        let mut command = Command::new(program("deepcluster"));
        let mut child = command.args(flags).arg(&run).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let ended = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!((ended.status.code(), said.as_ref()), (Some(0), ""), "{flags:?}");
    }
}

#[test]
fn neighbours_are_those_that_numpy_finds() {
    let (run, folder) = (finished_run().folder(), tempfile::tempdir().unwrap());
    let _owner = finished_run().owner.lock();
    let images = images_of(&run);
    let asked: Vec<&str> = images.iter().step_by(60).map(|image| text(image)).collect();
    let csv = deepcluster(["neighbours", text(&run), "-n", "7"].into_iter().chain(asked.iter().copied())).good();
    assert!(csv.starts_with("query,rank,path,similarity\n"), "{csv}");
    assert_eq!(csv.lines().count(), 1 + 7 * asked.len());
    let found = folder.path().join("found.csv");
    publish_bytes(&found, csv.as_bytes()).unwrap();
    let said = python("using_reader.py", [Path::new("neighbours"), &run, pictures(), &found]);
    assert!(said.contains("all is well"), "{said}");

    let broken = folder.path().join("broken.jpg");
    publish_bytes(&broken, b"no image").unwrap();
    let outcome = deepcluster(["neighbours", text(&run), text(&broken), asked[0], "-n", "3", "--json"]);
    assert_eq!(outcome.code, Some(2), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("broken.jpg"), "{}", outcome.stderr);
    let lines: Vec<Value> = outcome.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 4, "{lines:?}");
    for (asked, why) in [(text(&broken), "broken.jpg"), (text(folder.path()), "is not a file")] {
        let outcome = deepcluster(["neighbours", text(&run), asked]);
        assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(2), ""), "{}", outcome.stderr);
        assert!(outcome.stderr.contains(why), "{}", outcome.stderr);
    }
    assert!(lines[0]["skipped"].is_string() && lines[1]["rank"] == 1 && lines[3]["rank"] == 3, "{lines:?}");
    assert!(!run.join("eval").try_exists().unwrap(), "nothing is left");
}

#[test]
fn sorted_images_stand_in_the_folders_of_their_clusters() {
    let (run, folder) = (finished_run().folder(), tempfile::tempdir().unwrap());
    let labels = deepcluster(["labels", text(&run)]).good();
    let mut clusters: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for line in labels.lines().skip(1) {
        let parts: Vec<&str> = line.split(',').collect();
        clusters.entry(format!("{:04}", parts[1].parse::<u32>().unwrap())).or_default().push(parts[0]);
    }
    let [linked, copied] = ["linked", "copied"].map(|name| folder.path().join(name));
    fs::create_dir(&linked).unwrap();
    deepcluster(["sort", text(&run), "--to", text(&linked)]).good();
    let json = deepcluster(["sort", text(&run), "--to", text(&copied), "--copy", "--json"]).good();
    let said: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&said["images"], &said["skipped"], &said["epoch"]), (&200.into(), &0.into(), &1.into()), "{said}");
    assert_eq!(said["clusters"], clusters.len());
    for to in [&linked, &copied] {
        assert_eq!(fs::read_dir(to).unwrap().count(), clusters.len());
        for (cluster, paths) in &clusters {
            assert_eq!(fs::read_dir(to.join(cluster)).unwrap().count(), paths.len(), "{cluster}");
            for path in paths {
                let (image, at) = (pictures().join(path), to.join(cluster).join(path.replace('/', "__")));
                match fs::read_link(&at) {
                    Ok(target) => assert!(*to == linked && target.is_absolute() && target.ends_with(path), "{target:?}"),
                    Err(_) => assert!(*to == copied),
                }
                assert_eq!(fs::read(&at).unwrap(), fs::read(&image).unwrap(), "{at:?}");
            }
        }
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing is left");
    // Pictures of the same names, all but one of which are others.
    let others = folder.path().join("others");
    let [kept, first] = [0, 1].map(|at| labels.lines().nth(1 + at).unwrap().split(',').next().unwrap());
    for path in clusters.values().flatten() {
        let content = fs::read(pictures().join(path)).unwrap();
        let content = if *path == kept { content } else { [content.as_slice(), b"!"].concat() };
        publish_bytes(&others.join(path), &content).unwrap();
    }
    let chosen = folder.path().join("chosen");
    let arguments = ["sort", text(&run), "--to", text(&chosen), "--images", text(&others)];
    let said = deepcluster(arguments).good();
    assert!(said.contains("1 images in 1 folders") && said.contains("199 left out"), "{said}");
    assert!(said.contains(&format!("the first: {first}")), "{said}");
    fs::remove_dir_all(&chosen).unwrap();
    let page = folder.path().join("report.html");
    let said = deepcluster(["report", text(&run), "--to", text(&page), "--images", text(&others)]).good();
    assert!(said.contains("pictures of the atlas are grey"), "{said}");
    assert!(fs::read_to_string(&page).unwrap().contains("pictures of the atlas are grey"));
    fs::remove_file(&page).unwrap();
    fs::remove_file(others.join(kept)).unwrap();
    let refused = deepcluster(arguments);
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(refused.stderr.contains("none of the run's images") && refused.stderr.contains("199 of them"), "{}", refused.stderr);
    fs::remove_dir_all(&others).unwrap();
    let new = folder.path().join("new");
    for (to, flag, value, word) in [
        (&linked, "--epoch", "1", "not empty"),
        (&new, "--images", text(folder.path()), "none of the run's images"),
        (&new, "--epoch", "9", "--epoch 9"),
    ] {
        let refused = deepcluster(["sort", text(&run), "--to", text(to), flag, value]);
        assert_eq!(refused.code, Some(2), "{}", refused.stderr);
        assert!(refused.stderr.contains(word), "{}", refused.stderr);
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing is left");
}
