//! Running the programs on temporary folders.

use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::{LazyLock, Mutex};
use tempfile::TempDir;

/// A built program; it lies beside the folder of this test.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.parent().unwrap().parent().unwrap().join(name);
    assert!(program.is_file(), "{} is missing; `make test` builds it first", program.display());
    program
}

/// What a finished command left.
pub struct Outcome {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    fn of(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// Its standard output, once it is sure that it went well.
    pub fn good(self) -> String {
        assert_eq!(self.code, Some(0), "{}{}", self.stdout, self.stderr);
        self.stdout
    }
}

/// Runs `deepcluster`.
pub fn deepcluster(arguments: impl IntoIterator<Item: AsRef<OsStr>>) -> Outcome {
    Outcome::of(Command::new(program("deepcluster")).args(arguments).output().unwrap())
}

/// Runs a Python script of `tests/system` with arguments; a failed assertion in it fails here.
pub fn python<const N: usize>(script: &str, arguments: [&Path; N]) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("system").join(script);
    Outcome::of(Command::new("python3").arg(script).args(arguments).output().unwrap()).good()
}

/// 200 demo pictures of 64 pixels, made once.
pub fn pictures() -> &'static Path {
    static PICTURES: LazyLock<TempDir> = LazyLock::new(|| {
        let folder = tempfile::tempdir().unwrap();
        deepcluster(["demo-images", text(folder.path()), "--count", "200", "--size", "64"]).good();
        folder
    });
    PICTURES.path()
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The run that several tests make: two epochs on the pictures, in shards of 64.
pub fn train_arguments(volume: &Path) -> Vec<String> {
    let flags = "--image-size 64 --k 10 --epochs 2 --batch 32 --seed 5 --shard-images 64 --device cpu --json";
    let mut arguments = vec!["train".to_owned(), text(pictures()).to_owned(), "--out".to_owned(), text(volume).to_owned()];
    arguments.extend(flags.split(' ').map(str::to_owned));
    arguments
}

/// Lines of a process that prints one JSON object a line.
pub struct Followed {
    pub child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Followed {
    pub fn start(arguments: &[String]) -> Self {
        let mut child = Command::new(program("deepcluster")).args(arguments).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// Reads on until an event passes the test.
    pub fn wait_for(&mut self, mut wanted: impl FnMut(&Value) -> bool) -> Value {
        for line in self.lines.by_ref() {
            let event: Value = serde_json::from_str(&line.unwrap()).unwrap();
            if wanted(&event) {
                return event;
            }
        }
        panic!("the command ended before the event came: {:?}", self.child.wait());
    }

    /// The event that a phase of an epoch begins.
    pub fn wait_for_phase(&mut self, epoch: u32, phase: &str) {
        self.wait_for(|event| event["event"] == "phase" && event["epoch"] == epoch && event["phase"] == phase);
    }

    /// The rest of its events, and its exit code.
    pub fn finish(mut self) -> (Vec<Value>, Option<i32>) {
        let rest = self.lines.by_ref().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
        (rest, self.child.wait().unwrap().code())
    }
}

impl Drop for Followed {
    /// A test that fails must not leave the command running.
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Processes whose command line holds both texts.
pub fn processes(one: &str, other: &str) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let pid: Option<i32> = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        found.extend(pid.filter(|_| line.contains(one) && line.contains(other)));
    }
    found
}

/// Waits until no process works on a volume any more.
pub fn wait_until_deserted(volume: &Path) {
    for _ in 0..600 {
        if processes("deepcluster-", text(volume)).is_empty() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    panic!("services are left on {}: {:?}", volume.display(), processes("deepcluster-", text(volume)));
}

/// Names and bytes of everything below a run's folder of epochs, without times.
pub fn contents(epochs: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(epochs).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            files.extend(contents(&path).into_iter().map(|(inner, bytes)| (format!("{name}/{inner}"), bytes)));
            continue;
        }
        let mut bytes = std::fs::read(&path).unwrap();
        if name == "epoch.json" {
            let mut manifest: Value = serde_json::from_slice(&bytes).unwrap();
            for seconds in ["extract_s", "cluster_s", "train_s"] {
                manifest["scores"][seconds] = Value::Null;
            }
            // What was interrupted reads some images again.
            manifest["scores"]["reads"] = Value::Null;
            // That of the text, seconds included.
            manifest["checksum"] = Value::Null;
            bytes = manifest.to_string().into_bytes();
        }
        files.insert(name, bytes);
    }
    files
}

/// The volume of an undisturbed run, made once.
pub fn finished_run() -> &'static FinishedRun {
    static RUN: LazyLock<FinishedRun> = LazyLock::new(|| {
        let volume = tempfile::tempdir().unwrap();
        let (events, code) = Followed::start(&train_arguments(volume.path())).finish();
        assert_eq!(code, Some(0));
        FinishedRun { volume, events, owner: Mutex::new(()) }
    });
    &RUN
}

/// An undisturbed run.
pub struct FinishedRun {
    pub volume: TempDir,
    pub events: Vec<Value>,
    /// Held by whoever starts services on the volume, which only one may.
    pub owner: Mutex<()>,
}

impl FinishedRun {
    pub fn folder(&self) -> PathBuf {
        self.volume.path().join("runs/run-0001")
    }
}
