//! Images of several requests in one batch, and a batch at one extractor after the other until one answers.
//!
//! 1. Images for the same network and the same kind of answer stand in one line. As soon as they fill a batch, or a few
//!    milliseconds after the first, a batch looks for an extractor; while all are busy, more images may join.
//! 2. A batch whose extractor goes away goes to another. Should that one go away, too, an image may be what they fail over: the
//!    images of the batch go on one by one, while no other batch does so. One over which extractors still fail is refused.
//! 3. Images whose callers have gone are left out, and a batch is cancelled when all of its callers have.

use crate::inference::Kind;
use crate::inference::models::Model;
use crate::inference::pool::{Place, Pool};
use crate::members::is_lost;
use crate::workers::Workers;
use deepcluster_domain::{EpochId, RunId};
use deepcluster_proto::v1::image_answer::Outcome;
use deepcluster_proto::v1::input_image::Source;
use deepcluster_proto::v1::{ImageAnswer, InputImage};
use metrics::counter;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tracing::{debug, warn};

/// How long the first image of a batch waits for others.
const LINGER: Duration = Duration::from_millis(5);

/// Most bytes of the images of a batch; with what is around them, they fit a message.
const MOST_BYTES: usize = 12 << 20;

/// How often extractors may refuse the coordinator before callers hear of it.
const REFUSALS: u32 = 5;

/// How often a batch may fail before its images go on one by one.
const TOGETHER: u32 = 2;

/// How often an image may then fail before its caller hears of it: by then it is the image that does not do.
const ALONE: u32 = 3;

/// So many images in a row over which extractors fail mean that it is not the images.
const IN_A_ROW: usize = 2;

/// Most characters of an image's id in an error.
const SHOWN: usize = 100;

/// How long a batch may go from one extractor to the other.
const PATIENCE: Duration = Duration::from_secs(120);

/// Pause before a batch goes to an extractor that has too many, or after one that could not do it.
const PAUSE: Duration = Duration::from_millis(100);

/// What an image got, and its number among those of its caller.
pub(crate) type Answered = (usize, Result<ImageAnswer, Status>);

/// An image that waits for its answer.
pub(crate) struct Waiting {
    /// Without its id.
    pub(crate) image: InputImage,
    pub(crate) id: String,
    /// Its number among those of its caller.
    pub(crate) number: usize,
    pub(crate) answer: mpsc::UnboundedSender<Answered>,
    /// Its message's share of the room.
    pub(crate) _room: Arc<OwnedSemaphorePermit>,
}

impl Waiting {
    /// Tells the caller what became of it.
    fn tell(&self, outcome: Result<Option<Outcome>, Status>) {
        let answer = outcome.map(|outcome| ImageAnswer { id: self.id.clone(), outcome });
        let _ = self.answer.send((self.number, answer));
    }

    /// The same, of an image over which extractors have failed. An answer says it, where others show that it is this image.
    fn refuse(&self, status: &Status, is_known: bool) {
        let id: String = self.id.chars().take(SHOWN).collect();
        let why = format!("image {} ('{id}'): {}", self.number, status.message());
        warn!(why, is_known, "extractors fail over an image of a client");
        match is_known {
            true => self.tell(Ok(Some(Outcome::Skipped(status.message().to_owned())))),
            false => self.tell(Err(Status::new(status.code(), why))),
        }
    }
}

/// Why there are no answers.
enum Failure {
    /// Extractors have failed over these images, and may do better with others.
    OverImages(Status),
    /// Other images would fare no better.
    Other(Status),
    /// Nobody waits for them any more.
    Unwanted,
}

/// What images of a batch have in common.
type Key = (RunId, EpochId, Kind);

/// Images in order of their coming.
struct Line {
    model: Arc<Model>,
    waiting: VecDeque<Waiting>,
    /// Batches that are to take images from here: always enough for all of them.
    takers: usize,
    /// There are enough images for all takers.
    full: Arc<Notify>,
}

/// All lines.
pub(crate) struct Batches {
    pool: Pool,
    lines: Mutex<BTreeMap<Key, Line>>,
    /// Held by the batch whose images go one by one: none shall be blamed for what an image of another such batch does.
    suspects: tokio::sync::Mutex<()>,
    stop: CancellationToken,
}

