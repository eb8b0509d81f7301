//! One run in memory: its record, its events, who watches, and how it is stopped.

use crate::pace::Pace;
use deepcluster_domain::{AutoChoice, EpochId, RunId, RunSpec};
use deepcluster_proto::v1;
use deepcluster_service::requests::file_to_wire;
use deepcluster_volume::events::{Event, EventLog, Severity};
use deepcluster_volume::image_list::{self, ImageEntry};
use deepcluster_volume::records::{ResolvedRecord, RunRecord, RunState, publish_record, read_record};
use deepcluster_volume::{RunFolder, Volume, VolumeError, publish, space};
use metrics::gauge;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The states of a run whose epochs are being made.
const GOING_ON: [RunState; 2] = [RunState::Queued, RunState::Running];

/// How often in a row damaged files are made anew before a run fails: a disk that damages all that it gets is no use.
const MOST_DAMAGES: u32 = 3;

/// A run that the coordinator knows.
pub struct Run {
    /// Its name.
    pub id: RunId,
    /// What it shall do.
    pub spec: RunSpec,
    /// Where it lies.
    pub folder: RunFolder,
    volume: Volume,
    /// By what the decoded images of its last epoch are known.
    cache_key: Mutex<Option<String>>,
    /// How often files were found damaged since an epoch was last committed.
    n_damaged: AtomicU32,
    state: Mutex<State>,
    /// Changes whenever there is something new to watch.
    news: watch::Sender<News>,
}

struct State {
    record: RunRecord,
    log: EventLog,
    events: Vec<Event>,
    /// Cancelled to stop the current epoch.
    stop: CancellationToken,
}

/// What watchers look at.
#[derive(Clone, Debug, Default)]
pub struct News {
    /// Number of events so far.
    pub n_events: u64,
    /// Where the run stands between two events.
    pub progress: Option<v1::RunProgress>,
    /// How fast that gets on.
    pub pace: Option<Pace>,
    /// Whether it has ended.
    pub ended: bool,
}

impl Run {
    /// Registers a new run: its folder, record and first event.
    ///
    /// # Errors
    /// When the volume cannot be written.
    pub fn create(
        volume: &Volume,
        id: RunId,
        spec: RunSpec,
        record: RunRecord,
        choices: &[AutoChoice],
    ) -> Result<Self, VolumeError> {
        let folder = volume.run(&id);
        publish_record(&folder.run_json(), &record)?;
        let (log, events) = EventLog::open(&folder.events_jsonl())?;
        let run = Self::with(volume, id, spec, record, log, events);
        let record = run.record();
        let to_json = |choice: &AutoChoice| json!({"option": choice.option, "value": choice.value, "reason": choice.reason});
        let choices: Vec<_> = choices.iter().map(to_json).collect();
        let resolved = json!({
            "state": record.state, "auto": choices, "k": record.resolved.k, "k_given": record.spec.k,
            "images": record.resolved.n_images, "skipped": record.resolved.n_skipped, "passed_over": record.resolved.passed_over,
            // What run.json can be made of again.
            "spec": record.spec, "images_csv": record.resolved.images_csv.last(), "init": record.resolved.init, "init_note": record.resolved.init_note, "decoders": record.resolved.decoders, "classes_note": record.resolved.classes_note,
            "request_id": record.request_id,
            "priority": record.priority, "labels": record.labels, "note": record.note,
        });
        run.event("run", Severity::Info, resolved)?;
        count_state(record.state, 1.0);
        Ok(run)
    }

    /// Reads a run from the volume.
    ///
    /// # Errors
    /// When its record or events cannot be trusted.
    pub fn open(volume: &Volume, id: RunId) -> Result<Self, VolumeError> {
        let folder = volume.run(&id);
        let record: RunRecord = read_record(&folder.run_json())?;
        publish::remove(&folder.assignments())?;
        let spec = RunSpec::try_from(record.spec.clone()).map_err(|error| VolumeError::corrupt(&folder.run_json(), error))?;
        let (opened, damage) = match EventLog::open(&folder.events_jsonl()) {
            // Nothing goes on from events, so what is damaged of them must not keep the run from it.
            Err(damage @ VolumeError::Corrupt { .. }) => {
                EventLog::salvage(&folder.events_jsonl())?;
                (EventLog::open(&folder.events_jsonl())?, Some(damage))
            }
            other => (other?, None),
        };
        let run = Self::with(volume, id, spec, record, opened.0, opened.1);
        if let Some(damage) = damage {
            let message = format!("{damage}; the events that can be read were kept");
            run.event(
                "fault",
                Severity::Warning,
                json!({"epoch": run.record().epochs_done, "worker": "volume", "message": message}),
            )?;
        }
        run.tell_state()?;
        count_state(run.record().state, 1.0);
        Ok(run)
    }

