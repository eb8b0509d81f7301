//! The report: one page that holds everything it shows and asks the network for nothing.

use crate::atlas::{self, AtlasOptions, Card};
use crate::cards::cards_html;
use crate::curves::{Curve, curves};
use crate::error::ReportError;
use crate::filters::Filters;
use crate::html::{counted, data_uri, escape, grouped, percent};
use crate::last::Clustered;
use crate::lineage::Lineages;
use crate::map::map_svg;
use crate::project::Method;
use crate::script::SCRIPT;
use crate::style::STYLE;
use crate::verdict::{Verdict, verdict};
use crate::view::RunView;
use crate::visualized::visualized_html;
use deepcluster_domain::Clustering;
use deepcluster_volume::RunFolder;
use deepcluster_volume::records::{EpochScores, RunRecord, read_record};
use std::fmt::Write;
use std::path::Path;

/// What a page may load: nothing but what stands in it.
const POLICY: &str = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
                      base-uri 'none'; form-action 'none'";

/// A section after the verdict.
struct Section {
    anchor: &'static str,
    title: &'static str,
    content: String,
}

impl Section {
    fn new(anchor: &'static str, title: &'static str, content: impl Into<String>) -> Self {
        Self { anchor, title, content: content.into() }
    }

    fn html(&self) -> String {
        let Self { anchor, title, content } = self;
        format!(
            "<section id=\"{anchor}\" aria-labelledby=\"{anchor}-title\">\n<h2 id=\"{anchor}-title\">{title}</h2>\n\
             {content}</section>\n"
        )
    }
}

/// A page, and what whoever makes it should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The whole page.
    pub html: String,
    /// Pictures of the atlas that are grey, since their images are not there or are not the run's any more.
    pub grey: usize,
    /// How many there are, and why, in a sentence; none when no picture is grey.
    pub remark: Option<String>,
}

/// The whole page, as HTML. `images_root` is the folder that image paths are relative to.
///
/// # Errors
/// When the folder is no run, or a file of its last epoch is not what its manifest says. A run without an epoch has a report of
/// its own: what stands in its way.
pub fn report(run: &RunFolder, images_root: &Path) -> Result<Page, ReportError> {
    if !run.run_json().is_file() {
        return Err(ReportError::NotARun(run.path().to_owned()));
    }
    let record: RunRecord = read_record(&run.run_json())?;
    let view = RunView::read(run)?;
    let clustered = match Clustered::read(run) {
        Err(ReportError::NothingYet(_)) => None,
        other => Some(other?),
    };
    let mut sections =
        vec![Section::new("curves", "Curves", curves_html(&view)), Section::new("epochs", "Epochs", epochs_html(&view))];
    let (mut grey, mut remark) = (0, None);
    match &clustered {
        None => {
            let none = "<p>No epoch is committed yet, so there are no clusters to show.</p>\n";
            sections.push(Section::new("atlas", "Cluster atlas", none));
        }
        Some(clustered) => {
            let options = AtlasOptions::for_clusters(clustered.members.len());
            let lineages = Lineages::read(run, &clustered.last);
            let cards = atlas::cards(clustered, &lineages, images_root, options)?;
            (grey, remark) = grey_of(&cards);
            sections.push(Section::new("map", "Map", map_html(&cards, clustered)));
            sections.push(Section::new("filters", "First layer", filters_html(clustered)?));
            sections.push(Section::new("visualized", "What filters respond to", visualized_html(run, clustered, images_root)));
            sections.push(Section::new("atlas", "Cluster atlas", atlas_html(&cards, clustered)));
        }
    }
    let mut judged = verdict(&view);
    if let Some(remark) = &remark {
        judged.reasons.push(remark.clone());
        judged.actions.push("Name the folder in which the run's images lie now: `deepcluster report --images`.".to_owned());
    }
    let mut page = head(&view, &record, &sections, images_root);
    page.push_str(&verdict_html(&judged));
    sections.iter().for_each(|section| page.push_str(&section.html()));
    let _ = writeln!(page, "</main>\n<footer><p>Made by deepcluster {}.</p></footer>", env!("CARGO_PKG_VERSION"));
    let _ = writeln!(page, "<script>{SCRIPT}</script>\n</body>\n</html>");
    Ok(Page { html: page, grey, remark })
}

