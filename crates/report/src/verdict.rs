//! Whether a run is healthy, why, and what to do: sentences for people, each with its figure.

use crate::html::{counted, grouped, percent, sentence};
use crate::view::{Notice, RunView};
use deepcluster_domain::Clustering;
use deepcluster_domain::health;
use deepcluster_volume::records::EpochScores;

/// An NMI with the epoch before above this is hardly any change.
const SETTLED: f64 = 0.98;

/// For so many epochs in a row.
const SETTLED_EPOCHS: usize = 3;

/// More skipped images than this share are worth a look.
const MANY_SKIPPED: f64 = 0.05;

/// What is to be thought of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// Nothing in the last figures should worry, and the run has not failed.
    pub healthy: bool,
    /// The verdict in one sentence.
    pub headline: String,
    /// Why, a sentence each.
    pub reasons: Vec<String>,
    /// What to do, a sentence each; none when nothing needs doing.
    pub actions: Vec<String>,
}

/// Judges a run by its last figures.
pub fn verdict(view: &RunView) -> Verdict {
    let worries = worries(view);
    let healthy = view.state != "failed" && worries.is_empty();
    let mut reasons: Vec<String> = standing(view, &worries).into_iter().collect();
    // The headline says the first one, unless it has to say why the run failed.
    let said = if view.state == "failed" { 0 } else { 1 };
    reasons.extend(worries.iter().skip(said).map(|worry| worry.message.clone()));
    // What becomes of the loss within two epochs is what a worry about it says.
    let is_said = view.scores.len() <= 2 && worries.iter().any(|worry| worry.kind.ends_with("-loss"));
    let loss = if is_said { None } else { loss(view) };
    let figures = [loss, moving(view), classes(view), occupancy(view), skipped(view), earlier_warnings(view), faults(view)];
    reasons.extend(figures.into_iter().flatten());
    let mut actions: Vec<String> = Vec::new();
    let remedies = worries.iter().map(|worry| worry.remedy.clone()).filter(|remedy| !remedy.is_empty());
    for action in what_to_run(view).into_iter().chain(remedies).chain(look_at_skipped(view)) {
        if !actions.contains(&action) {
            actions.push(action);
        }
    }
    Verdict { healthy, headline: headline(view, &worries), reasons, actions }
}

/// Something that should worry, in sentences.
struct Worry {
    kind: String,
    message: String,
    remedy: String,
}

/// Warnings of the last epoch and of the one that is being made; what the figures themselves say, should events be lost.
fn worries(view: &RunView) -> Vec<Worry> {
    let worry = |notice: &&Notice| Worry {
        kind: notice.kind.clone(),
        message: sentence(&format!("in epoch {}, {}", notice.epoch, notice.message)),
        remedy: sentence(&notice.remedy),
    };
    let mut worries: Vec<Worry> = Vec::new();
    // After a crash the same may have been said twice.
    for found in current_warnings(view).iter().map(worry) {
        if worries.iter().all(|known| known.message != found.message) {
            worries.push(found);
        }
    }
    let Some(last) = view.scores.last() else { return worries };
    let known: Vec<String> = worries.iter().map(|worry| worry.kind.clone()).collect();
    for warning in view.assess().into_iter().filter(|warning| !known.iter().any(|kind| kind == warning.kind)) {
        let message = sentence(&format!("in epoch {}, {}", last.epoch, warning.message));
        worries.push(Worry { kind: warning.kind.to_owned(), message, remedy: sentence(&warning.remedy) });
    }
    worries
}

fn current_warnings(view: &RunView) -> Vec<&Notice> {
    let last = view.scores.last().map_or(0, |last| last.epoch);
    view.warnings.iter().filter(|warning| warning.epoch >= last).collect()
}

fn earlier_warnings(view: &RunView) -> Option<String> {
    let last = view.scores.last().map_or(0, |last| last.epoch);
    // What cannot change within a run is said of the last epoch, too.
    let passed = |warning: &&Notice| warning.epoch < last && !health::CONSTANT_KINDS.contains(&warning.kind.as_str());
    let n = view.warnings.iter().filter(passed).count();
    (n > 0).then(|| format!("{} in earlier epochs.", counted(n, "warning", "warnings")))
}

fn headline(view: &RunView, worries: &[Worry]) -> String {
    let done = progress(view);
    match (view.state.as_str(), worries.first()) {
        ("failed", _) if view.message.is_empty() => format!("Failed: the run ended by an error after {done}."),
        ("failed", _) => format!("Failed after {done}: {}", sentence(&view.message)),
        (_, Some(worry)) => format!("Not healthy: {}", lower_first(&worry.message)),
        ("paused", None) => format!("Paused after {done}; nothing in the figures should worry."),
        ("cancelled", None) => format!("Cancelled after {done}; nothing in the figures should worry."),
        (_, None) if view.scores.is_empty() => "Nothing to judge yet: no epoch is done.".to_owned(),
        (_, None) => {
            let are = if epochs_done(view) == 1 { "is" } else { "are" };
            format!("Healthy: {done} {are} done, and nothing in the figures should worry.")
        }
    }
}

