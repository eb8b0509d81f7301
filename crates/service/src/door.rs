//! What every call passes on its way in: who may come, and how many at once.

use crate::limits::Limits;
use crate::streams::{Held, Place, Streams};
use crate::telemetry;
use crate::tokens::TokenFile;
use deepcluster_proto::retry_later;
use http::{HeaderMap, HeaderValue, Request, Response};
use metrics::counter;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::Semaphore;
use tonic::body::Body;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::{Instrument, error, info_span, warn};

/// Health is for whoever runs the service, who has no token.
const OPEN: &str = "/grpc.health.v1.Health/";

/// Reflection tells what everybody may read anyhow, to those who may read.
const REFLECTION: &str = "/grpc.reflection.";

/// How long a question about health may take to come.
const HEALTH: Duration = Duration::from_secs(10);

/// When a server that is busy is worth another try.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Why a caller is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No token came.
    #[error("authorization: a bearer token is needed")]
    Missing,
    /// It is neither the read nor the write token.
    #[error("authorization: the token is not the right one")]
    Wrong,
    /// It is the read token, and the caller wants to change something.
    #[error("authorization: the token lets its bearer read, and nothing else")]
    ReadsOnly,
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Missing | Refusal::Wrong => Self::unauthenticated(refusal.to_string()),
            Refusal::ReadsOnly => Self::permission_denied(refusal.to_string()),
        }
    }
}

/// Tokens of a server's callers. Whoever has the write token may do everything.
#[derive(Clone, Debug, Default)]
pub struct Tokens {
    /// Lets callers read.
    pub read: Option<TokenFile>,
    /// Lets callers do everything. None: nobody needs a token.
    pub write: Option<TokenFile>,
}

impl Tokens {
    /// Whether who offers this token, or none, may read; or do everything, where that is asked.
    ///
    /// # Errors
    /// Why not.
    pub fn permit(&self, offered: Option<&str>, everything: bool) -> Result<(), Refusal> {
        let Some(write) = self.write.as_ref() else { return Ok(()) };
        let offered = offered.ok_or(Refusal::Missing)?;
        let is = |file: &TokenFile| {
            file.is(offered).unwrap_or_else(|why| {
                error!(why, "no token can be compared");
                false
            })
        };
        if is(write) {
            return Ok(());
        }
        if !self.read.as_ref().is_some_and(is) {
            return Err(Refusal::Wrong);
        }
        if everything { Err(Refusal::ReadsOnly) } else { Ok(()) }
    }
}

/// The token that a request's headers show.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers.get("authorization")?.to_str().ok()?.strip_prefix("Bearer ")
}

/// The layer in front of a server's services.
#[derive(Clone)]
pub struct Door {
    rules: Arc<Rules>,
}

struct Rules {
    tokens: Tokens,
    /// Paths of methods that change nothing.
    read_methods: Vec<&'static str>,
    in_flight: Arc<Semaphore>,
    streams: Arc<Streams>,
}

impl Door {
    /// A door with these tokens and limits; `read_methods` are the paths of methods that change nothing.
    pub fn new(tokens: Tokens, read_methods: Vec<&'static str>, limits: Limits) -> Self {
        let in_flight = Arc::new(Semaphore::new(limits.requests));
        let streams = Streams::new(limits.streams);
        Self { rules: Arc::new(Rules { tokens, read_methods, in_flight, streams }) }
    }
}

impl<S> Layer<S> for Door {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { inner, rules: Arc::clone(&self.rules) }
    }
}

/// A service behind the door.
#[derive(Clone)]
pub struct Guarded<S> {
    inner: S,
    rules: Arc<Rules>,
}

