//! `deepcluster eval`, on a small run and on pictures whose answers are known.

use crate::support::{Followed, Outcome, deepcluster, text, wait_until_deserted};
use deepcluster_volume::publish::publish_bytes;
use image::{Rgb, RgbImage};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tempfile::TempDir;

/// Images of one class to learn from, and to be tested on.
const TRAIN: u32 = 16;
const TEST: u32 = 5;
const CLASSES: [(&str, [u32; 3]); 4] =
    [("brick", [150, 45, 30]), ("leaf", [37, 127, 45]), ("sky", [45, 52, 150]), ("straw", [142, 135, 45])];

/// Commands follow each other: each takes all cores.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A number below 32 for a place, which is always the same.
fn noise(x: u32, y: u32, salt: u32) -> u32 {
    let mixed = x.wrapping_mul(73_856_093) ^ y.wrapping_mul(19_349_663) ^ salt.wrapping_mul(83_492_791);
    mixed.wrapping_mul(2_654_435_761) >> 27
}

fn save(folder: &Path, name: &str, size: (u32, u32), colour: impl Fn(u32, u32) -> [u32; 3]) {
    std::fs::create_dir_all(folder).unwrap();
    let picture = RgbImage::from_fn(size.0, size.1, |x, y| Rgb(colour(x, y).map(|part| part.min(255) as u8)));
    picture.save(folder.join(name)).unwrap();
}

/// A run that has learned something of four kinds of striped colours, and such pictures.
struct Tiny {
    folder: TempDir,
}

impl Tiny {
    fn made() -> &'static Self {
        static TINY: LazyLock<Tiny> = LazyLock::new(|| {
            let tiny = Tiny { folder: tempfile::tempdir().unwrap() };
            for (class, (name, tint)) in (0..).zip(CLASSES) {
                for number in 0..TRAIN + TEST {
                    let set = if number < TRAIN { tiny.train() } else { tiny.test() };
                    save(&set.join(name), &format!("{number}.png"), (64, 64), |x, y| {
                        let along = [x, y, x + y, 2 * x + y][class as usize] + 3 * number;
                        let bright = if along / 4 % 2 == 1 { 40 } else { 0 };
                        tint.map(|part| part + bright + noise(x, y, 7 * number + class))
                    });
                }
            }
            let flags =
                "--arch resnet18 --no-sobel --image-size 64 --k 4 --epochs 3 --batch 8 --lr 0.01 --pca 16 --seed 5 --device cpu";
            let (train, volume) = (tiny.train(), tiny.volume());
            let named = ["train", text(&train), "--out", text(&volume), "--json"];
            deepcluster(named.into_iter().chain(flags.split(' '))).good();
            tiny
        });
        &TINY
    }

    fn train(&self) -> PathBuf {
        self.folder.path().join("train")
    }

    fn test(&self) -> PathBuf {
        self.folder.path().join("test")
    }

    fn volume(&self) -> PathBuf {
        self.folder.path().join("volume")
    }

    fn run(&self) -> PathBuf {
        self.volume().join("runs/run-0001")
    }

    /// The words of a command.
    fn words(&self, protocol: &str, paths: &[(&str, &Path)], flags: &str) -> Vec<String> {
        let mut words = vec!["eval".to_owned(), protocol.to_owned(), text(&self.run()).to_owned()];
        words.extend(paths.iter().flat_map(|(flag, path)| [format!("--{flag}"), text(path).to_owned()]));
        words.extend(flags.split_whitespace().map(str::to_owned));
        words
    }

    fn eval(&self, protocol: &str, paths: &[(&str, &Path)], flags: &str) -> Outcome {
        deepcluster(self.words(protocol, paths, flags))
    }

    fn linear(&self, flags: &str) -> Outcome {
        self.eval("linear", &[("train", &self.train()), ("test", &self.test())], &format!("{flags} --device cpu --json"))
    }

    /// Folders of evaluations that are there, of one protocol.
    fn sites(&self, protocol: &str) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(self.run().join("eval")) else { return Vec::new() };
        let of_it = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with(protocol);
        entries.map(|entry| entry.unwrap().path()).filter(of_it).collect()
    }
}

