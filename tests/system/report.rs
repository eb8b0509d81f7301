//! The report in a browser, of a small run with pictures of its filters, and of one with ten thousand clusters.

use crate::support::{deepcluster, finished_run, pictures, program, python, text};
use deepcluster_domain::EpochId;
use deepcluster_images::{FindOptions, find_images};
use deepcluster_volume::image_list::ImageEntry;
use deepcluster_volume::publish::{create_folder, publish_bytes};
use deepcluster_volume::records::{EpochManifest, RunRecord, publish_record, read_record};
use deepcluster_volume::{RunFolder, Volume, image_list, npy};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Clusters and images of the large run.
const CLUSTERS: usize = 10_000;
const IMAGES: usize = 20_000;

/// Opens a page in a browser and compares it with what is expected of it.
fn look(page: &Path, expected: &Value, folder: &Path) -> String {
    let file = folder.join("expected.json");
    publish_bytes(&file, expected.to_string().as_bytes()).unwrap();
    let shots = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/screenshots");
    python("report_page.py", [page, &file, &shots])
}

/// Writes a report; what the command said.
fn report(run: &Path, page: &Path, more: &[&str]) -> Value {
    let arguments = ["report", text(run), "--to", text(page), "--json"];
    let said: Value = serde_json::from_str(&deepcluster(arguments.iter().chain(more)).good()).unwrap();
    assert_eq!(said["bytes"], fs::metadata(page).unwrap().len());
    said
}

#[test]
fn a_report_is_one_page_that_a_browser_shows_with_the_filters() {
    let run = finished_run();
    let _owner = run.owner.lock();
    let (folder, out) = (run.folder(), tempfile::tempdir().unwrap());
    let page = out.path().join("report.html");
    let last = run.events.iter().rfind(|event| event["event"] == "epoch").unwrap();
    let expected =
        |filters: usize| json!({"name": "report", "clusters": last["nonempty"], "images": 200, "curves": 5, "filters": filters});
    assert_eq!(report(&folder, &page, &[])["clusters"], last["nonempty"]);
    assert!(look(&page, &expected(0), out.path()).contains("content"));

    let flags = "--layer conv1 --filters 4 --steps 40 --device cpu --precision f32 --json";
    let said = deepcluster(["visualize", "filters", text(&folder)].into_iter().chain(flags.split(' '))).good();
    let filters: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(filters.len(), 4);
    for filter in &filters {
        let top: HashSet<&str> = filter["top"].as_array().unwrap().iter().map(|path| path.as_str().unwrap()).collect();
        assert_eq!(top.len(), 9, "{filter}");
        assert!(top.iter().all(|path| pictures().join(path).is_file()), "{filter}");
        let activation = |name: &str| filter[name].as_f64().unwrap();
        assert!(activation("after") > 2.0 * activation("before") && activation("after") > 0.0, "{filter}");
    }
    // Nothing is left of what was only on the way.
    assert!(!folder.join("eval").try_exists().unwrap());
    let lines = out.path().join("filters.jsonl");
    publish_bytes(&lines, said.as_bytes()).unwrap();
    let agreed = python("filters_reader.py", [&folder, pictures(), &lines]);
    assert!(agreed.contains("all is well"), "{agreed}");
    report(&folder, &page, &["--images", text(pictures())]);
    assert!(look(&page, &expected(4), out.path()).contains("content"));

    let named: Value = serde_json::from_slice(&fs::read(folder.join("visualize/filters.json")).unwrap()).unwrap();
    assert_eq!((&named["run"], &named["epoch"], &named["layer"]), (&json!("run-0001"), &last["epoch"], &json!("conv1")));

    // One filter by its number, somewhere else; the same picture again.
    let elsewhere = out.path().join("elsewhere");
    let flags = format!("--filters 2-2 --steps 40 --device cpu --precision f32 --to {}", text(&elsewhere));
    let said = deepcluster(["visualize", "filters", text(&folder)].into_iter().chain(flags.split(' '))).good();
    assert!(said.contains("pictures of 1 filter of conv1"), "{said}");
    let picture = |folder: &Path| fs::read(folder.join("conv1-0002.png")).unwrap();
    assert_eq!(picture(&elsewhere), picture(&folder.join("visualize")));

    // Killed while it writes others, it leaves these alone or has replaced them all.
    kill_while_it_writes(&folder, "--epoch 0 --filters 96 --steps 1 --device cpu --precision f32");
    let shown = only_what_is_named(&folder.join("visualize"));
    let n = shown["filters"].as_array().unwrap().len();
    assert!([(json!(1), 4), (json!(0), 96)].contains(&(shown["epoch"].clone(), n)), "{shown}");
    assert_eq!(picture(&elsewhere) == picture(&folder.join("visualize")), shown["epoch"] == 1);

    // Another picture of the same size is not taken for the run's; of the old pictures none stays; a report says random.
    let others = out.path().join("others");
    let first = all_but_one_the_same(&others);
    let flags = format!("--random --layer conv2 --filters 1-1 --steps 1 --device cpu --images {}", text(&others));
    let said = deepcluster(["visualize", "filters", text(&folder)].into_iter().chain(flags.split(' '))).good();
    assert!(
        said.contains(&format!(
            "1 of the run's images takes no part, not being there or others now; the first: {}",
            text(&first)
        )),
        "{said}"
    );
    let shown = only_what_is_named(&folder.join("visualize"));
    assert_eq!((&shown["layer"], &shown["epoch"]), (&json!("conv2"), &Value::Null));
    assert_eq!(report(&folder, &page, &[])["grey"], 0);
    assert!(fs::read_to_string(&page).unwrap().contains("<code>conv2</code> <strong>before any training</strong>"));
    fs::remove_dir_all(folder.join("visualize")).unwrap();
}