/// "3 of 20 epochs"
fn progress(view: &RunView) -> String {
    format!("{} of {}", epochs_done(view), counted(view.epochs as usize, "epoch", "epochs"))
}

fn epochs_done(view: &RunView) -> u32 {
    view.scores.last().map_or(0, |last| last.epoch + 1)
}

fn lower_first(sentence: &str) -> String {
    let mut chars = sentence.chars();
    chars.next().map_or_else(String::new, |first| format!("{}{}", first.to_lowercase(), chars.as_str()))
}

/// What the state itself says, where the headline does not.
fn standing(view: &RunView, worries: &[Worry]) -> Option<String> {
    let is_said = worries.is_empty() && view.message.is_empty();
    let because = |what: &str| match view.message.is_empty() {
        true => format!("{what}."),
        false => sentence(&format!("{what}: {}", view.message)),
    };
    match view.state.as_str() {
        "paused" if !is_said => Some(because("The run is paused")),
        "cancelled" if !is_said => Some(because("The run was cancelled")),
        "queued" => Some("The run waits for its turn.".to_owned()),
        _ => None,
    }
}

/// The command that helps in this state.
fn what_to_run(view: &RunView) -> Option<String> {
    let id = &view.run_id;
    match view.state.as_str() {
        "failed" => Some(format!(
            "Mend what the message names; then `deepcluster resume VOLUME {id}` goes on with what is done, where VOLUME is the \
             folder above runs/{id}."
        )),
        "paused" => Some(format!(
            "`deepcluster unpause {id}` goes on with it; where no coordinator runs, `deepcluster resume VOLUME {id}` does."
        )),
        "queued" => Some(format!("`deepcluster watch {id}` follows it.")),
        _ => None,
    }
}

fn loss(view: &RunView) -> Option<String> {
    let (first, last) = (view.scores.first()?.loss, view.scores.last()?.loss);
    let guess = f64::from(view.k).ln();
    let compared = format!("guessing among {} clusters has ln {} = {guess:.3}", grouped(view.k as usize), view.k);
    Some(if view.scores.len() == 1 {
        format!("The loss of the first epoch is {last:.3}; {compared}.")
    } else if last < first {
        format!("The loss fell from {first:.3} to {last:.3}; {compared}.")
    } else if last < health::GUESSING * guess {
        format!("The loss did not fall (it was {first:.3} and is {last:.3}), but is below that of guessing: {compared}.")
    } else {
        format!("The loss did not fall: it was {first:.3} and is {last:.3}; {compared}.")
    })
}

/// How much of the labelling changes from epoch to epoch.
fn moving(view: &RunView) -> Option<String> {
    let newest: Vec<f64> = view.scores.iter().rev().map_while(|scores| scores.nmi_last).take(SETTLED_EPOCHS).collect();
    let last = *newest.first()?;
    let published = "in published runs it rises from about 0.5 and stays below 0.8";
    Some(match newest.get(1) {
        _ if newest.len() == SETTLED_EPOCHS && newest.iter().all(|nmi| *nmi > SETTLED) => format!(
            "The clusters have settled: the NMI with the epoch before is {last:.3}, and above {SETTLED} for {SETTLED_EPOCHS} \
             epochs; more epochs will change little."
        ),
        Some(before) if last < *before => {
            format!(
                "The clusters are still moving: the NMI with the epoch before fell from {before:.3} to {last:.3}; {published}."
            )
        }
        Some(before) => {
            format!("The clusters come to rest: the NMI with the epoch before rose from {before:.3} to {last:.3}; {published}.")
        }
        None => format!("The NMI with the epoch before is {last:.3}; {published}."),
    })
}

fn classes(view: &RunView) -> Option<String> {
    let EpochScores { nmi_classes: Some(nmi), ami_classes: Some(ami), .. } = view.scores.last()? else { return None };
    let first = view.scores.first()?.nmi_classes?;
    let (best_epoch, best) = view.best()?;
    let chance = view.scores.last()?.nmi_chance.map(|chance| format!("; random clusters have {chance:.3}")).unwrap_or_default();
    Some(format!(
        "The NMI of the clusters with the folders' classes is {nmi:.3} ({first:.3} in the first epoch, at best {best:.3} in epoch \
         {best_epoch}{chance}; adjusted for chance, AMI {ami:.3}); training never sees the classes."
    ))
}

