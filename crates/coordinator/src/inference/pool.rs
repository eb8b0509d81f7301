//! Extractors that are ready for images of clients, each with as many batches as keep it busy.

use crate::activity::EXTRACTOR;
use crate::members::{LOOK_UP, Member, is_lost, look_up};
use crate::workers::Workers;
use deepcluster_proto::retry_later;
use deepcluster_proto::v1::{EmbedRequest, EmbedResponse, Progress};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tracing::warn;

/// Batches that an extractor has at a time: one is decoded while the other is in the network.
const AT_A_TIME: usize = 2;

/// How long an extractor that is ready is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// When it is worth another try where there is none.
const AGAIN: Duration = Duration::from_secs(5);

/// How often who waits looks again, should nobody tell.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// The extractors, apart from what an epoch knows of them.
pub(crate) struct Pool {
    workers: Workers,
    known: Mutex<Known>,
    /// Only one looks names up at a time.
    looking: tokio::sync::Mutex<()>,
    /// A place is free, or an extractor is ready.
    changed: Arc<Notify>,
    stop: CancellationToken,
}

#[derive(Default)]
struct Known {
    all: Vec<Extractor>,
    /// Who is the next one in turn.
    next: usize,
    looked_up: Option<Instant>,
}

#[derive(Clone)]
struct Extractor {
    member: Arc<Member>,
    places: Arc<Semaphore>,
}

/// A place for one batch at an extractor, which is free again when this is dropped.
pub(crate) struct Place {
    member: Arc<Member>,
    held: Option<OwnedSemaphorePermit>,
    changed: Arc<Notify>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.held = None;
        self.changed.notify_waiters();
    }
}

impl Pool {
    /// Of these workers' extractors, until `stop`.
    pub(crate) fn new(workers: Workers, stop: CancellationToken) -> Self {
        let (known, looking) = (Mutex::default(), tokio::sync::Mutex::new(()));
        Self { workers, known, looking, changed: Arc::default(), stop }
    }

    /// A place at an extractor that is ready, in turns; waits while all are busy.
    ///
    /// # Errors
    /// UNAVAILABLE when none is ready for a while.
    pub(crate) async fn place(&self) -> Result<Place, Status> {
        let mut last_ready = Instant::now();
        loop {
            self.look().await;
            if let Some(place) = self.free_place() {
                return Ok(place);
            }
            if self.known().all.iter().any(|one| one.member.is_ready()) {
                last_ready = Instant::now();
            } else if last_ready.elapsed() > PATIENCE {
                return Err(retry_later(Code::Unavailable, "no extractor is ready", AGAIN));
            }
            let _ = tokio::time::timeout(LOOK_AGAIN, self.changed.notified()).await;
        }
    }

    /// Has a batch embedded at a place, in one try.
    ///
    /// # Errors
    /// What the extractor says. One that went away has to say that it is ready before it gets another batch.
    pub(crate) async fn embed(&self, place: &Place, request: EmbedRequest) -> Result<EmbedResponse, Status> {
        let n = request.images.len() as u64;
        let address = place.member.address.to_string();
        let busy = self.workers.activity.begin(EXTRACTOR, &address, "images of clients".to_owned());
        let call = self.workers.call(&self.stop, &|_| {}, &|_| {});
        let outcome = call.embed_once(place.member.channel(), request).await;
        match &outcome {
            Ok(_) => busy.tell(&Progress { phase: "images".to_owned(), done: n, total: n, loss: 0.0 }),
            Err(status) => {
                busy.failed(status);
                if is_lost(status.code()) && !self.stop.is_cancelled() {
                    warn!(extractor = %address, why = status.message(), "lost with images of clients");
                    place.member.lost();
                }
            }
        }
        outcome
    }

    /// The next one in turn that is ready and has a place.
    fn free_place(&self) -> Option<Place> {
        let mut known = self.known();
        let n = known.all.len();
        for step in 0..n {
            let at = (known.next + step) % n;
            let Some(Extractor { member, places }) = known.all.get(at).cloned() else { continue };
            if !member.is_ready() {
                continue;
            }
            if let Ok(held) = places.try_acquire_owned() {
                known.next = at + 1;
                return Some(Place { member, held: Some(held), changed: Arc::clone(&self.changed) });
            }
        }
        None
    }

    /// Looks names up every few seconds, and has everybody asked who is not ready.
    async fn look(&self) {
        let Ok(_looking) = self.looking.try_lock() else { return };
        let looked_up = self.known().looked_up;
        if looked_up.is_none_or(|at| at.elapsed() > LOOK_UP) {
            let (found, trouble) = look_up(&self.workers.extractors).await;
            let mut known = self.known();
            known.looked_up = Some(Instant::now());
            // A name server that is away for a moment takes no extractor away.
            known.all.retain(|one| {
                let stays = found.contains_key(&one.member.address) || trouble.contains_key(one.member.name.as_str());
                if !stays {
                    one.member.gone.cancel();
                }
                stays
            });
            for (address, name) in found {
                if !known.all.iter().any(|one| one.member.address == address) {
                    known.all.extend(self.extractor(address, name));
                }
            }
        }
        let unready: Vec<Arc<Member>> = {
            let known = self.known();
            known.all.iter().map(|one| &one.member).filter(|member| !member.is_ready() && !member.is_asked()).cloned().collect()
        };
        for member in unready {
            self.ask(member);
        }
    }

    fn extractor(&self, address: SocketAddr, name: &str) -> Option<Extractor> {
        match self.workers.extractor_at(address, name) {
            Ok(channel) => {
                let member = Arc::new(Member::new(address, name, channel));
                Some(Extractor { member, places: Arc::new(Semaphore::new(AT_A_TIME)) })
            }
            Err(error) => {
                warn!(%address, error, "is no address of an extractor");
                None
            }
        }
    }

    /// Asks an extractor for its health until it is ready, and tells who waits.
    fn ask(&self, member: Arc<Member>) {
        let (workers, stop, changed) = (self.workers.clone(), self.stop.clone(), Arc::clone(&self.changed));
        tokio::spawn(async move {
            let call = workers.call(&stop, &|_| {}, &|_| {});
            tokio::select! {
                () = member.until_serving(&call) => changed.notify_waiters(),
                () = member.gone.cancelled() => {}
                () = stop.cancelled() => {}
            }
        });
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
