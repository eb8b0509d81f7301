//! TLS and tokens: who has neither the right certificate nor the right token gets nothing, and is written down.

use crate::stack::{Service, has_ended, spec, until_serving};
use crate::support::{deepcluster, program, text};
use deepcluster_proto::v1::runs_client::RunsClient;
use deepcluster_proto::v1::*;
use deepcluster_volume::publish::publish_bytes;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tempfile::TempDir;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

/// An authority, and what it signs.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// Certificate and key for 127.0.0.1.
    fn sign(&self) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
        // A certificate of the authority's own name would pass for signed by itself.
        params.distinguished_name.push(DnType::CommonName, "127.0.0.1");
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    /// Writes authority, certificate and key.
    pub fn install(&self, folder: &Path) -> Files {
        let files = Files { ca: folder.join("ca.pem"), cert: folder.join("cert.pem"), key: folder.join("key.pem") };
        let (cert, key) = self.sign();
        for (path, content) in [(&files.ca, &self.pem), (&files.cert, &cert), (&files.key, &key)] {
            publish_bytes(path, content.as_bytes()).unwrap();
        }
        files
    }
}

pub struct Files {
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Files {
    /// What a server is told that demands certificates of its callers.
    pub fn server(&self) -> Vec<String> {
        let Self { ca, cert, key } = self;
        vec![format!("--tls-cert={}", text(cert)), format!("--tls-key={}", text(key)), format!("--tls-client-ca={}", text(ca))]
    }
}

/// A client that trusts an authority and shows what it has.
fn client(address: &str, authority: &Authority, identity: Option<&Authority>) -> Channel {
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&authority.pem)).domain_name("127.0.0.1");
    if let Some((cert, key)) = identity.map(Authority::sign) {
        tls = tls.identity(Identity::from_pem(cert, key));
    }
    Endpoint::from_shared(format!("https://{address}")).unwrap().tls_config(tls).unwrap().connect_lazy()
}

