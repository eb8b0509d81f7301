//! Batches at extractors that are simulated: they speak the real protocol over real sockets, and die of some images.

use super::*;
use crate::workers::Patience;
use deepcluster_proto::v1::extractor_server::{Extractor, ExtractorServer};
use deepcluster_proto::v1::{Assigned, EmbedRequest, EmbedResponse, ExtractRequest, ExtractResponse};
use deepcluster_service::jobs::Updates;
use deepcluster_service::tls::ClientSecurity;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::sync::Semaphore;
use tonic::{Request, Response};

/// Images of a batch.
const BATCH: usize = 8;

/// Content of an image that no extractor survives.
const DEADLY: &[u8] = b"deadly";

/// An extractor that looks as if it were dying whenever such an image, or any at all, comes in a batch.
#[derive(Clone)]
struct Mortal {
    n_deaths: Arc<AtomicU32>,
    of_any: bool,
}

#[tonic::async_trait]
impl Extractor for Mortal {
    type ExtractStream = Updates<ExtractResponse>;

    async fn extract(&self, _request: Request<ExtractRequest>) -> Result<Response<Self::ExtractStream>, Status> {
        Err(Status::unimplemented("it only embeds"))
    }

    async fn embed(&self, request: Request<EmbedRequest>) -> Result<Response<EmbedResponse>, Status> {
        let images = request.into_inner().images;
        let is_deadly = |image: &InputImage| image.source == Some(Source::Content(DEADLY.to_vec()));
        if self.of_any || images.iter().any(is_deadly) {
            self.n_deaths.fetch_add(1, Ordering::Relaxed);
            return Err(Status::unavailable("it has died"));
        }
        let answer = ImageAnswer { id: String::new(), outcome: Some(Outcome::Assigned(Assigned::default())) };
        Ok(Response::new(EmbedResponse { images: vec![answer; images.len()] }))
    }
}

async fn started(server: &Mortal) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_service_status("deepcluster.v1.Extractor", tonic_health::ServingStatus::Serving).await;
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let server = ExtractorServer::new(server.clone());
    let server = tonic::transport::Server::builder().add_service(health_service).add_service(server);
    tokio::spawn(server.serve_with_incoming(incoming));
    address
}

/// What becomes of images with these contents, in order, and how often extractors have died meanwhile.
async fn answered(contents: &[&[u8]], of_any: bool) -> (Vec<Result<ImageAnswer, Status>>, u32) {
    let mortal = Mortal { n_deaths: Arc::default(), of_any };
    let names = [started(&mortal).await, started(&mortal).await];
    let patience = Patience { silence: Duration::from_secs(20), standstill: Duration::from_secs(600) };
    let workers = Workers::new(&names, "127.0.0.1:1", "127.0.0.1:1", patience, ClientSecurity::default()).unwrap();
    let batches = Arc::new(Batches::new(workers, CancellationToken::new()));
    let model = Arc::new(Model::of_batches("run-0001".parse().unwrap(), BATCH));
    let room = Arc::new(Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap());
    let (answer, mut answers) = mpsc::unbounded_channel();
    let waiting = |(number, content): (usize, &&[u8])| Waiting {
        image: InputImage { id: String::new(), source: Some(Source::Content(content.to_vec())) },
        id: format!("picture {number}"),
        number,
        answer: answer.clone(),
        _room: Arc::clone(&room),
    };
    batches.submit(&model, Kind::Cluster, contents.iter().enumerate().map(waiting).collect());
    drop(answer);
    let mut found = BTreeMap::new();
    while let Some((number, outcome)) = answers.recv().await {
        assert!(found.insert(number, outcome).is_none(), "image {number} was answered twice");
    }
    assert!(found.keys().copied().eq(0..contents.len()), "{found:?}");
    (found.into_values().collect(), mortal.n_deaths.load(Ordering::Relaxed))
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_image_that_kills_is_refused() {
    for deadly in [0, 3, BATCH - 1] {
        let mut contents = [b"harmless".as_slice(); 2 * BATCH];
        contents[deadly] = DEADLY;
        let (answers, n_deaths) = answered(&contents, false).await;
        for (number, answer) in answers.into_iter().enumerate() {
            let answer = answer.unwrap();
            assert_eq!(answer.id, format!("picture {number}"));
            match answer.outcome {
                Some(Outcome::Skipped(why)) if number == deadly => assert!(why.contains("went away"), "{why}"),
                Some(Outcome::Assigned(_)) if number != deadly => {}
                other => panic!("image {number}, where {deadly} kills: {other:?}"),
            }
        }
        assert_eq!(n_deaths, TOGETHER + ALONE);
    }
}

/// An image alone, which nothing shows to be the culprit: the call fails, and says over which image.
#[tokio::test(flavor = "multi_thread")]
async fn without_others_that_are_answered_the_call_fails() {
    let (mut answers, n_deaths) = answered(&[DEADLY], false).await;
    let status = answers.remove(0).unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("image 0 ('picture 0')"), "{}", status.message());
    assert_eq!(n_deaths, TOGETHER + ALONE);
}

#[tokio::test(flavor = "multi_thread")]
async fn extractors_that_die_of_any_image_do_not_die_of_all_of_them() {
    let (answers, n_deaths) = answered(&[b"harmless".as_slice(); BATCH], true).await;
    assert!(answers.iter().all(|answer| answer.as_ref().is_err_and(|status| status.code() == Code::Unavailable)), "{answers:?}");
    assert_eq!(n_deaths, TOGETHER + IN_A_ROW as u32 * ALONE);
}
