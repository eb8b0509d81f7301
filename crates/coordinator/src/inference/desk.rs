//! Where requests are checked, get room, and wait for their answers.

use crate::inference::batches::{Answered, Batches, Waiting, size_of_source};
use crate::inference::models::{Model, Models};
use crate::inference::{Kind, Question};
use crate::runs::Runs;
use deepcluster_proto::v1::image_answer::Outcome;
use deepcluster_proto::v1::input_image::Source;
use deepcluster_proto::v1::{ImageAnswer, InputImage};
use deepcluster_proto::{FieldError, retry_later};
use deepcluster_volume::layout::resolve_below;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

/// What room is counted in, in bytes.
const UNIT: usize = 1024;

/// What an image takes in memory beside its content, decoded and as an answer, in units.
const BESIDE: usize = 64;

/// When it is worth another try where too many images wait.
const AGAIN: Duration = Duration::from_secs(1);

/// What all requests share.
pub(crate) struct Desk {
    pub(crate) runs: Arc<Runs>,
    pub(crate) shutdown: CancellationToken,
    models: Models,
    batches: Arc<Batches>,
    /// Room for images that wait, in units.
    room: Arc<Semaphore>,
}

impl Desk {
    pub(crate) fn new(runs: Arc<Runs>, shutdown: CancellationToken) -> Self {
        let batches = Arc::new(Batches::new(runs.workshop.workers.clone(), shutdown.clone()));
        let room = Arc::new(Semaphore::new(runs.limits.images_waiting / UNIT));
        Self { runs, shutdown, models: Models::default(), batches, room }
    }

    /// Answers a request of its own: the epoch, and an answer for each image, in order.
    ///
    /// # Errors
    /// As the proto file has it.
    pub(crate) async fn answer(&self, question: Question) -> Result<(u32, Vec<ImageAnswer>), Status> {
        if question.images.is_empty() {
            return Err(FieldError::new("images", "names no image").into());
        }
        self.check(&question.images)?;
        let model = self.model(&question).await?;
        let Ok(room) = Arc::clone(&self.room).try_acquire_many_owned(needed(&question.images)) else {
            return Err(retry_later(Code::ResourceExhausted, "too many images wait for an extractor", AGAIN));
        };
        let mut found: Vec<Option<ImageAnswer>> = vec![None; question.images.len()];
        let (answer, mut answers) = mpsc::unbounded_channel();
        self.submit(&model, question.kind, question.images, 0, room, &answer);
        // From here on, only images can send.
        drop(answer);
        while let Some((number, outcome)) = answers.recv().await {
            let outcome = match outcome {
                Ok(answer) => answer,
                Err(status) if status.code() == Code::DataLoss => {
                    // Whether the epoch has gone meanwhile can be said better.
                    self.models.get(&self.runs, model.run.as_str(), Some(model.epoch.0), question.kind).await?;
                    return Err(status);
                }
                Err(status) => return Err(status),
            };
            if let Some(place) = found.get_mut(number) {
                *place = Some(outcome);
            }
        }
        let found: Option<Vec<ImageAnswer>> = found.into_iter().collect();
        found.map(|images| (model.epoch.0, images)).ok_or_else(|| Status::internal("an image was left without an answer"))
    }

    /// What a question is about.
    ///
    /// # Errors
    /// As [`Models::get`].
    pub(crate) async fn model(&self, question: &Question) -> Result<Arc<Model>, Status> {
        self.models.get(&self.runs, &question.run_id, question.epoch, question.kind).await
    }

    /// Checks what does not depend on files.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for an image that names nothing or a path that leaves the root, RESOURCE_EXHAUSTED for too many.
    pub(crate) fn check(&self, images: &[InputImage]) -> Result<(), Status> {
        let (n, most) = (images.len(), self.runs.limits.images);
        if n > most {
            return Err(Status::resource_exhausted(format!("images: {n} are too many, {most} are the most of a message")));
        }
        for (number, image) in images.iter().enumerate() {
            let wrong =
                |why: &dyn std::fmt::Display| FieldError::new("images", format!("number {number} ('{}'): {why}", image.id));
            match &image.source {
                Some(Source::Content(_)) => {}
                Some(Source::Path(path)) => {
                    let path = resolve_below(&self.runs.images, Path::new(OsStr::from_bytes(path)));
                    path.map_err(|error| wrong(&error))?;
                }
                None => return Err(wrong(&"has neither content nor path").into()),
            }
        }
        Ok(())
    }

    /// Room for the images of a stream's message, once there is some.
    ///
    /// # Errors
    /// None that does not come from a bug.
    pub(crate) async fn wait_for_room(&self, images: &[InputImage]) -> Result<OwnedSemaphorePermit, Status> {
        let room = Arc::clone(&self.room).acquire_many_owned(needed(images)).await;
        room.map_err(|error| Status::internal(error.to_string()))
    }

    /// Sends images on their way. `first` is the number of the first of them among those of the caller.
    pub(crate) fn submit(
        &self,
        model: &Arc<Model>,
        kind: Kind,
        images: Vec<InputImage>,
        first: usize,
        room: OwnedSemaphorePermit,
        answer: &mpsc::UnboundedSender<Answered>,
    ) {
        let room = Arc::new(room);
        let most = self.runs.limits.image_bytes;
        let mut waiting = Vec::with_capacity(images.len());
        for (offset, mut image) in images.into_iter().enumerate() {
            let (id, number, bytes) = (std::mem::take(&mut image.id), first + offset, size_of_source(&image));
            if bytes > most {
                let why = format!("its content has {bytes} bytes, more than {most}");
                let _ = answer.send((number, Ok(ImageAnswer { id, outcome: Some(Outcome::Skipped(why)) })));
                continue;
            }
            waiting.push(Waiting { image, id, number, answer: answer.clone(), _room: Arc::clone(&room) });
        }
        self.batches.submit(model, kind, waiting);
    }
}

/// The room that images take, in units.
fn needed(images: &[InputImage]) -> u32 {
    let units: usize = images.iter().map(|image| (size_of_source(image) + image.id.len()) / UNIT + BESIDE).sum();
    u32::try_from(units).unwrap_or(u32::MAX)
}