fn occupancy(view: &RunView) -> Option<String> {
    let last = view.scores.last()?;
    let largest = percent(last.largest_share);
    let share = |effective: f64| percent(effective / f64::from(view.k.max(1)));
    let nonempty =
        format!("{} of {} hold images, the largest {largest} of them", grouped(last.nonempty), grouped(view.k as usize));
    Some(match (view.clustering, last.effective_clusters) {
        (Clustering::KMeans, None) => format!("Of the clusters, {nonempty}."),
        (Clustering::KMeans, Some(effective)) => {
            let share = share(effective);
            format!("The images spread as over {effective:.1} clusters of equal size, {share} of k; {nonempty}.")
        }
        // It has no k, and makes no cluster without images.
        (Clustering::Pic, effective) => {
            let found =
                format!("{} found; the largest holds {largest} of the images", counted(last.nonempty, "cluster", "clusters"));
            match effective {
                None => format!("There were {found}."),
                Some(effective) => {
                    let share = share(effective);
                    format!("The images spread as over {effective:.1} clusters of equal size, {share} of the {found}.")
                }
            }
        }
    })
}

fn skipped_share(view: &RunView) -> f64 {
    view.n_skipped as f64 / view.n_images.max(1) as f64
}

fn skipped(view: &RunView) -> Option<String> {
    let n = counted(view.n_images, "image", "images");
    Some(match view.n_skipped {
        0 if view.n_images == 0 => return None,
        0 => format!("The run could read all of {n}."),
        skipped => format!("Of {n}, {} ({}) cannot be read and take no part.", grouped(skipped), percent(skipped_share(view))),
    })
}

fn look_at_skipped(view: &RunView) -> Option<String> {
    (skipped_share(view) > MANY_SKIPPED).then(|| "Look into images.csv for why so many images cannot be read.".to_owned())
}

