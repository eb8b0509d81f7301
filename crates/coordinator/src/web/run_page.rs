//! The page of one run: its verdict, how far it is, its curves and epochs, what it has survived, and its buttons.

use super::Shared;
use super::glance::Glance;
use super::html::{Failure, Frame, Live, bar, escape, field, live, score, span};
use super::overview::labels;
use super::updates::stamp;
use crate::run::Run;
use axum::extract::{Path, State};
use axum::response::Html;
use deepcluster_domain::Clustering;
use deepcluster_report::{Notice, curves, verdict};
use deepcluster_service::requests::images_folder;
use deepcluster_volume::events::seconds_since_1970;
use deepcluster_volume::records::EpochScores;
use std::path;

/// Most faults and warnings that are shown, of each.
const NOTICES: usize = 50;

/// GET /runs/{id}.
pub(crate) async fn page(State(app): Shared, Path(id): Path<String>) -> Result<Html<String>, Failure> {
    let run = app.runs.get(&id)?;
    let glance = app.glance(&run);
    let (id, content) = (escape(&glance.id), content(&app.runs.images, &run, &glance));
    let events = format!("/runs/{id}/events?seen={}", stamp(&glance.detail()));
    let live = Some(Live { events, fragment: format!("/runs/{id}/fragment") });
    let title = format!("{} is {}", glance.id, glance.record.state);
    let frame = Frame { title: &title, live, signed_in: app.tokens.write.is_some() };
    let buttons = buttons(&glance);
    Ok(Html(frame.around(&format!("<h1>Run {id}</h1>\n{buttons}\n<div id=\"live\">{content}</div>"))))
}

/// GET /runs/{id}/fragment.
pub(crate) async fn fragment(State(app): Shared, Path(id): Path<String>) -> Result<Html<String>, Failure> {
    let run = app.runs.get(&id)?;
    Ok(Html(content(&app.runs.images, &run, &app.glance(&run))))
}

/// They stay when the rest is replaced, so that whoever is about to press one does not lose it; the script lets them be pressed
/// in the states in which they do something.
fn buttons(run: &Glance) -> String {
    let (id, key) = (escape(&run.id), escape(&run.key("state")));
    let state = run.record.state.to_string();
    let button = |action: &str, states: &str, text: &str| {
        let disabled = if states.split(' ').any(|one| one == state) { "" } else { " disabled" };
        format!(
            "<form method=\"post\" action=\"/runs/{id}/{action}\"><button id=\"{action}\" type=\"submit\" data-state=\"{key}\" \
             data-when=\"{states}\"{disabled}>{text}</button></form>"
        )
    };
    format!(
        "<section class=\"buttons\" aria-label=\"What to do with this run\">{pause}{resume}\
         <details><summary>Cancel…</summary><p>A cancelled run never goes on. Its committed epochs stay.</p>{cancel}</details>\
         </section>",
        pause = button("pause", "queued running", "Pause"),
        resume = button("resume", "paused failed", "Resume"),
        cancel = button("cancel", "queued running paused failed", "Cancel this run for good"),
    )
}

/// What the script may replace.
fn content(images_root: &path::Path, run: &Run, glance: &Glance) -> String {
    [
        standing(images_root, run, glance),
        verdict_of(glance),
        curves_of(glance),
        epochs(glance),
        notices("Faults survived", "faults", &glance.view.faults, "Nothing has failed so far."),
        notices("Warnings", "warnings", &glance.view.warnings, "There is nothing to warn of."),
    ]
    .concat()
}