/// Kills `visualize filters` once it has written some pictures, if it is not done by then.
fn kill_while_it_writes(run: &Path, flags: &str) {
    let arguments = ["visualize", "filters", text(run)].into_iter().chain(flags.split(' '));
    let mut child = Command::new(program("deepcluster")).args(arguments).stdout(Stdio::null()).spawn().unwrap();
    let staged = run.join(format!("eval/visualize-{}/visualized", child.id()));
    let is_written = || fs::read_dir(&staged).is_ok_and(|files| files.count() > 20);
    while !is_written() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let _ = child.kill();
    child.wait().unwrap();
}

/// Copies the pictures, and changes the last byte of the first, whose path is returned.
fn all_but_one_the_same(folder: &Path) -> PathBuf {
    let images = find_images(pictures(), FindOptions::default()).unwrap().images;
    for (at, image) in images.iter().enumerate() {
        let mut content = fs::read(pictures().join(image.as_path())).unwrap();
        if at == 0 {
            *content.last_mut().unwrap() ^= 1;
        }
        publish_bytes(&folder.join(image.as_path()), &content).unwrap();
    }
    images[0].as_path().to_owned()
}

/// filters.json of a folder, which names all else that lies there.
fn only_what_is_named(folder: &Path) -> Value {
    let shown: Value = serde_json::from_slice(&fs::read(folder.join("filters.json")).unwrap()).unwrap();
    let mut named = HashSet::from(["filters.json".to_owned()]);
    for filter in shown["filters"].as_array().unwrap() {
        named.extend(["ascent", "sheet"].map(|name| filter[name].as_str().unwrap().to_owned()));
    }
    let there = fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    assert_eq!(there.collect::<HashSet<String>>(), named);
    shown
}

#[test]
fn reports_and_pictures_that_cannot_be_are_refused_in_a_sentence() {
    let folder = finished_run().folder();
    let _owner = finished_run().owner.lock();
    let out = tempfile::tempdir().unwrap();
    let page = out.path().join("report.html");
    let (page, run, here) = (text(&page), text(&folder), text(out.path()));
    for (arguments, word) in [
        (vec!["report", run, "--to", here], "not a plain file"),
        (vec!["report", run, "--to", "/dev/null"], "not a plain file"),
        (vec!["report", here, "--to", page], "not the folder of a run"),
        (vec!["report", run, "--to", page, "--images", "/no/such/folder"], "/no/such/folder is not a folder"),
        (vec!["visualize", "filters", here], "not the folder of a run"),
        (vec!["visualize", "filters", run, "--layer", "conv9"], "unknown layer 'conv9'"),
        (vec!["visualize", "filters", run, "--filters", "3,x"], "neither how many filters nor which"),
        (vec!["visualize", "filters", run, "--lr", "-1"], "--lr -1"),
        (vec!["visualize", "filters", run, "--to", run], "is not empty"),
        (vec!["visualize", "filters", run, "--filters", "1-1", "--steps", "1", "--images", here], "none of the run's images"),
        (vec!["visualize", "filters", run, "--to", "/dev/null"], "is no folder"),
        (vec!["visualize", "filters", run, "--device", "cpu", "--filters", "96-96"], "has 96 filters"),
    ] {
        let outcome = deepcluster(&arguments);
        assert_eq!(outcome.code, Some(2), "{arguments:?}: {}{}", outcome.stdout, outcome.stderr);
        assert!(outcome.stderr.contains(word) && outcome.stderr.lines().count() == 1, "{arguments:?}: {}", outcome.stderr);
    }
    assert!(!out.path().join("report.html").try_exists().unwrap());
}

