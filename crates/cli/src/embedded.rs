//! The whole system on this machine: four services as child processes, kept alive, stopped together.
//!
//! 1. A listening socket is opened here for every service and handed over as its standard input. It stays open when the
//!    service dies, so a restarted one answers at the same address, and callers merely wait.
//! 2. A service that dies is started again, after a pause that grows while it keeps dying.
//! 3. A service that hangs, and does not even say whether it is well any more, is killed, and so started again.
//! 4. Children get SIGTERM when we stop, and from the kernel when we are killed (`--die-with-parent`). They have a process
//!    group of their own, so that Ctrl-C in a terminal reaches us alone.

use crate::failure::Failure;
use deepcluster_domain::space::{CacheLimit, human};
use deepcluster_service::threads::environment;
use deepcluster_volume::{publish, space};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tonic::transport::Endpoint;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

/// How long a service may take to stop before it is killed.
const GRACE: Duration = Duration::from_secs(10);

/// Longest pause before a service that keeps dying is started again.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How often in a row a service may end by itself, soon after its start, before that is taken for good.
const FAILED_STARTS: u32 = 5;

/// How often a service is asked whether it is well, and how long it may take to say so.
const ASK_EVERY: Duration = Duration::from_secs(5);

/// So many questions without an answer in a row make a service that hangs. Questions, not seconds: this process may have
/// been stopped itself.
const UNANSWERED: u32 = 4;

/// Least room on a volume, in bytes, for the services to start.
const LEAST_ROOM: u64 = 2 << 20;

/// How lines in a service's log begin that are not its own.
const NOTE: &str = "deepcluster: ";

/// What the services of this machine are to be like.
#[derive(clap::Args, Clone, Debug)]
pub struct ServicesArgs {
    /// Extractor processes; they share the cores
    #[arg(long, default_value_t = 1, value_name = "N")]
    extractors: usize,
    /// Most room that decoded images may take on the volume, as 200GB, or 0 for none; without it, half of what is free
    #[arg(long, value_name = "SIZE")]
    cache_limit: Option<String>,
    /// Write files for TensorBoard beside the events of the run
    #[arg(long)]
    tensorboard: bool,
    /// Serve a live page, as HOST:PORT
    #[arg(long, value_name = "ADDRESS")]
    http: Option<String>,
}

impl ServicesArgs {
    /// One of each kind.
    pub const ONE_EACH: Self = Self { extractors: 1, cache_limit: None, tensorboard: false, http: None };

    /// Number of extractors.
    pub fn extractors(&self) -> usize {
        self.extractors
    }

    /// How much room decoded images may take.
    ///
    /// # Errors
    /// One sentence that names the flag.
    pub fn cache_limit(&self) -> Result<CacheLimit, Failure> {
        let parse = |text: &String| text.parse().map_err(|error| Failure::usage(format!("--cache-limit {error}")));
        self.cache_limit.as_ref().map_or(Ok(CacheLimit::HalfOfFree), parse)
    }

    /// Whether they can be started.
    ///
    /// # Errors
    /// One sentence that names the flag.
    pub fn check(&self) -> Result<(), Failure> {
        self.cache_limit()?;
        match self.extractors {
            1..=64 => Ok(()),
            _ => Err(Failure::usage("--extractors must lie between 1 and 64")),
        }
    }
}

/// The running services.
pub struct Stack {
    services: Vec<Service>,
    /// Address of the coordinator; empty where there is none.
    pub server: String,
}

struct Service {
    name: String,
    arguments: Vec<String>,
    /// Further arguments for its first start alone.
    at_first: Vec<String>,
    threads: usize,
    program: PathBuf,
    listener: TcpListener,
    log: PathBuf,
    child: Option<Child>,
    started: Instant,
    pause: Duration,
    failed_starts: u32,
    /// Questions in a row that it has not answered.
    unanswered: Arc<AtomicU32>,
}

impl Stack {
    /// Starts coordinator, clusterer, trainer and extractors on a volume.
    ///
    /// # Errors
    /// When the volume cannot be written or a program is missing.
    pub fn start(volume: &Path, args: &ServicesArgs) -> Result<Self, Failure> {
        let mut stack = Self::prepare(volume, args)?;
        let n_extractors = args.extractors;
        let address = |service: &Service| service.listener.local_addr().map(|address| address.to_string());
        let addresses: Vec<String> =
            stack.services.iter().map(address).collect::<Result<_, _>>().map_err(|error| Failure::other(error.to_string()))?;
        let mut arguments = vec![
            format!("--extractors={}", addresses[..n_extractors].join(",")),
            format!("--clusterer={}", addresses[n_extractors]),
            format!("--trainer={}", addresses[n_extractors + 1]),
        ];
        arguments.extend(args.cache_limit.as_ref().map(|limit| format!("--cache-limit={limit}")));
        arguments.extend(args.tensorboard.then(|| "--tensorboard".to_owned()));
        arguments.extend(args.http.as_ref().map(|address| format!("--http={address}")));
        let volume = fs::canonicalize(volume).map_err(|error| Failure::usage(format!("{}: {error}", volume.display())))?;
        let mut coordinator = Service::new("coordinator", "coordinator", 1, &volume, arguments)?;
        // No run starts before one is asked for; when the coordinator dies later, that one must go on by itself.
        coordinator.at_first.push("--start-paused".to_owned());
        stack.server = address(&coordinator).map_err(|error| Failure::other(error.to_string()))?;
        stack.services.push(coordinator);
        stack.begin()
    }