/// Where it stands.
fn standing(images_root: &path::Path, run: &Run, glance: &Glance) -> String {
    let record = &glance.record;
    let id = escape(&glance.id);
    let message = match record.message.as_str() {
        "" => String::new(),
        message => format!(": {}", escape(message)),
    };
    let atlas = match record.epochs_done {
        0 => String::new(),
        _ => format!("<p><a id=\"to-atlas\" href=\"/runs/{id}/atlas\">Atlas of the clusters of the last epoch</a></p>"),
    };
    format!(
        "<section aria-labelledby=\"standing\"><h2 id=\"standing\">Progress</h2>\
         <p class=\"state\">{state}{message}</p>\
         <p>{done} of {epochs} epochs {bar} {run_left}</p><p>{step} {step_bar} {step_left}</p>{atlas}\
         <dl><dt>Images</dt><dd>{n_images}, of which {n_skipped} cannot be read{passed_over}</dd><dt>Clusters</dt><dd>{k}</dd>\
         <dt>Priority</dt><dd>{priority}</dd><dt>Folder of the images</dt><dd><code>{images}</code></dd>\
         <dt>Network</dt><dd>{network}, {side} pixels, batches of {batch}</dd><dt>Seed</dt><dd>{seed}</dd>\
         <dt>Created</dt><dd>{age} ago</dd><dt>Note</dt><dd>{note}</dd><dt>Labels</dt><dd>{labels}</dd></dl></section>",
        state = live(&glance.key("state"), "state", &record.state.to_string()),
        done = live(&glance.key("epochs_done"), "epochs_done", &record.epochs_done.to_string()),
        epochs = field("epochs", glance.epochs),
        bar = bar(&glance.key("bar"), &glance.percent(), "Epochs that are done"),
        run_left = live(&glance.key("run_left"), "", &glance.run_left()),
        step = live(&glance.key("step"), "", &glance.step()),
        step_bar = bar(&glance.key("step_bar"), &glance.step_percent(), "How much of this step is done"),
        step_left = live(&glance.key("step_left"), "", &glance.step_left()),
        n_images = field("n_images", record.resolved.n_images),
        n_skipped = field("n_skipped", record.resolved.n_skipped),
        passed_over = match record.resolved.passed_over.as_str() {
            "" => String::new(),
            sentence => format!("; {}", escape(sentence)),
        },
        k = field("k", record.resolved.k),
        priority = field("priority", record.priority),
        images = escape(&as_asked(images_root, &run.spec.images)),
        network = run.spec.architecture,
        side = run.spec.image_size,
        batch = run.spec.batch,
        seed = run.spec.seed,
        age = span(seconds_since_1970() - record.created as f64),
        note = field("note", &record.note),
        labels = labels(glance),
    )
}

/// The folder of images as its user knows it: below a root of their own, images are asked for by their way from there, and
/// otherwise by their whole path.
fn as_asked(images_root: &path::Path, images: &str) -> String {
    match images_folder(images_root, images) {
        Ok(folder) if images_root == path::Path::new("/") => folder.display().to_string(),
        _ => images.to_owned(),
    }
}

fn verdict_of(glance: &Glance) -> String {
    let verdict = verdict(&glance.view);
    let list = |heading: &str, lines: &[String]| match lines.is_empty() {
        true => String::new(),
        false => {
            let lines: String = lines.iter().map(|line| format!("<li>{}</li>", escape(line))).collect();
            format!("<h3>{heading}</h3><ul>{lines}</ul>")
        }
    };
    format!(
        "<section class=\"verdict {class}\" aria-labelledby=\"verdict\"><h2 id=\"verdict\">Verdict</h2>\
         <p><strong>{headline}</strong></p>{reasons}{actions}</section>",
        class = if verdict.healthy { "healthy" } else { "unhealthy" },
        headline = escape(&verdict.headline),
        reasons = list("Why", &verdict.reasons),
        actions = list("What to do", &verdict.actions),
    )
}

fn curves_of(glance: &Glance) -> String {
    let figure = |curve: deepcluster_report::Curve| {
        format!("<figure id=\"curve-{}\"><figcaption>{}</figcaption>{}</figure>", curve.id, escape(&curve.title), curve.svg)
    };
    let figures: String = curves(&glance.view).into_iter().map(figure).collect();
    let figures = if figures.is_empty() { "<p>They begin with the first epoch.</p>".to_owned() } else { figures };
    format!("<section aria-labelledby=\"curves\"><h2 id=\"curves\">Curves</h2><div class=\"curves\">{figures}</div></section>")
}