/// How many pictures are grey, and what there is to say of them.
fn grey_of(cards: &[Card]) -> (usize, Option<String>) {
    let pictures = || cards.iter().flat_map(|card| card.nearest.iter().chain(&card.far));
    let mut lost = pictures().filter_map(|picture| Some((picture.path.as_str(), picture.unreadable.as_deref()?)));
    let Some((path, why)) = lost.next() else { return (0, None) };
    let n = 1 + lost.count();
    let remark = format!(
        "{} of {} of the atlas {} grey, since the image is not there or is not the run's any more; the first is {path}: {why}.",
        grouped(n),
        counted(pictures().count(), "picture", "pictures"),
        if n == 1 { "is" } else { "are" },
    );
    (n, Some(remark))
}

fn head(view: &RunView, record: &RunRecord, sections: &[Section], images_root: &Path) -> String {
    let id = escape(&view.run_id);
    let link = |section: &Section| format!("<li><a href=\"#{}\">{}</a></li>", section.anchor, section.title);
    let links: Vec<String> = sections.iter().map(link).collect();
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"referrer\" content=\"no-referrer\">\n<title>{id} · deepcluster</title>\n<style>{STYLE}</style>\n</head>\n\
         <body>\n<a class=\"skip\" href=\"#main\">Skip to the verdict</a>\n<header>\n<h1>Run {id}</h1>\n{}</header>\n\
         <nav aria-label=\"Sections\"><ul><li><a href=\"#main\">Verdict</a></li>{}</ul></nav>\n\
         <main id=\"main\" tabindex=\"-1\">\n",
        meta(view, record, images_root),
        links.concat(),
    )
}

/// What the run is, in a few lines.
fn meta(view: &RunView, record: &RunRecord, images_root: &Path) -> String {
    let spec = &record.spec;
    // The spec's folder is relative to a root that only the services know; this is where the page has its pictures from.
    let folder = std::path::absolute(images_root).unwrap_or_else(|_| images_root.to_owned());
    let (found, skipped) = (grouped(view.n_images), grouped(view.n_skipped));
    let colours = if spec.sobel { "edges (Sobel)" } else { "colours" };
    let mut lines = vec![
        ("State", view.state.clone()),
        ("Images", format!("{found}, {skipped} of them cannot be read; in {}", folder.display())),
        ("Clusters", grouped(view.k as usize)),
        ("Epochs", format!("{} of {}", view.scores.last().map_or(0, |last| last.epoch + 1), view.epochs)),
        ("Network", format!("{} on {colours}, {} pixels square", spec.arch, spec.image_size)),
        (
            "Training",
            format!("--lr {} --batch {} --weight-decay {} --seed {}", spec.lr, spec.batch, spec.weight_decay, spec.seed),
        ),
    ];
    let labels: Vec<String> = record.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    lines.push(("Labels", labels.join(", ")));
    lines.push(("Note", record.note.clone()));
    let shown = lines.iter().filter(|(_, value)| !value.is_empty());
    let shown: Vec<String> = shown.map(|(name, value)| format!("<dt>{name}</dt><dd>{}</dd>", escape(value))).collect();
    format!("<dl class=\"meta\">{}</dl>\n", shown.concat())
}

/// A verdict with its reasons and what to do.
fn verdict_html(verdict: &Verdict) -> String {
    let items = |sentences: &[String]| sentences.iter().map(|s| format!("<li>{}</li>\n", with_code(s))).collect::<String>();
    let actions = match verdict.actions.is_empty() {
        true => "<p>Nothing needs to be done.</p>\n".to_owned(),
        false => format!("<ul>\n{}</ul>\n", items(&verdict.actions)),
    };
    format!(
        "<section class=\"verdict {}\" aria-labelledby=\"verdict-title\">\n<h2 id=\"verdict-title\">{}</h2>\n<h3>Why</h3>\n\
         <ul>\n{}</ul>\n<h3>What to do</h3>\n{actions}</section>\n",
        if verdict.healthy { "healthy" } else { "unhealthy" },
        escape(&verdict.headline),
        items(&verdict.reasons),
    )
}

/// Escaped text in which what stands between backquotes is code.
fn with_code(text: &str) -> String {
    let mut html = String::new();
    for (at, part) in text.split('`').enumerate() {
        let part = escape(part);
        html.push_str(&if at % 2 == 1 { format!("<code>{part}</code>") } else { part });
    }
    html
}

