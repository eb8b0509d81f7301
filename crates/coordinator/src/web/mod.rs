//! The live page: what the API knows, for people, over HTTP.
//!
//! ```text
//! server (connections, TLS) ─► guard (who may, from where) ─┬► overview, run_page, atlas: whole pages
//!                                                           ├► buttons: pause, resume, cancel
//!                                                           └► updates ─► live.js ─► parts of pages
//! ```
//! Pages are complete as they come. The script, where there is one, only brings what has changed since.

mod atlas;
mod buttons;
mod glance;
mod guard;
mod html;
mod login;
mod overview;
mod run_page;
mod server;
mod updates;

use crate::run::Run;
use crate::runs::Runs;
use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::middleware::from_fn_with_state;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use deepcluster_domain::RunId;
use deepcluster_report::RunView;
use deepcluster_service::config::Listen;
use deepcluster_service::door::Tokens;
use deepcluster_service::tls::{ServerFiles, ServerTls};
use html::Failure;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Most bytes that a form may have.
const FORM: usize = 8 << 10;

/// Where the live page is served, and to whom.
#[derive(Debug)]
pub struct LivePage {
    listener: std::net::TcpListener,
    /// What visitors must show, as callers of the API do.
    pub tokens: Tokens,
    /// Certificates, if it speaks TLS.
    pub tls: Option<ServerFiles>,
}

impl LivePage {
    /// Opens the port; nothing is answered before [`LivePage::serve`].
    ///
    /// # Errors
    /// One sentence that names the address.
    pub fn bind(address: SocketAddr, tokens: Tokens, tls: Option<ServerFiles>) -> Result<Self, String> {
        let listener = Listen::Address(address).bind().map_err(|why| format!("--http: {why}"))?;
        Ok(Self { listener, tokens, tls })
    }

    /// Serves until `shutdown` is cancelled. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// One sentence that names the address or a file of certificates.
    pub fn serve(self, runs: Arc<Runs>, shutdown: CancellationToken) -> Result<(), String> {
        let failed = |error: std::io::Error| format!("--http: {error}");
        let listener = TcpListener::from_std(self.listener).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        info!("the live page is at {scheme}://{address}/");
        let demands_certificates = self.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
        if !address.ip().is_loopback() && !demands_certificates && self.tokens.write.is_none() {
            warn!(%address, "the live page is OPEN TO EVERYBODY who can reach this address");
        }
        let tls = self.tls.map(ServerTls::for_pages).transpose()?;
        tokio::spawn(serve(listener, runs, self.tokens, tls, shutdown));
        Ok(())
    }
}

/// Serves the live page on a listener until `shutdown` is cancelled.
pub async fn serve(listener: TcpListener, runs: Arc<Runs>, tokens: Tokens, tls: Option<ServerTls>, shutdown: CancellationToken) {
    let most = runs.limits.page_connections;
    let app = App {
        runs,
        tokens,
        is_secure: tls.is_some(),
        shutdown: shutdown.clone(),
        views: Mutex::default(),
        atlases: atlas::Atlases::default(),
    };
    server::serve(listener, tls, router(Arc::new(app)), most, shutdown).await;
}

/// What all pages share.
pub(crate) struct App {
    pub(crate) runs: Arc<Runs>,
    pub(crate) tokens: Tokens,
    /// Whether it speaks TLS.
    pub(crate) is_secure: bool,
    pub(crate) shutdown: CancellationToken,
    /// What runs' events say, as long as there are no others.
    views: Mutex<HashMap<RunId, Stamped>>,
    pub(crate) atlases: atlas::Atlases,
}

/// A view, and of how many events and epochs.
type Stamped = ((u64, u32), Arc<RunView>);

/// What handlers get of it.
pub(crate) type Shared = State<Arc<App>>;

impl App {
    /// What the events of a run say.
    pub(crate) fn view(&self, run: &Run) -> Arc<RunView> {
        // In this order, a change in between makes a view that is made anew rather than one that stays.
        let n_events = run.news().borrow().n_events;
        let record = run.record();
        let stamp = (n_events, record.epochs_done);
        let views = || self.views.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, view)) = views().get(&run.id)
            && *known == stamp
        {
            return Arc::clone(view);
        }
        let view = Arc::new(RunView::of(&record, &run.events_from(0, usize::MAX)));
        views().insert(run.id.clone(), (stamp, Arc::clone(&view)));
        view
    }
}

fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/", get(overview::page))
        .route("/fragment", get(overview::fragment))
        .route("/events", get(updates::of_all))
        .route("/runs/{id}", get(run_page::page))
        .route("/runs/{id}/fragment", get(run_page::fragment))
        .route("/runs/{id}/events", get(updates::of_run))
        .route("/runs/{id}/atlas", get(atlas::page))
        .route("/runs/{id}/pause", post(buttons::pause))
        .route("/runs/{id}/resume", post(buttons::resume))
        .route("/runs/{id}/cancel", post(buttons::cancel))
        .route("/login", get(login::page).post(login::enter))
        .route("/logout", post(login::leave))
        .route("/live.js", get(script))
        .route("/healthz", get(|| async { "ok\n" }))
        .fallback(|| async { Failure::new(StatusCode::NOT_FOUND, "There is no such page.") })
        .method_not_allowed_fallback(|| async {
            Failure::new(StatusCode::METHOD_NOT_ALLOWED, "This page is not asked like that.")
        })
        .layer(DefaultBodyLimit::max(FORM))
        .layer(from_fn_with_state(Arc::clone(&app), guard::guard))
        .with_state(app)
}

async fn script() -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/javascript; charset=utf-8")], include_str!("live.js"))
}
