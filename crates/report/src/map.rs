//! The map of the centroids: clusters that are alike lie close together.

use crate::atlas::Card;
use crate::cards::anchor;
use crate::html::{counted, data_uri, escape, percent};
use crate::last::Centroids;
use crate::project::{Method, project};
use std::fmt::Write;

const WIDTH: f32 = 1000.0;
const HEIGHT: f32 = 700.0;

/// More clusters than this are shown as circles: their pictures would only cover each other.
const MOST_PICTURES: usize = 400;

/// Largest side or diameter of a cluster, for few and for many of them.
const LARGEST: (f32, f32) = (64.0, 20.0);

/// Smallest side or diameter that can still be seen.
const SMALLEST: f32 = 5.0;

/// The map as SVG, and how it came about. Cards are drawn in their order, the largest cluster at the bottom.
pub(crate) fn map_svg(cards: &[Card], centroids: &Centroids) -> (Method, String) {
    let rows: Vec<usize> = cards.iter().map(|card| card.cluster as usize).collect();
    let (method, places) = project(centroids, &rows);
    let with_pictures = cards.len() <= MOST_PICTURES;
    let largest = if with_pictures { LARGEST.0 } else { LARGEST.1 };
    let most = cards.iter().map(|card| card.size).max().unwrap_or(1).max(1) as f32;
    let mut svg = format!(
        "<svg class=\"map\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"group\" aria-label=\"Map of {}; the atlas lists them\">\n",
        counted(cards.len(), "cluster", "clusters"),
    );
    for (card, [x, y]) in cards.iter().zip(on_page(&places, largest / 2.0 + 2.0)) {
        let side = (largest * (card.size as f32 / most).sqrt()).max(SMALLEST);
        let thumbnail = card.nearest.first().filter(|_| with_pictures);
        // Whoever uses a keyboard finds the same clusters in the atlas, without ten thousand stops on the way.
        let _ = write!(svg, "<a href=\"#{}\" tabindex=\"-1\">", anchor(card.cluster));
        let _ = match thumbnail {
            Some(picture) => write!(
                svg,
                "<image x=\"{:.1}\" y=\"{:.1}\" width=\"{side:.1}\" height=\"{side:.1}\" href=\"{}\">{}</image>",
                x - side / 2.0,
                y - side / 2.0,
                data_uri("jpeg", &picture.jpeg),
                title(card),
            ),
            None => write!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{:.1}\">{}</circle>", side / 2.0, title(card)),
        };
        svg.push_str("</a>\n");
    }
    svg.push_str("</svg>\n");
    (method, svg)
}

fn title(card: &Card) -> String {
    let class = match (card.purity, &card.class) {
        (Some(purity), Some(class)) => format!(", {} {}", percent(purity), escape(class)),
        _ => String::new(),
    };
    format!("<title>{} (cluster {}): {}{class}</title>", escape(&card.name), card.cluster, counted(card.size, "image", "images"))
}

/// Places stretched over the page, at least `margin` from its edges.
fn on_page(places: &[[f32; 2]], margin: f32) -> Vec<[f32; 2]> {
    let xs = stretched(places.iter().map(|[x, _]| *x), margin, WIDTH - margin);
    // Upwards in the plane is downwards on a page.
    let ys = stretched(places.iter().map(|[_, y]| -*y), margin, HEIGHT - margin);
    xs.into_iter().zip(ys).map(|(x, y)| [x, y]).collect()
}

fn stretched(values: impl Iterator<Item = f32> + Clone, from: f32, to: f32) -> Vec<f32> {
    let low = values.clone().fold(f32::INFINITY, f32::min);
    let high = values.clone().fold(f32::NEG_INFINITY, f32::max);
    let place = |value: f32| {
        let share = (value - low) / (high - low);
        // All in one place, or nowhere.
        let share = if share.is_finite() { share } else { 0.5 };
        from + share * (to - from)
    };
    values.map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::atlas::Picture;

    fn cards(n: u32) -> Vec<Card> {
        let picture = Picture { path: String::new(), distance: 0.0, jpeg: b"jpeg".to_vec(), unreadable: None };
        let card = |cluster: u32| Card {
            cluster,
            name: format!("<c{cluster}>"),
            size: (n - cluster) as usize,
            purity: Some(1.0),
            class: Some("a & b".to_owned()),
            mean_distance: 0.0,
            neighbours: Vec::new(),
            history: Vec::new(),
            nearest: vec![picture.clone()],
            far: Vec::new(),
        };
        (0..n).map(card).collect()
    }

    #[test]
    fn few_clusters_are_pictures_and_many_are_circles() {
        for (n, pictures) in [(3, 3), (500, 0)] {
            let centroids = Centroids { width: 2, values: (0..2 * n).map(|x| (x as f32).sin()).collect() };
            let (_, svg) = map_svg(&cards(n), &centroids);
            assert_eq!(svg.matches("<image ").count(), pictures);
            assert_eq!(svg.matches("<circle ").count(), n as usize - pictures);
            assert_eq!(svg.matches("<title>").count(), n as usize);
            assert!(svg.contains("href=\"#cluster-2\"") && svg.contains("&lt;c2&gt; (cluster 2)") && svg.contains("a &amp; b"));
            assert!(!svg.contains("NaN"));
        }
    }

    #[test]
    fn one_cluster_lies_in_the_middle() {
        let (_, svg) = map_svg(&cards(1), &Centroids { width: 1, values: vec![3.0] });
        assert!(svg.contains("x=\"468.0\" y=\"318.0\" width=\"64.0\""), "{svg}");
    }
}
