//! Whole runs, by the command that users give.

use crate::memory::{self, Peaks};
use crate::parts;
use crate::peer::Peer;
use crate::table::{Goal, Row};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Images of a batch in the ceiling's bench.
const CEILING_BATCH: f64 = 64.0;

/// Which photographs are shown how often.
pub(crate) struct Shown {
    /// Their folder.
    pub(crate) images: PathBuf,
    /// How many there are in it.
    pub(crate) n: f64,
}

impl Shown {
    /// At least `wanted` photographs, by repeating those of a folder.
    pub(crate) fn of(photos: &Path, wanted: usize, images: PathBuf) -> Result<Self, String> {
        let n = repeat(photos, wanted, &images)? as f64;
        Ok(Self { images, n })
    }
}

/// What the phases of some epochs took, in seconds, and what came out of the last.
#[derive(Default)]
pub(crate) struct Times {
    nmi: f64,
    loss: f64,
    pub(crate) extract: f64,
    pub(crate) cluster: f64,
    pub(crate) train: f64,
    /// Extraction of the first epoch, which decodes.
    first_extract: Option<f64>,
}

impl Times {
    /// Adds an epoch: `extract_s`, `cluster_s`, `train_s`, `loss`, and `nmi_classes` or the peer's `nmi_truth`.
    pub(crate) fn add(&mut self, epoch: &Value) -> Result<(), String> {
        let extract = number(epoch, "extract_s")?;
        self.first_extract.get_or_insert(extract);
        self.extract += extract;
        self.cluster += number(epoch, "cluster_s")?;
        self.train += number(epoch, "train_s")?;
        self.loss = number(epoch, "loss")?;
        // Images of one folder have no classes.
        self.nmi = number(epoch, "nmi_classes").or_else(|_| number(epoch, "nmi_truth")).unwrap_or(f64::NAN);
        Ok(())
    }

    /// Extraction of the first epoch.
    pub(crate) fn first(&self) -> f64 {
        self.first_extract.unwrap_or(self.extract)
    }

    /// The shorter of each phase; scores and losses stay.
    pub(crate) fn least(mut self, other: &Self) -> Self {
        self.extract = self.extract.min(other.extract);
        self.cluster = self.cluster.min(other.cluster);
        self.train = self.train.min(other.train);
        self
    }

    /// Of all phases and epochs.
    pub(crate) fn total(&self) -> f64 {
        self.extract + self.cluster + self.train
    }
}

/// Extraction and training of photographs as shares of what the bare network does.
pub(crate) fn against_ceiling(photos: &Path, shown: usize, scratch: &Path, rows: &mut Vec<Row>) -> Result<(), String> {
    parts::bench("deepcluster-network", "ceiling", &[])?;
    let Shown { images, n } = Shown::of(photos, shown, scratch.join("photos"))?;
    for precision in ["f32", "auto"] {
        let ceiling = |part: &str| Ok::<_, String>(CEILING_BATCH / parts::seconds("ceiling", &format!("{part}/{precision}"))?);
        let flags = ["--image-size=224", "--k=20", "--epochs=2", "--batch=64", &format!("--precision={precision}")];
        let (times, ..) = train(&images, &scratch.join(format!("volume-{precision}")), &flags, &[])?;
        let first = times.first();
        for (name, seconds, part, goal) in [
            ("extraction in the first epoch", first, "forward", 0.90),
            ("extraction from the cache", times.extract - first, "forward", 0.95),
            ("training", times.train / 2.0, "step", 0.92),
        ] {
            let (rate, bare) = (n / seconds, ceiling(part)?);
            rows.push(Row::plain(format!("{name}, photos at 224, AlexNet, {precision}: images a second"), rate));
            rows.push(Row::plain(format!("bare {part}, {precision}: images a second"), bare));
            rows.push(Row::new(format!("{name} ÷ bare {part}, {precision}"), rate / bare, Goal::AtLeast(goal)));
        }
    }
    Ok(())
}

