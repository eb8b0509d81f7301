//! Every format that users have, against what Pillow reads; and hostile files.

use crate::support::{deepcluster, pictures, python, text};
use deepcluster_domain::geometry::resize_side;
use deepcluster_images::View;
use deepcluster_images::decode::decode;
use deepcluster_images::transform::{Pixels, Transformer};
use deepcluster_volume::image_list;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;

const SIDE: u32 = 224;

/// Centre crop of an image file, and Pillow's bytes stored beside it.
fn compare(image: &Path, expected: &Path) -> (f64, f64) {
    let mut found = vec![0; (SIDE * SIDE * 3) as usize];
    let decoded = decode(&fs::read(image).unwrap()).unwrap_or_else(|error| panic!("{}: {error}", image.display()));
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
    assert!(labels.windows(11).any(|window| window == b"not utf-8 \xff"));
}