    /// Adds the event of the last change of state, should a crash have come between the record and the event.
    fn tell_state(&self) -> Result<(), VolumeError> {
        let record = self.record();
        let state = |event: &Event| serde_json::from_str::<Value>(&event.json).ok().map(|json| json["state"].clone());
        let told = self.lock().events.iter().rfind(|event| event.kind == "run").and_then(state);
        if told == Some(json!(record.state)) {
            return Ok(());
        }
        self.event("run", Severity::Info, json!({"state": record.state, "message": record.message}))
    }

    fn with(volume: &Volume, id: RunId, spec: RunSpec, record: RunRecord, log: EventLog, events: Vec<Event>) -> Self {
        let (volume, folder) = (volume.clone(), volume.run(&id));
        let news = News { n_events: events.len() as u64, ended: record.state.has_ended(), ..News::default() };
        let state = State { record, log, events, stop: CancellationToken::new() };
        Self {
            id,
            spec,
            folder,
            volume,
            cache_key: Mutex::default(),
            n_damaged: AtomicU32::new(0),
            state: Mutex::new(state),
            news: watch::Sender::new(news),
        }
    }

    /// Notes by what its decoded images are known.
    pub fn uses_cache(&self, key: String) {
        *self.cache_key.lock().unwrap_or_else(PoisonError::into_inner) = Some(key);
    }

    /// The same, if an epoch has begun and the run has not ended.
    pub fn used_cache(&self) -> Option<String> {
        let key = self.cache_key.lock().unwrap_or_else(PoisonError::into_inner).clone();
        key.filter(|_| !self.record().state.has_ended())
    }

    /// A copy of its record.
    pub fn record(&self) -> RunRecord {
        self.lock().record.clone()
    }

    /// The weights that it starts from; none where they are drawn from its seed.
    pub fn first_weights(&self) -> Option<v1::File> {
        self.lock().record.resolved.init.as_ref().map(file_to_wire)
    }

    /// Changes the record durably.
    ///
    /// # Errors
    /// When it cannot be written; the record is then as before.
    pub fn update(&self, change: impl FnOnce(&mut RunRecord)) -> Result<(), VolumeError> {
        let mut state = self.lock();
        let mut record = state.record.clone();
        change(&mut record);
        publish_record(&self.folder.run_json(), &record)?;
        state.record = record;
        Ok(())
    }

    /// Its images, as it last published them.
    ///
    /// # Errors
    /// When the list is not what was published.
    pub fn images(&self) -> Result<Vec<ImageEntry>, VolumeError> {
        image_list::read_known(&self.folder.images_csv(), &self.record().resolved.images_csv)
    }

    /// Publishes another list of images, whose checksum it returns, and what follows from it. Until both are done, either list
    /// is trusted.
    ///
    /// # Errors
    /// When the volume cannot be written.
    pub fn publish_images(&self, images: &[ImageEntry], change: impl FnOnce(&mut ResolvedRecord)) -> Result<String, VolumeError> {
        let path = self.folder.images_csv();
        let (csv, checksum) = image_list::to_csv(images).map_err(VolumeError::io(&path))?;
        self.update(|record| record.resolved.images_csv.push(checksum.clone()))?;
        publish::publish_bytes(&path, &csv)?;
        self.update(|record| {
            change(&mut record.resolved);
            record.resolved.images_csv = vec![checksum.clone()];
        })?;
        Ok(checksum)
    }

    /// Moves the run from one of some states to another, durably, with an event; stops the current epoch where it must not
    /// go on. False when the run is in none of those states, which then stays as it is.
    ///
    /// # Errors
    /// When the volume cannot be written.
    pub fn enter(&self, from: &[RunState], new: RunState, message: &str) -> Result<bool, VolumeError> {
        self.change_state(from, new, Severity::Info, json!({"message": message}))
    }

    /// Ends the run by an error, which may be the fault of its input, unless it was paused or cancelled meanwhile.
    ///
    /// # Errors
    /// When the volume cannot be written.
    pub fn fail(&self, message: &str, bad_input: bool) -> Result<(), VolumeError> {
        let body = json!({"message": message, "bad_input": bad_input});
        self.change_state(&GOING_ON, RunState::Failed, Severity::Error, body).map(drop)
    }

    /// Pauses the run because there is no room for it, unless it was paused or cancelled meanwhile.
    ///
    /// # Errors
    /// When the volume cannot be written.
    pub fn pause_for_room(&self, message: &str) -> Result<(), VolumeError> {
        let body = json!({"message": message, "reason": "no-room"});
        self.change_state(&GOING_ON, RunState::Paused, Severity::Error, body).map(drop)
    }