fn events(printed: &str, kind: &str) -> Vec<Value> {
    let all = printed.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    all.filter(|event| event["event"] == kind).collect()
}

fn number(event: &Value, member: &str) -> f64 {
    event[member].as_f64().unwrap_or_else(|| panic!("no {member} in {event}"))
}

fn refused(outcome: &Outcome, words: &[&str]) {
    assert_eq!(outcome.code, Some(2), "{}{}", outcome.stdout, outcome.stderr);
    assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
    for word in words {
        assert!(outcome.stderr.contains(word), "no '{word}' in {}", outcome.stderr);
    }
}

#[test]
fn linear_probes_tell_easy_pictures_apart_at_every_layer() {
    let _turn = turn();
    let tiny = Tiny::made();
    let printed = tiny.linear("--epochs 15 --batch 16 --lr 0.05 --standardise").good();
    let rows = events(&printed, "linear");
    let layers: Vec<&str> = rows.iter().map(|row| row["layer"].as_str().unwrap()).collect();
    assert_eq!(layers, ["layer1", "layer2", "layer3", "layer4", "pool"]);
    for row in &rows {
        assert!(number(row, "top1") > 0.6, "{row}");
        assert_eq!((number(row, "top5"), number(row, "images")), (1.0, f64::from(TEST * 4)), "{row}");
    }
    assert!(tiny.sites("linear").is_empty(), "nothing is left of it");

    // A layer that is named twice is probed once.
    let printed = tiny.linear("--epochs 15 --batch 16 --lr 0.05 --standardise --layer pool,pool --ten-crops").good();
    let rows = events(&printed, "linear");
    assert_eq!((rows.len(), &rows[0]["ten_crops"]), (1, &Value::Bool(true)));
    assert!(number(&rows[0], "top1") > 0.6, "{printed}");
}

