//! `train` and `resume`: a run on the services of this machine.

use crate::change_run::RunChanges;
use crate::client::{Client, NoRoom};
use crate::embedded::{ServicesArgs, Stack, check_device};
use crate::failure::{Failure, say};
use crate::show::Show;
use deepcluster_domain::{DeviceChoice, RunId, RunSpec};
use deepcluster_proto::run_spec_to_wire;
use deepcluster_proto::v1::{CreateRunRequest, ListRunsRequest, Run, RunSpec as WireSpec, RunState};
use deepcluster_volume::Volume;
use deepcluster_volume::records::{RunRecord, read_record};
use std::fs;
use std::path::Path;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// How long a fresh coordinator may take to answer.
const START: Duration = Duration::from_secs(60);

/// Which run.
enum Wanted {
    /// The one of this spec that was interrupted, or a new one.
    Spec(Box<RunSpec>),
    /// One by name, or the only one that has not ended.
    Unfinished(Option<String>),
}

/// A folder of images as the services know it: relative to their root, `/`.
///
/// # Errors
/// One sentence that names the folder.
pub fn images_below_root(images: &Path) -> Result<String, Failure> {
    let relative = below_root(images)?;
    if !images.is_dir() {
        return Err(Failure::usage(format!("{} is not a folder", images.display())));
    }
    fs::read_dir(images).map_err(|error| Failure::usage(format!("{}: {error}", images.display())))?;
    Ok(relative)
}

/// A path as the services know it, relative to their root, `/`.
///
/// # Errors
/// One sentence that names it.
pub fn below_root(path: &Path) -> Result<String, Failure> {
    let absolute = fs::canonicalize(path).map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?;
    let text = absolute.to_str().ok_or_else(|| Failure::usage(format!("{} is not UTF-8", absolute.display())))?;
    Ok(text.trim_start_matches('/').to_owned())
}

/// Trains on a folder; an interrupted run of the same spec goes on.
///
/// # Errors
/// When input or spec do not do, or the run fails.
pub async fn train(spec: RunSpec, volume: &Path, services: &ServicesArgs, json: bool) -> Result<(), Failure> {
    spec.validate().map_err(|error| Failure::usage(error.to_string()))?;
    services.check()?;
    if matches!(spec.device, DeviceChoice::Cuda(_)) {
        check_device(&spec.device.to_string())?;
    }
    check_records(volume, &Volume::new(volume).run_ids()?)?;
    embedded(volume, services, Wanted::Spec(Box::new(spec)), json).await
}

/// Continues a run that was interrupted.
///
/// # Errors
/// When there is none, it has ended, or it fails.
pub async fn resume(
    volume: &Path,
    run: Option<String>,
    changes: &RunChanges,
    services: &ServicesArgs,
    json: bool,
) -> Result<(), Failure> {
    services.check()?;
    let runs = Volume::new(volume).run_ids()?;
    if runs.is_empty() {
        return Err(Failure::usage(format!("{} has no runs", volume.display())));
    }
    if let Some(name) = run.as_ref().filter(|name| !runs.iter().any(|id| id.as_str() == name.as_str())) {
        return Err(Failure::usage(format!("{} has no run {name}", volume.display())));
    }
    let named = |id: &RunId| run.as_ref().is_none_or(|name| id.as_str() == name.as_str());
    check_records(volume, &runs.iter().filter(|id| named(id)).cloned().collect::<Vec<_>>())?;
    let run = match changes.is_empty() {
        true => run,
        false => Some(changes.apply(&Volume::new(volume), run.as_deref())?.to_string()),
    };
    embedded(volume, services, Wanted::Unfinished(run), json).await
}

/// A run whose record cannot be read may be the very one that is to go on; another must not begin in its place unasked.
fn check_records(volume: &Path, runs: &[RunId]) -> Result<(), Failure> {
    for id in runs {
        let folder = Volume::new(volume).run(id);
        let (at, run) = (volume.display(), folder.path().display());
        read_record::<RunRecord>(&folder.run_json()).map_err(|error| {
            Failure::usage(format!("{error}; `deepcluster verify {at} --repair` may mend it, or {run} must be moved away"))
        })?;
    }
    Ok(())
}

