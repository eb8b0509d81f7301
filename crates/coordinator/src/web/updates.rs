//! Server-sent events. Once a second a page hears what has changed: texts and bars by name ("values"), or that a part of it
//! must be fetched anew ("refresh"), with a sentence for who listens. What has not changed is not sent.

use super::glance::Glance;
use super::guard::offered;
use super::html::Failure;
use super::{App, Shared};
use crate::run::Run;
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// How often a page hears of changes.
const OFTEN: Duration = Duration::from_secs(1);

/// A stream of changes.
type Updates = Sse<axum::response::sse::KeepAliveStream<ReceiverStream<Result<Event, Infallible>>>>;

/// GET /events: of the list of runs and the workers.
pub(crate) async fn of_all(State(app): Shared, Query(query): Query<HashMap<String, String>>, headers: HeaderMap) -> Updates {
    let token = offered(&app.tokens, &headers);
    stream(app, None, query, token)
}

/// GET /runs/{id}/events.
pub(crate) async fn of_run(
    State(app): Shared,
    Path(id): Path<String>,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
) -> Result<Updates, Failure> {
    let run = app.runs.get(&id)?;
    let token = offered(&app.tokens, &headers);
    Ok(stream(app, Some(run), query, token))
}

/// By what a page says how the runs were when it was made, which stands in "seen" when it asks for changes.
pub(crate) fn stamp(outline: &str) -> String {
    blake3::hash(outline.as_bytes()).to_hex().chars().take(16).collect()
}

fn stream(app: Arc<App>, run: Option<Arc<Run>>, query: HashMap<String, String>, token: Option<String>) -> Updates {
    let (sender, receiver) = mpsc::channel(4);
    let seen = query.get("seen").cloned().unwrap_or_default();
    tokio::spawn(async move {
        let shutdown = app.shutdown.clone();
        tokio::select! {
            () = tell(Arc::clone(&app), run, seen, &sender) => {}
            () = until_refused(&app, token) => {}
            () = sender.closed() => {}
            () = shutdown.cancelled() => {}
        }
    });
    Sse::new(ReceiverStream::new(receiver)).keep_alive(KeepAlive::default())
}

/// Waits until a token is no longer good: who showed it sees nothing more then.
async fn until_refused(app: &App, token: Option<String>) {
    let mut ticks = tokio::time::interval(OFTEN);
    while app.tokens.permit(token.as_deref(), false).is_ok() {
        ticks.tick().await;
    }
}

/// Tells of changes until nobody listens.
async fn tell(app: Arc<App>, run: Option<Arc<Run>>, mut seen: String, sender: &mpsc::Sender<Result<Event, Infallible>>) {
    let mut ticks = tokio::time::interval(OFTEN);
    let mut told = Map::new();
    let mut before: HashMap<String, Glance> = HashMap::new();
    loop {
        ticks.tick().await;
        let glances: Vec<Glance> = match &run {
            Some(run) => vec![app.glance(run)],
            None => app.runs.all().iter().map(|run| app.glance(run)).collect(),
        };
        let mut values = Map::new();
        glances.iter().for_each(|glance| glance.values(&mut values));
        let outline: String = match &run {
            Some(_) => glances.iter().map(Glance::detail).collect(),
            None => {
                let workers = super::overview::workers(&app);
                values.extend(workers.iter().map(|(key, worker)| (key.clone(), Value::String(worker.doing.clone()))));
                super::overview::outline(&glances, &workers)
            }
        };
        let outline = stamp(&outline);
        let mut events = Vec::new();
        if outline != seen {
            let news: Vec<String> = glances.iter().filter_map(|glance| glance.news_since(before.get(&glance.id)?)).collect();
            events.push(("refresh", json!({"say": news.join(". ")})));
            seen = outline;
        }
        values.retain(|key, value| told.get(key) != Some(&*value));
        if !values.is_empty() {
            told.extend(values.clone());
            events.push(("values", Value::Object(values)));
        }
        for (name, body) in events {
            if sender.send(Ok(Event::default().event(name).data(body.to_string()))).await.is_err() {
                return;
            }
        }
        before = glances.into_iter().map(|glance| (glance.id.clone(), glance)).collect();
    }
}
