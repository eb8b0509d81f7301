//! Which shard an extractor does next: waiting ones first, then what is queued elsewhere, then what is late.

use deepcluster_domain::ShardId;
use metrics::{gauge, histogram};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Instant;
use tokio_util::sync::CancellationToken;

/// A shard in the hands of an extractor.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    pub(crate) shard: ShardId,
    /// Which try this is, of all.
    number: u64,
    /// Cancelled when another extractor has taken it over or was sooner.
    pub(crate) cancelled: CancellationToken,
}

struct Try {
    work: Work,
    extractor: SocketAddr,
    /// When it was given out.
    taken: Instant,
    /// When it was begun; none while it is queued behind another.
    begun: Option<Instant>,
    /// How much of it is done, from 0 to 1.
    share: f64,
}

impl Try {
    /// How long it will take from now on, in seconds, if it goes on as it has; `usual` is what a shard takes.
    fn remaining(&self, usual: f64) -> f64 {
        let elapsed = self.begun.unwrap_or(self.taken).elapsed().as_secs_f64();
        match self.share {
            share if share > 0.0 => elapsed * (1.0 - share) / share,
            // It has shown nothing for longer than a whole shard takes.
            _ if elapsed > usual => f64::INFINITY,
            _ => usual - elapsed,
        }
    }
}

/// All shards that are not done.
pub(crate) struct Queue {
    waiting: VecDeque<ShardId>,
    tries: Vec<Try>,
    /// How long the shards took that are done, in seconds, in order of length.
    seconds: Vec<f64>,
    next: u64,
    /// What Prometheus was told: shards waiting, shards under way.
    told: [usize; 2],
}

impl Queue {
    pub(crate) fn new(waiting: impl IntoIterator<Item = ShardId>) -> Self {
        Self { waiting: waiting.into_iter().collect(), tries: Vec::new(), seconds: Vec::new(), next: 0, told: [0; 2] }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.waiting.is_empty() && self.tries.is_empty()
    }

    /// What an extractor does next. It may have one shard in hand and one queued.
    pub(crate) fn take(&mut self, extractor: SocketAddr) -> Option<Work> {
        let mut own = self.tries.iter().filter(|one| one.extractor == extractor).peekable();
        let idle = own.peek().is_none();
        // Until the first has begun, a second would only wait where others could begin it.
        if own.any(|one| one.begun.is_none()) {
            return None;
        }
        let shard = match self.waiting.pop_front() {
            Some(shard) => shard,
            None if idle => self.take_over().or_else(|| self.repeat())?,
            None => return None,
        };
        let work = Work { shard, number: self.next, cancelled: CancellationToken::new() };
        self.next += 1;
        self.tries.push(Try { work: work.clone(), extractor, taken: Instant::now(), begun: None, share: 0.0 });
        Some(work)
    }

    /// A shard that only waits behind another. One that is alone with its extractor is about to begin: to take it would only
    /// move it from one that idles to another.
    fn take_over(&mut self) -> Option<ShardId> {
        let n_of = |extractor| self.tries.iter().filter(|one| one.extractor == extractor).count();
        let at = self.tries.iter().position(|one| one.begun.is_none() && n_of(one.extractor) > 1)?;
        let taken = self.tries.swap_remove(at);
        taken.work.cancelled.cancel();
        Some(taken.work.shard)
    }

    /// The shard that would be there soonest if it began anew here, of those with a single try.
    fn repeat(&self) -> Option<ShardId> {
        let usual = *self.seconds.get(self.seconds.len() / 2)?;
        let tries_of = |shard| self.tries.iter().filter(|one| one.work.shard == shard).count();
        let late = self.tries.iter().filter(|one| tries_of(one.work.shard) == 1 && one.remaining(usual) > usual);
        late.max_by(|a, b| a.remaining(usual).total_cmp(&b.remaining(usual))).map(|one| one.work.shard)
    }

    /// A try has begun, or got on.
    pub(crate) fn moved(&mut self, work: &Work, done: u64, total: u64) {
        if let Some(one) = self.tries.iter_mut().find(|one| one.work.number == work.number) {
            one.begun.get_or_insert_with(Instant::now);
            one.share = if total > 0 { done as f64 / total as f64 } else { 0.0 };
        }
    }

    /// A try has its result. False when it comes too late: the shard is done already.
    pub(crate) fn won(&mut self, work: &Work) -> bool {
        let Some(one) = self.remove(work) else { return false };
        if let Some(begun) = one.begun {
            let seconds = begun.elapsed().as_secs_f64();
            histogram!("deepcluster_shard_seconds").record(seconds);
            self.seconds.insert(self.seconds.partition_point(|other| *other < seconds), seconds);
        }
        self.tries.retain(|other| {
            let same = other.work.shard == work.shard;
            if same {
                other.work.cancelled.cancel();
            }
            !same
        });
        true
    }