pub fn bearer<T>(message: T, token: &str) -> Request<T> {
    let mut request = Request::new(message);
    if !token.is_empty() {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    request
}

/// All services with certificates of one authority and tokens; the files of tokens lie in the folder.
struct Secured {
    folder: TempDir,
    authority: Authority,
    files: Files,
    worker: Service,
    /// Of the worker, where it tells its health without TLS.
    health: String,
    _others: Vec<Service>,
    coordinator: Service,
}

fn secured() -> Secured {
    let folder = tempfile::tempdir().unwrap();
    let volume = folder.path().join("volume");
    let authority = Authority::new();
    let files = authority.install(folder.path());
    for name in ["read", "write", "worker"] {
        publish_bytes(&folder.path().join(name), format!("the-{name}-token\n").as_bytes()).unwrap();
    }
    let token = |name: &str| format!("--{name}-token-file={}", text(&folder.path().join(name)));
    let mut flags = files.server();
    flags.push(token("worker"));
    let health = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let of_extractor = [flags.clone(), vec![format!("--health={health}")]].concat();
    let mut workers = vec![Service::start("extractor", &volume, &of_extractor)];
    workers.extend(["clusterer", "trainer"].map(|kind| Service::start(kind, &volume, &flags)));
    flags.extend([token("read"), token("write")]);
    flags.push(format!("--workers-ca={}", text(&files.ca)));
    flags.extend([format!("--workers-cert={}", text(&files.cert)), format!("--workers-key={}", text(&files.key))]);
    for (flag, worker) in ["extractors", "clusterer", "trainer"].into_iter().zip(&workers) {
        flags.push(format!("--{flag}={}", worker.address()));
    }
    let coordinator = Service::start("coordinator", &volume, &flags);
    Secured { folder, authority, files, worker: workers.remove(0), health, _others: workers, coordinator }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secured_system_works_for_those_who_may_and_refuses_the_others() {
    let system = secured();
    let address = system.coordinator.address();
    let good = || client(&address, &system.authority, Some(&system.authority));
    let mut runs = RunsClient::new(good());

    // A run from the command line, over all services.
    let server = format!("https://{address}");
    let flags = |token: &str| {
        let file = system.folder.path().join(token);
        let Files { ca, cert, key } = &system.files;
        let flags = [("--server", server.as_str()), ("--ca", text(ca)), ("--cert", text(cert)), ("--key", text(key))];
        let flags = flags.into_iter().chain([("--token-file", text(&file))]);
        flags.flat_map(|(name, value)| [name.to_owned(), value.to_owned()]).collect::<Vec<_>>()
    };
    let cli = |command: &[&str], token: &str| deepcluster(command.iter().map(|part| (*part).to_owned()).chain(flags(token)));
    let small = ["submit", &spec(1).images, "--image-size", "64", "--k", "10", "--epochs", "1", "--batch", "32"];
    let refused = cli(&small, "read");
    assert_eq!(refused.code, Some(2));
    assert!(refused.stderr.contains("lets its bearer read"), "{}", refused.stderr);
    cli(&small, "write").good();
    cli(&["watch", "--json"], "read").good();

    // Tokens.
    let list = || ListRunsRequest::default();
    let cancel = || CancelRunRequest { run_id: "run-0001".to_owned() };
    let mut refusals = Vec::new();
    for (token, code) in [("", Code::Unauthenticated), ("wrong", Code::Unauthenticated), ("the-read-toke", Code::Unauthenticated)]
    {
        assert_eq!(runs.list_runs(bearer(list(), token)).await.unwrap_err().code(), code, "'{token}'");
        refusals.push(runs.cancel_run(bearer(cancel(), token)).await.unwrap_err().code());
    }
    assert_eq!(refusals, [Code::Unauthenticated; 3]);
    runs.list_runs(bearer(list(), "the-read-token")).await.unwrap();
    assert_eq!(runs.cancel_run(bearer(cancel(), "the-read-token")).await.unwrap_err().code(), Code::PermissionDenied);
    let finished = runs.cancel_run(bearer(cancel(), "the-write-token")).await.unwrap_err();
    assert_eq!(finished.code(), Code::FailedPrecondition, "the token was right, the run had ended");
    HealthClient::new(good()).check(HealthCheckRequest::default()).await.unwrap();
    let log = system.coordinator.log();
    let noted = log.lines().filter(|line| line.contains("refused") && line.contains("127.0.0.1:") && line.contains("CancelRun"));
    assert!(noted.count() >= 4, "{log}");

    // A worker serves its coordinator alone.
    let mut extractor =
        extractor_client::ExtractorClient::new(client(&system.worker.address(), &system.authority, Some(&system.authority)));
    let status = extractor.extract(ExtractRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    let mut answer = extractor.extract(bearer(ExtractRequest::default(), "the-worker-token")).await.unwrap().into_inner();
    let status = loop {
        if let Err(status) = answer.message().await {
            break status;
        }
    };
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");

    // Who runs the system asks for its health by another door.
    let probe = |more: &[String]| {
        let mut command = std::process::Command::new(program("deepcluster-extractor"));
        command.arg("--probe").arg(format!("--volume={}", text(system.folder.path()))).args(more);
        command.status().unwrap().success()
    };
    assert!(probe(&[format!("--health={}", system.health)]));
    assert!(!probe(&[format!("--listen={}", system.worker.address())]), "no TLS there");

    // Certificates.
    let stranger = Authority::new();
    for (channel, who) in [
        (client(&address, &system.authority, None), "no certificate"),
        (client(&address, &system.authority, Some(&stranger)), "a certificate of another authority"),
        (client(&address, &stranger, Some(&system.authority)), "a client that does not trust the server"),
        (Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy(), "no TLS"),
    ] {
        let answer = RunsClient::new(channel).list_runs(bearer(list(), "the-write-token")).await;
        assert!(answer.is_err(), "{who} was let in");
    }
    let log = system.coordinator.log();
    assert!(
        log.lines().filter(|line| line.contains("no certificate that is trusted") && line.contains("peer=127.0.0.1")).count()
            >= 3,
        "{log}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_and_tokens_are_read_anew_when_they_change() {
    let system = secured();
    let address = system.coordinator.address();
    let list = || ListRunsRequest::default();
    let mut before = RunsClient::new(client(&address, &system.authority, Some(&system.authority)));
    before.list_runs(bearer(list(), "the-write-token")).await.unwrap();

    let next = Authority::new();
    let files = next.install(system.folder.path());
    publish_bytes(&system.folder.path().join("write"), b"another").unwrap();
    // Times of files are coarse; these must differ.
    let later = SystemTime::now() + Duration::from_secs(5);
    for path in [&files.ca, &files.cert, &files.key, &system.folder.path().join("write")] {
        fs::File::options().write(true).open(path).unwrap().set_modified(later).unwrap();
    }
    let mut after = RunsClient::new(client(&address, &next, Some(&next)));
    after.list_runs(bearer(list(), "another")).await.unwrap();
    let stale =
        RunsClient::new(client(&address, &system.authority, Some(&system.authority))).list_runs(bearer(list(), "another")).await;
    assert!(stale.is_err());
    // Who is connected stays so, but its token counts no more.
    assert_eq!(before.list_runs(bearer(list(), "the-write-token")).await.unwrap_err().code(), Code::Unauthenticated);
    // The workers have changed too, and the coordinator shows them its new certificate.
    let run = after.create_run(bearer(CreateRunRequest { spec: Some(spec(1)), ..Default::default() }, "another")).await;
    let run = run.unwrap().into_inner().run.unwrap();
    publish_bytes(&system.folder.path().join("write"), b"").unwrap();
    let refused = after.list_runs(bearer(list(), "another")).await;
    assert!(refused.is_err() && system.coordinator.log().contains("holds no token"), "an empty file lets nobody in");
    let watch = WatchRunRequest { run_id: run.run_id, from_event: 0 };
    let mut updates = after.watch_run(bearer(watch, "the-read-token")).await.unwrap().into_inner();
    let mut ended = false;
    while let Some(message) = updates.message().await.unwrap() {
        ended |= message.update.is_some_and(|update| has_ended(&update));
    }
    assert!(ended);
}

/// New tokens do not reach all machines at once; a run waits for them, and says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_token_that_comes_late_fails_no_run() {
    let folder = tempfile::tempdir().unwrap();
    let volume = folder.path().join("volume");
    let token = |of: &str, token: &str| publish_bytes(&folder.path().join(of), token.as_bytes()).unwrap();
    token("workers", "new");
    token("coordinator", "old");
    let flag = |of: &str| format!("--worker-token-file={}", text(&folder.path().join(of)));
    let workers = ["extractor", "clusterer", "trainer"].map(|kind| Service::start(kind, &volume, &[flag("workers")]));
    let flags = [crate::stack::worker_flags(&workers), vec![flag("coordinator")]].concat();
    let coordinator = Service::start("coordinator", &volume, &flags);
    let mut runs = coordinator.runs();
    let run_id = crate::stack::create(&mut runs, spec(1)).await.run_id;
    let refused = |update: &watch_run_response::Update| matches!(update, watch_run_response::Update::Event(event) if event.kind == "fault" && event.json.contains("authorization"));
    crate::stack::watch_until(&mut runs, &run_id, refused).await;
    token("coordinator", "new");
    let events = crate::stack::watch_until(&mut runs, &run_id, has_ended).await;
    let told = events.iter().filter(|event| event.kind == "fault").count();
    assert_eq!(told, 1, "however often it was refused: {events:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_files_are_refused_and_an_open_door_is_told_of() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    publish_bytes(&path("empty"), b"").unwrap();
    let run = |flags: &[String]| {
        let mut command = std::process::Command::new(program("deepcluster-coordinator"));
        let output = command.arg(format!("--volume={}", text(&path("volume")))).args(flags).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{flags:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let empty = text(&path("empty")).to_owned();
    for (flags, word) in [
        (vec![format!("--write-token-file={empty}")], "--write-token-file: "),
        (vec![format!("--read-token-file={empty}")], "--write-token-file"),
        (vec![format!("--tls-cert={empty}"), format!("--tls-key={empty}")], "holds no certificate"),
        (vec![format!("--tls-cert={empty}")], "--tls-key"),
        (vec![format!("--workers-ca={}", text(&path("none")))], "No such file"),
    ] {
        let sentence = run(&flags);
        assert!(sentence.contains(word), "'{word}' is missing in: {sentence}");
    }
    let listener = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let open = Service::start_on(listener, &[], &program("deepcluster-coordinator"), &path("volume"), &[], &[]);
    until_serving(open.channel()).await;
    assert!(open.log().contains("OPEN TO EVERYBODY"), "{}", open.log());
}
