//! TensorBoard's files of a run, one more after every epoch. They follow from the run and may be deleted at any time.
//!
//! They take their time, since they show images. They are written beside the loop that gives runs their turns, one epoch after the
//! other, and the loop waits for them only as long as the run is to go on.

use crate::run::Run;
use deepcluster_domain::EpochId;
use deepcluster_report::tensorboard::{event_file, event_file_name, projection};
use deepcluster_report::{ReportError, RunView};
use deepcluster_service::requests::images_folder;
use deepcluster_volume::events::Event;
use deepcluster_volume::publish;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// Writes what there is to say after an epoch. What cannot be written is no reason for the run to stop. Whoever holds `turn` is
/// writing.
pub(crate) async fn write(turn: &Arc<Mutex<()>>, run: &Arc<Run>, images_root: &Path, epoch: EpochId) {
    let (stop, run, images_root) = (run.stop_token(), Arc::clone(run), images_root.to_owned());
    let work = move || {
        if let Err(error) = files(&run, &images_root, epoch) {
            warn!(%error, run_id = %run.id, epoch = epoch.0, "TensorBoard's files are not complete");
        }
    };
    beside(turn, &stop, work).await;
}

/// Does work on a thread of its own, after what was given here before. Returns when it is done or at `stop`, which does not end it.
async fn beside(turn: &Arc<Mutex<()>>, stop: &CancellationToken, work: impl FnOnce() + Send + 'static) {
    let turn = Arc::clone(turn);
    let done = tokio::spawn(async move {
        // In the order in which it was asked for.
        let turn = turn.lock_owned().await;
        let work = move || {
            let _turn = turn;
            work();
        };
        tokio::task::spawn_blocking(work).await
    });
    tokio::select! {
        done = done => if let Ok(Err(error)) | Err(error) = done {
            warn!(%error, "TensorBoard's files are not complete");
        },
        () = stop.cancelled() => {}
    }
}

fn files(run: &Run, images_root: &Path, epoch: EpochId) -> Result<(), ReportError> {
    let Ok(images) = images_folder(images_root, &run.spec.images) else { return Ok(()) };
    let folder = run.folder.tensorboard();
    publish::create_folder(&folder)?;
    // TensorBoard would read what a coordinator that died had begun to write: its name tells of events as well.
    publish::sweep(&folder)?;
    let record = run.record();
    // Epochs from before they were wished for, or over whose files a coordinator has died, have their scores at least.
    let events = run.events_from(0, usize::MAX);
    // When each epoch was committed, so that a file that is written again is the same.
    let times: BTreeMap<u64, f64> = events.iter().filter(|event| event.kind == "epoch").filter_map(time_of).collect();
    for scores in RunView::of(&record, &events).scores {
        let path = folder.join(event_file_name(&record, EpochId(scores.epoch)));
        let is_new = scores.epoch == epoch.0;
        if is_new || !path.is_file() {
            let time = times.get(&u64::from(scores.epoch)).copied().unwrap_or_default();
            let file = event_file(&run.folder, &images, &scores, time, is_new)?;
            publish::publish_bytes(&path, &file)?;
        }
    }
    for (name, bytes) in projection(&run.folder, &images)?.unwrap_or_default() {
        publish::publish_bytes(&folder.join(name), &bytes)?;
    }
    Ok(())
}

/// Number and time of the epoch that an event tells of.
fn time_of(event: &Event) -> Option<(u64, f64)> {
    let event: Value = serde_json::from_str(&event.json).ok()?;
    Some((event["epoch"].as_u64()?, event["time"].as_f64()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex as Shared;
    use std::sync::mpsc;
    use std::time::Duration;

    /// All on one thread, as the loop is: were the work done there, nobody could stop it or let it go on.
    #[tokio::test]
    async fn who_stops_a_run_does_not_wait_for_its_files_and_epochs_keep_their_order() {
        let (turn, stop, done) = (Arc::<Mutex<()>>::default(), CancellationToken::new(), Arc::<Shared<Vec<u32>>>::default());
        let (go_on, wait) = mpsc::channel::<()>();
        let note = |epoch: u32| {
            let done = Arc::clone(&done);
            move || done.lock().unwrap().push(epoch)
        };
        let noted = note(0);
        let (started, begins) = tokio::sync::oneshot::channel();
        let slow = move || {
            let _ = started.send(());
            let _ = wait.recv_timeout(Duration::from_secs(60));
            noted();
        };
        let stopping = async {
            begins.await.unwrap();
            stop.cancel();
        };
        tokio::join!(beside(&turn, &stop, slow), stopping);
        assert_eq!(*done.lock().unwrap(), [0; 0], "the first is still at work");

        let running = CancellationToken::new();
        let letting = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert_eq!(*done.lock().unwrap(), [0; 0], "the second waits for it");
            go_on.send(()).unwrap();
        };
        tokio::join!(beside(&turn, &running, note(1)), letting);
        assert_eq!(*done.lock().unwrap(), [0, 1]);
    }
}