/// Epochs of small pictures, ours and the peer's.
pub(crate) fn whole_epochs(
    cifar: &Path,
    epochs: usize,
    scratch: &Path,
    peer: Option<&Peer>,
    rows: &mut Vec<Row>,
) -> Result<(), String> {
    let epochs = format!("--epochs={epochs}");
    let ours = |precision: &str| {
        let flags = ["--image-size=64", "--k=100", &epochs, "--batch=64", &format!("--precision={precision}")];
        train(cifar, &scratch.join(format!("volume-cifar-{precision}")), &flags, &[])
    };
    let (f32, wall, peaks) = ours("f32")?;
    let (auto, ..) = ours("auto")?;
    for (service, bytes) in peaks {
        rows.push(Row::plain(format!("peak resident memory at 20,000 small pictures, f32: {service}, GB"), bytes as f64 / 1e9));
    }
    let rest = 1.0 - f32.total() / wall;
    rows.push(Row::new("what is neither extraction, clustering nor training ÷ whole", rest, Goal::AtMost(0.01)));
    rows.push(Row::new("NMI with the classes, auto and f32: difference", (auto.nmi - f32.nmi).abs(), Goal::AtMost(0.02)));
    rows.push(Row::new("loss, auto and f32: relative difference", (auto.loss / f32.loss - 1.0).abs(), Goal::AtMost(0.02)));
    let Some(peer) = peer else {
        eprintln!("bench: no PEER_PYTHON, so nothing to compare whole epochs with");
        return Ok(());
    };
    let flags = ["--size=64", "--k=100", &epochs, "--batch=64", "--sobel", "--device=cpu"];
    let plain = peer.epochs(cifar, &flags)?;
    let best = peer.epochs(cifar, &[&flags[..], &["--amp", "--channels-last"]].concat())?;
    rows.push(Row::plain("NMI with the classes, f32", f32.nmi));
    rows.push(Row::plain("NMI with the classes, the peer", plain.nmi));
    for (name, ours, theirs, goal) in [
        ("f32 ÷ the peer", &f32, &plain, 0.45),
        ("auto ÷ the peer with --amp --channels-last", &auto, &best, 0.5),
        ("auto ÷ the peer", &auto, &plain, 0.25),
    ] {
        rows.push(Row::new(format!("whole epochs at 64, k = 100: {name}"), ours.total() / theirs.total(), Goal::AtMost(goal)));
        for (phase, ours, theirs) in [
            ("extraction", ours.extract, theirs.extract),
            ("clustering", ours.cluster, theirs.cluster),
            ("training", ours.train, theirs.train),
        ] {
            rows.push(Row::plain(format!("— {phase}: {name}"), ours / theirs));
        }
    }
    Ok(())
}

/// A whole run under environment variables of its own: what the phases of its epochs took, all of it from the first phase to the
/// last epoch, and its memory.
pub(crate) fn train(
    images: &Path,
    volume: &Path,
    flags: &[&str],
    variables: &[(&str, &str)],
) -> Result<(Times, f64, Peaks), String> {
    eprintln!("bench: deepcluster train {} {}", images.display(), flags.join(" "));
    let program = std::env::current_exe().map_err(|error| error.to_string())?.with_file_name("deepcluster");
    let mut command = Command::new(program);
    command.arg("train").arg(images).arg("--out").arg(volume).args(flags).envs(variables.iter().copied()).stdout(Stdio::null());
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let peaks = memory::watch(&mut child, volume)?;
    let path = volume.join("runs/run-0001/events.jsonl");
    let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let (mut times, mut begin, mut end) = (Times::default(), None, 0.0);
    for line in text.lines() {
        let event: Value = serde_json::from_str(line).map_err(|error| format!("{}: {error}", path.display()))?;
        match event["event"].as_str() {
            Some("phase") => begin = begin.or(event["time"].as_f64()),
            Some("epoch") => {
                times.add(&event)?;
                end = number(&event, "time")?;
            }
            _ => {}
        }
    }
    Ok((times, end - begin.ok_or("the run has no phases")?, peaks))
}

/// Copies of a folder's files until there are enough of them; how many there are.
fn repeat(folder: &Path, wanted: usize, to: &Path) -> Result<usize, String> {
    let n = fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?.count().max(1);
    let copies = wanted.div_ceil(n);
    fs::create_dir_all(to).map_err(|error| error.to_string())?;
    for copy in 0..copies {
        output_of(Command::new("cp").arg("-r").arg(folder).arg(to.join(copy.to_string())))?;
    }
    Ok(copies * n)
}

/// What a command writes to standard output.
pub(crate) fn output_of(command: &mut Command) -> Result<String, String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let failed = |why: &dyn std::fmt::Display| format!("{program}: {why}");
    let output = command.stderr(Stdio::inherit()).output().map_err(|error| failed(&error))?;
    if !output.status.success() {
        return Err(failed(&output.status));
    }
    String::from_utf8(output.stdout).map_err(|error| failed(&error))
}

/// A number of a JSON object.
pub(crate) fn number(object: &Value, name: &str) -> Result<f64, String> {
    object[name].as_f64().ok_or_else(|| format!("no {name} in {object}"))
}