/// The newest epoch first.
fn epochs(glance: &Glance) -> String {
    let row = |epoch: &EpochScores| {
        format!(
            "<tr data-epoch=\"{n}\"><th scope=\"row\">{n}</th><td>{loss:.4}</td><td>{objective:.1}</td><td>{nonempty}</td>\
             <td>{effective}</td><td>{largest:.1} %</td><td>{nmi_last}</td><td>{nmi_classes}</td><td>{nmi_chance}</td><td>{extract}</td>\
             <td>{cluster}</td><td>{train}</td></tr>",
            n = epoch.epoch,
            loss = epoch.loss,
            objective = epoch.kmeans_objective,
            nonempty = epoch.nonempty,
            effective = epoch.effective_clusters.map_or("–".to_owned(), |effective| format!("{effective:.1}")),
            largest = epoch.largest_share * 100.0,
            nmi_last = score(epoch.nmi_last),
            nmi_classes = score(epoch.nmi_classes),
            nmi_chance = score(epoch.nmi_chance),
            extract = span(epoch.extract_s),
            cluster = span(epoch.cluster_s),
            train = span(epoch.train_s),
        )
    };
    let rows: String = glance.view.scores.iter().rev().map(row).collect();
    if rows.is_empty() {
        return String::new();
    }
    let heads = [
        "Epoch",
        "Loss",
        if glance.view.clustering == Clustering::Pic { "Sum of squared distances" } else { "k-means objective" },
        "Clusters with images",
        "Effective clusters",
        "Largest",
        "NMI with the last epoch",
        "NMI with the folders",
        "by chance",
        "Extraction",
        "Clustering",
        "Training",
    ];
    let heads: String = heads.iter().map(|head| format!("<th scope=\"col\">{head}</th>")).collect();
    format!(
        "<section aria-labelledby=\"epochs\"><h2 id=\"epochs\">Epochs</h2>\
         <div class=\"wide\" role=\"region\" aria-labelledby=\"epochs\" tabindex=\"0\"><table class=\"numbers\">\
         <caption>Committed epochs, the newest first.</caption><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>\
         </section>"
    )
}

/// Faults or warnings, the newest first.
fn notices(heading: &str, id: &str, all: &[Notice], none: &str) -> String {
    let line = |notice: &Notice| {
        let who = if notice.worker.is_empty() { String::new() } else { format!(", {}", escape(&notice.worker)) };
        let remedy = if notice.remedy.is_empty() { String::new() } else { format!("; {}", escape(&notice.remedy)) };
        format!("<li>Epoch {}{who}: {}{remedy}</li>", notice.epoch, escape(&notice.message))
    };
    let lines: String = all.iter().rev().take(NOTICES).map(line).collect();
    let lines = if lines.is_empty() { format!("<p>{none}</p>") } else { format!("<ul>{lines}</ul>") };
    let more = all.len().saturating_sub(NOTICES);
    let more = if more == 0 { String::new() } else { format!("<p>{more} older ones stand in events.jsonl.</p>") };
    format!(
        "<section aria-labelledby=\"{id}\"><h2 id=\"{id}\">{heading}: <span data-field=\"n_{id}\">{n}</span></h2>\
         {lines}{more}</section>",
        n = all.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_images_is_called_what_its_user_calls_it() {
        for (root, images, shown) in [
            ("/", "home/me/pictures", "/home/me/pictures"),
            ("/", ".", "/"),
            ("/data", "pictures", "pictures"),
            ("/data", ".", "."),
        ] {
            assert_eq!(as_asked(path::Path::new(root), images), shown, "{images} below {root}");
        }
    }
}
