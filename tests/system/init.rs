//! Weights of other programs that a run starts from: files of `torch.save` under the names that people have.

use crate::support::{deepcluster, pictures, python, text};
use deepcluster_volume::tensors::{TensorsFile, read_f32};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use tempfile::TempDir;

struct Checkpoints {
    folder: TempDir,
    weights: PathBuf,
}

/// Weights of a ResNet-18, exported by us and saved as others save theirs.
static CHECKPOINTS: LazyLock<Checkpoints> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let volume = folder.path().join("volume");
    train(&volume, &[]).unwrap();
    let weights = folder.path().join("weights.safetensors");
    deepcluster(["export", text(&volume.join("runs/run-0001")), "--to", text(&weights)]).good();
    python("make_checkpoints.py", [&weights, &folder.path().join("checkpoints")]);
    Checkpoints { folder, weights }
});

/// Standard output of a run of one epoch, or why it did not begin.
fn train(volume: &Path, more: &[&str]) -> Result<String, String> {
    let flags = "--arch resnet18 --image-size 32 --k 8 --batch 64 --epochs 1 --device cpu";
    let arguments = ["train", text(pictures()), "--out", text(volume)].into_iter().chain(flags.split(' '));
    let outcome = deepcluster(arguments.chain(more.iter().copied()));
    if outcome.code == Some(0) { Ok(outcome.stdout) } else { Err(outcome.stderr) }
}

#[test]
fn checkpoints_of_pytorch_start_a_run_whatever_stands_before_their_names() {
    let Checkpoints { folder, weights } = &*CHECKPOINTS;
    let (weights, mut expected) = (TensorsFile::open(weights).unwrap(), Vec::new());
    for (name, said) in [
        ("plain.pth", "the first weights: 7 other tensors are left out"),
        ("channels-last.pt", "7 other tensors are left out"),
        ("moco.pth.tar", "found in 'state_dict', under the prefix 'encoder_q.', "),
        ("dino.pth", "found in 'teacher', under the prefix 'backbone.', 7 other tensors are left out"),
        ("lightly.ckpt", "found in 'state_dict', under the prefix 'backbone.'"),
    ] {
        let volume = folder.path().join(format!("volume-{name}"));
        let file = folder.path().join("checkpoints").join(name);
        let output = train(&volume, &["--init", text(&file)]).unwrap_or_else(|why| panic!("{name}: {why}"));
        assert!(output.contains(said), "{name}: '{said}' is missing in {output}");
        let init = read_f32(&volume.join("runs/run-0001/init.safetensors")).unwrap();
        assert!(init.len() >= 100, "{name}: {} tensors", init.len());
        for (tensor, found) in &init {
            weights.read_as_f32(tensor, &mut expected).unwrap();
            assert_eq!(found.values, expected, "{name}: {tensor}");
        }
    }
}

#[test]
fn files_of_pytorch_that_hold_no_weights_are_refused_with_a_sentence() {
    let Checkpoints { folder, .. } = &*CHECKPOINTS;
    for (name, word) in [
        ("nothing.pth", "holds no tensors by name"),
        ("script.pt", "TorchScript"),
        ("old.pth", "before 1.6"),
        ("cut.pth", "no whole ZIP archive"),
    ] {
        let file = folder.path().join("checkpoints").join(name);
        let sentence = train(&folder.path().join("refused"), &["--init", text(&file)]).unwrap_err();
        assert!(sentence.contains(word) && sentence.contains(name), "{name}: {sentence}");
    }
}