impl<S> Service<Request<Body>> for Guarded<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if let Err(status) = self.rules.may_pass(&request) {
            let (peer, path) = (peer_name(&request), request.uri().path());
            warn!(peer, path, code = ?status.code(), why = status.message(), "refused");
            return Box::pin(std::future::ready(Ok(status.into_http())));
        }
        let place = match self.rules.place(&request) {
            Ok(place) => place,
            Err(busy) => return Box::pin(std::future::ready(Ok(busy.into_http()))),
        };
        let held = |answer: Response<Body>| answer.map(|body| Body::new(Held { body, _place: place }));
        // Who may come without a token must not take the places of those who have one.
        if request.uri().path().starts_with(OPEN) {
            let answer = tokio::time::timeout(HEALTH, self.inner.call(request));
            let late = || Status::deadline_exceeded("the question did not come").into_http();
            return Box::pin(async move { answer.await.unwrap_or_else(|_| Ok(late())).map(held) });
        }
        let Ok(turn) = Arc::clone(&self.rules.in_flight).try_acquire_owned() else {
            let busy = retry_later(Code::ResourceExhausted, "too many requests are waiting for an answer", ASK_AGAIN);
            return Box::pin(std::future::ready(Ok(busy.into_http())));
        };
        let path = request.uri().path().to_owned();
        let span = info_span!("rpc", method = %path, peer = peer_name(&request));
        telemetry::continue_trace(&span, request.headers());
        // What the service spawns while it is called belongs to the span, too.
        let answer = span.in_scope(|| self.inner.call(request));
        let work = async move {
            let _turn = turn;
            let mut answer = answer.await?;
            too_large_is_a_limit(answer.headers_mut());
            count(path, answer.headers());
            Ok(held(answer))
        };
        Box::pin(work.instrument(span))
    }
}

impl Rules {
    /// A place among the streams of the caller's connection.
    fn place(&self, request: &Request<Body>) -> Result<Option<Place>, Status> {
        let Some(peer) = peer_of(request) else { return Ok(None) };
        let busy = || retry_later(Code::ResourceExhausted, "too many streams are open on this connection", ASK_AGAIN);
        self.streams.open(peer).map(Some).ok_or_else(busy)
    }

    fn may_pass(&self, request: &Request<Body>) -> Result<(), Status> {
        let path = request.uri().path();
        if path.starts_with(OPEN) {
            return Ok(());
        }
        let reads = self.read_methods.contains(&path) || path.starts_with(REFLECTION);
        self.tokens.permit(bearer(request.headers()), !reads).map_err(Status::from)
    }
}

/// Answers by the code that they begin with; a stream that has begun counts as good.
fn count(path: String, headers: &HeaderMap) {
    let code = headers.get("grpc-status").map_or(Code::Ok, |code| Code::from_bytes(code.as_bytes()));
    // Anybody may make up names of methods, and every name would be remembered.
    let method = if code == Code::Unimplemented { "unknown".to_owned() } else { path };
    counter!("deepcluster_rpcs_total", "method" => method, "code" => format!("{code:?}")).increment(1);
}

fn peer_of(request: &Request<Body>) -> Option<SocketAddr> {
    let plain = |info: &TcpConnectInfo| info.remote_addr();
    let info = request.extensions();
    info.get::<TcpConnectInfo>()
        .and_then(plain)
        .or_else(|| info.get::<TlsConnectInfo<TcpConnectInfo>>().and_then(|info| plain(info.get_ref())))
}

fn peer_name(request: &Request<Body>) -> String {
    peer_of(request).map_or_else(|| "unknown".to_owned(), |address| address.to_string())
}

/// tonic says OUT_OF_RANGE of a message that is too large.
fn too_large_is_a_limit(headers: &mut HeaderMap) {
    let is_too_large = |text: &HeaderValue| String::from_utf8_lossy(text.as_bytes()).contains("message%20length%20too%20large");
    let out_of_range = headers.get("grpc-status").is_some_and(|code| code == "11");
    if out_of_range && headers.get("grpc-message").is_some_and(is_too_large) {
        headers.insert("grpc-status", HeaderValue::from_static("8"));
    }
}