fn faults(view: &RunView) -> Option<String> {
    let Notice { epoch, worker, message, .. } = view.faults.last()?;
    let n = counted(view.faults.len(), "fault was", "faults were");
    Some(sentence(&format!("{n} survived without a change to the results; the last in epoch {epoch}, {worker}: {message}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{healthy_view, scores};

    #[test]
    fn a_healthy_run_has_a_figure_for_every_sentence() {
        let found = verdict(&healthy_view());
        assert!(found.healthy, "{found:?}");
        assert_eq!(found.headline, "Healthy: 4 of 4 epochs are done, and nothing in the figures should worry.");
        assert!(found.reasons.iter().any(|reason| reason.starts_with("The loss fell from 4.000 to 2.500")), "{found:?}");
        assert!(found.reasons.iter().any(|reason| reason.contains("rose from 0.600 to 0.700")), "{found:?}");
        assert!(found.reasons.contains(&"Of 2,000 images, 20 (1.0 %) cannot be read and take no part.".to_owned()), "{found:?}");
        assert!(found.reasons.iter().all(|reason| reason.contains(|c: char| c.is_ascii_digit())), "{found:?}");
        assert_eq!(found.actions, [""; 0]);
    }

    #[test]
    fn stuck_and_collapsed_runs_are_told_even_where_their_events_are_lost() {
        let stuck = [0, 1].map(|epoch| EpochScores { loss: 100f64.ln(), ..scores(epoch) });
        let found = verdict(&RunView { scores: stuck.to_vec(), ..healthy_view() });
        assert!(!found.healthy && found.headline.contains("ln 100 = 4.605"), "{found:?}");
        assert!(found.actions[0].contains("--lr"), "{found:?}");
        assert!(!found.reasons.iter().any(|reason| reason.contains("4.605")), "the headline says it: {found:?}");

        let found = verdict(&RunView { clustering: Clustering::Pic, scores: stuck.to_vec(), ..healthy_view() });
        assert!(found.actions[0].contains("--lr") && !found.actions[0].contains("--k"), "{found:?}");

        let warning = Notice {
            epoch: 3,
            kind: "collapse".to_owned(),
            message: "97.0 % of the images are in one cluster".to_owned(),
            remedy: "raise --k".to_owned(),
            ..Notice::default()
        };
        let mut collapsed = RunView { warnings: vec![warning], ..healthy_view() };
        collapsed.scores[3].largest_share = 0.97;
        let found = verdict(&collapsed);
        assert_eq!(found.headline, "Not healthy: in epoch 3, 97.0 % of the images are in one cluster.");
        assert_eq!(found.actions, ["Raise --k."], "said once");
        assert!(!found.reasons.iter().any(|reason| reason.contains("in one cluster")), "the headline says it: {found:?}");
        collapsed.warnings.push(collapsed.warnings[0].clone());
        assert_eq!(verdict(&collapsed), found, "an event that came twice is one worry");
        collapsed.warnings.truncate(1);
        collapsed.warnings[0].epoch = 1;
        collapsed.scores[3].largest_share = 0.1;
        let found = verdict(&collapsed);
        assert!(found.healthy && found.reasons.contains(&"1 warning in earlier epochs.".to_owned()), "{found:?}");
    }

    #[test]
    fn clusters_and_dimensions_nearly_as_many_as_images_are_no_sign_of_health() {
        let mut view = RunView { k: 1000, ..healthy_view() };
        view.scores[3].effective_clusters = Some(900.0);
        let found = verdict(&view);
        assert!(!found.healthy && found.headline.contains("1000 clusters of 1980 images"), "{found:?}");
        assert_eq!(found.actions, ["Lower --k, or train on more images."]);
        view = RunView { dims: 1000, ..healthy_view() };
        let found = verdict(&view);
        assert!(!found.healthy && found.headline.contains("1000 dimensions"), "{found:?}");
        assert!(found.actions[0].contains("--pca"), "{found:?}");
    }

    #[test]
    fn a_first_epoch_worse_than_guessing_is_no_sign_of_health() {
        let first = |loss: f64| {
            let view = RunView { scores: vec![EpochScores { loss, ..scores(0) }], epochs: 1, ..healthy_view() };
            verdict(&view)
        };
        let found = first(100f64.ln() + 0.01);
        assert_eq!(found.headline, "Healthy: 1 of 1 epoch is done, and nothing in the figures should worry.");
        let found = first(30.0);
        assert!(!found.healthy && found.headline.contains("in epoch 0, the loss is 30.000, worse than guessing"), "{found:?}");
        assert_eq!(found.actions, ["Lower --lr."]);
    }

    #[test]
    fn what_power_iteration_finds_has_no_k() {
        let mut view = RunView { clustering: Clustering::Pic, k: 100, ..healthy_view() };
        view.scores[3].nonempty = 100;
        let found = verdict(&view);
        let said = found.reasons.join(" ");
        assert!(said.contains("80.0 clusters of equal size, 80 % of the 100 clusters found; the largest holds"), "{said}");
        assert!(said.contains("ln 100 = 4.605") && !said.contains("ln k") && !said.contains("of k"), "{said}");
    }

    #[test]
    fn failed_and_paused_runs_name_the_command_that_helps() {
        let message = "the images are <not> there".to_owned();
        let failed = RunView { state: "failed".to_owned(), message, ..healthy_view() };
        let found = verdict(&failed);
        assert!(!found.healthy);
        assert_eq!(found.headline, "Failed after 4 of 4 epochs: The images are <not> there.");
        assert!(found.actions[0].contains("deepcluster resume VOLUME made-up"), "{found:?}");
        assert!(!found.reasons.iter().any(|reason| reason.contains("<not> there")), "the headline says it: {found:?}");
        let paused = RunView { state: "paused".to_owned(), scores: Vec::new(), ..healthy_view() };
        let found = verdict(&paused);
        assert!(found.healthy && found.headline.starts_with("Paused after 0 of 4 epochs"), "{found:?}");
        assert!(found.actions[0].contains("deepcluster unpause made-up"), "{found:?}");
    }

    #[test]
    fn a_run_whose_clusters_were_better_before_is_not_healthy() {
        let mut view = healthy_view();
        for (scores, nmi) in view.scores.iter_mut().zip([0.035, 0.162, 0.110, 0.052]) {
            scores.nmi_classes = Some(nmi);
        }
        let found = verdict(&view);
        assert!(!found.healthy, "{found:?}");
        assert_eq!(
            found.headline,
            "Not healthy: in epoch 3, the NMI with the classes is 0.052, and was 0.162 in epoch 1; random clusters have 0.030."
        );
        assert!(found.actions[0].contains("export RUN --epoch 0 "), "{found:?}");
        assert!(found.reasons.iter().any(|reason| reason.contains("the loss falls (3.500 to 2.500")), "{found:?}");
        assert!(found.reasons.iter().any(|reason| reason.contains("at best 0.162 in epoch 1")), "{found:?}");
    }

    #[test]
    fn clusters_that_no_longer_change_have_settled() {
        let with = |nmis: [f64; 4]| {
            let mut view = healthy_view();
            view.scores.iter_mut().zip(nmis).for_each(|(scores, nmi)| scores.nmi_last = Some(nmi));
            moving(&view).unwrap()
        };
        assert!(with([0.5, 0.985, 0.99, 0.981]).contains("settled"));
        assert!(with([0.99, 0.99, 0.97, 0.99]).contains("come to rest"));
        assert!(with([0.5, 0.6, 0.7, 0.65]).contains("fell from 0.700 to 0.650"));
    }
}
