//! The Inference API: embeddings and clusters of clients' images.
//!
//! ```text
//! Embed, Assign ─► checks ─► models: run and epoch ─► batches ─► pool: an extractor that is ready ─► answers
//! EmbedStream, AssignStream: the same, message by message
//! ```
//!
//! Requests for the same network that come at the same time share batches. Nothing goes over the volume, and nothing waits
//! behind an epoch that is being made.

mod batches;
mod desk;
mod models;
mod pool;
mod stream;

use crate::runs::Runs;
use deepcluster_proto::retry_later;
use deepcluster_proto::v1::inference_server::Inference;
use deepcluster_proto::v1::{
    ImageAnswer, InferenceAssignRequest, InferenceAssignResponse, InferenceAssignStreamRequest, InferenceAssignStreamResponse,
    InferenceEmbedRequest, InferenceEmbedResponse, InferenceEmbedStreamRequest, InferenceEmbedStreamResponse, InputImage,
};
use desk::Desk;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, Streaming};

/// When it is worth another try where too many streams of images are open.
const STREAM_AGAIN: Duration = Duration::from_secs(10);

/// Messages of a stream that wait for a client who does not read.
const AT_A_TIME: usize = 4;

/// The stream that answers a stream.
type Answers<M> = Pin<Box<dyn Stream<Item = Result<M, Status>> + Send>>;

/// What is wanted of images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Embeddings as the network makes them.
    Embedding,
    /// Whitened ones.
    Whitened,
    /// The nearest cluster.
    Cluster,
}

/// A request of any of the methods.
pub(crate) struct Question {
    pub(crate) run_id: String,
    pub(crate) epoch: Option<u32>,
    pub(crate) kind: Kind,
    pub(crate) images: Vec<InputImage>,
}

/// Embeddings of one kind or the other.
fn embedding(whiten: bool) -> Kind {
    if whiten { Kind::Whitened } else { Kind::Embedding }
}

impl From<InferenceEmbedRequest> for Question {
    fn from(request: InferenceEmbedRequest) -> Self {
        let InferenceEmbedRequest { run_id, epoch, whiten, images } = request;
        Self { run_id, epoch, kind: embedding(whiten), images }
    }
}

impl From<InferenceEmbedStreamRequest> for Question {
    fn from(request: InferenceEmbedStreamRequest) -> Self {
        let InferenceEmbedStreamRequest { run_id, epoch, whiten, images } = request;
        Self { run_id, epoch, kind: embedding(whiten), images }
    }
}

impl From<InferenceAssignRequest> for Question {
    fn from(request: InferenceAssignRequest) -> Self {
        let InferenceAssignRequest { run_id, epoch, images } = request;
        Self { run_id, epoch, kind: Kind::Cluster, images }
    }
}

impl From<InferenceAssignStreamRequest> for Question {
    fn from(request: InferenceAssignStreamRequest) -> Self {
        let InferenceAssignStreamRequest { run_id, epoch, images } = request;
        Self { run_id, epoch, kind: Kind::Cluster, images }
    }
}

/// Answers clients.
pub struct InferenceRpc {
    desk: Arc<Desk>,
    /// Room for streams.
    streams: Arc<Semaphore>,
}

impl InferenceRpc {
    /// By the networks of these runs, until `shutdown`.
    pub fn new(runs: Arc<Runs>, shutdown: CancellationToken) -> Self {
        let streams = Arc::new(Semaphore::new(runs.limits.image_streams));
        Self { desk: Arc::new(Desk::new(runs, shutdown)), streams }
    }

    /// Answers a stream; `wrap` makes its messages.
    fn follow<Q, M>(&self, questions: Streaming<Q>, wrap: fn(u32, Vec<ImageAnswer>) -> M) -> Result<Response<Answers<M>>, Status>
    where
        Question: From<Q>,
        Q: Send + 'static,
        M: Send + 'static,
    {
        let Ok(place) = Arc::clone(&self.streams).try_acquire_owned() else {
            let sentence = format!("too many streams of images: {} are the most", self.desk.runs.limits.image_streams);
            return Err(retry_later(Code::ResourceExhausted, sentence, STREAM_AGAIN));
        };
        let (sender, receiver) = mpsc::channel(AT_A_TIME);
        let desk = Arc::clone(&self.desk);
        tokio::spawn(async move {
            stream::follow(&desk, questions, sender, wrap).await;
            drop(place);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

#[tonic::async_trait]
impl Inference for InferenceRpc {
    type EmbedStreamStream = Answers<InferenceEmbedStreamResponse>;
    type AssignStreamStream = Answers<InferenceAssignStreamResponse>;

    async fn embed(&self, request: Request<InferenceEmbedRequest>) -> Result<Response<InferenceEmbedResponse>, Status> {
        let (epoch, images) = self.desk.answer(request.into_inner().into()).await?;
        Ok(Response::new(InferenceEmbedResponse { images, epoch }))
    }

    async fn embed_stream(
        &self,
        request: Request<Streaming<InferenceEmbedStreamRequest>>,
    ) -> Result<Response<Self::EmbedStreamStream>, Status> {
        self.follow(request.into_inner(), |epoch, images| InferenceEmbedStreamResponse { images, epoch })
    }

    async fn assign(&self, request: Request<InferenceAssignRequest>) -> Result<Response<InferenceAssignResponse>, Status> {
        let (epoch, images) = self.desk.answer(request.into_inner().into()).await?;
        Ok(Response::new(InferenceAssignResponse { images, epoch }))
    }

    async fn assign_stream(
        &self,
        request: Request<Streaming<InferenceAssignStreamRequest>>,
    ) -> Result<Response<Self::AssignStreamStream>, Status> {
        self.follow(request.into_inner(), |epoch, images| InferenceAssignStreamResponse { images, epoch })
    }
}