/// Kills a command once it has saved what it has learned; the same command then begins there, and ends with the same lines as
/// one that was not disturbed. `progress` is the unit of its lines in steps.
fn goes_on_after_a_kill(words: &[String], protocol: &str, kind: &str, progress: u64) {
    let tiny = Tiny::made();
    let undisturbed = deepcluster(words).good();
    let mut command = Followed::start(words);
    let saved = || tiny.sites(protocol).into_iter().map(|site| site.join("saved.json")).find(|note| note.is_file());
    for _ in 0..30_000 {
        if saved().is_some() || !matches!(command.child.try_wait(), Ok(None)) {
            break;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    kill(Pid::from_raw(command.child.id() as i32), Signal::SIGKILL).unwrap();
    assert_eq!(command.finish().1, None, "it was over before it could be killed");
    wait_until_deserted(&tiny.volume());
    let note: Value = serde_json::from_slice(&std::fs::read(saved().unwrap()).unwrap()).unwrap();
    let path = note["path"].as_str().unwrap();
    let steps = path.strip_suffix(".safetensors").and_then(|path| path.rsplit_once('-')).unwrap().1;
    let steps: u64 = steps.parse().unwrap();
    assert!(steps > 0, "{path}");

    let again = deepcluster(words).good();
    let done: Vec<u64> = events(&again, "progress").iter().map(|event| event["done"].as_u64().unwrap()).collect();
    assert!(!done.is_empty() && done.iter().all(|done| *done >= steps / progress), "from step {steps}: {done:?}");
    let measured = |event: &Value| event["loss"].as_f64().is_some_and(|loss| loss > 0.0);
    assert!(events(&undisturbed, "progress").iter().all(measured), "{undisturbed}");
    assert_eq!(events(&again, kind), events(&undisturbed, kind));
    assert!(!events(&again, kind).is_empty());
    assert!(tiny.sites(protocol).is_empty());
}

#[test]
fn linear_probes_go_on_after_a_kill() {
    let _turn = turn();
    let tiny = Tiny::made();
    let flags = "--layer layer1 --epochs 50 --batch 16 --checkpoint-every 8 --device cpu --json";
    let words = tiny.words("linear", &[("train", &tiny.train()), ("test", &tiny.test())], flags);
    goes_on_after_a_kill(&words, "linear", "linear", u64::from(TRAIN) * 4 / 16);
}

#[test]
fn probes_that_diverge_name_what_may_help() {
    let _turn = turn();
    let tiny = Tiny::made();
    refused(&tiny.linear("--epochs 3 --batch 16 --lr 1e30 --layer pool"), &["not finite", "a lower --lr", "--standardise"]);
    let printed = tiny.linear("--epochs 1 --batch 16 --lr 1000 --layer pool").good();
    let said = &events(&printed, "warning")[0];
    assert!(said["message"].as_str().unwrap().contains("--standardise or a lower --lr may help"), "{printed}");
}

#[test]
fn layers_and_classes_that_are_not_there_are_named() {
    let _turn = turn();
    let tiny = Tiny::made();
    refused(&tiny.linear("--layer fc9"), &["unknown layer 'fc9'", "layer1", "pool"]);
    let other = tiny.folder.path().join("other");
    save(&other.join("violet"), "1.png", (64, 64), |x, y| [x, y, 99]);
    let unknown = tiny.eval("linear", &[("train", &tiny.train()), ("test", &other)], "--device cpu");
    refused(&unknown, &["--test", "a class 'violet' that the training images have not"]);
    assert!(!tiny.run().join("eval").try_exists().unwrap(), "nothing is left of what failed");
}

#[test]
fn neighbours_are_of_the_own_class() {
    let _turn = turn();
    let tiny = Tiny::made();
    let train = tiny.train();
    // Who may find itself does so first.
    let itself = tiny.eval("knn", &[("train", &train), ("test", &train)], "--k 1 --device cpu --json").good();
    let itself = &events(&itself, "knn")[0];
    assert_eq!((number(itself, "top1"), number(itself, "images")), (1.0, f64::from(TRAIN * 4)), "{itself}");
    let flags = "--k 5 --layer layer1,pool --pca 16 --device cpu --json";
    let others = tiny.eval("knn", &[("train", &train), ("test", &tiny.test())], flags).good();
    let rows = events(&others, "knn");
    assert_eq!(rows.iter().map(|row| row["layer"].as_str().unwrap()).collect::<Vec<_>>(), ["layer1", "pool"]);
    assert!(rows.iter().all(|row| number(row, "top1") > 0.6), "{others}");
    assert!(tiny.sites("knn").is_empty());

    // What few images do not have is not said to have been used.
    let most = f64::from(TRAIN * 4);
    let all = tiny.eval("knn", &[("train", &train), ("test", &tiny.test())], "--k 5000 --pca 5000 --device cpu --json").good();
    let all = &events(&all, "knn")[0];
    assert_eq!((number(all, "k"), number(all, "pca")), (most, most - 1.0), "{all}");
}

/// Purity and the adjusted Rand index, by counting, from what `labels` prints.
#[test]
fn clusters_are_scored_as_their_labels_say() {
    let _turn = turn();
    let tiny = Tiny::made();
    let labels = deepcluster(["labels", text(&tiny.run())]).good();
    let pairs: Vec<(&str, &str)> = labels
        .lines()
        .skip(1)
        .map(|line| {
            let mut parts = line.split(',');
            (parts.next().unwrap().split('/').next().unwrap(), parts.next().unwrap())
        })
        .collect();
    let mut counts: BTreeMap<&str, BTreeMap<&str, usize>> = BTreeMap::new();
    for &(class, cluster) in &pairs {
        *counts.entry(cluster).or_default().entry(class).or_default() += 1;
    }
    let purity = counts.values().map(|classes| classes.values().max().unwrap()).sum::<usize>() as f64 / pairs.len() as f64;
    let mut agreed = [[0.0_f64; 2]; 2];
    for (at, &(class, cluster)) in pairs.iter().enumerate() {
        for &(other_class, other_cluster) in &pairs[..at] {
            agreed[usize::from(class == other_class)][usize::from(cluster == other_cluster)] += 1.0;
        }
    }
    let [[neither, cluster], [class, both]] = agreed;
    let ari =
        2.0 * (both * neither - class * cluster) / ((both + class) * (class + neither) + (both + cluster) * (cluster + neither));
    let scores: Value = serde_json::from_str(&tiny.eval("clusters", &[], "--json").good()).unwrap();
    assert_eq!((number(&scores, "images"), number(&scores, "classes")), (pairs.len() as f64, 4.0));
    assert_eq!(number(&scores, "clusters"), counts.len() as f64);
    assert!((number(&scores, "purity") - purity).abs() < 1e-9, "{scores}, purity {purity}");
    assert!((number(&scores, "ari") - ari).abs() < 1e-9, "{scores}, ARI {ari}");
    assert!((0.0..=1.0).contains(&number(&scores, "nmi")) && number(&scores, "accuracy") >= 0.25, "{scores}");
}

/// Five buildings, each seen from four places; of each, one view is junk.
fn buildings(folder: &Path) {
    for building in 0..5_u32 {
        for view in 0..4_u32 {
            let name = format!("building{building}_{view:06}.png");
            save(&folder.join(format!("part{view}")), &name, (96, 72), |x, y| {
                let (along, down, kind) = (f64::from(x + 2 * view), f64::from(y + view), f64::from(building));
                let waves = [
                    (along * (0.15 + 0.07 * kind) + kind).sin(),
                    (down * (0.4 - 0.06 * kind) + 2.0 * kind).sin(),
                    ((along + (kind - 2.0) * down) * 0.11 + kind).sin(),
                ];
                [0, 1, 2].map(|part| {
                    let wave = 100.0 + 60.0 * waves[(part + building as usize) % 3];
                    wave as u32 + 30 * ((building >> part) & 1) + noise(x, y, 9 * building + view) / 2
                })
            });
        }
    }
}

/// Asks for the buildings, where the answers to each are said to be those of the building `shift` further.
fn questions(folder: &Path, shift: u32) {
    let write = |name: String, text: String| drop(publish_bytes(&folder.join(name), text.as_bytes()).unwrap());
    for building in 0..5 {
        let answer = |view: u32| format!("building{}_{view:06}\n", (building + shift) % 5);
        write(format!("b{building}_1_query.txt"), format!("oxc1_building{building}_000000 8 8 88 64\n"));
        write(format!("b{building}_1_good.txt"), answer(0) + &answer(1));
        write(format!("b{building}_1_ok.txt"), answer(2));
        write(format!("b{building}_1_junk.txt"), answer(3));
    }
}

#[test]
fn views_of_the_same_building_are_found() {
    let _turn = turn();
    let tiny = Tiny::made();
    let folder = tempfile::tempdir().unwrap();
    let (images, wrong) = (folder.path().join("images"), folder.path().join("wrong"));
    buildings(&images);
    questions(&images.join("gt"), 0);
    questions(&wrong, 1);
    let flags = "--layer layer2 --side 96 --device cpu --json";
    let printed = tiny.eval("retrieval", &[("images", &images)], &format!("{flags} --pca 8")).good();
    let all = &events(&printed, "retrieval")[0];
    assert!(number(all, "map") > 0.7, "{printed}");
    assert_eq!((number(all, "queries"), number(all, "images"), number(all, "pca")), (5.0, 20.0, 8.0));
    let queries = events(&printed, "query");
    let mean = queries.iter().map(|query| number(query, "ap")).sum::<f64>() / 5.0;
    assert!((mean - number(all, "map")).abs() < 1e-9, "{printed}");
    assert!(queries.iter().all(|query| number(query, "relevant") == 3.0), "{printed}");
    let shuffled = tiny.eval("retrieval", &[("images", &images), ("ground-truth", &wrong)], flags).good();
    assert!(number(&events(&shuffled, "retrieval")[0], "map") < 0.4, "{shuffled}");
    assert!(tiny.sites("retrieval").is_empty());

    publish_bytes(&wrong.join("b1_1_ok.txt"), b"building1_000002\nbuilding9_000000\n").unwrap();
    let missing = tiny.eval("retrieval", &[("images", &images), ("ground-truth", &wrong)], flags);
    refused(&missing, &["b1_1_ok.txt line 2", "'building9_000000'"]);
    refused(&tiny.eval("retrieval", &[("images", &images)], "--layer pool --side 96"), &["pool has no maps"]);
}

/// Pictures that are red, blue and striped or not, in every combination; a few labels are hard to tell.
fn voc(folder: &Path) {
    let classes = ["blue", "red", "striped"];
    let mut lists: BTreeMap<String, String> = BTreeMap::new();
    for number in 0..40_u32 {
        let shown = [number / 2 % 2, number % 2, number / 4 % 2];
        let [blue, red, striped] = shown;
        save(&folder.join("JPEGImages"), &format!("{number:06}.jpg"), (80, 60), |x, y| {
            let stripe = 80 * (striped * (x / 4 % 2));
            let grey = 60 + stripe + noise(x, y, number);
            [grey + 90 * red, grey, grey + 90 * blue]
        });
        let split = if number < 24 { "trainval" } else { "test" };
        for (class, shown) in classes.iter().zip(shown) {
            let label = if number % 11 == 3 { 0 } else { 2 * shown as i32 - 1 };
            *lists.entry(format!("{class}_{split}.txt")).or_default() += &format!("{number:06} {label:2}\n");
        }
        *lists.entry(format!("{split}.txt")).or_default() += &format!("{number:06}\n");
    }
    for (name, list) in lists {
        publish_bytes(&folder.join("ImageSets/Main").join(name), list.as_bytes()).unwrap();
    }
}

#[test]
fn what_pictures_show_is_learned_by_the_classifier_alone_and_by_all_layers() {
    let _turn = turn();
    let tiny = Tiny::made();
    let folder = tempfile::tempdir().unwrap();
    voc(&folder.path().join("VOC2007"));
    let devkit = [("voc", folder.path())];
    let words = tiny.words("voc", &devkit, "--steps 100 --lr 0.01 --batch 8 --checkpoint-every 10 --device cpu --json");
    goes_on_after_a_kill(&words, "voc", "class", 1);

    let frozen = tiny.eval("voc", &devkit, "--steps 60 --lr 0.01 --batch 8 --device cpu --json").good();
    let all = tiny.eval("voc", &devkit, "--finetune --ten-crops --steps 25 --lr 0.003 --batch 8 --device cpu --json").good();
    for (printed, finetune) in [(&frozen, false), (&all, true)] {
        let result = &events(printed, "voc")[0];
        assert_eq!((&result["finetune"], number(result, "images")), (&Value::Bool(finetune), 16.0));
        // Half of the pictures show each class: by chance it would be about 0.55.
        assert!(number(result, "map") > 0.75, "{printed}");
        let classes = events(printed, "class");
        let names: Vec<&str> = classes.iter().map(|class| class["class"].as_str().unwrap()).collect();
        assert_eq!(names, ["blue", "red", "striped"]);
        let mean = classes.iter().map(|class| number(class, "ap")).sum::<f64>() / 3.0;
        assert!((mean - number(result, "map")).abs() < 1e-9, "{printed}");
    }
    assert!(tiny.sites("voc").is_empty());

    let list = folder.path().join("VOC2007/ImageSets/Main/red_test.txt");
    let before = std::fs::read_to_string(&list).unwrap();
    publish_bytes(&list, format!("{before}000999  1\n").as_bytes()).unwrap();
    refused(&tiny.eval("voc", &devkit, ""), &["red_test.txt line 17", "'000999' is not in blue_test.txt"]);
}
