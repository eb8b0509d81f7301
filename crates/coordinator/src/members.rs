//! The extractors that names stand for: looked up again and again, asked for their health, given time after failures.

use crate::activity::{IDLE, NOT_READY, RESTS};
use crate::retry::{Retry, jittered};
use crate::workers::Call;
use metrics::gauge;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tracing::{info, warn};

/// How often names are looked up.
pub(crate) const LOOK_UP: Duration = Duration::from_secs(5);

/// First and longest pause before one that is not well is asked again.
const ASK_AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// So many tries in a row that were lost before they had begun are told of.
const UNBEGUN: u32 = 4;

/// What extractors are asked the health of.
const SERVICE: &str = "deepcluster.v1.Extractor";

/// An extractor at one address.
pub(crate) struct Member {
    pub(crate) address: SocketAddr,
    /// The name that stands for it.
    pub(crate) name: String,
    channel: Mutex<Channel>,
    /// Cancelled when its name no longer stands for it.
    pub(crate) gone: CancellationToken,
    /// Whether it said SERVING since it last failed.
    ready: AtomicBool,
    /// Whether it has ever said so.
    was_ready: AtomicBool,
    /// Tries in a row that were lost before they had begun.
    unbegun: AtomicU32,
    /// Only one asks at a time.
    asking: tokio::sync::Mutex<()>,
    retry: Mutex<Retry>,
    gave_up: AtomicBool,
}

impl Member {
    pub(crate) fn new(address: SocketAddr, name: &str, channel: Channel) -> Self {
        Self {
            address,
            name: name.to_owned(),
            channel: Mutex::new(channel),
            gone: CancellationToken::new(),
            ready: AtomicBool::new(false),
            was_ready: AtomicBool::new(false),
            unbegun: AtomicU32::new(0),
            asking: tokio::sync::Mutex::new(()),
            retry: Mutex::default(),
            gave_up: AtomicBool::new(false),
        }
    }

    pub(crate) fn channel(&self) -> Channel {
        self.channel.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether it said SERVING since it was last lost.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    /// Whether somebody is asking for its health.
    pub(crate) fn is_asked(&self) -> bool {
        self.asking.try_lock().is_err()
    }

    /// It went away: it has to say SERVING before it gets work again.
    pub(crate) fn lost(&self) {
        self.ready.store(false, Ordering::Relaxed);
    }

    /// Asks for its health until it says SERVING; at once when it has not failed since.
    pub(crate) async fn until_serving(&self, call: &Call<'_>) {
        let mut pause = ASK_AGAIN.0;
        let _asking = self.asking.lock().await;
        while !self.ready.load(Ordering::Relaxed) {
            let mut health = HealthClient::new(self.channel());
            let question = health.check(HealthCheckRequest { service: SERVICE.to_owned() });
            match tokio::time::timeout(call.workers.patience.silence, question).await {
                Ok(Ok(answer)) if answer.get_ref().status() == ServingStatus::Serving => {
                    info!(extractor = %self.address, "ready");
                    self.ready.store(true, Ordering::Relaxed);
                    self.was_ready.store(true, Ordering::Relaxed);
                    return;
                }
                _ => tokio::time::sleep(jittered(pause)).await,
            }
            // Certificates may have changed since.
            if let Ok(fresh) = call.workers.extractor_at(self.address, &self.name) {
                *self.channel.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
            }
            pause = (pause * 2).min(ASK_AGAIN.1);
        }
    }

    pub(crate) fn succeeded(&self) {
        self.unbegun.store(0, Ordering::Relaxed);
        self.retry().moved_on();
    }

    /// How long to wait before it gets work again. A shard that was only queued there tells nothing of its work.
    ///
    /// # Errors
    /// The failure, when it shall get no more.
    pub(crate) fn failed(&self, status: Status, begun: bool, call: &Call<'_>) -> Result<Duration, Status> {
        let lost = is_lost(status.code());
        if lost {
            self.lost();
        }
        if begun {
            self.unbegun.store(0, Ordering::Relaxed);
        } else if lost {
            let n = self.unbegun.fetch_add(1, Ordering::Relaxed);
            // One that dies with another shard in hand loses what is queued, too; a row of these is worth a word.
            if n == UNBEGUN {
                (call.fault)(&self.named(status));
            }
            return Ok(jittered((ASK_AGAIN.0 * 2_u32.saturating_pow(n)).min(ASK_AGAIN.1)));
        }
        self.retry().after(self.named(status), call)
    }

    /// Of many extractors, a fault says which.
    fn named(&self, status: Status) -> Status {
        match status.code() {
            // What is no worker's fault is for the user to read.
            Code::InvalidArgument => status,
            code => Status::new(code, format!("{}: {}", self.address, status.message())),
        }
    }

    fn has_given_up(&self) -> bool {
        self.gave_up.load(Ordering::Relaxed)
    }

    fn retry(&self) -> MutexGuard<'_, Retry> {
        self.retry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a call that ended so says that the extractor went away.
pub(crate) fn is_lost(code: Code) -> bool {
    matches!(code, Code::Unavailable | Code::Unknown | Code::Cancelled | Code::DeadlineExceeded | Code::Aborted)
}

/// The addresses of all names, each with its name, and what kept names from being looked up.
pub(crate) async fn look_up(names: &[String]) -> (BTreeMap<SocketAddr, &str>, BTreeMap<&str, String>) {
    let mut found = BTreeMap::new();
    let mut trouble = BTreeMap::new();
    for name in names {
        match tokio::net::lookup_host(name).await {
            Ok(addresses) => found.extend(addresses.map(|address| (address, name.as_str()))),
            Err(error) => drop(trouble.insert(name.as_str(), error.to_string())),
        }
    }
    (found, trouble)
}

/// All extractors that are known at present.
pub(crate) struct Members<'a> {
    call: Call<'a>,
    known: Mutex<BTreeMap<SocketAddr, Arc<Member>>>,
    /// Why the last one gave up that did.
    last: Mutex<Option<Status>>,
}

impl<'a> Members<'a> {
    pub(crate) fn new(call: Call<'a>) -> Self {
        Self { call, known: Mutex::default(), last: Mutex::default() }
    }