    /// Starts the workers alone, which own nothing: somebody else may own the volume.
    ///
    /// # Errors
    /// As [`Stack::start`].
    pub fn workers(volume: &Path, args: &ServicesArgs) -> Result<Self, Failure> {
        Self::prepare(volume, args)?.begin()
    }

    /// Workers that are yet to be started.
    fn prepare(volume: &Path, args: &ServicesArgs) -> Result<Self, Failure> {
        let n_extractors = args.extractors;
        publish::create_folder(&volume.join("logs"))?;
        let volume = fs::canonicalize(volume).map_err(|error| Failure::usage(format!("{}: {error}", volume.display())))?;
        // Where not even a log can be written, a service cannot say what is the matter.
        let free = space::available(&volume)?;
        if free < LEAST_ROOM {
            return Err(Failure::usage(format!("{} is full: {} are free", volume.display(), human(free))));
        }
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let mut services = Vec::new();
        let extractors = (0..n_extractors).map(|n| (format!("extractor-{n}"), "extractor", (cores / n_extractors).max(1)));
        let workers = [("clusterer".to_owned(), "clusterer", cores), ("trainer".to_owned(), "trainer", cores)];
        for (name, kind, threads) in extractors.chain(workers) {
            services.push(Service::new(&name, kind, threads, &volume, Vec::new())?);
        }
        Ok(Self { services, server: String::new() })
    }

    fn begin(mut self) -> Result<Self, Failure> {
        for service in &mut self.services {
            service.start()?;
            tokio::spawn(ask(service.listener.local_addr().ok(), Arc::clone(&service.unanswered)));
        }
        Ok(self)
    }

    /// Address and process of a service, by its name.
    pub fn service(&self, name: &str) -> Option<(String, u32)> {
        let service = self.services.iter().find(|service| service.name == name)?;
        Some((service.listener.local_addr().ok()?.to_string(), service.child.as_ref()?.id()))
    }

