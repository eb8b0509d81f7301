//! Every format that users have, against what Pillow reads; and hostile files.

use crate::support::{deepcluster, pictures, python, text};
use deepcluster_domain::geometry::resize_side;
use deepcluster_images::View;
use deepcluster_images::decode::decode;
use deepcluster_images::transform::{Pixels, Transformer};
use deepcluster_volume::image_list;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;

const SIDE: u32 = 224;

/// Centre crop of an image file, and Pillow's bytes stored beside it.
fn compare(image: &Path, expected: &Path) -> (f64, f64) {
    let mut found = vec![0; (SIDE * SIDE * 3) as usize];
    let decoded = decode(&fs::read(image).unwrap()).unwrap_or_else(|error| panic!("{}: {error}", image.display())).image;
    let mut transformer = Transformer::default();
    let working = transformer.working(decoded, resize_side(SIDE)).unwrap();
    transformer.view(Pixels::of(&working), View::Center, SIDE, &mut found).unwrap();
    let npy = fs::read(expected).unwrap();
    let expected = &npy[npy.len() - found.len()..];
    let differences: Vec<f64> = found.iter().zip(expected).map(|(a, b)| f64::from(a.abs_diff(*b))).collect();
    let mean = differences.iter().sum::<f64>() / differences.len() as f64;
    let within = differences.iter().filter(|difference| **difference <= 6.0).count() as f64 / differences.len() as f64;
    (mean, within)
}

#[test]
fn centre_crops_are_those_of_pillow() {
    let folder = tempfile::tempdir().unwrap();
    python("make_pictures.py", [folder.path()]);
    let mut n_compared = 0;
    for entry in fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension() != Some(OsStr::new("npy")) {
            let (mean, within) = compare(&path, &path.with_file_name(format!("{}.npy", path.file_name().unwrap().display())));
            println!("{}: mean difference {mean:.3}, {:.2} % within 6", path.display(), within * 100.0);
            assert!(mean <= 1.0 && within >= 0.99, "{}: mean {mean}, {within} within 6", path.display());
            n_compared += 1;
        }
    }
    assert_eq!(n_compared, 21);
}

/// The photographs themselves are not part of the repository; `make test-crops PHOTOS=DIR` names their folder.
#[test]
#[ignore = "needs the photographs that tests/parity/cases.json names"]
fn crops_of_photographs() {
    let photos = std::env::var_os("PHOTOS").unwrap();
    let parity = Path::new(env!("CARGO_MANIFEST_DIR")).join("parity");
    let cases: serde_json::Value = serde_json::from_slice(&fs::read(parity.join("cases.json")).unwrap()).unwrap();
    let crops = cases["crops"]["images"].as_array().unwrap();
    assert_eq!(crops.len(), 4);
    for crop in crops {
        let name = Path::new(crop["image"].as_str().unwrap()).file_name().unwrap();
        let (mean, within) = compare(&Path::new(&photos).join(name), &parity.join(crop["file"].as_str().unwrap()));
        println!("{}: mean difference {mean:.3}, {:.2} % within 6", name.display(), within * 100.0);
        assert!(mean <= 1.0 && within >= 0.99, "{}: mean {mean}, {within} within 6", name.display());
    }
}

/// What became of the files of an ending.
#[derive(Debug, Default)]
struct Sweep {
    exact: usize,
    /// Off by at most two levels anywhere, as another rounding of colours makes.
    close: usize,
    refused: BTreeMap<String, Vec<String>>,
    wrong: Vec<String>,
}

