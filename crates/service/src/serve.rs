//! From configuration to a drained server.

use crate::door::Door;
use crate::tls::ServerTls;
use crate::{Config, metrics, telemetry, threads};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::service::{Routes, RoutesBuilder};
use tonic::transport::Server;
use tonic_health::server::HealthReporter;
use tracing::{info, warn};

/// Longest time between SIGTERM and the end: calls that are not done by then are repeated elsewhere.
const DRAIN: Duration = Duration::from_secs(20);

/// Why a service ended badly.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// It cannot start like this: a port in use, a volume that is owned, a library that is missing.
    #[error("{0}")]
    Setup(String),
    /// It fell over.
    #[error("{0}")]
    Failed(String),
}

/// What makes a server this service.
pub trait Service: Send + 'static {
    /// Full names of its gRPC services, for health.
    fn names(&self) -> Vec<&'static str>;

    /// Paths of its methods that change nothing, for which a read token will do.
    fn read_methods(&self) -> Vec<&'static str> {
        Vec::new()
    }

    /// Adds its gRPC services. `shutdown` is cancelled when the server is to drain.
    fn add_to(&mut self, routes: &mut RoutesBuilder, shutdown: &CancellationToken);

    /// Everything that must work before it says SERVING.
    ///
    /// # Errors
    /// One sentence; the process then ends.
    fn warm_up(&mut self) -> impl Future<Output = Result<(), String>> + Send;
}

/// Raises the number of open files to what the machine allows: each shard of features or decoded images is one.
fn allow_many_files() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        warn!(%error, "no more than {soft} files can be open");
    }
}

/// Runs a service until SIGTERM or SIGINT, then drains.
///
/// # Errors
/// When it cannot start, or the server fails.
pub fn run<S: Service>(config: &Config, service: S) -> Result<(), ServeError> {
    if let Some(parent) = config.die_with_parent {
        die_with_parent(parent)?;
    }
    allow_many_files();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // Computing happens on threads of its own; these only pass messages.
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| ServeError::Setup(error.to_string()))?;
    let listener = config.listen.bind().map_err(ServeError::Setup)?;
    runtime.block_on(async {
        let name = service.names().first().copied().unwrap_or("deepcluster");
        let _telemetry = telemetry::init(config, name).map_err(ServeError::Setup)?;
        let threads = &config.threads;
        info!(count = threads.count, reason = threads.reason, waiting = threads::waiting(), "threads");
        if let Some(address) = config.metrics {
            metrics::serve(address).map_err(ServeError::Setup)?;
        }
        let shutdown = CancellationToken::new();
        tokio::spawn(cancel_on_signal(shutdown.clone()));
        serve(listener, service, config, shutdown).await
    })
}

/// Serves on a listener until `shutdown` is cancelled, then drains.
///
/// # Errors
/// When warming up or the server fails.
pub async fn serve<S: Service>(
    listener: TcpListener,
    mut service: S,
    config: &Config,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let failed = |error: &dyn std::fmt::Display| ServeError::Failed(error.to_string());
    let address = listener.local_addr().map_err(|error| failed(&error))?;
    let listener = tokio::net::TcpListener::from_std(listener).map_err(|error| failed(&error))?;
    let (health, health_service) = tonic_health::server::health_reporter();
    let names = service.names();
    set_health(&health, &names, false).await;
    let mut routes = RoutesBuilder::default();
    if let Some(address) = config.health {
        let listener = tokio::net::TcpListener::bind(address).await;
        let listener = listener.map_err(|error| ServeError::Setup(format!("--health {address}: {error}")))?;
        let server = Server::builder().add_service(health_service.clone());
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    }
    routes.add_service(health_service);
    add_reflection(&mut routes)?;
    service.add_to(&mut routes, &shutdown);
    let door = Door::new(config.tokens.clone(), service.read_methods(), config.limits);
    let mut server = start(listener, routes.routes(), door, config, &shutdown)?;
    info!(%address, tls = config.tls.is_some(), "listening");
    warn_if_open(address, config);
    service.warm_up().await.map_err(ServeError::Setup)?;
    set_health(&health, &names, true).await;
    info!("ready");
    tokio::select! {
        ended = &mut server => return ended.map_err(|error| failed(&error))?.map_err(|error| failed(&error)),
        () = shutdown.cancelled() => {}
    }
    info!("draining");
    set_health(&health, &names, false).await;
    match tokio::time::timeout(DRAIN, &mut server).await {
        Ok(ended) => ended.map_err(|error| failed(&error))?.map_err(|error| failed(&error)),
        Err(_) => {
            warn!(seconds = DRAIN.as_secs(), "calls are still open, ending all the same");
            Ok(())
        }
    }
}

/// Adds what tells clients which services there are.
fn add_reflection(routes: &mut RoutesBuilder) -> Result<(), ServeError> {
    let failed = |error: tonic_reflection::server::Error| ServeError::Failed(error.to_string());
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(deepcluster_proto::DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    routes.add_service(reflection().build_v1().map_err(failed)?);
    // Python's reflection client and older grpcurls speak this one alone.
    routes.add_service(reflection().build_v1alpha().map_err(failed)?);
    Ok(())
}

/// Starts to answer calls, through the door and with TLS where it is wished, until `shutdown` is cancelled.
fn start(
    listener: tokio::net::TcpListener,
    routes: Routes,
    door: Door,
    config: &Config,
    shutdown: &CancellationToken,
) -> Result<JoinHandle<Result<(), tonic::transport::Error>>, ServeError> {
    let drain = shutdown.clone();
    let drained = async move { drain.cancelled().await };
    let server = Server::builder()
        .tcp_nodelay(true)
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        // Those beyond the limit must come in to be refused with a word.
        .max_concurrent_streams(u32::try_from(config.limits.streams.saturating_mul(2)).unwrap_or(u32::MAX))
        .layer(door)
        .add_routes(routes);
    match config.tls.clone() {
        None => Ok(tokio::spawn(server.serve_with_incoming_shutdown(TcpListenerStream::new(listener), drained))),
        Some(files) => {
            let tls = ServerTls::new(files).map_err(ServeError::Setup)?;
            Ok(tokio::spawn(server.serve_with_incoming_shutdown(tls.accept(listener), drained)))
        }
    }
}

fn warn_if_open(address: SocketAddr, config: &Config) {
    let demands_certificates = config.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
    if !address.ip().is_loopback() && !demands_certificates && config.tokens.write.is_none() {
        warn!(%address, "OPEN TO EVERYBODY who can reach this address: callers need neither certificates nor tokens");
    }
}

async fn set_health(health: &HealthReporter, names: &[&'static str], ready: bool) {
    let status = if ready { tonic_health::ServingStatus::Serving } else { tonic_health::ServingStatus::NotServing };
    for name in names.iter().chain(&[""]) {
        health.set_service_status(name, status).await;
    }
}

async fn cancel_on_signal(shutdown: CancellationToken) {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        warn!("cannot listen for signals");
        return;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    shutdown.cancel();
}

/// A parent that is killed cannot clean up; the kernel tells its children.
fn die_with_parent(parent: i32) -> Result<(), ServeError> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGTERM).map_err(|error| ServeError::Setup(error.to_string()))?;
    // It may have died before the kernel knew of our wish.
    if nix::unistd::getppid().as_raw() != parent {
        return Err(ServeError::Setup("the process that started this one has ended".to_owned()));
    }
    Ok(())
}