fn curves_html(view: &RunView) -> String {
    let drawn = curves(view);
    if drawn.is_empty() {
        return "<p>No epoch is done yet.</p>\n".to_owned();
    }
    let figure = |curve: &Curve| {
        format!("<figure id=\"curve-{}\"><figcaption>{}</figcaption>{}</figure>\n", curve.id, escape(&curve.title), curve.svg)
    };
    let figures: Vec<String> = drawn.iter().map(figure).collect();
    format!("<p>The table below has the same figures.</p>\n<div class=\"curves\">\n{}</div>\n", figures.concat())
}

fn epochs_html(view: &RunView) -> String {
    let columns = [
        "Epoch",
        "Loss",
        if view.clustering == Clustering::Pic { "Squared distances" } else { "Objective" },
        "Clusters filled",
        "Effective",
        "Largest",
        "NMI last",
        "NMI classes",
        "by chance",
        "AMI classes",
        "Extract",
        "Cluster",
        "Train",
    ];
    let head: String = columns.iter().map(|column| format!("<th scope=\"col\">{column}</th>")).collect();
    let rows: String = view.scores.iter().map(epoch_row).collect();
    format!(
        "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Figures of every epoch\"><table>\n\
         <thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody></table></div>\n"
    )
}

fn epoch_row(scores: &EpochScores) -> String {
    let score = |value: Option<f64>| value.map_or("–".to_owned(), |value| format!("{value:.3}"));
    let seconds = |value: f64| format!("{value:.1} s");
    let cells = [
        format!("{:.4}", scores.loss),
        format!("{:.1}", scores.kmeans_objective),
        grouped(scores.nonempty),
        scores.effective_clusters.map_or("–".to_owned(), |effective| format!("{effective:.1}")),
        percent(scores.largest_share),
        score(scores.nmi_last),
        score(scores.nmi_classes),
        score(scores.nmi_chance),
        score(scores.ami_classes),
        seconds(scores.extract_s),
        seconds(scores.cluster_s),
        seconds(scores.train_s),
    ];
    let cells: String = cells.iter().map(|cell| format!("<td>{cell}</td>")).collect();
    format!("<tr><th scope=\"row\">{}</th>{cells}</tr>\n", scores.epoch)
}

fn map_html(cards: &[Card], clustered: &Clustered) -> String {
    if cards.is_empty() {
        return "<p>No cluster holds images.</p>\n".to_owned();
    }
    let (method, svg) = map_svg(cards, &clustered.centroids);
    let how = match method {
        Method::TSne => "t-SNE: neighbours on the map are neighbours in truth, longer distances mean little.",
        Method::PrincipalComponents => "The two directions in which the centroids differ most (PCA).",
    };
    let what = "Centroids on a plane, the area of each by the number of its images; each leads to its card.";
    format!("<p>{what} {how}</p>\n{svg}")
}

fn filters_html(clustered: &Clustered) -> Result<String, ReportError> {
    let Some(filters) = Filters::read(&clustered.last)? else {
        return Ok("<p>The checkpoint has no first layer of a known name.</p>\n".to_owned());
    };
    let grid = filters.grid()?;
    let what = match filters.channels {
        3 => "in colours".to_owned(),
        1 => "in grey".to_owned(),
        n => format!("as {n} grey tiles each, one for each channel (after Sobel: horizontal and vertical edges)"),
    };
    Ok(format!(
        "<p>The {} of the first layer, {what}; each in its own range. They count row by row from 0, {} in a row.</p>\n\
         <img class=\"pixels\" width=\"{}\" height=\"{}\" alt=\"Weights of the first layer\" src=\"{}\">\n",
        counted(filters.n, "filter", "filters"),
        grid.per_row,
        grid.width * 4,
        grid.height * 4,
        data_uri("png", &grid.png),
    ))
}

const CONTROLS: &str = "<form id=\"controls\" class=\"controls\" role=\"search\" hidden>\n\
    <label>Search by number, name, class or path <input name=\"search\" type=\"search\" autocomplete=\"off\"></label>\n\
    <label>Sort by <select name=\"sort\">\
    <option value=\"size down\">size, largest first</option><option value=\"size up\">size, smallest first</option>\
    <option value=\"purity down\">purity, purest first</option><option value=\"purity up\">purity, most mixed first</option>\
    <option value=\"distance up\">mean distance, tightest first</option>\
    <option value=\"distance down\">mean distance, loosest first</option>\
    <option value=\"name up\">name</option></select></label>\n\
    <output id=\"shown\" aria-live=\"polite\"></output>\n</form>\n";

