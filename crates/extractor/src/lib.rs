//! The extractor: images of one shard in, features on the volume out.
//!
//! ```text
//! Extract ─► verify inputs ─► decode ahead (threads) ─► eval-mode forward ─► features/00003.npy ─► result
//! Embed   ─► decode (threads) ─► networks that stay loaded ─► whitening ─► nearest centroid ─► answers
//! ```
#![forbid(unsafe_code)]

mod embed;
mod extract;
mod kept;
mod wanted;

use deepcluster_network::check_libtorch;
use deepcluster_proto::v1::extractor_server::{Extractor as ExtractorRpc, ExtractorServer};
use deepcluster_proto::v1::{EmbedRequest, EmbedResponse, ExtractRequest, ExtractResponse, File, extract_response};
use deepcluster_service::jobs::Updates;
use deepcluster_service::limits::Limits;
use deepcluster_service::requests::{self, volume_status};
use deepcluster_service::{Config, Jobs, Service, Update};
use deepcluster_volume::Volume;
use deepcluster_volume::image_list::{self, ImageEntry};
use embed::Embedder;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use tokio_util::sync::CancellationToken;
use tonic::service::RoutesBuilder;
use tonic::{Request, Response, Status};
use tracing::info_span;

/// What an extractor needs to know of its machine.
pub(crate) struct Place {
    pub(crate) volume: Volume,
    pub(crate) images: PathBuf,
    pub(crate) threads: usize,
    /// The list of images that was last asked for, by its BLAKE3: a run asks for many shards of the same.
    list: Mutex<Option<(String, Arc<Vec<ImageEntry>>)>>,
}

impl Place {
    /// The images of a list, which is verified and read unless the last call has had the same.
    pub(crate) fn list(&self, list: Option<&File>) -> Result<Arc<Vec<ImageEntry>>, Status> {
        let record = requests::record_of("images.list", list)?;
        let mut last = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, images)) = last.as_ref().filter(|(blake3, _)| *blake3 == record.blake3) {
            return Ok(Arc::clone(images));
        }
        let path = requests::verified(&self.volume, "images.list", list)?;
        let images = Arc::new(image_list::read(&path).map_err(|error| volume_status(&error))?);
        *last = Some((record.blake3, Arc::clone(&images)));
        Ok(images)
    }
}

/// The service.
pub struct Extractor {
    place: Arc<Place>,
    /// Once it has warmed up.
    embedder: Arc<OnceLock<Embedder>>,
    limits: Limits,
}

impl Extractor {
    /// An extractor on this volume and these images.
    pub fn new(config: &Config) -> Self {
        let (volume, images) = (Volume::new(&config.volume), config.images.clone());
        let place = Place { volume, images, threads: config.threads.count, list: Mutex::default() };
        Self { place: Arc::new(place), embedder: Arc::default(), limits: config.limits }
    }
}

impl Service for Extractor {
    fn names(&self) -> Vec<&'static str> {
        vec!["deepcluster.v1.Extractor"]
    }

    fn add_to(&mut self, routes: &mut RoutesBuilder, shutdown: &CancellationToken) {
        let (place, embedder) = (Arc::clone(&self.place), Arc::clone(&self.embedder));
        let rpc = Rpc { place, jobs: Jobs::new(shutdown.clone()), embedder };
        routes.add_service(ExtractorServer::new(rpc).max_decoding_message_size(self.limits.images_bytes));
    }

    async fn warm_up(&mut self) -> Result<(), String> {
        let checked = tokio::task::spawn_blocking(check_libtorch).await.map_err(|error| error.to_string())?;
        checked.map_err(|error| error.to_string())?;
        let embedder = Embedder::start(Arc::clone(&self.place), self.limits).map_err(|error| error.to_string())?;
        let _ = self.embedder.set(embedder);
        Ok(())
    }
}

struct Rpc {
    place: Arc<Place>,
    jobs: Jobs,
    embedder: Arc<OnceLock<Embedder>>,
}

#[tonic::async_trait]
impl ExtractorRpc for Rpc {
    type ExtractStream = Updates<ExtractResponse>;

    async fn extract(&self, request: Request<ExtractRequest>) -> Result<Response<Self::ExtractStream>, Status> {
        let request = request.into_inner();
        let place = Arc::clone(&self.place);
        let wrap = |update: Update<_>| {
            let update = match update {
                Update::Saved(never) => match never {},
                Update::Progress(progress) => extract_response::Update::Progress(progress),
                Update::Done(result) => extract_response::Update::Result(result),
            };
            ExtractResponse { update: Some(update) }
        };
        let span = info_span!("extract", run = ?request.run_id, epoch = request.epoch, shard = request.shard);
        let work = move |context: &_| extract::extract(&place, &request, context);
        Ok(Response::new(span.in_scope(|| self.jobs.start(work, wrap))))
    }

    async fn embed(&self, request: Request<EmbedRequest>) -> Result<Response<EmbedResponse>, Status> {
        let embedder = self.embedder.get().ok_or_else(|| Status::unavailable("the extractor is not ready yet"))?;
        embedder.embed(request.into_inner()).await.map(Response::new)
    }
}
