//! How the figures of a run went from epoch to epoch, as SVG.

use crate::html::escape;
use crate::view::RunView;
use deepcluster_domain::Clustering;
use deepcluster_volume::records::EpochScores;
use plotters::prelude::*;
use std::io;

/// Size of a plot in its own units; a page may show it at any width.
const SIZE: (u32, u32) = (640, 280);

/// The colour that stands for that of the text around a plot, which is another one on light and on dark ground.
const INK: RGBColor = RGBColor(1, 2, 3);

/// Where the curves begin, from the left.
const LEFT_OF_CURVES: u32 = 76;

/// How far below the upper edge the legend's lines lie.
const LEGEND_LINE: i32 = 14;

/// More epochs than this have no tick each.
const EPOCH_TICKS: usize = 10;

/// What plots are drawn on.
type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

/// [`INK`] as the plots say it.
const INK_IN_SVG: &str = "#010203";

/// Colours that are read on light and on dark ground, and told from each other by those who see no red and green.
const FIRST: RGBColor = RGBColor(47, 127, 193);
const SECOND: RGBColor = RGBColor(201, 106, 18);
const THIRD: RGBColor = RGBColor(128, 128, 128);

/// A plot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Curve {
    /// Its name for addresses and scripts: "loss", "objective", "occupancy", "nmi-last", "nmi-classes".
    pub id: &'static str,
    /// What it shows, in words.
    pub title: String,
    /// The `<svg>` element, with a text alternative.
    pub svg: String,
}

/// The plots of a run that has at least one committed epoch; none of what was not measured.
pub fn curves(view: &RunView) -> Vec<Curve> {
    let plots = [loss(view), objective(view), occupancy(view), nmi_last(view), nmi_classes(view)];
    let drawn = plots.into_iter().filter(|plot| plot.lines.iter().any(|line| !line.points.is_empty()));
    // Into a text everything can be drawn; what could not would be missing, and its figures stand in the table.
    drawn.filter_map(|plot| Some(Curve { id: plot.id, svg: plot.svg().ok()?, title: plot.title })).collect()
}

/// A line of a plot.
struct Line {
    name: String,
    colour: RGBColor,
    /// What was measured has marks; what it is compared with has none.
    marks: bool,
    points: Vec<(u32, f64)>,
}

struct Plot {
    id: &'static str,
    title: String,
    /// The values that must be seen in any case.
    includes: Vec<f64>,
    lines: Vec<Line>,
}

fn measured(view: &RunView, name: &str, figure: impl Fn(&EpochScores) -> Option<f64>) -> Line {
    let point = |scores: &EpochScores| Some((scores.epoch, figure(scores).filter(|value| value.is_finite())?));
    Line { name: name.to_owned(), colour: FIRST, marks: true, points: view.scores.iter().filter_map(point).collect() }
}

fn loss(view: &RunView) -> Plot {
    let line = measured(view, "loss", |scores| Some(scores.loss));
    let guess = |k: u32| f64::from(k.max(1)).ln();
    let name = match view.clustering {
        Clustering::KMeans => format!("guessing, ln k = {:.2}", guess(view.k)),
        // Another k in each epoch.
        Clustering::Pic => "guessing, ln of the clusters found".to_owned(),
    };
    let guesses = |scores: &EpochScores| scores.loss.is_finite().then(|| guess(view.k_of(scores)));
    let guessing = Line { colour: SECOND, marks: false, ..measured(view, &name, guesses) };
    Plot { id: "loss", title: "Loss (mean cross-entropy)".to_owned(), includes: Vec::new(), lines: vec![line, guessing] }
}

fn objective(view: &RunView) -> Plot {
    let (name, title) = match view.clustering {
        Clustering::KMeans => ("objective", "k-means objective (sum of squared distances)"),
        // Known of it, too, but nothing makes it small.
        Clustering::Pic => ("squared distances", "Sum of squared distances to the means of the clusters"),
    };
    let line = measured(view, name, |scores| Some(scores.kmeans_objective));
    Plot { id: "objective", title: title.to_owned(), includes: Vec::new(), lines: vec![line] }
}