impl Batches {
    /// For these workers' extractors, until `stop`.
    pub(crate) fn new(workers: Workers, stop: CancellationToken) -> Self {
        let (lines, suspects) = (Mutex::default(), tokio::sync::Mutex::default());
        Self { pool: Pool::new(workers, stop.clone()), lines, suspects, stop }
    }

    /// Puts images into their line. Must be called in a tokio runtime.
    pub(crate) fn submit(self: &Arc<Self>, model: &Arc<Model>, kind: Kind, images: Vec<Waiting>) {
        if images.is_empty() {
            return;
        }
        let key = (model.run.clone(), model.epoch, kind);
        let mut lines = self.lock();
        let new = || Line { model: Arc::clone(model), waiting: VecDeque::new(), takers: 0, full: Arc::default() };
        let line = lines.entry(key.clone()).or_insert_with(new);
        // What was verified anew takes the place of what was not to be trusted.
        line.model = Arc::clone(model);
        line.waiting.extend(images);
        self.call_takers(&key, line);
    }

    fn call_takers(self: &Arc<Self>, key: &Key, line: &mut Line) {
        let batch = line.model.batch;
        if line.waiting.len() >= line.takers * batch {
            line.full.notify_waiters();
        }
        while line.takers * batch < line.waiting.len() {
            line.takers += 1;
            let is_full = line.takers * batch <= line.waiting.len();
            let linger = (!is_full).then(|| Arc::clone(&line.full));
            tokio::spawn(Arc::clone(self).one_batch(key.clone(), linger));
        }
    }

    /// Waits for images to come together and for an extractor, and answers a batch.
    async fn one_batch(self: Arc<Self>, key: Key, linger: Option<Arc<Notify>>) {
        if let Some(full) = linger {
            let _ = tokio::time::timeout(LINGER, full.notified()).await;
        }
        let place = tokio::select! {
            place = self.pool.place() => place,
            () = self.stop.cancelled() => Err(shutting_down()),
        };
        let Some((model, images)) = self.take(&key) else { return };
        let outcome = match place {
            Ok(place) => self.while_wanted(&images, self.answer(&model, key.2, &images, place, TOGETHER)).await,
            Err(status) => Err(Failure::Other(status)),
        };
        match outcome {
            Ok(answers) => tell_all(&images, answers),
            Err(Failure::OverImages(status)) => {
                warn!(why = status.message(), images = images.len(), "the images of a batch go on one by one");
                self.one_by_one(&model, key.2, images).await;
            }
            Err(Failure::Other(status)) => images.iter().for_each(|image| image.tell(Err(status.clone()))),
            Err(Failure::Unwanted) => debug!(images = images.len(), "nobody waits for a batch any more"),
        }
    }

    /// Answers images of which one may be what extractors fail over: that one is refused, and the others get their answers.
    async fn one_by_one(&self, model: &Model, kind: Kind, images: Vec<Waiting>) {
        let _turn = self.suspects.lock().await;
        let (mut is_any_answered, mut in_a_row) = (false, 0);
        let mut refused: Vec<(Waiting, Status)> = Vec::new();
        // What the rest gets, once the images are not to blame.
        let mut rest: Option<Status> = None;
        for image in images {
            if let Some(status) = &rest {
                image.tell(Err(status.clone()));
                continue;
            }
            let alone = std::slice::from_ref(&image);
            let work = async {
                let place = self.pool.place().await.map_err(Failure::Other)?;
                self.answer(model, kind, alone, place, ALONE).await
            };
            match self.while_wanted(alone, work).await {
                Ok(answers) => {
                    (is_any_answered, in_a_row) = (true, 0);
                    tell_all(alone, answers);
                }
                Err(Failure::OverImages(status)) => {
                    in_a_row += 1;
                    rest = (in_a_row >= IN_A_ROW).then(|| status.clone());
                    refused.push((image, status));
                }
                Err(Failure::Other(status)) => {
                    image.tell(Err(status.clone()));
                    rest = Some(status);
                }
                Err(Failure::Unwanted) => {}
            }
        }
        refused.iter().for_each(|(image, status)| image.refuse(status, is_any_answered));
    }

    /// Does the work for some images, as long as somebody waits for them and there is no shutdown.
    async fn while_wanted<T>(&self, images: &[Waiting], work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        tokio::select! {
            // In this order, what nobody waits for is not begun.
            biased;
            () = all_have_gone(images) => Err(Failure::Unwanted),
            () = self.stop.cancelled() => Err(Failure::Other(shutting_down())),
            outcome = work => outcome,
        }
    }