/// Starts the services, works with them, stops the services, whatever happens.
///
/// # Errors
/// What the work fails with, or why a service cannot start.
pub async fn with_services<T>(
    volume: &Path,
    services: &ServicesArgs,
    hint: &str,
    work: impl AsyncFnOnce(&mut Client, Vec<Run>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let stack = Stack::start(volume, services)?;
    let mut client = Client::of_this_machine(&stack.server)?;
    let answered = async {
        let runs = tokio::time::timeout(START, first_answer(&mut client)).await;
        let runs = runs.map_err(|_| Failure::other(format!("the coordinator does not answer; see {}/logs", volume.display())))?;
        work(&mut client, runs).await
    };
    while_alive(stack, hint, answered).await
}

/// Works with services that are started, and stops them then.
///
/// # Errors
/// What the work fails with, or why a service cannot start.
pub async fn while_alive<T>(mut stack: Stack, hint: &str, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let failed = |error: std::io::Error| Failure::other(error.to_string());
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let outcome = tokio::select! {
        failure = stack.keep_alive() => Err(failure),
        outcome = work => outcome,
        _ = interrupt.recv() => Err(Failure::other(format!("interrupted{hint}"))),
        _ = terminate.recv() => Err(Failure::other(format!("interrupted{hint}"))),
    };
    stack.stop().await;
    outcome
}

async fn embedded(volume: &Path, services: &ServicesArgs, wanted: Wanted, json: bool) -> Result<(), Failure> {
    let hint = format!("; `deepcluster resume {}` goes on", volume.display());
    with_services(volume, services, &hint, async |client, runs| follow(client, runs, wanted, volume, json).await).await
}

async fn follow(client: &mut Client, runs: Vec<Run>, wanted: Wanted, volume: &Path, json: bool) -> Result<(), Failure> {
    let run = match wanted {
        Wanted::Spec(spec) => {
            let wire = run_spec_to_wire(&spec.as_requested());
            match runs.iter().rev().find(|run| run.spec.as_ref() == Some(&wire) && can_go_on(run)) {
                Some(run) => client.resume(run.run_id.clone()).await?,
                None => {
                    if let Some(sentence) = instead_of_going_on(&runs, &wire, volume) {
                        eprintln!("deepcluster: {sentence}");
                    }
                    client.create(CreateRunRequest { spec: Some(wire), ..CreateRunRequest::default() }).await?
                }
            }
        }
        Wanted::Unfinished(name) => client.resume(unfinished(runs, name)?.run_id).await?,
    };
    let folder = volume.join(&run.folder);
    if !json {
        say(format!("{} in {}", run.run_id, folder.display()))?;
    }
    let mut show = Show::new(json);
    client.follow(&run.run_id, NoRoom::Ends, &mut show).await?;
    if let Some(summary) = show.summary() {
        say(format!("{summary}\nfinished: {}", folder.display()))?;
    }
    Ok(())
}

/// Why a command begins another run where a run of the volume could go on with a change.
fn instead_of_going_on(runs: &[Run], wire: &WireSpec, volume: &Path) -> Option<String> {
    let at = volume.display();
    for run in runs.iter().rev() {
        let Some(spec) = &run.spec else { continue };
        let id = &run.run_id;
        let is_longer = wire.epochs > run.epochs_done && run.state() != RunState::Cancelled;
        if *spec == (WireSpec { epochs: spec.epochs, ..wire.clone() }) && is_longer {
            let epochs = wire.epochs;
            return Some(format!(
                "this begins another run, since {id} was made for {} epochs; `deepcluster resume {at} {id} --epochs {epochs}` goes on \
                 with that one",
                spec.epochs
            ));
        }
        if *spec == (WireSpec { images: spec.images.clone(), ..wire.clone() }) && can_go_on(run) {
            return Some(format!(
                "this begins another run, since {id} is one on the images in /{}; if they were moved, `deepcluster resume {at} {id} \
                 --images FOLDER` goes on with it",
                spec.images
            ));
        }
    }
    None
}

async fn first_answer(client: &mut Client) -> Vec<Run> {
    loop {
        match client.list(ListRunsRequest::default()).await {
            Ok(runs) => return runs,
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

fn can_go_on(run: &Run) -> bool {
    matches!(run.state(), RunState::Paused | RunState::Failed)
}

fn unfinished(runs: Vec<Run>, name: Option<String>) -> Result<Run, Failure> {
    if let Some(name) = name {
        // Whether it may go on is for the coordinator to say.
        let run = runs.into_iter().find(|run| run.run_id == name);
        return run.ok_or_else(|| Failure::usage(format!("run {name} cannot be read; see the log of the coordinator")));
    }
    // One that was interrupted comes before any that failed.
    let paused = runs.iter().any(|run| run.state() == RunState::Paused);
    let wanted = |run: &Run| if paused { run.state() == RunState::Paused } else { can_go_on(run) };
    let mut candidates: Vec<Run> = runs.into_iter().filter(wanted).collect();
    let names: Vec<String> = candidates.iter().map(|run| run.run_id.clone()).collect();
    match candidates.pop() {
        None => Err(Failure::usage("there is no run that could go on")),
        Some(_) if !candidates.is_empty() => {
            Err(Failure::usage(format!("name one of the runs that could go on: {}", names.join(", "))))
        }
        Some(run) => Ok(run),
    }
}