    /// A try has failed; its shard waits again, unless another is at it. Whether it had begun.
    pub(crate) fn lost(&mut self, work: &Work) -> bool {
        let Some(one) = self.remove(work) else { return false };
        if !self.tries.iter().any(|other| other.work.shard == work.shard) {
            self.waiting.push_front(work.shard);
        }
        one.begun.is_some()
    }

    fn remove(&mut self, work: &Work) -> Option<Try> {
        let at = self.tries.iter().position(|one| one.work.number == work.number)?;
        Some(self.tries.swap_remove(at))
    }

    /// Tells Prometheus how much there is to do, beside what other queues have.
    pub(crate) fn tell(&mut self) {
        let n_begun = self.tries.iter().filter(|one| one.begun.is_some()).count();
        let now = [self.n_waiting(), n_begun];
        let change = |at: usize| now[at] as f64 - self.told[at] as f64;
        gauge!("deepcluster_shards_waiting").increment(change(0));
        gauge!("deepcluster_shards_under_way").increment(change(1));
        self.told = now;
    }

    /// Shards that nobody has in hand.
    fn n_waiting(&self) -> usize {
        self.waiting.len() + self.tries.iter().filter(|one| one.begun.is_none()).count()
    }
}

impl Drop for Queue {
    /// Nothing is left to do, or nobody does it any more.
    fn drop(&mut self) {
        self.waiting.clear();
        self.tries.clear();
        self.tell();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extractor(n: u16) -> SocketAddr {
        ([127, 0, 0, 1], n).into()
    }

    fn shards(n: u32) -> Queue {
        Queue::new((0..n).map(ShardId))
    }

    #[test]
    fn an_extractor_has_one_shard_in_hand_and_one_queued() {
        let mut queue = shards(5);
        let first = queue.take(extractor(1)).unwrap();
        assert!(queue.take(extractor(1)).is_none(), "the first has not begun");
        queue.moved(&first, 0, 10);
        let second = queue.take(extractor(1)).unwrap();
        assert!(queue.take(extractor(1)).is_none(), "two are enough");
        assert_eq!((first.shard, second.shard, queue.n_waiting()), (ShardId(0), ShardId(1), 4));
        assert!(queue.won(&first));
        queue.moved(&second, 0, 10);
        assert_eq!(queue.take(extractor(1)).unwrap().shard, ShardId(2));
    }

    #[test]
    fn what_is_queued_goes_to_one_that_idles() {
        let mut queue = shards(2);
        let first = queue.take(extractor(1)).unwrap();
        queue.moved(&first, 0, 10);
        let queued = queue.take(extractor(1)).unwrap();
        let taken = queue.take(extractor(2)).unwrap();
        assert_eq!(taken.shard, queued.shard);
        assert!(queue.take(extractor(3)).is_none(), "it is about to begin where it is");
        assert!(queued.cancelled.is_cancelled() && !taken.cancelled.is_cancelled());
        assert!(!queue.won(&queued), "a result that crossed the take-over is too late");
        assert!(queue.won(&taken) && queue.won(&first) && queue.is_done());
    }

    #[test]
    fn late_shards_are_repeated_and_the_first_result_wins() {
        let mut queue = shards(2);
        let [quick, late] = [1, 2].map(|n| queue.take(extractor(n)).unwrap());
        for work in [&quick, &late] {
            queue.moved(work, 0, 1_000_000);
        }
        assert!(queue.take(extractor(3)).is_none(), "nobody knows yet what is late");
        assert!(queue.won(&quick));
        // At this rate it would take a million times as long.
        queue.moved(&late, 1, 1_000_000);
        let again = queue.take(extractor(1)).unwrap();
        assert_eq!(again.shard, late.shard);
        queue.moved(&again, 0, 10);
        assert!(queue.take(extractor(3)).is_none(), "two tries are enough");
        assert!(!queue.is_done());
        assert!(queue.won(&again) && late.cancelled.is_cancelled());
        assert!(!queue.won(&late) && queue.is_done());
    }

    /// Its extractor answers, and never begins.
    #[test]
    fn a_shard_that_is_never_begun_is_repeated() {
        let mut queue = shards(2);
        let stuck = queue.take(extractor(1)).unwrap();
        let done = queue.take(extractor(2)).unwrap();
        queue.moved(&done, 0, 10);
        assert!(queue.won(&done));
        let again = loop {
            // Once it has waited for longer than a shard takes.
            if let Some(work) = queue.take(extractor(2)) {
                break work;
            }
        };
        assert_eq!(again.shard, stuck.shard);
        assert!(queue.won(&again) && stuck.cancelled.is_cancelled() && queue.is_done());
    }

    #[test]
    fn a_lost_shard_waits_again() {
        let mut queue = shards(1);
        let work = queue.take(extractor(1)).unwrap();
        assert!(!queue.lost(&work));
        let work = queue.take(extractor(2)).unwrap();
        queue.moved(&work, 1, 2);
        assert!(queue.lost(&work));
        assert_eq!((queue.n_waiting(), queue.is_done()), (1, false));
    }
}
