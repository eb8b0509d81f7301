//! The atlas as HTML: one `<article>` a cluster.

use crate::atlas::{Ancestor, Card, Picture};
use crate::html::{counted, data_uri, escape, percent};
use crate::thumbs::{self, Strip};
use rayon::prelude::*;
use std::fmt::Write;

/// Thumbnails side by side.
const COLUMNS: u32 = 4;

/// Ancestors that a card names.
const ANCESTORS: usize = 5;

/// HTML of cards, in their order: `<article class="card" id="cluster-7" data-…>` each. All pictures of a card are one, so that
/// a page of ten thousand has no more than so many to show.
///
/// For sorting and searching each has `data-cluster`, `data-name`, `data-class`, `data-size`, `data-purity` and `data-distance`;
/// what is not known is empty. Paths stand in `<code>` elements.
pub fn cards_html(cards: &[Card]) -> String {
    cards.par_iter().map(card_html).collect::<Vec<_>>().concat()
}

/// Where a page has the card of a cluster.
pub(crate) fn anchor(cluster: u32) -> String {
    format!("cluster-{cluster}")
}

fn card_html(card: &Card) -> String {
    let (cluster, name, anchor) = (card.cluster, escape(&card.name), anchor(card.cluster));
    let class = card.class.as_deref().map(escape).unwrap_or_default();
    let purity = card.purity.map(|purity| format!("{purity:.4}")).unwrap_or_default();
    let mut html = format!(
        "<article class=\"card\" id=\"{anchor}\" data-cluster=\"{cluster}\" data-name=\"{name}\" data-class=\"{class}\" \
         data-size=\"{}\" data-purity=\"{purity}\" data-distance=\"{:.6}\">\n<h3><a href=\"#{anchor}\">{name}</a></h3>\n",
        card.size, card.mean_distance,
    );
    html.push_str(&facts(card));
    html.push_str(&picture(card));
    html.push_str(&paths(card));
    html.push_str(&neighbours(card));
    html.push_str(&history(&card.history));
    html.push_str("</article>\n");
    html
}

fn facts(card: &Card) -> String {
    let mut facts = format!("<p class=\"facts\">cluster {} · <b>{}</b>", card.cluster, counted(card.size, "image", "images"));
    if let (Some(purity), Some(class)) = (card.purity, &card.class) {
        let _ = write!(facts, " · {} <b>{}</b>", percent(purity), escape(class));
    }
    let _ = writeln!(facts, " · mean squared distance {:.3}</p>", card.mean_distance);
    facts
}

fn picture(card: &Card) -> String {
    let groups = [thumbs::squares(&card.nearest), thumbs::squares(&card.far)];
    let Some(Strip { jpeg, width, height }) = thumbs::strip(&groups, COLUMNS) else { return String::new() };
    let near = counted(card.nearest.len(), "image", "images");
    let far = if card.far.is_empty() { String::new() } else { format!("; in the last rows {} far from it", card.far.len()) };
    format!(
        "<img class=\"strip\" width=\"{width}\" height=\"{height}\" alt=\"{near} nearest to the centroid of cluster {}{far}\" \
         src=\"{}\">\n",
        card.cluster,
        data_uri("jpeg", &jpeg),
    )
}

fn paths(card: &Card) -> String {
    let mut html = "<details><summary>Paths</summary>".to_owned();
    for (what, pictures) in [("Nearest", &card.nearest), ("Far", &card.far)] {
        if !pictures.is_empty() {
            let _ = write!(html, "<p>{what}</p><ol>");
            pictures.iter().for_each(|picture| html.push_str(&path(picture)));
            html.push_str("</ol>");
        }
    }
    html.push_str("</details>\n");
    html
}

fn path(picture: &Picture) -> String {
    let unreadable = picture.unreadable.as_deref();
    let why = unreadable.map(|why| format!(" <em>cannot be read: {}</em>", escape(why))).unwrap_or_default();
    format!("<li><code>{}</code> {:.3}{why}</li>", escape(&picture.path), picture.distance)
}

fn neighbours(card: &Card) -> String {
    if card.neighbours.is_empty() {
        return String::new();
    }
    let link = |cluster: &u32| format!("<a href=\"#{}\">{cluster}</a>", anchor(*cluster));
    let links: Vec<String> = card.neighbours.iter().map(link).collect();
    format!("<p class=\"neighbours\">Nearest clusters: {}</p>\n", links.join(", "))
}

/// Where a cluster comes from, the last epochs of it.
fn history(history: &[Ancestor]) -> String {
    let shown = history.get(history.len().saturating_sub(ANCESTORS)..).unwrap_or_default();
    if shown.len() < 2 {
        return String::new();
    }
    let step = |ancestor: &Ancestor| {
        let Ancestor { epoch, cluster, shared, size } = ancestor;
        format!("epoch {epoch}: cluster {cluster}, {size} images, {shared} of them before")
    };
    let steps: Vec<String> = shown.iter().map(step).collect();
    format!("<p class=\"history\">{}</p>\n", steps.join(" → "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::RgbImage;

    fn card() -> Card {
        let picture = |path: &str, unreadable: Option<&str>| Picture {
            path: path.to_owned(),
            distance: 0.5,
            jpeg: thumbs::jpeg(&RgbImage::new(16, 16), 80).unwrap(),
            unreadable: unreadable.map(str::to_owned),
        };
        Card {
            cluster: 7,
            name: "c0042".to_owned(),
            size: 1200,
            purity: Some(0.915),
            class: Some("\"cats\" & <dogs>".to_owned()),
            mean_distance: 0.25,
            neighbours: vec![3, 1],
            history: vec![
                Ancestor { epoch: 1, cluster: 9, shared: 0, size: 10 },
                Ancestor { epoch: 2, cluster: 7, shared: 8, size: 12 },
            ],
            nearest: vec![picture("a/<script>.png", None)],
            far: vec![picture("b/2.png", Some("it's gone"))],
        }
    }

    #[test]
    fn a_card_says_everything_and_escapes_it() {
        let html = cards_html(&[card()]);
        for part in [
            "id=\"cluster-7\"",
            "data-name=\"c0042\"",
            "data-size=\"1200\"",
            "data-purity=\"0.9150\"",
            "1,200 images",
            "92 % <b>&quot;cats&quot; &amp; &lt;dogs&gt;</b>",
            "<code>a/&lt;script&gt;.png</code> 0.500",
            "cannot be read: it&#39;s gone",
            "<a href=\"#cluster-3\">3</a>, <a href=\"#cluster-1\">1</a>",
            "epoch 1: cluster 9, 10 images, 0 of them before → epoch 2: cluster 7, 12 images, 8 of them before",
        ] {
            assert!(html.contains(part), "{part} is not in {html}");
        }
        assert!(!html.contains("<script") && html.matches("<img ").count() == 1, "{html}");
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let bare = Card { purity: None, class: None, neighbours: Vec::new(), history: Vec::new(), ..card() };
        let html = cards_html(&[bare]);
        assert!(html.contains("data-purity=\"\"") && html.contains("data-class=\"\""), "{html}");
        assert!(!html.contains("Nearest clusters") && !html.contains("history"), "{html}");
    }
}
