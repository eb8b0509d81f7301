//! Bad input gets one sentence that names the thing, exit code 2, and changes nothing.

use crate::support::{deepcluster, finished_run, pictures, program, text};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// Trains with some flags; expects code 2 and one line with all the words.
fn refused(images: &Path, volume: &Path, flags: &[&str], words: &[&str]) {
    let mut arguments = vec!["train", text(images), "--out", text(volume)];
    arguments.extend(flags);
    let output = Command::new(program("deepcluster")).args(&arguments).output().unwrap();
    let sentence = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {sentence}");
    for word in words {
        assert!(sentence.contains(word), "{arguments:?}: '{word}' is missing in: {sentence}");
    }
}

#[test]
fn folders_that_hold_no_images() {
    let folder = tempfile::tempdir().unwrap();
    let volume = folder.path().join("volume");
    let empty = folder.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    refused(&empty, &volume, &[], &["empty", "no images"]);
    refused(&folder.path().join("none"), &volume, &[], &["none", "No such file"]);
    let file = folder.path().join("file.jpg");
    deepcluster_volume::publish::publish_bytes(&file, b"x").unwrap();
    refused(&file, &volume, &[], &["file.jpg", "not a folder"]);
    let broken = folder.path().join("broken");
    for n in 0..20 {
        deepcluster_volume::publish::publish_bytes(&broken.join(format!("{n}.png")), b"no picture").unwrap();
    }
    refused(&broken, &volume, &["--k", "2"], &["20 of 20", "--max-skipped"]);
}

#[test]
fn values_that_do_not_do() {
    let folder = tempfile::tempdir().unwrap();
    let volume = folder.path().join("volume");
    let table: [(&[&str], &[&str]); 11] = [
        (&["--k", "201", "--image-size", "64"], &["201", "200"]),
        (&["--k", "0"], &["k must be at least 2"]),
        (&["--k", "some"], &["--k", "some"]),
        (&["--image-size", "20"], &["image size 20", "at least 63"]),
        (&["--arch", "vgg16", "--image-size", "31"], &["image size 31", "at least 32"]),
        (&["--arch", "lenet"], &["--arch", "lenet"]),
        (&["--device", "abacus"], &["--device", "abacus"]),
        (&["--device", "cuda:99", "--image-size", "64", "--k", "5"], &["cuda:99"]),
        (&["--precision", "f8"], &["--precision", "f8"]),
        (&["--extractors", "0"], &["--extractors"]),
        (&["--epochs", "0"], &["epochs"]),
    ];
    for (flags, words) in table {
        refused(pictures(), &volume, flags, words);
    }
    assert!(
        !volume.join("runs").try_exists().unwrap_or(true) || std::fs::read_dir(volume.join("runs")).unwrap().next().is_none()
    );
}

#[test]
fn volumes_that_cannot_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    deepcluster_volume::publish::publish_bytes(&file, b"x").unwrap();
    refused(pictures(), &file, &[], &[text(&file)]);
    refused(pictures(), Path::new("/proc/volume"), &[], &["/proc/volume"]);
    let owned = folder.path().join("owned");
    let _lock = deepcluster_volume::lock::VolumeLock::take(&owned, std::time::Duration::from_secs(60)).unwrap();
    refused(pictures(), &owned, &[], &["already owned", &std::process::id().to_string()]);
}

/// As a user whom the file system refuses; root is refused nothing, so root becomes another for it.
#[test]
fn a_folder_that_may_not_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let readable = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    readable(folder.path(), 0o755);
    let images = folder.path().join("images");
    std::fs::create_dir(&images).unwrap();
    // The built program may lie where that other user cannot go.
    let copy = folder.path().join("deepcluster");
    std::fs::copy(program("deepcluster"), &copy).unwrap();
    readable(&images, 0o000);
    let mut command = Command::new(&copy);
    command.args(["train", text(&images), "--out", "/tmp/never"]).current_dir("/");
    if nix::unistd::geteuid().is_root() {
        command.uid(65534).gid(65534);
    }
    let output = command.output().unwrap();
    let sentence = String::from_utf8_lossy(&output.stderr).into_owned();
    readable(&images, 0o755);
    assert_eq!(output.status.code(), Some(2), "{sentence}");
    assert!(sentence.contains(text(&images)) && sentence.contains("Permission denied"), "{sentence}");
}