fn occupancy(view: &RunView) -> Plot {
    let (name, title, includes) = match view.clustering {
        Clustering::KMeans => {
            ("clusters that hold images", format!("Occupancy of {} clusters", view.k), vec![0.0, f64::from(view.k)])
        }
        Clustering::Pic => ("clusters found", "Clusters found in each epoch".to_owned(), vec![0.0]),
    };
    let nonempty = Line { colour: SECOND, marks: false, ..measured(view, name, |scores| Some(scores.nonempty as f64)) };
    let effective = measured(view, "effective clusters", |scores| scores.effective_clusters);
    Plot { id: "occupancy", title, includes, lines: vec![effective, nonempty] }
}

fn nmi_last(view: &RunView) -> Plot {
    let line = measured(view, "NMI", |scores| scores.nmi_last);
    Plot { id: "nmi-last", title: "NMI with the epoch before".to_owned(), includes: vec![0.0, 1.0], lines: vec![line] }
}

fn nmi_classes(view: &RunView) -> Plot {
    let nmi = measured(view, "NMI", |scores| scores.nmi_classes);
    let ami = Line { colour: SECOND, marks: false, ..measured(view, "AMI, adjusted for chance", |scores| scores.ami_classes) };
    let chance = Line { colour: THIRD, marks: false, ..measured(view, "NMI of random clusters", |scores| scores.nmi_chance) };
    let title = "NMI with the classes of the folders".to_owned();
    let lines = [nmi, ami, chance].into_iter().filter(|line| !line.points.is_empty()).collect();
    Plot { id: "nmi-classes", title, includes: vec![0.0, 1.0], lines }
}

impl Plot {
    fn svg(&self) -> Result<String, DrawingAreaErrorKind<io::Error>> {
        let mut svg = String::new();
        self.draw(&mut svg)?;
        let (title, alternative) = (escape(&self.title), escape(&self.alternative()));
        let opening = format!("<svg class=\"curve\" role=\"img\" aria-label=\"{title}: {alternative}\" ");
        let svg = svg.replace(INK_IN_SVG, "currentColor").replacen("<svg ", &opening, 1);
        // Behind the opening tag, whose attributes hold no such sign unescaped.
        Ok(svg.replacen('>', &format!("><title>{title}</title>"), 1))
    }

    /// What the lines say to whoever does not see them.
    fn alternative(&self) -> String {
        let clause = |line: &Line| match (line.points.first(), line.points.last()) {
            (Some((from, first)), Some((to, last))) if from != to => {
                format!("{} {} in epoch {from}, {} in epoch {to}", line.name, short(*first), short(*last))
            }
            (Some((epoch, value)), _) => format!("{} {} in epoch {epoch}", line.name, short(*value)),
            _ => format!("{} was not measured", line.name),
        };
        self.lines.iter().map(clause).collect::<Vec<_>>().join("; ")
    }

    fn draw(&self, svg: &mut String) -> Result<(), DrawingAreaErrorKind<io::Error>> {
        let ((first, last), values) = self.ranges();
        // One epoch stands in the middle, between two that are not there, and what has no marks would not be seen.
        let alone = first == last;
        let epochs = if alone { (first - 1, first + 1) } else { (first, last) };
        let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
        let has_legend = self.lines.len() > 1;
        if has_legend {
            self.legend(&area)?;
        }
        let mut chart = ChartBuilder::on(&area)
            .margin(12)
            .margin_top(if has_legend { 2 * LEGEND_LINE } else { 12 })
            .x_label_area_size(40)
            .y_label_area_size(LEFT_OF_CURVES - 12)
            .build_cartesian_2d((epochs.0..epochs.1).with_key_points(epoch_ticks(first, last)), values.0..values.1)?;
        // Labels that differ by less than `short` tells need more digits.
        let digits = (-((values.1 - values.0) / 6.0).log10()).ceil().clamp(0.0, 6.0) as usize;
        let value_label = |value: &f64| match value.abs() < 1e4 && digits > 0 {
            true => format!("{value:.digits$}"),
            false => short(*value),
        };
        chart
            .configure_mesh()
            .disable_x_mesh()
            .x_labels(2 * EPOCH_TICKS)
            .y_labels(6)
            .max_light_lines(1)
            .light_line_style(TRANSPARENT)
            .bold_line_style(INK.mix(0.15))
            .axis_style(INK.mix(0.6))
            .label_style(("sans-serif", 15, &INK))
            .y_label_formatter(&value_label)
            .x_desc("epoch")
            .draw()?;
        for line in &self.lines {
            let style = line.colour.filled().stroke_width(2);
            let points = line.points.iter().map(|(epoch, value)| (i64::from(*epoch), *value));
            let series = LineSeries::new(points, style).point_size(if line.marks || alone { 3 } else { 0 });
            chart.draw_series(series)?;
        }
        area.present()
    }

