//! `verify`: every file of a volume against what its records promise.

use crate::failure::{Failure, say};
use deepcluster_domain::RunId;
use deepcluster_volume::Volume;
use deepcluster_volume::lock::VolumeLock;
use deepcluster_volume::publish;
use deepcluster_volume::verify::{Report, repair_run, verify_caches, verify_run};
use serde_json::json;
use std::path::Path;
use std::time::Duration;

/// Never: whoever repairs must not take the volume from a coordinator that merely hangs.
const NO_TAKEOVER: Duration = Duration::MAX;

/// Checks the runs of a volume and says what is wrong; drops what cannot be trusted when asked to.
///
/// # Errors
/// Exit code 1 when something is wrong and stays so; 2 when there is nothing to check, or the volume to be repaired is owned.
pub fn verify(root: &Path, run: Option<&str>, repair: bool, as_json: bool) -> Result<(), Failure> {
    let volume = Volume::new(root);
    let all = volume.run_ids()?;
    let ids: Vec<RunId> = match run {
        None => all,
        Some(name) => all.into_iter().filter(|id| id.as_str() == name).collect(),
    };
    if ids.is_empty() {
        let what = run.map_or("runs".to_owned(), |name| format!("run {name}"));
        return Err(Failure::usage(format!("{} has no {what}", root.display())));
    }
    let _owner = if repair { Some(VolumeLock::take(root, NO_TAKEOVER)?) } else { None };
    let mut n_damaged = 0;
    for id in &ids {
        let mut report = verify_run(&volume, id)?;
        tell(id, &report, as_json)?;
        if repair && (!report.damage.is_empty() || !report.leftovers.is_empty()) {
            repair_run(&volume, id, &report)?;
            report = verify_run(&volume, id)?;
            tell(id, &report, as_json)?;
        }
        n_damaged += usize::from(!report.damage.is_empty());
    }
    check_caches(&volume, repair, as_json)?;
    match (n_damaged, repair) {
        (0, _) => Ok(()),
        (n, false) => {
            Err(Failure::other(format!("{n} of {} runs are damaged; --repair drops what cannot be trusted", ids.len())))
        }
        (n, true) => Err(Failure::other(format!("{n} of {} runs are damaged beyond repair", ids.len()))),
    }
}

/// Decoded images that are damaged are no damage to any run: they are decoded again.
fn check_caches(volume: &Volume, repair: bool, as_json: bool) -> Result<(), Failure> {
    let (n_good, damaged) = verify_caches(volume)?;
    if n_good + damaged.len() == 0 {
        return Ok(());
    }
    if repair {
        damaged.iter().try_for_each(|(path, _)| publish::remove(path))?;
    }
    let sentences: Vec<String> = damaged.iter().map(|(_, error)| error.to_string()).collect();
    if as_json {
        return say(json!({"cache": {"files": n_good, "damage": sentences}}));
    }
    for sentence in sentences {
        say(format!("cache: {sentence}; the images are decoded again when they are needed"))?;
    }
    say(format!("cache: {n_good} files of decoded images are good"))
}

fn tell(id: &RunId, report: &Report, as_json: bool) -> Result<(), Failure> {
    let epochs = report.good_epochs.iter().map(|epoch| epoch.0).collect::<Vec<_>>();
    let damage = report.damage.iter().map(ToString::to_string).collect::<Vec<_>>();
    if as_json {
        let damaged = report.damaged_epochs.iter().map(|epoch| epoch.0).collect::<Vec<_>>();
        return say(json!({
            "run_id": id.as_str(), "files": report.n_files, "good_epochs": epochs, "damaged_epochs": damaged,
            "damage": damage, "leftovers": report.leftovers,
        }));
    }
    for sentence in &damage {
        say(format!("{id}: {sentence}"))?;
    }
    for left in &report.leftovers {
        say(format!("{id}: {} was left by a process that was killed", left.display()))?;
    }
    let verdict = if damage.is_empty() { "good" } else { "damaged" };
    say(format!("{id}: {verdict}; {} files and the epochs {epochs:?} are what their records say", report.n_files))
}
