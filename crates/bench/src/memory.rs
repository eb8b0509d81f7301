//! How much memory the services of a run take.

use deepcluster_service::memory::peak_resident;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Child;
use std::time::Duration;

/// How often the kernel is asked; it keeps the peak itself, so that only the last moment of a process can be missed.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Peaks of resident memory in bytes, by service.
pub(crate) type Peaks = BTreeMap<String, u64>;

/// Waits for a command, and notes the peaks of the services that work on its volume.
pub(crate) fn watch(child: &mut Child, volume: &Path) -> Result<Peaks, String> {
    let mut peaks = Peaks::new();
    loop {
        for (service, bytes) in services(volume) {
            let peak = peaks.entry(service).or_default();
            *peak = bytes.max(*peak);
        }
        match child.try_wait().map_err(|error| error.to_string())? {
            Some(status) if status.success() => return Ok(peaks),
            Some(status) => return Err(format!("deepcluster train: {status}")),
            None => std::thread::sleep(LOOK_EVERY),
        }
    }
}

fn services(volume: &Path) -> Vec<(String, u64)> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.filter_map(|process| service(&process.path(), volume)).collect()
}

/// Name and peak of a process, if it is a service on this volume.
fn service(process: &Path, volume: &Path) -> Option<(String, u64)> {
    let line = fs::read(process.join("cmdline")).ok()?;
    let line = String::from_utf8_lossy(&line);
    let program = Path::new(line.split('\0').next()?).file_name()?.to_str()?.strip_prefix("deepcluster-")?.to_owned();
    if !line.contains(volume.to_str()?) {
        return None;
    }
    let pid = process.file_name()?.to_str()?.parse().ok()?;
    Some((program, peak_resident(pid)?))
}