fn atlas_html(cards: &[Card], clustered: &Clustered) -> String {
    let filled = clustered.by_size().len();
    let mut html = format!(
        "<p>{} of epoch {} hold images, the largest first. The pictures of each are those nearest to its centroid; in the last \
         rows are some far from it.</p>\n",
        counted(filled, "cluster", "clusters"),
        clustered.last.epoch.0,
    );
    if cards.len() < filled {
        let _ = writeln!(html, "<p>Shown are the {} largest.</p>", grouped(cards.len()));
    }
    if cards.iter().any(|card| card.nearest.iter().chain(&card.far).any(|picture| picture.unreadable.is_some())) {
        html.push_str("<p>Where pictures are grey, the paths say why.</p>\n");
    }
    let empty: Vec<String> = clustered.empty().iter().map(usize::to_string).collect();
    if !empty.is_empty() {
        let _ = writeln!(html, "<p>{} empty: {}.</p>", counted(empty.len(), "cluster is", "clusters are"), empty.join(", "));
    }
    let _ = writeln!(html, "{CONTROLS}<div id=\"cards\" class=\"cards\">\n{}</div>", cards_html(cards));
    html
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::made_up_run;
    use deepcluster_volume::publish::{publish_bytes, remove};
    use deepcluster_volume::records::{RunState, publish_record};

    #[test]
    fn the_page_holds_everything_and_asks_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let made = made_up_run(folder.path());
        let made_page = report(&made.run, &made.images).unwrap();
        let page = &made_page.html;
        assert_eq!((made_page.grey, &made_page.remark), (0, &None));
        assert!(page.contains(&format!("cannot be read; in {}</dd>", made.images.display())), "with its slash");
        let without_names = page.replace("http://www.w3.org/2000/svg", "");
        for address in ["http://", "https://", "url(", "@import", "<link", "<iframe", "src=\"/", "src=\"."] {
            assert!(!without_names.contains(address), "{address}");
        }
        for (cluster, times) in [(0, 1), (1, 1), (2, 0), (3, 1)] {
            assert_eq!(page.matches(&format!("id=\"cluster-{cluster}\"")).count(), times, "cluster {cluster}");
        }
        for part in ["1 cluster is empty: 2.", "a &lt;note&gt;", "cats &amp; kittens/02.png", "The 6 filters", "class=\"map\""] {
            assert!(page.contains(part), "{part}");
        }
        for anchor in ["curves", "epochs", "map", "filters", "visualized", "atlas"] {
            assert_eq!(page.matches(&format!("<section id=\"{anchor}\"")).count(), 1, "{anchor}");
        }
        assert!(!page.contains("<note>") && page.contains("Healthy: 2 of 2 epochs"));
        assert_eq!(made_page, report(&made.run, &made.images).unwrap(), "the same run has the same page");
    }

    #[test]
    fn pictures_of_other_images_are_grey_and_the_page_says_how_many() {
        let folder = tempfile::tempdir().unwrap();
        let made = made_up_run(folder.path());
        let kept = made.images.join("cats & kittens/00.png");
        let content = std::fs::read(&kept).unwrap();
        for name in ["cats & kittens/01.png", "dogs/05.png"] {
            publish_bytes(&made.images.join(name), &[content.as_slice(), b"longer"].concat()).unwrap();
        }
        let page = report(&made.run, &made.images).unwrap();
        let remark = page.remark.unwrap();
        assert_eq!(page.grey, 2, "{remark}");
        assert!(remark.starts_with("2 of 11 pictures of the atlas are grey") && remark.contains("was replaced"), "{remark}");
        assert!(page.html.contains("2 of 11 pictures of the atlas are grey") && page.html.contains("report --images"));
    }

    #[test]
    fn a_run_that_failed_before_its_first_epoch_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let made = made_up_run(folder.path());
        let record: RunRecord = read_record(&made.run.run_json()).unwrap();
        let message = "no `room` <left>".to_owned();
        let failed = RunRecord { state: RunState::Failed, message, epochs_done: 0, ..record };
        publish_record(&made.run.run_json(), &failed).unwrap();
        remove(&made.run.epochs()).unwrap();
        publish_bytes(&made.run.events_jsonl(), b"").unwrap();
        let page = report(&made.run, &made.images).unwrap().html;
        assert!(page.contains("Failed after 0 of 2 epochs: No `room` &lt;left&gt;."), "{page}");
        assert!(page.contains("<code>deepcluster resume VOLUME made-up</code>") && page.contains("No epoch is committed yet"));
        assert!(matches!(report(&RunFolder::at(folder.path()), &made.images), Err(ReportError::NotARun(_))));
    }
}
