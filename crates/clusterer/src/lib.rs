//! The clusterer: features of all shards in, pseudo-labels out.
//!
//! ```text
//! Cluster ─► verify inputs ─► whiten (blocks) ─► k-means (faiss) ─► nearest centroid ─► labels, distances, points ─► result
//!                                  └── saved          └── saved, to go on from
//! Search  ─► whiten, if wished ─► flat index of inner products, block by block ─► neighbours, similarities ─► result
//! Assign  ─► verify inputs ─► apply a stored whitening ─► nearest centroid ─► labels, distances ─► result
//! ```
#![forbid(unsafe_code)]

mod cluster;
mod search;

use deepcluster_proto::v1::clusterer_server::{Clusterer as ClustererRpc, ClustererServer};
use deepcluster_proto::v1::{
    AssignRequest, AssignResponse, ClusterRequest, ClusterResponse, ClusterSaved, SearchRequest, SearchResponse, assign_response,
    cluster_response, search_response,
};
use deepcluster_service::jobs::Updates;
use deepcluster_service::{Config, Jobs, Service, Update};
use deepcluster_volume::Volume;
use tokio_util::sync::CancellationToken;
use tonic::service::RoutesBuilder;
use tonic::{Request, Response, Status};
use tracing::info_span;

/// The service.
pub struct Clusterer {
    volume: Volume,
    threads: usize,
}

impl Clusterer {
    /// A clusterer on this volume.
    pub fn new(config: &Config) -> Self {
        Self { volume: Volume::new(&config.volume), threads: config.threads.count }
    }
}

impl Service for Clusterer {
    fn names(&self) -> Vec<&'static str> {
        vec!["deepcluster.v1.Clusterer"]
    }

    fn add_to(&mut self, routes: &mut RoutesBuilder, shutdown: &CancellationToken) {
        let rpc = Rpc { volume: self.volume.clone(), jobs: Jobs::new(shutdown.clone()) };
        routes.add_service(ClustererServer::new(rpc));
    }

    async fn warm_up(&mut self) -> Result<(), String> {
        // Matrix products of the whitening run on rayon's global threads.
        let pool = rayon::ThreadPoolBuilder::new().num_threads(self.threads).build_global();
        pool.map_err(|error| error.to_string())
    }
}

struct Rpc {
    volume: Volume,
    jobs: Jobs,
}

#[tonic::async_trait]
impl ClustererRpc for Rpc {
    type ClusterStream = Updates<ClusterResponse>;
    type AssignStream = Updates<AssignResponse>;
    type SearchStream = Updates<SearchResponse>;

    async fn cluster(&self, request: Request<ClusterRequest>) -> Result<Response<Self::ClusterStream>, Status> {
        let request = request.into_inner();
        let volume = self.volume.clone();
        let wrap = |update| {
            let update = match update {
                Update::Progress(progress) => cluster_response::Update::Progress(progress),
                Update::Saved(file) => cluster_response::Update::Saved(ClusterSaved { file: Some(file) }),
                Update::Done(result) => cluster_response::Update::Result(result),
            };
            ClusterResponse { update: Some(update) }
        };
        let span = info_span!("cluster", run = ?request.run_id, epoch = request.epoch);
        let work = move |context: &_| cluster::cluster(&volume, &request, context);
        Ok(Response::new(span.in_scope(|| self.jobs.start(work, wrap))))
    }

    async fn assign(&self, request: Request<AssignRequest>) -> Result<Response<Self::AssignStream>, Status> {
        let request = request.into_inner();
        let volume = self.volume.clone();
        let wrap = |update: Update<_>| {
            let update = match update {
                Update::Saved(never) => match never {},
                Update::Progress(progress) => assign_response::Update::Progress(progress),
                Update::Done(result) => assign_response::Update::Result(result),
            };
            AssignResponse { update: Some(update) }
        };
        let work = move |context: &_| cluster::assign(&volume, &request, context);
        Ok(Response::new(info_span!("assign").in_scope(|| self.jobs.start(work, wrap))))
    }

    async fn search(&self, request: Request<SearchRequest>) -> Result<Response<Self::SearchStream>, Status> {
        let request = request.into_inner();
        let volume = self.volume.clone();
        let wrap = |update: Update<_>| {
            let update = match update {
                Update::Saved(never) => match never {},
                Update::Progress(progress) => search_response::Update::Progress(progress),
                Update::Done(result) => search_response::Update::Result(result),
            };
            SearchResponse { update: Some(update) }
        };
        let work = move |context: &_| search::search(&volume, &request, context);
        Ok(Response::new(info_span!("search").in_scope(|| self.jobs.start(work, wrap))))
    }
}
