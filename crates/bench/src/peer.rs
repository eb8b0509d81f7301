//! The peer: the same work as a PyTorch user would write it (`peer/`).

use crate::commands::{Times, output_of};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A Python that can run it.
pub(crate) struct Peer(pub(crate) PathBuf);

impl Peer {
    /// Times of its parts, by name.
    pub(crate) fn parts(&self, photos: Option<&Path>, data: &Path, threads: usize) -> Result<Value, String> {
        let mut command = self.script("parts.py");
        command.arg("--data").arg(data).arg(format!("--threads={threads}"));
        if let Some(photos) = photos {
            command.arg("--photos").arg(photos);
        }
        let text = output_of(&mut command)?;
        serde_json::from_str(&text).map_err(|error| format!("parts.py: {error}"))
    }

    /// Epochs of a whole run.
    pub(crate) fn epochs(&self, images: &Path, flags: &[&str]) -> Result<Times, String> {
        let text = output_of(self.script("deepcluster_torch.py").arg(images).args(flags))?;
        let mut times = Times::default();
        for line in text.lines().filter(|line| line.starts_with('{')) {
            let epoch = serde_json::from_str(line).map_err(|error| format!("deepcluster_torch.py: {error}"))?;
            times.add(&epoch)?;
        }
        Ok(times)
    }

    fn script(&self, name: &str) -> Command {
        let mut command = Command::new(&self.0);
        // Where the programs were built, or below the folder in which they run elsewhere.
        let built = Path::new(env!("CARGO_MANIFEST_DIR"));
        let here = if built.is_dir() { built } else { Path::new("crates/bench") };
        command.arg(here.join("peer").join(name));
        command
    }
}
