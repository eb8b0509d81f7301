//! What becomes of runs when the world around them changes: moved pictures, more epochs, a volume that is in use, ports that
//! others listen on.

use crate::stack::{Stack, create, is_phase, spec, until_serving, watch_until};
use crate::support::{deepcluster, finished_run, pictures, text, train_arguments};
use deepcluster_proto::v1::{CancelRunRequest, RunState};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// A copy of some of the pictures.
fn copy_pictures(to: &Path) {
    for class in ["stripes", "discs"] {
        fs::create_dir_all(to.join(class)).unwrap();
        for picture in fs::read_dir(pictures().join(class)).unwrap() {
            let picture = picture.unwrap();
            fs::copy(picture.path(), to.join(class).join(picture.file_name())).unwrap();
        }
    }
}

fn train(images: &Path, volume: &Path, epochs: &str) -> crate::support::Outcome {
    let flags = "--image-size 64 --k 4 --batch 16 --seed 5 --device cpu --epochs";
    deepcluster(["train", text(images), "--out", text(volume)].into_iter().chain(flags.split(' ')).chain([epochs]))
}

#[test]
fn a_run_goes_on_after_its_pictures_moved_and_with_more_epochs() {
    let folder = tempfile::tempdir().unwrap();
    let (images, moved, volume) = (folder.path().join("images"), folder.path().join("moved"), folder.path().join("volume"));
    copy_pictures(&images);
    train(&images, &volume, "1").good();
    let longer = train(&images, &folder.path().join("longer"), "3");
    let expected = fs::read(folder.path().join("longer/runs/run-0001/labels.csv")).unwrap();
    longer.good();

    // Others lie where the run's own lay.
    assert!(Command::new("mv").args([&images, &moved]).status().unwrap().success());
    let resume = |more: &[&str]| deepcluster(["resume", text(&volume), "run-0001"].into_iter().chain(more.iter().copied()));
    let refused = resume(&["--epochs", "1"]);
    assert_eq!(refused.code, Some(2));
    assert!(refused.stderr.contains("run-0001 has 1 epochs already"), "{}", refused.stderr);
    let others = folder.path().join("others");
    copy_pictures(&others);
    for class in ["stripes", "discs"] {
        for picture in fs::read_dir(others.join(class)).unwrap() {
            let picture = picture.unwrap().path();
            let mut content = fs::read(&picture).unwrap();
            let last = content.len() - 20;
            content[last] ^= 1;
            deepcluster_volume::publish::publish_bytes(&picture, &content).unwrap();
        }
    }
    let refused = resume(&["--epochs", "3", "--images", text(&others)]);
    assert_eq!(refused.code, Some(2));
    assert!(refused.stderr.contains("its content is another than in the first epoch"), "{}", refused.stderr);

    let output = resume(&["--epochs", "3", "--images", text(&moved)]).good();
    assert!(output.contains("epoch 2 "), "{output}");
    let found = fs::read(volume.join("runs/run-0001/labels.csv")).unwrap();
    assert_eq!(found, expected, "the same as a run of three epochs");
    deepcluster(["verify", text(&volume)]).good();

    // The same command with other epochs or another place begins a run, and says so.
    let again = train(&moved, &volume, "4");
    assert!(again.stderr.contains("resume") && again.stderr.contains("run-0001 --epochs 4"), "{}", again.stderr);
    again.good();
}

#[test]
fn a_training_whose_reader_has_gone_says_how_it_goes_on() {
    let volume = tempfile::tempdir().unwrap();
    let program = crate::support::program("deepcluster");
    let mut child =
        Command::new(program).args(train_arguments(volume.path())).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("deepcluster resume"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_assigned_while_a_run_goes_on() {
    let stack = Stack::start();
    let mut runs = stack.runs();
    let run = create(&mut runs, spec(30)).await;
    watch_until(&mut runs, &run.run_id, is_phase(1, "train")).await;
    let folder = stack.volume.path().join("runs").join(&run.run_id);
    let images = pictures().join("stripes");
    let output = tokio::task::spawn_blocking(move || deepcluster(["assign", text(&folder), text(&images)])).await.unwrap().good();
    assert_eq!(output.lines().count(), 21, "{output}");
    assert!(output.lines().skip(1).all(|line| !line.contains(",-1,")), "{output}");
    let hidden = fs::read_dir(stack.volume.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(hidden.into_iter().all(|name| !name.to_str().unwrap().starts_with(".snapshot")), "the snapshot has gone");
    let request = || CancelRunRequest { run_id: run.run_id.clone() };
    for _ in 0..2 {
        let cancelled = runs.cancel_run(request()).await.unwrap().into_inner().run.unwrap();
        assert_eq!(cancelled.state(), RunState::Cancelled, "twice is no error");
    }
}

#[test]
fn a_run_on_a_volume_that_cannot_be_written_can_be_asked() {
    let run = finished_run().folder();
    let volume = run.parent().unwrap().parent().unwrap();
    let picture = fs::read_dir(pictures().join("stripes")).unwrap().next().unwrap().unwrap().path();
    // A mount of our own, where we may make one.
    let ask = |command: &str| {
        let script = format!("mount --bind {0} {0} && mount -o remount,bind,ro {0} && {command}", text(volume));
        Command::new("unshare").args(["--mount", "sh", "-c", &script]).output().unwrap()
    };
    if !ask("true").status.success() {
        eprintln!("no mount can be made here; the test is left out");
        return;
    }
    let program = crate::support::program("deepcluster");
    for command in ["assign", "neighbours"] {
        let output = ask(&format!("{} {command} {} {}", text(&program), text(&run), text(&picture)));
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_answers_at_a_wrong_port_is_named() {
    let stack = Stack::start();
    let worker = &stack.workers[0];
    until_serving(worker.channel()).await;
    let web = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let web_address = web.local_addr().unwrap();
    std::thread::spawn(move || {
        use std::io::{Read, Write};
        for stream in web.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            // Closed before all was read, the answer could be lost with the connection.
            while stream.read(&mut [0; 1024]).is_ok_and(|n| n > 0) {}
        }
    });
    let worker_address = worker.address();
    let ask = |server: String| tokio::task::spawn_blocking(move || deepcluster(["runs", "--server", &server]));
    let outcome = ask(format!("http://{worker_address}")).await.unwrap();
    assert!(outcome.stderr.contains("is no coordinator, though it speaks gRPC"), "{}", outcome.stderr);
    let outcome = ask(format!("http://{web_address}")).await.unwrap();
    assert!(outcome.stderr.contains("does not speak gRPC"), "{}", outcome.stderr);
    let outcome = ask(format!("https://{worker_address}")).await.unwrap();
    assert!(outcome.stderr.contains("does not speak TLS"), "{}", outcome.stderr);
}