    fn change_state(&self, from: &[RunState], new: RunState, severity: Severity, body: Value) -> Result<bool, VolumeError> {
        let mut state = self.lock();
        if !from.contains(&state.record.state) {
            return Ok(false);
        }
        let message = body["message"].as_str().unwrap_or_default().to_owned();
        let mut event = json!({"state": new});
        if let (Some(event), Value::Object(body)) = (event.as_object_mut(), body) {
            event.extend(body);
        }
        let record = RunRecord { state: new, message, ..state.record.clone() };
        self.with_reserve(|| publish_record(&self.folder.run_json(), &record))?;
        count_state(state.record.state, -1.0);
        count_state(new, 1.0);
        state.record = record;
        if new == RunState::Queued {
            state.stop = CancellationToken::new();
        } else if new != RunState::Running {
            state.stop.cancel();
        }
        self.with_reserve(|| self.append(&mut state, "run", severity, event.clone()))?;
        self.news.send_modify(|news| {
            news.ended = new.has_ended();
            if new != RunState::Running {
                (news.progress, news.pace) = (None, None);
            }
        });
        Ok(true)
    }

    /// What a run's state is must be said even where there is no room for anything else.
    fn with_reserve<T>(&self, mut write: impl FnMut() -> Result<T, VolumeError>) -> Result<T, VolumeError> {
        match write() {
            Err(error) if error.is_full() => {
                space::give_reserve_up(self.volume.root())?;
                write()
            }
            other => other,
        }
    }

    /// Adds an event.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn event(&self, kind: &str, severity: Severity, body: Value) -> Result<(), VolumeError> {
        self.append(&mut self.lock(), kind, severity, body)
    }

    /// Adds an event, unless the last one of its kind has said the same.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn event_once(&self, kind: &str, severity: Severity, body: Value) -> Result<(), VolumeError> {
        let message = |event: &Event| serde_json::from_str::<Value>(&event.json).ok().map(|json| json["message"].clone());
        let told = self.lock().events.iter().rfind(|event| event.kind == kind).and_then(message);
        if told.as_ref() == Some(&body["message"]) {
            return Ok(());
        }
        self.event(kind, severity, body)
    }

    fn append(&self, state: &mut State, kind: &str, severity: Severity, body: Value) -> Result<(), VolumeError> {
        let event = state.log.append(kind, severity, body)?;
        state.events.push(event);
        let n_events = state.events.len() as u64;
        self.news.send_modify(|news| news.n_events = n_events);
        Ok(())
    }

    /// Whether damaged files may be made anew once more; not when that has helped nothing before.
    pub fn may_begin_anew(&self) -> bool {
        self.n_damaged.fetch_add(1, Ordering::Relaxed) < MOST_DAMAGES
    }

    /// Counts an epoch durably.
    ///
    /// # Errors
    /// When the volume cannot be written.
    pub fn count_epoch(&self, epoch: EpochId) -> Result<(), VolumeError> {
        self.n_damaged.store(0, Ordering::Relaxed);
        self.update(|record| record.epochs_done = epoch.0 + 1)
    }

    /// Adds an event of a committed epoch, unless a coordinator that died after the commit has already done so.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn event_of_epoch(&self, epoch: EpochId, kind: &str, severity: Severity, body: Value) -> Result<(), VolumeError> {
        let is_it = |event: &Event| {
            let json: Option<Value> = serde_json::from_str(&event.json).ok();
            let same = |json: Value| json["epoch"] == epoch.0 && json["message"] == body["message"];
            event.kind == kind && json.is_some_and(same)
        };
        if self.lock().events.iter().any(is_it) {
            return Ok(());
        }
        self.event(kind, severity, body)
    }

    /// Events from a number on, a few at a time.
    pub fn events_from(&self, first: u64, most: usize) -> Vec<Event> {
        self.lock().events.iter().skip(first as usize).take(most).cloned().collect()
    }

    /// Tells watchers how far a phase has come.
    pub fn progress(&self, progress: v1::RunProgress) {
        self.news.send_modify(|news| {
            news.pace = Some(Pace::of(&progress, news.progress.as_ref().zip(news.pace)));
            news.progress = Some(progress);
        });
    }

    /// What watchers look at.
    pub fn news(&self) -> watch::Receiver<News> {
        self.news.subscribe()
    }

    /// Cancelled when the current epoch must stop.
    pub fn stop_token(&self) -> CancellationToken {
        self.lock().stop.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while it was held would have left at most a stale copy: everything that counts is on the volume.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells Prometheus of one run more or less in a state.
fn count_state(state: RunState, change: f64) {
    gauge!("deepcluster_runs", "state" => state.to_string()).increment(change);
}
