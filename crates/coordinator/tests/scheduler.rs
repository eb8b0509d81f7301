//! Shards over many extractors, whose work is simulated: they speak the real protocol over real sockets, and sleep.
#![allow(clippy::unwrap_used, reason = "a test")]

use deepcluster_coordinator::extraction::{Extraction, Shards};
use deepcluster_coordinator::workers::{Patience, Workers};
use deepcluster_domain::ShardId;
use deepcluster_proto::v1::extractor_server::{Extractor, ExtractorServer};
use deepcluster_proto::v1::{
    EmbedRequest, EmbedResponse, ExtractRequest, ExtractResponse, ExtractResult, Progress, extract_response,
};
use deepcluster_service::jobs::Updates;
use deepcluster_service::tls::ClientSecurity;
use deepcluster_service::{Jobs, Update};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

/// When a shard was in work.
type Span = (u32, Instant, Instant);

/// An extractor that sleeps.
struct Sleeper {
    jobs: Jobs,
    takes: Duration,
    spans: Arc<Mutex<Vec<Span>>>,
    /// Requests that came, begun or not.
    n_asked: Arc<AtomicUsize>,
    /// Refuses everything, as one that does not see the images.
    blind: bool,
}

#[tonic::async_trait]
impl Extractor for Sleeper {
    type ExtractStream = Updates<ExtractResponse>;

    async fn extract(&self, request: Request<ExtractRequest>) -> Result<Response<Self::ExtractStream>, Status> {
        self.n_asked.fetch_add(1, Ordering::Relaxed);
        let (shard, takes, spans, blind) = (request.into_inner().shard, self.takes, Arc::clone(&self.spans), self.blind);
        let wrap = |update: Update<ExtractResult>| match update {
            Update::Progress(progress) => ExtractResponse { update: Some(extract_response::Update::Progress(progress)) },
            Update::Done(result) => ExtractResponse { update: Some(extract_response::Update::Result(result)) },
            Update::Saved(never) => match never {},
        };
        Ok(Response::new(self.jobs.start(
            move |context| {
                if blind {
                    return Err(Status::invalid_argument("images: holds none"));
                }
                let start = Instant::now();
                for done in 0..10 {
                    context.progress(Progress { phase: "images".into(), done, total: 10, loss: 0.0 })?;
                    std::thread::sleep(takes / 10);
                }
                spans.lock().unwrap().push((shard, start, Instant::now()));
                Ok(ExtractResult::default())
            },
            wrap,
        )))
    }

    async fn embed(&self, _request: Request<EmbedRequest>) -> Result<Response<EmbedResponse>, Status> {
        Err(Status::unimplemented("it only sleeps"))
    }
}

/// A sleeper: its address, what it has worked on, how often it was asked.
#[derive(Clone)]
struct Started {
    address: SocketAddr,
    spans: Arc<Mutex<Vec<Span>>>,
    n_asked: Arc<AtomicUsize>,
}

/// Starts one.
async fn sleeper(takes: Duration, blind: bool) -> Started {
    sleeper_at(([127, 0, 0, 1], 0).into(), takes, blind).await
}

async fn sleeper_at(address: SocketAddr, takes: Duration, blind: bool) -> Started {
    let (spans, n_asked) = (Arc::<Mutex<Vec<Span>>>::default(), Arc::<AtomicUsize>::default());
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_service_status("deepcluster.v1.Extractor", tonic_health::ServingStatus::Serving).await;
    let server = Sleeper {
        jobs: Jobs::new(CancellationToken::new()),
        takes,
        spans: Arc::clone(&spans),
        n_asked: Arc::clone(&n_asked),
        blind,
    };
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let server = tonic::transport::Server::builder().add_service(health_service).add_service(ExtractorServer::new(server));
    tokio::spawn(server.serve_with_incoming(incoming));
    Started { address, spans, n_asked }
}

/// What became of a phase.
#[derive(Default)]
struct Outcome {
    results: BTreeMap<ShardId, u32>,
    faults: Vec<String>,
    end: Option<Status>,
}

/// Computes `n` shards on these extractors.
async fn extract(n: u32, addresses: &[SocketAddr]) -> Outcome {
    extract_telling(n, addresses, Arc::default()).await
}

/// The same; `told` hears of every fault.
async fn extract_telling(n: u32, addresses: &[SocketAddr], told: Arc<Notify>) -> Outcome {
    let names: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let patience = Patience { silence: Duration::from_secs(20), standstill: Duration::from_secs(600) };
    let workers = Workers::new(&names, "127.0.0.1:1", "127.0.0.1:1", patience, ClientSecurity::default()).unwrap();
    let (results, faults) = (Mutex::new(BTreeMap::<ShardId, u32>::new()), Mutex::new(Vec::new()));
    let stop = CancellationToken::new();
    let fault = |status: &Status| {
        faults.lock().unwrap().push(status.message().to_owned());
        told.notify_one();
    };
    let call = workers.call(&stop, &|_| {}, &fault);
    let request = |shard: ShardId| Ok(ExtractRequest { shard: shard.0, ..ExtractRequest::default() });
    let done = |shard, _| {
        *results.lock().unwrap().entry(shard).or_default() += 1;
        Ok(())
    };
    let shards = Shards { request: &request, progress: &|_, _| {}, done: &done, failed: &|_| Ok(()) };
    let end = Extraction::new((0..n).map(ShardId), call, shards).run().await.err();
    Outcome { results: results.into_inner().unwrap(), faults: faults.into_inner().unwrap(), end }
}