    /// What each line is, above the curves, where none of them passes.
    fn legend(&self, area: &Area) -> Result<(), DrawingAreaErrorKind<io::Error>> {
        let font = ("sans-serif", 15, &INK).into_text_style(area);
        let mut left = LEFT_OF_CURVES as i32;
        for line in &self.lines {
            let style = line.colour.filled().stroke_width(2);
            area.draw(&PathElement::new(vec![(left, LEGEND_LINE), (left + 18, LEGEND_LINE)], style))?;
            area.draw(&Text::new(line.name.clone(), (left + 24, LEGEND_LINE - 8), font.clone()))?;
            let (width, _) = area.estimate_text_size(&line.name, &font)?;
            left += width as i32 + 48;
        }
        Ok(())
    }

    /// First and last epoch, lowest and highest value that are shown; of the values never an empty range.
    fn ranges(&self) -> ((i64, i64), (f64, f64)) {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let first = points().map(|(epoch, _)| *epoch).min().unwrap_or(0);
        let last = points().map(|(epoch, _)| *epoch).max().unwrap_or(0);
        let values = || points().map(|(_, value)| *value).chain(self.includes.iter().copied());
        let (low, high) = (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max));
        let room = ((high - low) * 0.06).max(high.abs() * 1e-3).max(1e-6);
        // What is bounded by its nature keeps its bound.
        let bottom = if self.includes.contains(&low) { low } else { low - room };
        ((i64::from(first), i64::from(last)), (bottom, high + room))
    }
}

/// The epochs that the axis names: all of a few, and of many the first, the last, and round numbers between them.
fn epoch_ticks(first: i64, last: i64) -> Vec<i64> {
    let n = last - first + 1;
    if n <= EPOCH_TICKS as i64 {
        return (first..=last).collect();
    }
    // 1, 2, 5, 10, 20, 50, …
    let mut steps = (0..).flat_map(|power| [1, 2, 5].map(|digit| digit * 10_i64.pow(power)));
    let step = steps.find(|step| n / step < EPOCH_TICKS as i64).unwrap_or(n);
    let mut ticks = vec![first];
    // Two labels nearer than half a step would touch.
    let round = (first / step + 1..=last / step).map(|n| n * step);
    ticks.extend(round.filter(|tick| tick - first > step / 2 && last - tick > step / 2));
    ticks.push(last);
    ticks
}

