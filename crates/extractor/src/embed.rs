//! Batches of images that take part in no run: decoded by several at a time, embedded by one thread that keeps the networks.
//!
//! ```text
//! Embed ─► decode (threads) ─► thread "embedder": network ─► round ─► whitening ─► nearest centroid ─► answers
//! ```
//!
//! The thread has networks of its own, so that nobody waits behind a shard; it shares the cores with it.

use crate::Place;
use crate::kept::{Asked, Models};
use deepcluster_domain::RunSpec;
use deepcluster_images::given::{Given, centre_views};
use deepcluster_proto::v1::input_image::Source;
use deepcluster_proto::v1::{EmbedRequest, EmbedResponse, FeatureDtype, InputImage};
use deepcluster_proto::{FieldError, retry_later};
use deepcluster_service::limits::Limits;
use deepcluster_service::requests;
use deepcluster_volume::layout::resolve_below;
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tonic::{Code, Status};
use tracing::error;

/// Most images of a request.
const MOST_IMAGES: usize = 1024;

/// Most pixels of all views of a request together: more would not fit beside a shard.
const MOST_PIXELS: u64 = 1 << 28;

/// When it is worth another try where too many batches wait.
const AGAIN: Duration = Duration::from_millis(100);

/// Takes batches in.
pub(crate) struct Embedder {
    place: Arc<Place>,
    decoders: Arc<ThreadPool>,
    /// Room for batches, from decoding to the answer.
    room: Arc<Semaphore>,
    work: Sender<Work>,
}

/// A batch whose images are decoded.
pub(crate) struct Batch {
    /// By what network, whitening and centroids.
    pub(crate) asked: Asked,
    /// RGB bytes `[images, size, size, 3]`.
    pub(crate) pixels: Vec<u8>,
    /// Ids of the images, each with the reason why it could not be read, if so.
    pub(crate) images: Vec<(String, Option<String>)>,
}

struct Work {
    batch: Batch,
    answer: oneshot::Sender<Result<EmbedResponse, Status>>,
    _turn: OwnedSemaphorePermit,
}

impl Embedder {
    /// Starts the threads.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub(crate) fn start(place: Arc<Place>, limits: Limits) -> io::Result<Self> {
        let decoders = ThreadPoolBuilder::new()
            .num_threads(place.threads)
            .thread_name(|index| format!("embed-decode-{index}"))
            .build()
            .map_err(io::Error::other)?;
        let (work, waiting) = channel();
        let of_thread = Arc::clone(&place);
        thread::Builder::new().name("embedder".to_owned()).spawn(move || embed_all(&of_thread, waiting))?;
        Ok(Self { place, decoders: Arc::new(decoders), room: Arc::new(Semaphore::new(limits.embeds)), work })
    }

    /// Answers one request.
    ///
    /// # Errors
    /// INVALID_ARGUMENT with the field, DATA_LOSS for a file that does not verify, RESOURCE_EXHAUSTED when too many wait.
    pub(crate) async fn embed(&self, request: EmbedRequest) -> Result<EmbedResponse, Status> {
        let Ok(turn) = Arc::clone(&self.room).try_acquire_owned() else {
            return Err(retry_later(Code::ResourceExhausted, "too many batches of images wait for this extractor", AGAIN));
        };
        let (place, decoders) = (Arc::clone(&self.place), Arc::clone(&self.decoders));
        // Whoever goes away does not stop the decoding, which keeps its turn until it is done.
        let decoded = tokio::task::spawn_blocking(move || (decode(&place, &decoders, request), turn));
        let (batch, turn) = decoded.await.map_err(|error| Status::internal(error.to_string()))?;
        let batch = batch?;
        let (answer, outcome) = oneshot::channel();
        let ended = || Status::internal("the thread that embeds images has ended");
        self.work.send(Work { batch, answer, _turn: turn }).map_err(|_| ended())?;
        outcome.await.map_err(|_| ended())?
    }
}

/// Checks a request, and decodes its images.
fn decode(place: &Place, decoders: &ThreadPool, request: EmbedRequest) -> Result<Batch, Status> {
    let spec: RunSpec = requests::network_spec(request.network.as_ref(), request.seed)?;
    let feature_dtype = FeatureDtype::to_domain(request.feature_dtype)?;
    if request.centroids.is_some() && request.whiten.is_none() {
        return Err(FieldError::new("whiten", "is missing, and the centroids are of no use without it").into());
    }
    let n = request.images.len();
    if !(1..=MOST_IMAGES).contains(&n) {
        return Err(FieldError::new("images", format!("must be between 1 and {MOST_IMAGES}")).into());
    }
    if n as u64 * u64::from(spec.image_size).pow(2) > MOST_PIXELS {
        return Err(FieldError::new("images", format!("have together more than {MOST_PIXELS} pixels")).into());
    }
    let mut given = Vec::with_capacity(n);
    let mut ids = Vec::with_capacity(n);
    for image in request.images {
        let InputImage { id, source } = image;
        given.push(source_of(place, source)?);
        ids.push(id);
    }
    let (pixels, unreadable) = decoders.install(|| centre_views(&given, spec.image_size, spec.cache_side));
    let reasons = unreadable.into_iter().map(|why| why.map(|why| why.to_string()));
    let asked = Asked {
        spec,
        network: request.network.unwrap_or_default(),
        feature_dtype,
        whiten: request.whiten,
        centroids: request.centroids,
    };
    Ok(Batch { asked, pixels, images: ids.into_iter().zip(reasons).collect() })
}

fn source_of(place: &Place, source: Option<Source>) -> Result<Given, FieldError> {
    match source {
        Some(Source::Content(content)) => Ok(Given::Content(content)),
        Some(Source::Path(path)) => {
            let path = resolve_below(&place.images, Path::new(OsStr::from_bytes(&path)));
            path.map(Given::Path).map_err(|error| FieldError::new("images", error))
        }
        None => Err(FieldError::new("images", "an image has neither content nor path")),
    }
}

/// What the thread does: one batch after the other, until nobody can send any more.
fn embed_all(place: &Place, waiting: Receiver<Work>) {
    let mut models = Models::default();
    for Work { batch, answer, _turn } in waiting {
        // Nobody waits for it any more.
        if answer.is_closed() {
            continue;
        }
        // A panic must not take along the thread, and with it all batches to come.
        let outcome = catch_unwind(AssertUnwindSafe(|| models.answer(place, batch)));
        let outcome = outcome.unwrap_or_else(|_| {
            error!("a batch of images made the thread panic that embeds them");
            models = Models::default();
            Err(Status::internal("the work panicked; see the log of the extractor"))
        });
        let _ = answer.send(outcome);
    }
}