fn each_once(n: u32) -> BTreeMap<ShardId, u32> {
    (0..n).map(|shard| (ShardId(shard), 1)).collect()
}

/// The share of their time that 64 extractors work, from the first shard to the last.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sixty_four_extractors_are_kept_busy() {
    const N: u32 = 64 * 12;
    let mut all = Vec::new();
    for _ in 0..64 {
        all.push(sleeper(Duration::from_millis(500), false).await);
    }
    let addresses: Vec<SocketAddr> = all.iter().map(|one| one.address).collect();
    let outcome = extract(N, &addresses).await;
    assert!(outcome.end.is_none() && outcome.faults.is_empty(), "{:?}", outcome.faults);
    assert_eq!(outcome.results, each_once(N));
    let spans: Vec<Vec<Span>> = all.iter().map(|one| one.spans.lock().unwrap().clone()).collect();
    let n_asked: usize = all.iter().map(|one| one.n_asked.load(Ordering::Relaxed)).sum();
    let per_extractor: Vec<usize> = spans.iter().map(Vec::len).collect();
    let all: Vec<Span> = spans.into_iter().flatten().collect();
    let (first, last) = (all.iter().map(|span| span.1).min().unwrap(), all.iter().map(|span| span.2).max().unwrap());
    let busy: f64 = all.iter().map(|span| (span.2 - span.1).as_secs_f64()).sum();
    println!("64 extractors were busy {:.1} % of the time", 100.0 * busy / (64.0 * (last - first).as_secs_f64()));
    // None had much less to do than the others, and hardly a shard was done twice.
    assert!(per_extractor.iter().all(|n| (10..=14).contains(n)), "{per_extractor:?}");
    // At the end, what is queued moves to those who idle, once.
    assert!(n_asked < N as usize + 128, "{n_asked} requests for {N} shards");
    assert!(all.len() < N as usize + 16, "{} shards for {N}", all.len());
}

/// One is a thousand times as slow; what it has in hand is repeated, what it has queued is taken over.
#[tokio::test(flavor = "multi_thread")]
async fn a_straggler_does_not_hold_up_the_end() {
    let quick = sleeper(Duration::from_millis(20), false).await;
    let slow = sleeper(Duration::from_secs(1000), false).await;
    let outcome = extract(10, &[slow.address, quick.address]).await;
    assert!(outcome.end.is_none(), "{:?}", outcome.end);
    assert_eq!(outcome.results, each_once(10));
    assert_eq!((quick.spans.lock().unwrap().len(), slow.spans.lock().unwrap().len()), (10, 0));
}

/// More extractors than shards: those without work leave the others theirs.
#[tokio::test(flavor = "multi_thread")]
async fn idle_extractors_do_not_take_shards_from_each_other() {
    let mut all = Vec::new();
    for _ in 0..8 {
        all.push(sleeper(Duration::from_millis(300), false).await);
    }
    let outcome = extract(4, &all.iter().map(|one| one.address).collect::<Vec<_>>()).await;
    assert_eq!(outcome.results, each_once(4));
    assert!(outcome.faults.is_empty(), "{:?}", outcome.faults);
    let n_asked: usize = all.iter().map(|one| one.n_asked.load(Ordering::Relaxed)).sum();
    assert!(n_asked <= 8, "{n_asked} requests for 4 shards");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_last_extractor_that_gives_up_ends_the_phase() {
    let good = sleeper(Duration::from_millis(20), false).await;
    let blind = sleeper(Duration::ZERO, true).await;
    let outcome = extract(6, &[blind.address, good.address]).await;
    assert_eq!(outcome.results, each_once(6));
    assert_eq!(outcome.faults.len(), 1, "{:?}", outcome.faults);
    assert!(outcome.faults[0].contains(&blind.address.to_string()) && outcome.faults[0].contains("holds none"));
    let other = sleeper(Duration::ZERO, true).await;
    let end = extract(6, &[blind.address, other.address]).await.end.unwrap();
    assert_eq!((end.code(), end.message()), (tonic::Code::InvalidArgument, "images: holds none"));
}

/// Nothing listens at the address for a while; the phase waits, says so, and goes on.
#[tokio::test(flavor = "multi_thread")]
async fn without_extractors_the_phase_waits_and_says_so() {
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (alone, told) = ([free], Arc::new(Notify::new()));
    let comes_late = async {
        told.notified().await;
        sleeper_at(free, Duration::ZERO, false).await
    };
    let (outcome, _late) = tokio::join!(extract_telling(3, &alone, Arc::clone(&told)), comes_late);
    assert_eq!(outcome.results, each_once(3));
    assert_eq!(outcome.faults.len(), 1, "{:?}", outcome.faults);
    assert!(outcome.faults[0].contains("waiting for an extractor"), "{:?}", outcome.faults);
}

/// One cannot do its work, and the other never comes: there is nobody to wait for.
#[tokio::test(flavor = "multi_thread")]
async fn an_extractor_that_was_never_there_keeps_no_failure_waiting() {
    // Taken, so that no other test listens there, and not listened at.
    let nobody = tokio::net::TcpSocket::new_v4().unwrap();
    nobody.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let free = nobody.local_addr().unwrap();
    let blind = sleeper(Duration::ZERO, true).await;
    let outcome = extract(3, &[blind.address, free]).await;
    assert_eq!(outcome.end.unwrap().message(), "images: holds none");
    assert!(outcome.results.is_empty());
}