impl Sweep {
    fn look_at(&mut self, path: &Path) {
        let name = path.file_name().unwrap().display().to_string();
        let npy = fs::read(path.with_file_name(format!("{name}.npy"))).unwrap();
        let image = match decode(&fs::read(path).unwrap()) {
            Ok(decoded) if decoded.remark.is_some() => return self.wrong.push(format!("{name}: {:?}", decoded.remark)),
            Ok(decoded) => decoded.image,
            Err(why) => return self.refused.entry(why.to_string()).or_default().push(name),
        };
        let Some(start) = npy.len().checked_sub(image.as_raw().len()) else {
            return self.wrong.push(format!("{name}: {:?}", image.dimensions()));
        };
        match image.as_raw().iter().zip(&npy[start..]).map(|(a, b)| a.abs_diff(*b)).max() {
            Some(0) => self.exact += 1,
            Some(1 | 2) => self.close += 1,
            most => self.wrong.push(format!("{name}: off by {most:?}")),
        }
    }
}

/// No decoder is to be wrong without a word: a file is read as Pillow reads it, or refused with a sentence of ours.
#[test]
fn every_encoding_is_read_as_pillow_reads_it_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let written: usize = python("sweep_formats.py", [folder.path()]).trim().parse().unwrap();
    assert!(written > 3000, "{written} files");
    let mut sweeps: BTreeMap<String, Sweep> = BTreeMap::new();
    for entry in fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        let ending = path.extension().unwrap().to_str().unwrap().to_owned();
        if ending != "npy" {
            sweeps.entry(ending).or_default().look_at(&path);
        }
    }
    for (ending, Sweep { exact, close, refused, wrong }) in &sweeps {
        println!("{ending}: {exact} exact, {close} close, {} wrong", wrong.len());
        for (why, names) in refused {
            println!("  {} refused: {why}, as {}", names.len(), names[0]);
        }
        assert!(wrong.is_empty(), "{wrong:?}");
        assert!(ending == "tif" || refused.is_empty(), "{refused:?}");
        assert!(refused.keys().all(|why| why.starts_with("it is a TIFF ")), "{refused:?}");
    }
}

/// A folder as people have them: nested, linked, oddly named, with broken files among the good ones.
#[test]
fn a_messy_folder_is_trained_on_and_the_broken_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("images");
    fs::create_dir_all(images.join("deep/er")).unwrap();
    let all: Vec<_> = fs::read_dir(pictures().join("stripes")).unwrap().map(|entry| entry.unwrap().path()).collect();
    for (n, picture) in all.iter().enumerate() {
        fs::copy(picture, images.join("deep/er").join(format!("{n}.PnG"))).unwrap();
    }
    fs::copy(&all[0], images.join(OsStr::from_bytes(b"not utf-8 \xff, \"quoted\".png"))).unwrap();
    symlink(&all[1], images.join("link.png")).unwrap();
    symlink(pictures().join("discs"), images.join("linked-folder")).unwrap();
    let broken: [(&str, &[u8]); 3] =
        [("empty.jpg", b""), ("text.gif", b"hello"), ("cut.png", &fs::read(&all[0]).unwrap()[..700])];
    for (name, bytes) in broken {
        deepcluster_volume::publish::publish_bytes(&images.join(name), bytes).unwrap();
    }
    let volume = folder.path().join("volume");
    let arguments = ["train", text(&images), "--out", text(&volume), "--image-size", "64", "--k", "3", "--epochs", "1"];
    deepcluster(arguments.into_iter().chain(["--batch", "8", "--max-skipped", "0.2", "--json"])).good();
    let run = volume.join("runs/run-0001");
    let list = image_list::read(&run.join("images.csv")).unwrap();
    let skipped: Vec<&[u8]> = list.iter().filter(|image| image.skipped.is_some()).map(|image| image.path.as_slice()).collect();
    assert_eq!(skipped, [b"cut.png".as_slice(), b"empty.jpg", b"text.gif"]);
    assert!(list.iter().any(|image| image.path.starts_with(b"not utf-8 \xff")));
    let linked = list.iter().filter(|image| image.path.starts_with(b"linked-folder/")).count();
    assert_eq!(linked, fs::read_dir(pictures().join("discs")).unwrap().count());
    let labels = fs::read(run.join("labels.csv")).unwrap();
    let lines: Vec<&[u8]> = labels.split(|byte| *byte == b'\n').collect();
    assert!(lines.contains(&b"empty.jpg,-1,".as_slice()));
    assert!(labels.windows(14).any(|window| window == b"not utf-8 \\xff"));
}