    /// Looks the names up every few seconds, tells of every address that is new, and bids farewell to those that are gone.
    /// Says so when there is nobody to do the work. Ends when all who could do it have given up, with what the last one said.
    pub(crate) async fn look(&self, tell: &UnboundedSender<Arc<Member>>) -> Status {
        let mut looks_in_vain = 0;
        loop {
            let (found, trouble) = look_up(&self.call.workers.extractors).await;
            for (address, name) in found.iter().filter(|(address, _)| !self.known().contains_key(address)) {
                match self.call.workers.extractor_at(*address, name) {
                    Ok(channel) => {
                        let member = Arc::new(Member::new(*address, name, channel));
                        self.known().insert(*address, Arc::clone(&member));
                        let _ = tell.send(member);
                    }
                    Err(error) => warn!(%address, error, "is no address of an extractor"),
                }
            }
            self.known().retain(|address, member| {
                // A name server that is away for a moment takes no extractor away.
                let stays = found.contains_key(address) || trouble.contains_key(member.name.as_str());
                if !stays {
                    member.gone.cancel();
                }
                stays
            });
            let is_ready = |member: &&Arc<Member>| !member.has_given_up() && member.ready.load(Ordering::Relaxed);
            let n_ready = self.known().values().filter(is_ready).count();
            let state = |member: &Arc<Member>| match (member.has_given_up(), member.ready.load(Ordering::Relaxed)) {
                (true, _) => RESTS,
                (false, true) => IDLE,
                (false, false) => NOT_READY,
            };
            let seen = self.known().values().map(|member| (member.address.to_string(), state(member))).collect();
            self.call.workers.activity.extractors_are(seen);
            gauge!("deepcluster_extractors_ready").set(n_ready as f64);
            looks_in_vain = if n_ready == 0 { looks_in_vain + 1 } else { 0 };
            // The first look is too early to tell.
            if looks_in_vain >= 2
                && let Some(last) = self.without_hope()
            {
                return last;
            }
            // One word is enough.
            if looks_in_vain == 2 {
                let (names, n_known) = (self.call.workers.extractors.join(", "), self.known().len());
                let why = trouble.into_values().next();
                let why = why.unwrap_or_else(|| format!("{n_known} addresses, of which none says that it is ready"));
                (self.call.fault)(&Status::unavailable(format!("waiting for an extractor; {names}: {why}")));
            }
            tokio::time::sleep(LOOK_UP).await;
        }
    }

    /// Why the last extractor gave up, when those that have not were never there: they are no reason to wait.
    fn without_hope(&self) -> Option<Status> {
        let hope = self.known().values().any(|other| !other.has_given_up() && other.was_ready.load(Ordering::Relaxed));
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        last.filter(|_| !hope)
    }

    /// Whether any extractor is left that has not given up, after this one has.
    pub(crate) fn others_are_left(&self, member: &Member, last: &Status) -> bool {
        member.gave_up.store(true, Ordering::Relaxed);
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(last.clone());
        self.known().values().any(|other| !other.has_given_up())
    }

    pub(crate) fn tell_of_loss(&self, member: &Member, last: &Status) {
        let (address, why) = (member.address, last.message());
        warn!(extractor = %address, why, "gets no more shards in this epoch");
        (self.call.fault)(&Status::new(last.code(), format!("{address} gets no more shards in this epoch: {why}")));
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<SocketAddr, Arc<Member>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
