//! Images of several requests in one batch, and a batch at one extractor after the other until one answers.
//!
//! 1. Images for the same network and the same kind of answer stand in one line. As soon as they fill a batch, or a few
//!    milliseconds after the first, a batch looks for an extractor; while all are busy, more images may join.
//! 2. A batch whose extractor goes away goes to another. One over which several have gone away is given up.
//! 3. Images whose callers have gone are left out, and a batch is cancelled when all of its callers have.

use crate::inference::Kind;
use crate::inference::models::Model;
use crate::inference::pool::{Place, Pool};
use crate::members::is_lost;
use crate::workers::Workers;
use deepcluster_domain::{EpochId, RunId};
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

/// How often a batch may fail before its callers hear of it: by then it is the batch that does not do.
const TRIES: u32 = 5;

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
    stop: CancellationToken,
}

impl Batches {
    /// For these workers' extractors, until `stop`.
    pub(crate) fn new(workers: Workers, stop: CancellationToken) -> Self {
        Self { pool: Pool::new(workers, stop.clone()), lines: Mutex::default(), stop }
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
            Ok(place) => tokio::select! {
                outcome = self.answer(&model, key.2, &images, place) => outcome,
                () = all_have_gone(&images) => return debug!(images = images.len(), "nobody waits for a batch any more"),
                () = self.stop.cancelled() => Err(shutting_down()),
            },
            Err(status) => Err(status),
        };
        match outcome {
            Ok(answers) => {
                counter!("deepcluster_inference_batches_total").increment(1);
                counter!("deepcluster_inference_images_total").increment(images.len() as u64);
                for (Waiting { id, number, answer, .. }, outcome) in images.into_iter().zip(answers) {
                    let _ = answer.send((number, Ok(ImageAnswer { id, outcome: outcome.outcome })));
                }
            }
            Err(status) => {
                for Waiting { number, answer, .. } in images {
                    let _ = answer.send((number, Err(status.clone())));
                }
            }
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

    /// Answers of a batch, from the extractor of `place` or from others where that one does not give any.
    async fn answer(&self, model: &Model, kind: Kind, images: &[Waiting], mut place: Place) -> Result<Vec<ImageAnswer>, Status> {
        let start = Instant::now();
        let mut failures = 0;
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
                    return Err(status);
                }
                Code::Internal | Code::Unauthenticated => failures += 1,
                _ if is_lost(code) => failures += 1,
                _ => return Err(status),
            }
            if failures >= TRIES || start.elapsed() > PATIENCE {
                return Err(given_up(&status, failures));
            }
            warn!(?code, why = status.message(), images = images.len(), "a batch of clients' images goes to another extractor");
            // Whoever went away is not asked again before it says that it is back.
            if !is_lost(code) {
                tokio::time::sleep(PAUSE).await;
            }
            place = self.pool.place().await?;
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