/// A figure in few signs.
fn short(value: f64) -> String {
    let size = value.abs();
    if size >= 1e6 {
        format!("{:.2} M", value / 1e6)
    } else if size >= 1e4 {
        format!("{:.1} k", value / 1e3)
    } else if size >= 100.0 {
        format!("{value:.0}")
    } else {
        let text = format!("{value:.3}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{healthy_view, scores};

    #[test]
    fn every_figure_has_a_plot_with_a_text_alternative() {
        let drawn = curves(&healthy_view());
        let ids: Vec<_> = drawn.iter().map(|curve| curve.id).collect();
        assert_eq!(ids, ["loss", "objective", "occupancy", "nmi-last", "nmi-classes"]);
        for Curve { id, svg, .. } in &drawn {
            assert!(svg.starts_with("<svg class=\"curve\" role=\"img\" aria-label=\""), "{id}: {svg}");
            assert!(svg.trim_end().ends_with("</svg>") && svg.contains("<polyline"), "{id}");
            assert!(svg.contains("currentColor") && !svg.contains(INK_IN_SVG), "{id}");
            assert_eq!(svg.matches("<title>").count(), 1, "{id}");
        }
        assert!(drawn[0].svg.contains("loss 4 in epoch 0, 2.5 in epoch 3; guessing, ln k = 4.61"), "{}", drawn[0].svg);
    }

    #[test]
    fn power_iteration_has_another_number_of_clusters_in_each_epoch_and_no_objective() {
        let mut view = RunView { clustering: Clustering::Pic, k: 20, ..healthy_view() };
        view.scores.iter_mut().zip([80, 60, 40, 20]).for_each(|(scores, found)| scores.nonempty = found);
        let drawn = curves(&view);
        let texts: Vec<String> = drawn.iter().map(|curve| format!("{} {}", curve.title, curve.svg)).collect();
        assert!(texts[0].contains("ln of the clusters found 4.382 in epoch 0, 2.996 in epoch 3"), "{}", texts[0]);
        assert!(texts[1].contains("means of the clusters") && !texts[1].contains("k-means objective"), "{}", texts[1]);
        assert!(texts[2].contains("clusters found 80 in epoch 0, 20 in epoch 3"), "{}", texts[2]);
        assert!(!texts[2].contains("Occupancy of 20"), "{}", texts[2]);
    }

    #[test]
    fn one_epoch_is_enough_and_none_is_not() {
        let mut view = healthy_view();
        view.scores = vec![EpochScores { loss: f64::NAN, nmi_classes: None, ami_classes: None, nmi_chance: None, ..scores(0) }];
        let drawn = curves(&view);
        let ids: Vec<_> = drawn.iter().map(|curve| curve.id).collect();
        assert_eq!(ids, ["objective", "occupancy"]);
        // A mark for each line; of both axes 0 has a label, and no epoch that is not there.
        let svg = &drawn[1].svg;
        assert!(svg.matches("<circle").count() >= 2, "{svg}");
        let labels = |text: &str| svg.lines().filter(|line| line.trim() == text).count();
        assert_eq!([labels("-1"), labels("0"), labels("1")], [0, 2, 0], "{svg}");
        view.scores.clear();
        assert!(curves(&view).is_empty());
    }

    #[test]
    fn both_ends_of_the_axis_and_all_of_a_few_epochs_have_a_tick() {
        assert_eq!(epoch_ticks(0, 0), [0]);
        assert_eq!(epoch_ticks(0, 8), [0, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(epoch_ticks(0, 99), [0, 20, 40, 60, 80, 99]);
        assert_eq!(epoch_ticks(3, 14), [3, 6, 8, 10, 12, 14]);
        for last in 10..2000 {
            let ticks = epoch_ticks(0, last);
            assert!(ticks.len() <= 11 && ticks.len() >= 4, "{last}: {ticks:?}");
            assert!(ticks[0] == 0 && ticks[ticks.len() - 1] == last && ticks.is_sorted(), "{last}: {ticks:?}");
        }
    }

    #[test]
    fn the_legend_lies_above_the_curves() {
        let plot = nmi_classes(&healthy_view());
        let mut svg = String::new();
        plot.draw(&mut svg).unwrap();
        let rows_of = |sign: &str| {
            let number =
                |text: &str| text.split(' ').filter_map(|pair| pair.split_once(',')?.1.parse().ok()).collect::<Vec<f64>>();
            let points = svg.match_indices(sign).map(|(at, _)| svg[at + sign.len()..].split('"').next().unwrap_or_default());
            points.map(number).collect::<Vec<_>>()
        };
        let lines: Vec<Vec<f64>> = rows_of("points=\"");
        // Three signs of the legend come first, of two points each; then the axes and the curves, of four points.
        assert!(lines[..3].iter().flatten().all(|y| *y == f64::from(LEGEND_LINE)), "{svg}");
        let curves: Vec<&f64> = lines[3..].iter().filter(|line| line.len() == 4).flatten().collect();
        assert!(!curves.is_empty() && curves.into_iter().all(|y| *y > f64::from(LEGEND_LINE + 8)), "{svg}");
    }

    #[test]
    fn figures_are_short() {
        assert_eq!(
            [short(1_234_567.0), short(12_345.0), short(640.2), short(0.25), short(4.0)],
            ["1.23 M", "12.3 k", "640", "0.25", "4"]
        );
    }
}
