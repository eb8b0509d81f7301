//! The first page: runs in the order of their turns, the other runs, and what each worker is doing.

use super::glance::Glance;
use super::html::{Frame, Live, bar, escape, field, live, span};
use super::updates::stamp;
use super::{App, Shared};
use crate::activity::Seen;
use axum::extract::State;
use axum::response::Html;
use deepcluster_volume::events::seconds_since_1970;
use deepcluster_volume::records::RunState;
use std::cmp::Reverse;
use std::fmt::Write;

/// Most runs that are shown of those that wait for nothing.
const OTHERS: usize = 200;

/// GET /.
pub(crate) async fn page(State(app): Shared) -> Html<String> {
    let (content, outline) = content(&app);
    let events = format!("/events?seen={}", stamp(&outline));
    let live = Some(Live { events, fragment: "/fragment".to_owned() });
    let frame = Frame { title: "All runs", live, signed_in: app.tokens.write.is_some() };
    Html(frame.around(&format!("<h1>Runs</h1>\n<div id=\"live\">{content}</div>")))
}

/// GET /fragment.
pub(crate) async fn fragment(State(app): Shared) -> Html<String> {
    Html(content(&app).0)
}

/// The workers, each with the key under which the script knows what it is doing.
pub(crate) fn workers(app: &App) -> Vec<(String, Seen)> {
    let workers = &app.runs.workshop.workers;
    let keyed = |worker: Seen| (format!("{}:{}", worker.kind, worker.address), worker);
    workers.activity.seen(workers).into_iter().map(keyed).collect()
}

/// What changes when the page must be made anew.
pub(crate) fn outline(glances: &[Glance], workers: &[(String, Seen)]) -> String {
    let runs = glances.iter().map(Glance::outline);
    let workers = workers.iter().map(|(key, _)| key.clone());
    runs.chain(workers).collect::<Vec<_>>().join("\n")
}

/// What the script may replace, and its outline.
fn content(app: &App) -> (String, String) {
    let glances: Vec<Glance> = app.runs.all().iter().map(|run| app.glance(run)).collect();
    let workers = workers(app);
    let outline = outline(&glances, &workers);
    if glances.is_empty() {
        let nothing = "<p>There are no runs yet. <code>deepcluster submit FOLDER</code> queues one.</p>";
        return (format!("{nothing}{}", workers_table(&workers)), outline);
    }
    let waits = |glance: &Glance| matches!(glance.record.state, RunState::Queued | RunState::Running);
    let (mut queue, mut others): (Vec<Glance>, Vec<Glance>) = glances.into_iter().partition(waits);
    // Runs of the same priority take turns, beginning with the oldest.
    queue.sort_by_key(|glance| (Reverse(glance.record.priority), glance.record.created, glance.id.clone()));
    others.sort_by_key(|glance| (Reverse(glance.record.created), Reverse(glance.id.clone())));
    let n_more = others.len().saturating_sub(OTHERS);
    others.truncate(OTHERS);
    let mut content = match queue.is_empty() {
        true => "<section><h2>Queue</h2><p>Nothing waits for its turn.</p></section>".to_owned(),
        false => table("Queue", "In the order of their turns; those of the same priority take turns epoch by epoch.", &queue),
    };
    if !others.is_empty() {
        content.push_str(&table("Other runs", "Paused and ended runs, the newest first.", &others));
    }
    if n_more > 0 {
        let _ = write!(content, "<p>{n_more} older runs are not shown; <code>deepcluster runs</code> lists them.</p>");
    }
    content.push_str(&workers_table(&workers));
    (content, outline)
}

fn table(heading: &str, caption: &str, runs: &[Glance]) -> String {
    let rows: String = runs.iter().map(row).collect();
    let id = heading.to_lowercase().replace(' ', "-");
    format!(
        "<section aria-labelledby=\"{id}\"><h2 id=\"{id}\">{heading}</h2>\
         <div class=\"wide\" role=\"region\" aria-labelledby=\"{id}\" tabindex=\"0\"><table><caption>{caption}</caption>\
         <thead><tr>\
         <th scope=\"col\">Run</th><th scope=\"col\">State</th><th scope=\"col\">Epochs</th><th scope=\"col\">Under way</th>\
         <th scope=\"col\">Images</th><th scope=\"col\">Unreadable</th><th scope=\"col\">Clusters</th>\
         <th scope=\"col\">Priority</th><th scope=\"col\">Note and labels</th></tr></thead><tbody>{rows}</tbody></table></div>\
         </section>"
    )
}

fn row(run: &Glance) -> String {
    let record = &run.record;
    let id = escape(&run.id);
    let age = span(seconds_since_1970() - record.created as f64);
    format!(
        "<tr data-run=\"{id}\"><th scope=\"row\"><a id=\"to-{id}\" href=\"/runs/{id}\">{id}</a>\
         <small>created {age} ago</small></th><td>{state}<small>{message}</small></td>\
         <td>{done} of {epochs} {bar}</td><td>{step} <small>{left}</small></td>\
         <td class=\"number\">{n_images}</td><td class=\"number\">{n_skipped}</td><td class=\"number\">{k}</td>\
         <td class=\"number\">{priority}</td><td>{note}{labels}</td></tr>",
        state = live(&run.key("state"), "state", &record.state.to_string()),
        message = escape(&record.message),
        done = live(&run.key("epochs_done"), "epochs_done", &record.epochs_done.to_string()),
        epochs = field("epochs", run.epochs),
        bar = bar(&run.key("bar"), &run.percent(), &format!("Epochs of {} that are done", run.id)),
        step = live(&run.key("step"), "", &run.step()),
        left = live(&run.key("run_left"), "", &run.run_left()),
        n_images = field("n_images", record.resolved.n_images),
        n_skipped = field("n_skipped", record.resolved.n_skipped),
        k = field("k", record.resolved.k),
        priority = field("priority", record.priority),
        note = field("note", &record.note),
        labels = labels(run),
    )
}

/// The labels of a run.
pub(crate) fn labels(run: &Glance) -> String {
    let label = |(key, value): (&String, &String)| format!("<li>{}={}</li>", escape(key), escape(value));
    match run.record.labels.is_empty() {
        true => String::new(),
        false => {
            format!("<ul class=\"labels\" aria-label=\"Labels\">{}</ul>", run.record.labels.iter().map(label).collect::<String>())
        }
    }
}

fn workers_table(workers: &[(String, Seen)]) -> String {
    let row = |(key, worker): &(String, Seen)| {
        let (kind, address, doing) = (worker.kind, escape(&worker.address), live(key, "", &worker.doing));
        format!("<tr><th scope=\"row\">{kind}</th><td><code>{address}</code></td><td>{doing}</td></tr>")
    };
    let rows: String = workers.iter().map(row).collect();
    format!(
        "<section aria-labelledby=\"workers\"><h2 id=\"workers\">Workers</h2>\
         <div class=\"wide\" role=\"region\" aria-labelledby=\"workers\" tabindex=\"0\"><table>\
         <caption>What this coordinator has asked of each, and how far it says it is.</caption>\
         <thead><tr><th scope=\"col\">Worker</th><th scope=\"col\">Address</th>\
         <th scope=\"col\">What it is doing</th></tr></thead>\
         <tbody>{rows}</tbody></table></div></section>"
    )
}