/// A run on the odd files and on enough good ones.
fn train_on_odd_files(more: &[&str]) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("images");
    python("make_odd.py", [&images]);
    for (n, picture) in fs::read_dir(pictures().join("stripes")).unwrap().enumerate() {
        fs::copy(picture.unwrap().path(), images.join(format!("stripes-{n}.png"))).unwrap();
    }
    let volume = images.join("volume");
    let arguments = ["train", text(&images), "--out", text(&volume), "--image-size", "64", "--k", "3", "--epochs", "1"];
    let output = deepcluster(arguments.into_iter().chain(["--batch", "8", "--max-skipped", "0.5"]).chain(more.iter().copied()));
    (folder, output.good())
}

fn statuses(folder: &Path) -> BTreeMap<String, String> {
    let text = fs::read_to_string(folder.join("images/volume/runs/run-0001/images.csv")).unwrap();
    let mut statuses = BTreeMap::new();
    for line in text.lines().skip(1) {
        let mut columns = line.splitn(6, ',');
        let (path, status) = (columns.nth(1).unwrap().to_owned(), columns.last().unwrap().trim_matches('"').to_owned());
        statuses.insert(path, status);
    }
    statuses
}

#[test]
fn odd_files_are_read_remarked_on_refused_or_passed_over_each_with_a_word() {
    let (folder, output) = train_on_odd_files(&[]);
    let found = statuses(folder.path());
    for name in ["good.jpg", "no-end.jpg", "motion.jpg", "second-cut.jpg", "behind.jpg", "floats.tif", "big.tif"] {
        assert_eq!(found[name], "ok", "{name}");
    }
    for (name, word) in [
        ("rows-missing.jpg", "truncated: the last "),
        ("twelve-bits.png", "dark: its samples of 16 bits do not exceed 4095"),
        ("cut.jpg", "the file is cut off: only "),
        ("pointer.jpg", "git lfs pull"),
        ("page.jpg", "HTML page"),
        ("photo.jpg", "heif-convert"),
        ("drawing.png", "rsvg-convert"),
        ("paper.png", "pdftoppm"),
    ] {
        assert!(found[name].contains(word), "{name}: {}", found[name]);
    }
    assert!(found.keys().all(|name| !name.contains('/')), "thumbnails, trash and the volume: {found:?}");
    for word in [
        "2 .heic, 1 .txt",
        ".heic by heif-convert",
        "2 folders of thumbnails",
        "the volume itself",
        "6 images cannot be read in all",
        "2 are read with a remark, as 'rows-missing.jpg': truncated",
    ] {
        assert!(output.contains(word), "'{word}' is missing in: {output}");
    }
    let run: serde_json::Value =
        serde_json::from_slice(&fs::read(folder.path().join("images/volume/runs/run-0001/run.json")).unwrap()).unwrap();
    assert_eq!((&run["resolved"]["n_skipped"], &run["resolved"]["n_remarks"]), (&6.into(), &2.into()));
    let labels = fs::read_to_string(folder.path().join("images/volume/runs/run-0001/labels.csv")).unwrap();
    assert!(labels.lines().any(|line| line.starts_with("rows-missing.jpg,") && !line.contains(",-1,")), "{labels}");
}

#[test]
fn truncated_images_and_hidden_folders_are_the_users_choice() {
    let (folder, _) = train_on_odd_files(&["--truncated", "skip", "--include-hidden"]);
    let found = statuses(folder.path());
    assert!(found["rows-missing.jpg"].starts_with("the file is cut off: the last "), "{}", found["rows-missing.jpg"]);
    for name in ["@eaDir/good.jpg/thumb.jpg", "__MACOSX/._good.jpg", ".Trash-1000/good.jpg"] {
        assert_eq!(found[name], "ok", "{name}");
    }
    assert!(found.keys().all(|name| !name.starts_with("volume/")), "{found:?}");
}