    /// Keeps the services alive. Ends only when one cannot start at all, with the sentence that it left.
    pub async fn keep_alive(&mut self) -> Failure {
        loop {
            for service in &mut self.services {
                if let Err(failure) = service.revive() {
                    return failure;
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Stops the services; what does not drain in time is killed.
    pub async fn stop(mut self) {
        for child in self.services.iter().filter_map(|service| service.child.as_ref()) {
            let _ = kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM);
        }
        let deadline = Instant::now() + GRACE;
        while Instant::now() < deadline && self.services.iter_mut().any(Service::is_alive) {
            // Connections of ours must go on being served meanwhile, or the services would wait for them to close.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        for service in &mut self.services {
            if service.is_alive()
                && let Some(child) = service.child.as_mut()
            {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

/// Whether this machine has a device, before a run is made for it.
///
/// # Errors
/// The trainer's sentence when it is not there; when the trainer is missing.
pub fn check_device(device: &str) -> Result<(), Failure> {
    let program = program("trainer")?;
    let output = Command::new(&program).arg(format!("--check-device={device}")).output();
    let output = output.map_err(|error| Failure::other(format!("cannot start {}: {error}", program.display())))?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    let words = words.lines().last().unwrap_or("the trainer left no word");
    Err(Failure::usage(format!("--device {device}: {}", words.split_once(": ").map_or(words, |(_, sentence)| sentence))))
}

/// A service's program, which lies beside this one.
fn program(kind: &str) -> Result<PathBuf, Failure> {
    let here = std::env::current_exe().map_err(|error| Failure::other(error.to_string()))?;
    let program = here.with_file_name(format!("deepcluster-{kind}"));
    match program.is_file() {
        true => Ok(program),
        false => Err(Failure::other(format!("{} is missing; `make build` makes it", program.display()))),
    }
}

/// The environment of a service of ours: settings that its user made for services elsewhere would only part it from the others.
fn inherited() -> impl Iterator<Item = (OsString, OsString)> {
    const KEPT: [&str; 6] =
        ["DC_LOG", "DC_LOG_FORMAT", "DC_STEPS", "DC_TAKEOVER_AFTER", "DC_WORKER_SILENCE", "DC_WORKER_STANDSTILL"];
    std::env::vars_os().filter(|(name, _)| {
        let name = name.to_string_lossy();
        !name.starts_with("DC_") || KEPT.contains(&&*name)
    })
}

/// Asks a service again and again whether it is well, and counts the questions that it leaves unanswered.
async fn ask(address: Option<SocketAddr>, unanswered: Arc<AtomicU32>) {
    let endpoint = address.and_then(|address| Endpoint::from_shared(format!("http://{address}")).ok());
    let Some(endpoint) = endpoint else { return };
    let mut health = HealthClient::new(endpoint.connect_timeout(ASK_EVERY).timeout(ASK_EVERY).connect_lazy());
    loop {
        tokio::time::sleep(ASK_EVERY).await;
        match health.check(HealthCheckRequest::default()).await {
            Ok(_) => unanswered.store(0, Ordering::Relaxed),
            Err(_) => drop(unanswered.fetch_add(1, Ordering::Relaxed)),
        }
    }
}

impl Service {
    fn new(name: &str, kind: &str, threads: usize, volume: &Path, more: Vec<String>) -> Result<Self, Failure> {
        let program = program(kind)?;
        let listener =
            TcpListener::bind("127.0.0.1:0").map_err(|error| Failure::other(format!("no port on 127.0.0.1: {error}")))?;
        let mut arguments = vec![
            "--listen=stdin".to_owned(),
            format!("--die-with-parent={}", std::process::id()),
            format!("--volume={}", volume.display()),
            "--images=/".to_owned(),
            format!("--threads={threads}"),
        ];
        arguments.extend(more);
        let log = volume.join("logs").join(format!("{name}.log"));
        let name = name.to_owned();
        Ok(Self {
            name,
            arguments,
            at_first: Vec::new(),
            threads,
            program,
            listener,
            log,
            child: None,
            started: Instant::now(),
            pause: Duration::ZERO,
            failed_starts: 0,
            unanswered: Arc::default(),
        })
    }

    fn start(&mut self) -> Result<(), Failure> {
        let failed = |error: std::io::Error| Failure::other(format!("cannot start {}: {error}", self.name));
        let log = OpenOptions::new().create(true).append(true).open(&self.log);
        let log = log.map_err(|error| Failure::usage(format!("{}: {error}", self.log.display())))?;
        let socket = OwnedFd::from(self.listener.try_clone().map_err(failed)?);
        let child = Command::new(&self.program)
            .args(&self.arguments)
            .args(std::mem::take(&mut self.at_first))
            .env_clear()
            .envs(inherited())
            // A service would set these itself, and be loaded twice for it.
            .envs(environment(self.threads))
            .stdin(Stdio::from(socket))
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        self.child = Some(child);
        self.started = Instant::now();
        self.unanswered.store(0, Ordering::Relaxed);
        Ok(())
    }

    /// Starts the service again when it has died and its pause is over.
    fn revive(&mut self) -> Result<(), Failure> {
        if let Some(child) = self.child.as_mut() {
            let Ok(Some(status)) = child.try_wait() else {
                if self.unanswered.load(Ordering::Relaxed) >= UNANSWERED {
                    let _ = child.kill();
                    self.unanswered.store(0, Ordering::Relaxed);
                    self.note(&format!("{} did not answer any more and was killed", self.name));
                }
                return Ok(());
            };
            self.child = None;
            self.note(&format!("{} ended: {status}", self.name));
            // 2 is a service's word for: not like this, and trying again is no use.
            if status.code() == Some(2) {
                return Err(Failure::usage(self.last_words()));
            }
            let lived_long = self.started.elapsed() > LONGEST_PAUSE;
            // A service that is killed is started again for ever; one that gives up by itself has a reason that stays.
            self.failed_starts = if lived_long || status.code().is_none() { 0 } else { self.failed_starts + 1 };
            if self.failed_starts >= FAILED_STARTS {
                return Err(Failure::other(format!("{} does not start: {}", self.name, self.last_words())));
            }
            self.pause =
                if lived_long { Duration::ZERO } else { (self.pause * 2).clamp(Duration::from_millis(100), LONGEST_PAUSE) };
            self.started = Instant::now();
        }
        if self.started.elapsed() >= self.pause { self.start() } else { Ok(()) }
    }

    fn is_alive(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Adds a line to its log, which says nothing of a signal that killed it.
    fn note(&self, line: &str) {
        let log = OpenOptions::new().append(true).open(&self.log);
        if let Err(error) = log.and_then(|mut log| writeln!(log, "{NOTE}{line}")) {
            eprintln!("deepcluster: {line} ({}: {error})", self.log.display());
        }
    }

    /// The last line of its log that is its own, without its name.
    fn last_words(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let line = log.lines().rfind(|line| !line.starts_with(NOTE)).unwrap_or("it left no word");
        line.split_once(": ").map_or(line, |(_, sentence)| sentence).to_owned()
    }
}
