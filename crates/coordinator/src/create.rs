//! Creating a run: once for each request id, if there is room for it on the volume and in the queue.

use crate::images;
use crate::init::Init;
use crate::run::Run;
use crate::runs::Runs;
use deepcluster_domain::space::{SpaceNeeded, human};
use deepcluster_domain::{RunId, RunSpec, Tags, tags};
use deepcluster_proto::v1::CreateRunRequest;
use deepcluster_proto::{FieldError, retry_later, tags_of};
use deepcluster_service::requests::{no_room, volume_status};
use deepcluster_service::telemetry;
use deepcluster_volume::records::{ResolvedRecord, RunRecord, RunState, SpecRecord, VERSION};
use deepcluster_volume::{VolumeError, events::seconds_since_1970, image_list, publish, space};
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tonic::{Code, Status};

/// When a full queue is worth another try.
const ASK_AGAIN: Duration = Duration::from_secs(30);

/// A run that somebody wants.
pub struct NewRun {
    /// What it shall do.
    pub spec: RunSpec,
    /// What its creator says about it.
    pub tags: Tags,
    /// The id of the request; empty for none.
    pub request_id: String,
    /// The trace that its epochs belong to; empty for none.
    pub traceparent: String,
}

impl TryFrom<CreateRunRequest> for NewRun {
    type Error = FieldError;

    fn try_from(request: CreateRunRequest) -> Result<Self, FieldError> {
        tags::check_request_id(&request.request_id).map_err(|error| FieldError::new("request_id", error))?;
        Ok(Self {
            spec: RunSpec::try_from(request.spec.unwrap_or_default())?,
            tags: tags_of(request.priority, request.labels, request.note)?,
            request_id: request.request_id,
            traceparent: telemetry::traceparent(),
        })
    }
}

impl Runs {
    /// Lists the images, settles k, and queues a run. Reads every header, so it may take a while.
    ///
    /// # Errors
    /// INVALID_ARGUMENT when images or spec do not do, RESOURCE_EXHAUSTED when there is no room, ALREADY_EXISTS when another
    /// spec came with the same request id.
    pub fn create(&self, mut new: NewRun) -> Result<Arc<Run>, Status> {
        if let Some(run) = created_before(&self.lock(), &new)? {
            return Ok(run);
        }
        self.check_queue(&self.lock())?;
        let init = Init::find(&self.images, &new.spec)?;
        let (images, mut resolved, choices) = images::list(&self.images, &self.workshop.volume, &mut new.spec)?;
        self.check_room(&new.spec, &resolved)?;
        let failed = |error: VolumeError| volume_status(&error);
        let _one_at_a_time = self.creating.lock().unwrap_or_else(PoisonError::into_inner);
        // The list of a large folder takes its time, in which others may have come.
        if let Some(run) = created_before(&self.lock(), &new)? {
            return Ok(run);
        }
        self.check_queue(&self.lock())?;
        let volume = &self.workshop.volume;
        // A folder that is there may hold what is left of a run; its name is not given out again.
        let is_free = |id: &RunId| std::fs::symlink_metadata(volume.run(id).path()).is_err();
        let id = (1..).map(|n| format!("run-{n:04}")).filter_map(|name| name.parse::<RunId>().ok()).find(is_free);
        let id = id.ok_or_else(|| Status::resource_exhausted("no run id is left"))?;
        publish::create_folder(volume.run(&id).path()).map_err(failed)?;
        let list = volume.run(&id).images_csv();
        let (csv, checksum) = image_list::to_csv(&images).map_err(|error| failed(VolumeError::io(&list)(error)))?;
        publish::publish_bytes(&list, &csv).map_err(failed)?;
        resolved.images_csv.push(checksum);
        resolved.init_note = init.as_ref().map(|init| init.note.clone()).unwrap_or_default();
        let init = init.map(|init| init.publish(volume, &volume.run(&id))).transpose();
        resolved.init = init.map_err(|error| {
            let _ = publish::remove(volume.run(&id).path());
            failed(error)
        })?;
        let record = RunRecord {
            version: VERSION,
            run_id: id.to_string(),
            created: seconds_since_1970() as u64,
            spec: SpecRecord::from(&new.spec),
            resolved,
            state: RunState::Queued,
            message: String::new(),
            epochs_done: 0,
            request_id: new.request_id,
            priority: new.tags.priority,
            labels: new.tags.labels,
            note: new.tags.note,
            traceparent: new.traceparent,
        };
        let run = Run::create(volume, id.clone(), new.spec, record, &choices).map_err(|error| {
            // Its caller is told that there is no such run, so there must be none after the next start either.
            let _ = publish::remove(volume.run(&id).path());
            failed(error)
        })?;
        let run = Arc::new(run);
        self.lock().insert(id, Arc::clone(&run));
        self.wake();
        Ok(run)
    }

    fn check_queue(&self, runs: &BTreeMap<RunId, Arc<Run>>) -> Result<(), Status> {
        let queued = runs.values().filter(|run| matches!(run.record().state, RunState::Queued | RunState::Running)).count();
        if queued < self.limits.queue {
            return Ok(());
        }
        let sentence = format!("the queue is full: {queued} runs wait for their turns, {} are the most", self.limits.queue);
        Err(retry_later(Code::ResourceExhausted, sentence, ASK_AGAIN))
    }

    fn check_room(&self, spec: &RunSpec, resolved: &ResolvedRecord) -> Result<(), Status> {
        let root = self.workshop.volume.root();
        let needed = SpaceNeeded::of(spec, resolved.n_images, resolved.k).whole_run();
        // Decoded images make room when it is needed.
        let free = space::available(root).map_err(|error| volume_status(&error))? + space::used(&self.workshop.volume.caches());
        if needed <= free {
            return Ok(());
        }
        let (needed, free, missing, root) = (human(needed), human(free), human(needed - free), root.display());
        let sentence = format!("the run will need up to {needed} on {root}, where {free} are free: {missing} are missing");
        Err(no_room(sentence))
    }
}

/// The run that an earlier request of the same id has made.
fn created_before(runs: &BTreeMap<RunId, Arc<Run>>, new: &NewRun) -> Result<Option<Arc<Run>>, Status> {
    if new.request_id.is_empty() {
        return Ok(None);
    }
    let Some(run) = runs.values().find(|run| run.record().request_id == new.request_id) else { return Ok(None) };
    if run.spec.as_requested() == new.spec.as_requested() {
        return Ok(Some(Arc::clone(run)));
    }
    let sentence = format!("request_id: '{}' has made run {}, whose spec is another", new.request_id, run.id);
    Err(Status::already_exists(sentence))
}