    /// The first images of a line that fit a batch, of those that somebody waits for; none where there are none.
    fn take(self: &Arc<Self>, key: &Key) -> Option<(Arc<Model>, Vec<Waiting>)> {
        let mut lines = self.lock();
        let line = lines.get_mut(key)?;
        line.takers = line.takers.saturating_sub(1);
        let model = Arc::clone(&line.model);
        let (mut images, mut bytes) = (Vec::new(), 0);
        while images.len() < model.batch {
            let Some(next) = line.waiting.pop_front() else { break };
            if next.answer.is_closed() {
                continue;
            }
            let size = size_of_source(&next.image);
            if !images.is_empty() && bytes + size > MOST_BYTES {
                line.waiting.push_front(next);
                break;
            }
            bytes += size;
            images.push(next);
        }
        if line.waiting.is_empty() && line.takers == 0 {
            lines.remove(key);
        } else {
            self.call_takers(key, line);
        }
        (!images.is_empty()).then_some((model, images))
    }

    /// Answers of a batch, from the extractor of `place` or from others where that one does not give any, in so many tries.
    async fn answer(
        &self,
        model: &Model,
        kind: Kind,
        images: &[Waiting],
        mut place: Place,
        tries: u32,
    ) -> Result<Vec<ImageAnswer>, Failure> {
        let start = Instant::now();
        let (mut failures, mut refusals) = (0, 0);
        loop {
            let request = model.request(kind, images.iter().map(|waiting| waiting.image.clone()).collect());
            let status = match self.pool.embed(&place, request).await {
                Ok(answer) if answer.images.len() == images.len() => return Ok(answer.images),
                Ok(_) => Status::internal("the extractor answered another number of images"),
                Err(status) => status,
            };
            drop(place);
            let code = status.code();
            match code {
                // It has enough to do; that is no failure of the batch.
                Code::ResourceExhausted => {}
                Code::DataLoss => {
                    model.distrust();
                    return Err(Failure::Other(status));
                }
                // Who does not know the coordinator does not look at its images.
                Code::Unauthenticated => refusals += 1,
                Code::Internal => failures += 1,
                _ if is_lost(code) => failures += 1,
                _ => return Err(Failure::Other(status)),
            }
            if failures >= tries {
                return Err(Failure::OverImages(given_up(&status, failures)));
            }
            if refusals >= REFUSALS || start.elapsed() > PATIENCE {
                return Err(Failure::Other(given_up(&status, failures)));
            }
            warn!(?code, why = status.message(), images = images.len(), "a batch of clients' images goes to another extractor");
            // Whoever went away is not asked again before it says that it is back.
            if !is_lost(code) {
                tokio::time::sleep(PAUSE).await;
            }
            place = self.pool.place().await.map_err(Failure::Other)?;
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Line>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes of what stands for an image in a message.
pub(crate) fn size_of_source(image: &InputImage) -> usize {
    match &image.source {
        Some(Source::Content(bytes) | Source::Path(bytes)) => bytes.len(),
        None => 0,
    }
}

/// Tells the callers the answers of a batch.
fn tell_all(images: &[Waiting], answers: Vec<ImageAnswer>) {
    counter!("deepcluster_inference_batches_total").increment(1);
    counter!("deepcluster_inference_images_total").increment(images.len() as u64);
    images.iter().zip(answers).for_each(|(image, answer)| image.tell(Ok(answer.outcome)));
}

async fn all_have_gone(images: &[Waiting]) {
    for image in images {
        image.answer.closed().await;
    }
}

/// What callers hear of a batch that no extractor could do.
fn given_up(status: &Status, failures: u32) -> Status {
    match status.code() {
        code if is_lost(code) => {
            Status::unavailable(format!("{failures} extractors went away one after the other: {}", status.message()))
        }
        // Whose token does not do is the coordinator, not the caller.
        Code::Unauthenticated => Status::internal(format!("the extractors refuse the coordinator: {}", status.message())),
        _ => status.clone(),
    }
}

pub(crate) fn shutting_down() -> Status {
    Status::unavailable("the coordinator is shutting down")
}

#[cfg(test)]
mod tests;