/// File systems of their own, which only some machines let a test mount.
#[test]
fn volumes_that_are_full_or_read_only() {
    let folder = tempfile::tempdir().unwrap();
    let volume = folder.path().join("volume");
    std::fs::create_dir(&volume).unwrap();
    let mounted = |options: &str, then: &str| {
        let script = format!("mount -t tmpfs -o {options} tmpfs \"$1\" && shift && {then}");
        let mut command = Command::new("unshare");
        command.args(["--mount", "--map-root-user", "sh", "-c", &script, "sh", text(&volume)]);
        command
    };
    if !mounted("size=1m", "true").status().is_ok_and(|status| status.success()) {
        println!("left out: this machine lets nobody mount a file system");
        return;
    }
    let train = "\"$0\" \"$@\"; code=$?; find \"$5\" -name '*.tmp' >&2; exit $code";
    let train = train.replace("$0", text(&program("deepcluster"))).replace("$5", text(&volume));
    let flags = "--image-size 64 --k 10 --epochs 1 --batch 32 --device cpu";
    for (options, word) in [("size=32m", "are missing"), ("size=1m,ro", "Read-only")] {
        let mut command = mounted(options, &train);
        command.args(["train", text(pictures()), "--out", text(&volume)]).args(flags.split(' '));
        let output = command.output().unwrap();
        let sentence = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{options}: {sentence}");
        assert!(sentence.contains(word) && sentence.contains(text(&volume)), "{options}: {sentence}");
        assert_eq!(sentence.lines().count(), 1, "{options}: {sentence}");
    }
}

#[test]
fn runs_that_cannot_go_on() {
    let volume = finished_run().volume.path();
    let _owner = finished_run().owner.lock();
    let before = std::fs::read(finished_run().folder().join("run.json")).unwrap();
    for (name, words) in [("run-0001", "finished"), ("run-0009", "run-0009"), ("../x", "../x")] {
        let outcome = deepcluster(["resume", text(volume), name]);
        assert_eq!(outcome.code, Some(2), "{}", outcome.stderr);
        assert!(outcome.stderr.contains(words), "{}", outcome.stderr);
    }
    assert_eq!(deepcluster(["resume", text(volume)]).code, Some(2));
    assert_eq!(deepcluster(["resume", "/no/such/volume"]).code, Some(2));
    for command in ["labels", "assign", "export"] {
        let outcome = match command {
            "export" => deepcluster(["export", text(volume), "--to", "/tmp/never.safetensors"]),
            _ => deepcluster([command, text(volume), "/dev/null"]),
        };
        assert_eq!(outcome.code, Some(2), "{command}: {}", outcome.stderr);
    }
    assert_eq!(std::fs::read(finished_run().folder().join("run.json")).unwrap(), before);
}

#[test]
fn a_port_in_use_and_wrong_flags_of_services() {
    let folder = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for kind in ["coordinator", "extractor", "clusterer", "trainer"] {
        let run = |arguments: &[&str]| {
            let output = Command::new(program(&format!("deepcluster-{kind}"))).args(arguments).output().unwrap();
            assert_eq!(output.status.code(), Some(2), "{kind} {arguments:?}");
            String::from_utf8_lossy(&output.stderr).into_owned()
        };
        let sentence = run(&["--volume", text(folder.path()), "--listen", &address]);
        assert!(sentence.contains(&address), "{sentence}");
        let sentence = run(&["--listen", "nowhere", "--images", "/no/such/folder", "--threads", "many"]);
        for word in ["--volume", "nowhere", "/no/such/folder", "many"] {
            assert!(sentence.contains(word), "{sentence}");
        }
    }
    let mut coordinator = Command::new(program("deepcluster-coordinator"));
    let output = coordinator.args(["--trainer", "no port", "--extractors", "a:1,b", "--threads", "many"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let sentence = String::from_utf8_lossy(&output.stderr).into_owned();
    for word in ["--trainer 'no port'", "--extractors 'b'", "--volume", "many"] {
        assert!(sentence.contains(word), "{sentence}");
    }
}
