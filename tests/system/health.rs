//! Training that goes wrong says so, with figures and a remedy.

use crate::support::{Followed, deepcluster, pictures, text};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;

fn train(volume: &Path, flags: &str) -> (Vec<Value>, Option<i32>) {
    let common = "--arch resnet18 --image-size 32 --k 8 --batch 64 --device cpu --json";
    let epochs = if flags.contains("--epochs") { "" } else { "--epochs 2" };
    let arguments = ["train", text(pictures()), "--out", text(volume)]
        .into_iter()
        .chain([common, epochs, flags].into_iter().flat_map(str::split_whitespace));
    Followed::start(&arguments.map(str::to_owned).collect::<Vec<_>>()).finish()
}

#[test]
fn the_best_epoch_stays_and_can_be_exported() {
    let volume = tempfile::tempdir().unwrap();
    let (events, code) = train(volume.path(), "--epochs 6 --keep-epochs 2 --seed 3");
    assert_eq!(code, Some(0));
    let scores: Vec<f64> =
        events.iter().filter(|event| event["event"] == "epoch").map(|event| event["nmi_classes"].as_f64().unwrap()).collect();
    assert_eq!(scores.len(), 6);
    let mut best = 0;
    for (epoch, score) in scores.iter().enumerate() {
        if *score > scores[best] {
            best = epoch;
        }
    }
    let mut expected = BTreeSet::from([4, 5, best]);
    expected.extend(best.checked_sub(1));
    let run = volume.path().join("runs/run-0001");
    let folders = std::fs::read_dir(run.join("epochs")).unwrap();
    let kept = folders.map(|folder| folder.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect::<BTreeSet<usize>>();
    assert_eq!(kept, expected, "{scores:?}");
    let exported = volume.path().join("best.safetensors");
    deepcluster(["export", text(&run), "--epoch", &best.to_string(), "--to", text(&exported)]).good();
    assert!(deepcluster(["verify", text(volume.path())]).good().contains("run-0001"));
}

fn warnings(events: &[Value]) -> Vec<&Value> {
    events.iter().filter(|event| event["event"] == "warning").collect()
}

#[test]
fn numbers_that_are_not_finite_begin_the_epoch_anew_once() {
    let volume = tempfile::tempdir().unwrap();
    let (events, code) = train(volume.path(), "--lr 1e30 --checkpoint-every 1");
    assert_eq!(code, Some(2), "{events:?}");
    let found = warnings(&events);
    assert_eq!(found.len(), 1, "{events:?}");
    assert_eq!((found[0]["kind"].as_str(), found[0]["severity"].as_str()), (Some("not-finite"), Some("warning")));
    assert!(found[0]["remedy"].as_str().unwrap().contains("--lr"));
    let phases = events.iter().filter(|event| event["event"] == "phase" && event["phase"] == "train");
    assert_eq!(phases.map(|phase| phase["from_step"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 0]);
    let last = events.last().unwrap();
    assert!(last["message"].as_str().unwrap().contains("not finite twice"), "{last}");
    assert_eq!(last["severity"], "error");
}

#[test]
fn a_first_epoch_far_above_guessing_is_a_warning() {
    let volume = tempfile::tempdir().unwrap();
    let (events, _) = train(volume.path(), "--lr 2");
    let found = warnings(&events);
    let high = found.iter().find(|warning| warning["kind"] == "high-loss").unwrap();
    assert_eq!(high["epoch"], 0, "{high}");
    assert!(high["message"].as_str().unwrap().contains("ln 8 = 2.079"), "{high}");
    assert_eq!(high["remedy"], "lower --lr");
}

#[test]
fn a_loss_that_does_not_move_is_a_warning() {
    let volume = tempfile::tempdir().unwrap();
    let (events, code) = train(volume.path(), "--lr 1e-9 --pca 256");
    assert_eq!(code, Some(0));
    let found = warnings(&events);
    let stuck = found.iter().find(|warning| warning["kind"] == "stuck-loss").unwrap();
    assert_eq!(stuck["epoch"], 1);
    assert!(stuck["message"].as_str().unwrap().contains("ln 8 = 2.079"), "{stuck}");
    assert_eq!(
        found.iter().filter(|warning| warning["kind"] == "many-dimensions").count(),
        1,
        "it cannot change, and is said once: {found:?}"
    );
    // The paper's 256 dimensions are too many for 200 pictures.
    let page = volume.path().join("report.html");
    deepcluster(["report", text(&volume.path().join("runs/run-0001")), "--to", text(&page)]).good();
    let page = std::fs::read_to_string(&page).unwrap();
    assert!(page.contains("whitening to 256 dimensions makes 200 images") && page.contains("Lower --pca"), "no such warning");
    assert!(events.iter().all(|event| event["severity"].is_string() && event["number"].is_u64() && event["time"].is_f64()));
}
