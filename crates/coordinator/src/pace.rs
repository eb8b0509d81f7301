//! How fast the step that is under way gets on.

use deepcluster_proto::v1::{Progress, RunProgress};
use std::time::Instant;

/// Seconds before a rate can be told.
const TOO_EARLY: f64 = 0.5;

/// When a step was first heard of, and how far it was then: rates count from there, since a step that goes on half-way after
/// a pause has not done its first half in an instant.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    since: Instant,
    done_then: u64,
}

impl Pace {
    /// Of a step that has got so far; `before` is what was heard last.
    pub(crate) fn of(now: &RunProgress, before: Option<(&RunProgress, Self)>) -> Self {
        match before {
            Some((last, pace)) if goes_on(last, now) => pace,
            _ => Self { since: Instant::now(), done_then: now.progress.as_ref().map_or(0, |inner| inner.done) },
        }
    }

    /// Seconds until the step is done, if it gets on as it has; none while nobody can tell.
    pub(crate) fn seconds_left(self, now: &Progress) -> Option<f64> {
        let seconds = self.since.elapsed().as_secs_f64();
        let done = now.done.saturating_sub(self.done_then);
        if now.total == 0 || done == 0 || seconds < TOO_EARLY {
            return None;
        }
        Some(now.total.saturating_sub(now.done) as f64 * seconds / done as f64)
    }
}

/// Whether the same step has got on.
fn goes_on(last: &RunProgress, now: &RunProgress) -> bool {
    let (Some(one), Some(other)) = (&last.progress, &now.progress) else { return false };
    last.epoch == now.epoch && last.phase == now.phase && one.phase == other.phase && one.done <= other.done
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn progress(phase: &str, done: u64) -> RunProgress {
        let inner = Progress { phase: phase.to_owned(), done, total: 100, loss: 0.0 };
        RunProgress { epoch: 3, phase: "train".to_owned(), progress: Some(inner) }
    }

    #[test]
    fn time_left_counts_from_where_the_step_was_first_seen() {
        let first = progress("images", 40);
        let begun = Instant::now().checked_sub(Duration::from_secs(10)).unwrap();
        let pace = Pace { since: begun, ..Pace::of(&first, None) };
        let now = progress("images", 60);
        let pace = Pace::of(&now, Some((&first, pace)));
        // 20 images took 10 seconds, and 40 are left.
        let left = pace.seconds_left(now.progress.as_ref().unwrap()).unwrap();
        assert!((left - 20.0).abs() < 0.5, "{left}");
        for other in [progress("write", 70), progress("images", 10)] {
            let anew = Pace::of(&other, Some((&now, pace)));
            assert_eq!(anew.seconds_left(other.progress.as_ref().unwrap()), None, "another step, or the same again");
        }
    }
}
