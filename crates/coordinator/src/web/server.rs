//! Connections of browsers: how many, how long they may take to ask, and their end.

use super::guard::Peer;
use axum::Router;
use deepcluster_service::tls::{ServerTls, TlsStream};
use futures_util::StreamExt;
use futures_util::stream::Stream;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tower::Service;
use tracing::{debug, warn};

/// How long the head of a request may take to come.
const HEAD: Duration = Duration::from_secs(10);

/// Answers requests of at most so many connections, until `shutdown` is cancelled.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Option<ServerTls>,
    router: Router,
    most: usize,
    shutdown: CancellationToken,
) {
    match tls {
        None => {
            let peer = |stream: &TcpStream| stream.peer_addr().ok();
            accept(TcpListenerStream::new(listener), peer, router, most, shutdown).await;
        }
        Some(tls) => {
            let peer = |stream: &TlsStream<TcpStream>| stream.get_ref().0.peer_addr().ok();
            accept(tls.accept(listener), peer, router, most, shutdown).await;
        }
    }
}

async fn accept<S>(
    mut incoming: impl Stream<Item = std::io::Result<S>> + Unpin,
    peer: impl Fn(&S) -> Option<SocketAddr>,
    router: Router,
    most: usize,
    shutdown: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let places = Arc::new(Semaphore::new(most));
    loop {
        let stream = tokio::select! {
            stream = incoming.next() => stream,
            () = shutdown.cancelled() => return,
        };
        match stream {
            None => return,
            Some(Err(error)) => {
                // As when there are too many open files: others will be closed.
                warn!(%error, "a connection to the live page could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Some(Ok(stream)) => {
                // Whoever comes when there is no place finds the connection closed.
                let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
                let (peer, router, shutdown) = (Peer(peer(&stream)), router.clone(), shutdown.clone());
                tokio::spawn(async move {
                    converse(stream, peer, router, shutdown).await;
                    drop(place);
                });
            }
        }
    }
}

/// One connection, to its end.
async fn converse<S>(stream: S, peer: Peer, router: Router, shutdown: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(peer);
        router.clone().call(request)
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a connection to the live page broke off");
    }
}
