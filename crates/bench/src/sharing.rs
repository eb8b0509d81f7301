//! What the waiting of threads costs: the same run alone, beside other processes on the same cores, and with several extractors.

use crate::commands::{Times, output_of, train};
use crate::table::{Goal, Row};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Neighbours of a run that shares its cores, and the busy threads of each.
const NEIGHBOURS: usize = 2;
const THREADS_OF_EACH: usize = 2;

/// How often every run is repeated; the least time of each phase counts.
const REPEATS: usize = 2;

/// libgomp's own number of rounds that a thread without work spins.
const LIBGOMP_DEFAULT: [(&str, &str); 1] = [("GOMP_SPINCOUNT", "300000")];

/// Adds the rows *alone*, *shared* and *three extractors*.
pub(crate) fn rows(scratch: &Path, rows: &mut Vec<Row>) -> Result<(), String> {
    let images = scratch.join("sharing-images");
    let program = std::env::current_exe().map_err(|error| error.to_string())?.with_file_name("deepcluster");
    output_of(Command::new(program).arg("demo-images").arg(&images).args(["--count=2000", "--size=64", "--seed=2"]))?;
    let runs = Runs { images, scratch: scratch.to_owned() };
    let alone = runs.least("alone", &[], &[])?;
    let spinning = runs.least("spinning", &[], &LIBGOMP_DEFAULT)?;
    let three = runs.least("three", &["--extractors=3"], &[])?;
    let neighbours = Neighbours::start()?;
    let shared = runs.least("shared", &[], &[])?;
    let spinning_shared = runs.least("spinning-shared", &[], &LIBGOMP_DEFAULT)?;
    drop(neighbours);

    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    // As many of our threads as there are cores, and the neighbours' beside them.
    let fair = (cores + NEIGHBOURS * THREADS_OF_EACH) as f64 / cores as f64;
    for (phase, seconds) in [
        ("extraction", (|times: &Times| times.extract) as fn(&Times) -> f64),
        ("clustering", |times| times.cluster),
        ("training", |times| times.train),
    ] {
        let (alone_s, shared_s) = (seconds(&alone), seconds(&shared));
        rows.push(Row::plain(format!("alone: {phase}, seconds"), alone_s));
        rows.push(Row::new(format!("alone ÷ libgomp's default: {phase}"), alone_s / seconds(&spinning), Goal::AtMost(1.03)));
        rows.push(Row::plain(format!("shared ÷ alone: {phase}"), shared_s / alone_s));
        let spins = seconds(&spinning_shared) / seconds(&spinning);
        rows.push(Row::plain(format!("shared ÷ alone, libgomp's default: {phase}"), spins));
        rows.push(Row::new(format!("shared ÷ alone ÷ fair share: {phase}"), shared_s / alone_s / fair, Goal::AtMost(1.5)));
    }
    let ratio = alone.extract / three.extract;
    rows.push(Row::new("three extractors ÷ one on the same cores: images a second", ratio, Goal::AtLeast(0.95)));
    Ok(())
}

/// Runs on the same pictures.
struct Runs {
    images: PathBuf,
    scratch: PathBuf,
}

impl Runs {
    /// The least time of each phase.
    fn least(&self, name: &str, flags: &[&str], variables: &[(&str, &str)]) -> Result<Times, String> {
        // Small shards, so that every extractor has some.
        let common = ["--image-size=64", "--k=20", "--epochs=3", "--batch=64", "--precision=f32", "--shard-images=128"];
        let flags = [&common, flags].concat();
        let mut least: Option<Times> = None;
        for repeat in 0..REPEATS {
            let volume = self.scratch.join(format!("sharing-{name}-{repeat}"));
            let (times, ..) = train(&self.images, &volume, &flags, variables)?;
            least = Some(match least {
                Some(before) => before.least(&times),
                None => times,
            });
        }
        least.ok_or_else(|| "no run".to_owned())
    }
}

/// Processes with busy threads, until this is dropped.
struct Neighbours(Vec<Child>);

impl Neighbours {
    fn start() -> Result<Self, String> {
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut started = Self(Vec::new());
        for _ in 0..NEIGHBOURS {
            let mut command = Command::new(&program);
            command.arg(format!("--busy-threads={THREADS_OF_EACH}")).stdin(Stdio::piped());
            started.0.push(command.spawn().map_err(|error| error.to_string())?);
        }
        Ok(started)
    }
}

impl Drop for Neighbours {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Keeps `n` threads busy until standard input ends, which is when whoever started this process ends.
pub(crate) fn keep_busy(n: usize) {
    for _ in 0..n {
        std::thread::spawn(|| {
            let mut value = 0u64;
            loop {
                value = std::hint::black_box(value.wrapping_add(1));
            }
        });
    }
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}
