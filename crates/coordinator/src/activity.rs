//! What the workers are doing: what this coordinator has asked of them, and how far they say they are.

use crate::workers::{WAITING, Workers};
use deepcluster_proto::v1::Progress;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tonic::Status;

/// What an extractor is called.
pub(crate) const EXTRACTOR: &str = "extractor";

/// What the clusterer is called.
pub(crate) const CLUSTERER: &str = "clusterer";

/// What the trainer is called.
pub(crate) const TRAINER: &str = "trainer";

/// Of a worker that has nothing to do.
pub(crate) const IDLE: &str = "idle";

/// Of an extractor that gets no work yet.
pub(crate) const NOT_READY: &str = "has not said that it is ready";

/// Of an extractor that could not do its work.
pub(crate) const RESTS: &str = "gets no more shards in this epoch";

/// A kind of worker, and where it is.
type Who = (&'static str, String);

/// What all workers are doing. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Activity(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    /// The number of the next call.
    next: u64,
    /// What each call is about and how far it has come, by worker and number.
    calls: BTreeMap<(Who, u64), String>,
    /// What the last call ended in, for workers that have done nothing well since.
    troubles: BTreeMap<Who, String>,
    /// Extractors, as they were last asked for their health.
    extractors: BTreeMap<String, &'static str>,
}

/// A worker, for whoever wants to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// "extractor", "clusterer" or "trainer".
    pub kind: &'static str,
    /// Where it is, as HOST:PORT.
    pub address: String,
    /// What it is doing, in words.
    pub doing: String,
}

impl Activity {
    /// A worker is asked to do something, and counts as busy with it until what this returns is dropped.
    pub(crate) fn begin(&self, kind: &'static str, address: &str, task: String) -> Busy {
        let who = (kind, address.to_owned());
        let mut known = self.lock();
        let number = known.next;
        known.next += 1;
        known.calls.insert((who.clone(), number), task.clone());
        drop(known);
        Busy { activity: self.clone(), who, number, task }
    }

    /// The extractors that are known at present, each with its state.
    pub(crate) fn extractors_are(&self, extractors: BTreeMap<String, &'static str>) {
        let mut known = self.lock();
        known.troubles.retain(|(kind, address), _| *kind != EXTRACTOR || extractors.contains_key(address));
        known.extractors = extractors;
    }

    /// Every worker and what it is doing. Extractors that nobody has looked for yet stand there by their names.
    pub fn seen(&self, workers: &Workers) -> Vec<Seen> {
        let known = self.lock();
        let mut all: Vec<(&'static str, &str, &str)> =
            known.extractors.iter().map(|(address, state)| (EXTRACTOR, address.as_str(), *state)).collect();
        if all.is_empty() {
            all.extend(workers.extractors.iter().map(|name| (EXTRACTOR, name.as_str(), "was not asked for anything yet")));
        }
        all.extend([(CLUSTERER, workers.clusterer.as_str(), IDLE), (TRAINER, workers.trainer.as_str(), IDLE)]);
        let seen = |(kind, address, state): (&'static str, &str, &str)| {
            let who = (kind, address.to_owned());
            let calls = known.calls.iter().filter(|((whose, _), _)| *whose == who).map(|(_, call)| call.clone());
            let trouble = known.troubles.get(&who).map(|why| format!("last try failed: {why}"));
            let mut doing: Vec<String> = calls.chain(trouble).collect();
            if doing.is_empty() {
                doing.push(state.to_owned());
            }
            Seen { kind, address: who.1, doing: doing.join("; ") }
        };
        all.into_iter().map(seen).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // What is told to people may be stale for a moment.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call that a worker is busy with.
pub(crate) struct Busy {
    activity: Activity,
    who: Who,
    number: u64,
    task: String,
}

impl Busy {
    /// It says how far it is.
    pub(crate) fn tell(&self, progress: &Progress) {
        let how_far = match (progress.phase.as_str(), progress.total) {
            (WAITING, _) => "waits for its turn".to_owned(),
            (step, 0) => step.to_owned(),
            (step, total) => format!("{step} {} of {total}", progress.done),
        };
        let mut known = self.activity.lock();
        known.troubles.remove(&self.who);
        if let Some(state) = known.extractors.get_mut(&self.who.1) {
            *state = IDLE;
        }
        known.calls.insert((self.who.clone(), self.number), format!("{}: {how_far}", self.task));
    }

    /// It could not do it.
    pub(crate) fn failed(&self, status: &Status) {
        self.activity.lock().troubles.insert(self.who.clone(), status.message().to_owned());
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.activity.lock().calls.remove(&(self.who.clone(), self.number));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workers::Patience;
    use deepcluster_service::tls::ClientSecurity;
    use std::time::Duration;

    #[test]
    fn a_worker_is_busy_for_as_long_as_its_calls_last() {
        let patience = Patience { silence: Duration::from_secs(5), standstill: Duration::from_secs(5) };
        let names = ["extractors:1".to_owned()];
        let workers = Workers::new(&names, "clusterer:2", "trainer:3", patience, ClientSecurity::default()).unwrap();
        let doing = || workers.activity.seen(&workers).into_iter().map(|one| one.doing).collect::<Vec<_>>();
        assert_eq!(doing(), ["was not asked for anything yet", IDLE, IDLE]);
        workers.activity.extractors_are(BTreeMap::from([("10.0.0.1:1".to_owned(), NOT_READY)]));
        let first = workers.activity.begin(EXTRACTOR, "10.0.0.1:1", "shard 4".to_owned());
        let second = workers.activity.begin(EXTRACTOR, "10.0.0.1:1", "shard 7".to_owned());
        first.tell(&Progress { phase: "images".to_owned(), done: 3, total: 64, loss: 0.0 });
        second.tell(&Progress { phase: WAITING.to_owned(), ..Progress::default() });
        assert_eq!(doing(), ["shard 4: images 3 of 64; shard 7: waits for its turn", IDLE, IDLE]);
        second.failed(&Status::unavailable("it went away"));
        drop(second);
        assert_eq!(doing()[0], "shard 4: images 3 of 64; last try failed: it went away");
        first.tell(&Progress { phase: "write".to_owned(), ..Progress::default() });
        drop(first);
        assert_eq!(doing(), [IDLE, IDLE, IDLE], "it has shown that it is ready");
    }
}
