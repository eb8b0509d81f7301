//! The atlas of a run's last epoch, fifty clusters at a time. Its thumbnails take a while, so the last pages are kept.

use super::Shared;
use super::html::{Failure, Frame, escape, field};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::Html;
use deepcluster_domain::RunId;
use deepcluster_report::{AtlasOptions, ReportError, atlas, cards_html};
use deepcluster_service::requests::{images_folder, volume_status};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Clusters of a page.
const PAGE: usize = 50;

/// Pages that are kept, of some megabytes each.
const KEPT: usize = 8;

/// Before there is an atlas.
const NOTHING_YET: &str = "This run has no committed epoch yet.";

/// Run, number of committed epochs, first cluster.
type Key = (RunId, u32, usize);

/// Cards of a page, and how many there are.
type Cards = Arc<(String, usize)>;

/// The pages that were made last.
#[derive(Default)]
pub(crate) struct Atlases {
    kept: Mutex<VecDeque<(Key, Cards)>>,
    /// Only one is made at a time: each keeps all cores and the disk busy.
    making: Arc<tokio::sync::Mutex<()>>,
}

impl Atlases {
    fn get(&self, key: &Key) -> Option<Cards> {
        self.lock().iter().find(|(known, _)| known == key).map(|(_, cards)| Arc::clone(cards))
    }

    fn keep(&self, key: Key, cards: Cards) {
        let mut kept = self.lock();
        if kept.len() >= KEPT {
            kept.pop_front();
        }
        kept.push_back((key, cards));
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(Key, Cards)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// GET /runs/{id}/atlas?first=0.
pub(crate) async fn page(
    State(app): Shared,
    Path(id): Path<String>,
    Query(query): Query<HashMap<String, String>>,
) -> Result<Html<String>, Failure> {
    let run = app.runs.get(&id)?;
    let first = query.get("first").map_or("0", String::as_str).parse::<usize>();
    let first = first.map_err(|_| Failure::new(StatusCode::BAD_REQUEST, "\"first\" is the number of a cluster, from 0 on."))?;
    let record = run.record();
    if record.epochs_done == 0 {
        return Err(Failure::new(StatusCode::NOT_FOUND, NOTHING_YET));
    }
    let key = (run.id.clone(), record.epochs_done, first);
    let cards = match app.atlases.get(&key) {
        Some(cards) => cards,
        None => made(&app, key, images_folder(&app.runs.images, &run.spec.images)?, run.folder.clone()).await?,
    };
    let (id, k) = (escape(run.id.as_str()), field("k", record.resolved.k));
    let (cards, n_cards) = &*cards;
    let shown = match *n_cards {
        0 => format!("There are no clusters from number {first} on."),
        n => format!("Clusters {} to {} of {k}, the largest first.", first.saturating_add(1), first.saturating_add(n)),
    };
    let pages = pages(&id, first, *n_cards);
    let body = format!(
        "<h1>Atlas of {id}</h1><p><a href=\"/runs/{id}\">To the run</a></p>\
         <p>Clusters of the last committed epoch: the images nearest to each centroid, and the farthest. {shown}</p>\
         <h2>Clusters</h2>{pages}<div class=\"cards\">{cards}</div>"
    );
    let title = format!("Atlas of {}", run.id);
    Ok(Html(Frame { title: &title, signed_in: app.tokens.write.is_some(), ..Frame::default() }.around(&body)))
}

/// Makes a page, or waits until another has made it. Goes on when nobody waits any more, since it will be asked for again.
async fn made(
    app: &Arc<super::App>,
    key: Key,
    images: std::path::PathBuf,
    folder: deepcluster_volume::RunFolder,
) -> Result<Cards, Failure> {
    let turn = Arc::clone(&app.atlases.making).lock_owned().await;
    if let Some(cards) = app.atlases.get(&key) {
        return Ok(cards);
    }
    let app = Arc::clone(app);
    let work = move || {
        let _turn = turn;
        let options = AtlasOptions { nearest: 6, far: 3, thumb: 96, first: key.2, most: PAGE };
        let cards = atlas(&folder, &images, options)?;
        let cards = Arc::new((cards_html(&cards), cards.len()));
        app.atlases.keep(key, Arc::clone(&cards));
        Ok::<_, ReportError>(cards)
    };
    let made = tokio::task::spawn_blocking(work).await;
    let made = made.map_err(|error| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    made.map_err(|error| match error {
        ReportError::NothingYet(_) => Failure::new(StatusCode::NOT_FOUND, NOTHING_YET),
        ReportError::Volume(error) => volume_status(&error).into(),
        error => Failure::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    })
}

/// The way to the pages before and after.
fn pages(id: &str, first: usize, n_cards: usize) -> String {
    let link = |first: usize, text: &str| format!("<a href=\"/runs/{id}/atlas?first={first}\">{text}</a>");
    let before = if first == 0 { String::new() } else { link(first.saturating_sub(PAGE), "Larger clusters") };
    let after = if n_cards < PAGE { String::new() } else { link(first.saturating_add(PAGE), "Smaller clusters") };
    match before.is_empty() && after.is_empty() {
        true => String::new(),
        false => format!("<nav class=\"pages\" aria-label=\"Pages of the atlas\">{before} {after}</nav>"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_pages_are_kept() {
        let atlases = Atlases::default();
        let key = |first: usize| ("run-0001".parse::<RunId>().unwrap(), 3, first);
        for first in 0..KEPT + 1 {
            atlases.keep(key(first), Arc::new((first.to_string(), 1)));
        }
        assert!(atlases.get(&key(0)).is_none() && atlases.get(&key(1)).is_some());
        assert_eq!(atlases.get(&key(KEPT)).unwrap().0, KEPT.to_string());
    }

    #[test]
    fn pages_lead_to_their_neighbours() {
        assert_eq!(pages("r", 0, 10), "");
        let middle = pages("r", 50, 50);
        assert!(middle.contains("first=0\"") && middle.contains("first=100\""), "{middle}");
        assert!(!pages("r", usize::MAX, 0).contains("Smaller"));
    }
}