/// A run folder of [`CLUSTERS`] clusters, whose [`IMAGES`] images are links to the demo pictures: itself, and its images.
fn large_run(folder: &Path) -> (PathBuf, PathBuf) {
    let finished = RunFolder::at(finished_run().folder());
    let (volume, images) = (Volume::new(folder.join("volume")), folder.join("images"));
    let run = volume.run(&"run-0001".parse().unwrap());
    for class in 0..100 {
        create_folder(&images.join(format!("{class:02}"))).unwrap();
    }
    let originals = find_images(pictures(), FindOptions::default()).unwrap().images;
    let linked = |n: usize| {
        let original = &originals[n % originals.len()];
        let path = format!("{:02}/{n:05}.png", n % 100);
        fs::hard_link(pictures().join(original.as_path()), images.join(&path)).unwrap();
        ImageEntry { path: path.into_bytes(), ..original.clone() }
    };
    let entries: Vec<ImageEntry> = (0..IMAGES).map(linked).collect();
    let (csv, checksum) = image_list::to_csv(&entries).unwrap();
    publish_bytes(&run.images_csv(), &csv).unwrap();

    let mut record: RunRecord = read_record(&finished.run_json()).unwrap();
    record.resolved.k = CLUSTERS as u32;
    record.resolved.n_images = IMAGES;
    record.resolved.images_csv = vec![checksum];
    publish_record(&run.run_json(), &record).unwrap();
    fs::copy(finished.events_jsonl(), run.events_jsonl()).unwrap();

    // An image in each cluster, and four more in each of the first quarter.
    let cluster = |n: usize| if n < CLUSTERS { n } else { n % (CLUSTERS / 4) };
    let labels: Vec<i32> = (0..IMAGES).map(|n| cluster(n) as i32).collect();
    let noise = |n: usize| ((n as u32).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32;
    let distances: Vec<f32> = (0..IMAGES).map(noise).collect();
    let centroids: Vec<f32> = (0..CLUSTERS * 16).map(noise).collect();
    let (from, epoch) = (finished.epoch(EpochId(1)), run.epoch(EpochId(1)));
    create_folder(epoch.path()).unwrap();
    fs::copy(from.checkpoint(), epoch.checkpoint()).unwrap();
    let mut manifest: EpochManifest = read_record(&from.epoch_json()).unwrap();
    let files = &mut manifest.files;
    let written = npy::publish_i32(&epoch.labels(), &labels).unwrap();
    files.labels = volume.record(&epoch.labels(), written).unwrap();
    let written = npy::publish_f32(&epoch.distances(), &[IMAGES], &distances).unwrap();
    files.distances = volume.record(&epoch.distances(), written).unwrap();
    let written = npy::publish_f32(&epoch.centroids(), &[CLUSTERS, 16], &centroids).unwrap();
    files.centroids = volume.record(&epoch.centroids(), written).unwrap();
    publish_record(&epoch.epoch_json(), &manifest).unwrap();
    (run.path().to_owned(), images)
}

#[test]
fn ten_thousand_clusters_fit_on_a_page_that_a_browser_can_search() {
    let out = tempfile::tempdir().unwrap();
    let (run, images) = large_run(out.path());
    let page = out.path().join("report.html");
    let start = Instant::now();
    let said = report(&run, &page, &["--images", text(&images)]);
    let (seconds, megabytes) = (start.elapsed().as_secs_f64(), said["bytes"].as_f64().unwrap() / 1e6);
    println!("{CLUSTERS} clusters: {megabytes:.1} MB in {seconds:.1} s");
    assert_eq!(said["clusters"], CLUSTERS);
    assert!(megabytes < 60.0, "{megabytes} MB");
    let expected = json!({"name": "report-large", "clusters": CLUSTERS, "images": IMAGES, "curves": 5, "filters": 0});
    println!("{}", look(&page, &expected, out.path()));
}
