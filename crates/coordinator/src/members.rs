//! The extractors that names stand for: looked up again and again, asked for their health, given time after failures.

use crate::retry::{Retry, jittered};
use crate::workers::{Call, Workers};
use metrics::gauge;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
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
const LOOK_UP: Duration = Duration::from_secs(5);

/// First and longest pause before one that is not well is asked again.
const ASK_AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// What extractors are asked the health of.
const SERVICE: &str = "deepcluster.v1.Extractor";

/// An extractor at one address.
pub(crate) struct Member {
    pub(crate) address: SocketAddr,
    channel: Channel,
    /// Cancelled when its name no longer stands for it.
    pub(crate) gone: CancellationToken,
    /// Whether it said SERVING since it last failed.
    ready: AtomicBool,
    /// Only one asks at a time.
    asking: tokio::sync::Mutex<()>,
    retry: Mutex<Retry>,
    gave_up: AtomicBool,
}

impl Member {
    fn new(address: SocketAddr, channel: Channel) -> Self {
        Self {
            address,
            channel,
            gone: CancellationToken::new(),
            ready: AtomicBool::new(false),
            asking: tokio::sync::Mutex::new(()),
            retry: Mutex::default(),
            gave_up: AtomicBool::new(false),
        }
    }

    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Asks for its health until it says SERVING; at once when it has not failed since.
    pub(crate) async fn until_serving(&self, call: &Call<'_>) {
        let mut pause = ASK_AGAIN.0;
        let _asking = self.asking.lock().await;
        while !self.ready.load(Ordering::Relaxed) {
            let mut health = HealthClient::new(self.channel());
            let question = health.check(HealthCheckRequest { service: SERVICE.to_owned() });
            match tokio::time::timeout(call.patience.silence, question).await {
                Ok(Ok(answer)) if answer.get_ref().status() == ServingStatus::Serving => {
                    info!(extractor = %self.address, "ready");
                    self.ready.store(true, Ordering::Relaxed);
                    return;
                }
                _ => tokio::time::sleep(jittered(pause)).await,
            }
            pause = (pause * 2).min(ASK_AGAIN.1);
        }
    }

    pub(crate) fn succeeded(&self) {
        self.retry().moved_on();
    }

    /// How long to wait before it gets work again. A shard that was only queued there tells nothing of its work.
    ///
    /// # Errors
    /// The failure, when it shall get no more.
    pub(crate) fn failed(&self, status: Status, begun: bool, call: &Call<'_>) -> Result<Duration, Status> {
        let lost =
            matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled | Code::DeadlineExceeded | Code::Aborted);
        if lost {
            self.ready.store(false, Ordering::Relaxed);
        }
        if lost && !begun {
            return Ok(jittered(ASK_AGAIN.0));
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

    fn retry(&self) -> MutexGuard<'_, Retry> {
        self.retry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All extractors that are known at present.
pub(crate) struct Members<'a> {
    workers: &'a Workers,
    call: Call<'a>,
    known: Mutex<BTreeMap<SocketAddr, Arc<Member>>>,
}

impl<'a> Members<'a> {
    pub(crate) fn new(workers: &'a Workers, call: Call<'a>) -> Self {
        Self { workers, call, known: Mutex::default() }
    }

    /// Looks the names up every few seconds, tells of every address that is new, and bids farewell to those that are gone.
    /// Says so when there is nobody to do the work.
    pub(crate) async fn look(&self, tell: &UnboundedSender<Arc<Member>>) -> Infallible {
        let mut looks_in_vain = 0;
        loop {
            let (found, trouble) = self.look_up().await;
            for (address, name) in found.iter().filter(|(address, _)| !self.known().contains_key(address)) {
                match self.workers.extractor_at(*address, name) {
                    Ok(channel) => {
                        let member = Arc::new(Member::new(*address, channel));
                        self.known().insert(*address, Arc::clone(&member));
                        let _ = tell.send(member);
                    }
                    Err(error) => warn!(%address, error, "is no address of an extractor"),
                }
            }
            // A name server that is away for a moment takes no extractor away.
            if trouble.is_none() {
                self.known().retain(|address, member| {
                    let stays = found.contains_key(address);
                    if !stays {
                        member.gone.cancel();
                    }
                    stays
                });
            }
            let n_ready = self.known().values().filter(|member| member.ready.load(Ordering::Relaxed)).count();
            gauge!("deepcluster_extractors_ready").set(n_ready as f64);
            looks_in_vain = if n_ready == 0 { looks_in_vain + 1 } else { 0 };
            // The first look is too early to tell, and one word is enough.
            if looks_in_vain == 2 {
                let (names, n_known) = (self.workers.extractors.join(", "), self.known().len());
                let why = trouble.unwrap_or_else(|| format!("{n_known} addresses, of which none says that it is ready"));
                (self.call.fault)(&Status::unavailable(format!("waiting for an extractor; {names}: {why}")));
            }
            tokio::time::sleep(LOOK_UP).await;
        }
    }

    /// The addresses of all names, each with its name, and what kept a name from being looked up.
    async fn look_up(&self) -> (BTreeMap<SocketAddr, &'a str>, Option<String>) {
        let mut found = BTreeMap::new();
        let mut trouble = None;
        for name in &self.workers.extractors {
            match tokio::net::lookup_host(name).await {
                Ok(addresses) => found.extend(addresses.map(|address| (address, name.as_str()))),
                Err(error) => trouble = Some(error.to_string()),
            }
        }
        (found, trouble)
    }

    /// Whether any extractor is left that has not given up, after this one has.
    pub(crate) fn others_are_left(&self, member: &Member) -> bool {
        member.gave_up.store(true, Ordering::Relaxed);
        self.known().values().any(|other| !other.gave_up.load(Ordering::Relaxed))
    }

    pub(crate) fn tell_of_loss(&self, member: &Member, last: &Status) {
        let (address, why) = (member.address, last.message());
        warn!(extractor = %address, why, "gets no more shards in this epoch");
        (self.call.fault)(&Status::new(last.code(), format!("{address} gets no more shards in this epoch: {why}")));
    }

    pub(crate) fn forget(&self, member: &Member) {
        info!(extractor = %member.address, "gone");
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<SocketAddr, Arc<Member>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
