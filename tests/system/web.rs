//! The live page: what a browser shows of it, who may see and press what, and what other sites cannot do.

use crate::security::{Authority, bearer};
use crate::stack::{Service, Stack, spec, watch_until};
use crate::support::{pictures, program, python, text};
use deepcluster_proto::v1::watch_run_response::Update;
use deepcluster_proto::v1::*;
use deepcluster_volume::publish::publish_bytes;
use serde_json::json;
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

/// What a user may have written.
const NOTE: &str = "<script>alert(1)</script> & 'quotes'";

/// HOST:PORT of a coordinator's live page.
fn page_of(coordinator: &Service) -> String {
    for _ in 0..600 {
        let log = coordinator.log();
        if let Some((_, rest)) = log.split_once("the live page is at ") {
            let url = rest.split_whitespace().next().unwrap();
            return url.trim_end_matches('/').split_once("://").unwrap().1.to_owned();
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("no live page: {}", coordinator.log());
}

/// Asks for a page and reads until the connection ends or the text was seen: status and everything that came.
fn ask(page: &str, method_and_path: &str, headers: &[&str], body: &str, seen: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(page).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let host = if headers.iter().any(|header| header.starts_with("host:")) { String::new() } else { format!("host: {page}\r\n") };
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    let length = body.len();
    let head = format!("{method_and_path} HTTP/1.1\r\n{host}connection: close\r\ncontent-length: {length}\r\n{headers}\r\n");
    stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
    let mut answer = Vec::new();
    let mut block = [0; 4096];
    loop {
        let n = stream.read(&mut block).unwrap();
        answer.extend_from_slice(&block[..n]);
        let text = String::from_utf8_lossy(&answer);
        if n == 0 || (!seen.is_empty() && text.contains(seen)) {
            let status = text.split(' ').nth(1).unwrap().parse().unwrap();
            return (status, text.into_owned());
        }
    }
}

fn get(page: &str, path: &str, headers: &[&str]) -> (u16, String) {
    ask(page, &format!("GET {path}"), headers, "", "")
}

fn post(page: &str, path: &str, headers: &[&str]) -> u16 {
    ask(page, &format!("POST {path}"), headers, "", "").0
}

/// A coordinator whose workers are not there, so that runs stay where they are, and which has tokens if it is told so.
fn alone(folder: &TempDir, more: &[String]) -> Service {
    let flags = ["--extractors=127.0.0.1:1".to_owned(), "--http=127.0.0.1:0".to_owned()];
    Service::start("coordinator", &folder.path().join("volume"), &[flags.to_vec(), more.to_vec()].concat())
}

fn request() -> CreateRunRequest {
    let labels = HashMap::from([("team".to_owned(), "<b>red</b>".to_owned())]);
    CreateRunRequest { spec: Some(spec(40)), note: NOTE.to_owned(), labels, ..CreateRunRequest::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_shows_what_the_api_tells_and_its_buttons_work() {
    let stack = Stack::with(1, &["--http=127.0.0.1:0"]);
    let mut runs = stack.runs();
    let id = runs.create_run(request()).await.unwrap().into_inner().run.unwrap().run_id;
    watch_until(&mut runs, &id, |update| matches!(update, Update::Event(event) if event.kind == "epoch")).await;
    // The commit is counted a moment later.
    let question = GetRunRequest { run_id: id.clone() };
    while runs.get_run(question.clone()).await.unwrap().into_inner().run.unwrap().epochs_done == 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let run = runs.pause_run(PauseRunRequest { run_id: id }).await.unwrap().into_inner().run.unwrap();
    let api = json!({
        "run_id": run.run_id, "state": "paused", "epochs_done": run.epochs_done, "epochs": run.spec.unwrap().epochs, "k": run.k,
        "n_images": run.n_images, "n_skipped": run.n_skipped, "priority": run.priority, "note": run.note,
    });
    let file = stack.volume.path().join("api.json");
    publish_bytes(&file, api.to_string().as_bytes()).unwrap();
    let url = format!("http://{}", page_of(&stack.coordinator));
    let shots = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/screenshots");
    let said = tokio::task::spawn_blocking(move || python("browser.py", [Path::new(&url), &file, &shots])).await.unwrap();
    assert!(said.contains("content"), "{said}");
    let run = runs.get_run(question).await.unwrap().into_inner().run.unwrap();
    assert_eq!(run.state(), RunState::Paused, "by the button");
    assert!(run.epochs_done > 1 && run.epochs_done < 40, "it went on by the button before");
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_and_buttons_are_for_those_who_show_a_token() {
    let folder = tempfile::tempdir().unwrap();
    // Characters that no cookie may hold.
    for (name, token) in [("read", "the;read=\"token"), ("write", "the-write-token")] {
        publish_bytes(&folder.path().join(name), token.as_bytes()).unwrap();
    }
    let flag = |name: &str| format!("--{name}-token-file={}", text(&folder.path().join(name)));
    let coordinator = alone(&folder, &[flag("read"), flag("write")]);
    let page = page_of(&coordinator);
    let mut runs = coordinator.runs();
    let run = runs.create_run(bearer(request(), "the-write-token")).await.unwrap().into_inner().run.unwrap();
    let path = format!("/runs/{}", run.run_id);
    let pause = format!("{path}/pause");
    let (read, write) = ("authorization: Bearer the;read=\"token", "authorization: Bearer the-write-token");

    let port = page.rsplit(':').next().unwrap();
    let of_cookie = |value: &str| format!("cookie: dc_badge_{port}={value}");
    // None that is a token, in any way.
    let cookies = ["the-write-token", "7468652d77726974652d746f6b656e", &"7a".repeat(32), "zz", ""].map(of_cookie);
    let wrong = ["authorization: Bearer wrong"].into_iter().chain(cookies.iter().map(String::as_str)).map(|header| vec![header]);
    for headers in std::iter::once(vec![]).chain(wrong) {
        for path in ["/", &path, &format!("{path}/events"), "/no/such/page"] {
            let (status, answer) = get(&page, path, &headers);
            assert!(status == 401 && answer.contains("Sign in") && !answer.contains(&run.run_id), "{path}: {answer}");
        }
        assert_eq!(post(&page, &pause, &headers), 401, "{headers:?}");
    }
    assert_eq!(get(&page, "/healthz", &[]).0, 200);

    // Whoever may read sees what users have written as text, and cannot press a button.
    for path in ["/", &path, &format!("{path}/fragment")] {
        let (status, answer) = get(&page, path, &[read]);
        assert_eq!(status, 200, "{answer}");
        assert!(answer.contains("&lt;script&gt;alert(1)") && answer.contains("team=&lt;b&gt;red"), "{answer}");
        assert!(!answer.contains("<script>alert") && !answer.contains("<b>red"), "{answer}");
        for header in
            ["content-security-policy: default-src 'none'; ", "x-content-type-options: nosniff", "cache-control: no-store"]
        {
            assert!(answer.contains(header), "{header} is missing in {answer}");
        }
    }
    let (status, answer) = ask(&page, &format!("POST {pause}"), &[read], "", "");
    assert!(status == 403 && answer.contains("lets you look, and nothing else"), "{answer}");
    let (status, answer) = ask(&page, &format!("GET {path}/events"), &[read], "", "event: values");
    assert!(status == 200 && answer.contains("text/event-stream") && answer.contains("event: refresh"), "{answer}");

    // A browser signs in.
    let form = ["content-type: application/x-www-form-urlencoded", "sec-fetch-site: same-origin"];
    assert_eq!(ask(&page, "POST /login", &form, "token=wrong", "").0, 401);
    assert_eq!(ask(&page, "POST /login", &form[1..], "token=the-write-token", "").0, 400, "no form");
    let (status, answer) = ask(&page, "POST /login", &form, "token=the%3Bread%3D%22token", "");
    let cookie = answer.lines().find_map(|line| line.strip_prefix("set-cookie: ")).unwrap();
    assert!(status == 303 && cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"), "{answer}");
    let (name, badge) = cookie.split(';').next().unwrap().split_once('=').unwrap();
    assert_eq!(name, format!("dc_badge_{port}"), "the name keeps coordinators of one host apart");
    assert!(badge.len() == 64 && !badge.contains("7468653b72656164"), "{badge} shows the token");
    // It opens pages, as long as it is a cookie, and nothing else.
    assert_eq!(get(&page, &path, &[&format!("authorization: Bearer {badge}")]).0, 401);
    let call = coordinator.runs().list_runs(bearer(ListRunsRequest::default(), badge)).await;
    assert_eq!(call.unwrap_err().code(), tonic::Code::Unauthenticated);
    assert_eq!(get(&page, &path, &[&format!("cookie: dc_badge_1={badge}; dc_badge={badge}")]).0, 401);
    let cookie = format!("cookie: other=1; dc_badge_1=zz; {name}={badge}");
    assert_eq!(get(&page, &path, &[&cookie]).0, 200);
    assert_eq!(post(&page, &pause, &[&cookie, "sec-fetch-site: same-origin"]), 403);

    // What other sites send is refused, whatever token it has.
    for foreign in ["sec-fetch-site: cross-site", "sec-fetch-site: same-site", "origin: http://evil.example", "origin: null"] {
        assert_eq!(post(&page, &pause, &[write, foreign]), 403, "{foreign}");
    }
    let question = GetRunRequest { run_id: run.run_id.clone() };
    let state = async || {
        let answer = coordinator.runs().get_run(bearer(question.clone(), "the-write-token")).await;
        answer.unwrap().into_inner().run.unwrap().state()
    };
    assert!([RunState::Queued, RunState::Running].contains(&state().await), "nothing has paused it yet");
    let own = format!("origin: http://{page}");
    let (status, answer) = ask(&page, &format!("POST {pause}"), &[write, &own], "", "");
    assert!(status == 303 && answer.contains(&format!("location: {path}\r\n")), "{answer}");
    assert_eq!(state().await, RunState::Paused);
    let (status, answer) = ask(&page, &format!("POST {pause}"), &[write], "", "");
    assert!(status == 409 && answer.contains("is paused"), "{answer}");
    for (path, expected) in [
        ("/runs/run-9999".to_owned(), 404),
        ("/runs/..%2F..".to_owned(), 400),
        ("/runs/%FF".to_owned(), 400),
        (format!("{path}/atlas"), 404),
        (format!("{path}/atlas?first=-1"), 400),
        (pause.clone(), 405),
        ("/no/such/page".to_owned(), 404),
    ] {
        assert_eq!(get(&page, &path, &[write]).0, expected, "{path}");
    }
    assert_eq!(post(&page, &format!("{path}/resume"), &[write]), 303);
    assert_eq!(post(&page, &format!("{path}/cancel"), &[write]), 303);
    assert_eq!(state().await, RunState::Cancelled);
    assert!(coordinator.log().lines().any(|line| line.contains("refused") && line.contains("/pause")), "it is written down");
}

/// Without tokens, too: a page elsewhere could otherwise let its visitor's browser pause runs.
#[tokio::test(flavor = "multi_thread")]
async fn other_sites_get_nothing_where_nobody_needs_a_token() {
    let folder = tempfile::tempdir().unwrap();
    let coordinator = alone(&folder, &[]);
    let page = page_of(&coordinator);
    let (status, answer) = get(&page, "/", &[]);
    assert!(status == 200 && answer.contains("There are no runs yet") && answer.contains("127.0.0.1:1"), "{answer}");
    let run = coordinator.runs().create_run(request()).await.unwrap().into_inner().run.unwrap();
    let pause = format!("/runs/{}/pause", run.run_id);
    for host in ["host: evil.example", "host: 127.0.0.1.evil.example:7080", "host: a b"] {
        assert_eq!(get(&page, "/", &[host]).0, 403, "{host}");
        assert_eq!(post(&page, &pause, &[host]), 403, "{host}");
    }
    assert_eq!(post(&page, &pause, &["sec-fetch-site: cross-site"]), 403);
    assert_eq!(get(&page, "/", &["host: gpubox"]).0, 200);
    assert_eq!(post(&page, &pause, &["host: localhost:1", "origin: http://localhost:1"]), 303);
}

/// Services of one machine have `/` as the root of all images, and their users name whole paths.
#[tokio::test(flavor = "multi_thread")]
async fn the_folder_of_the_images_is_shown_as_its_user_knows_it() {
    for (root, folder_of) in [("--images=/", text(pictures())), ("", spec(1).images.as_str())] {
        let folder = tempfile::tempdir().unwrap();
        let more: Vec<String> = if root.is_empty() { Vec::new() } else { vec![root.to_owned()] };
        let coordinator = alone(&folder, &more);
        let images = folder_of.trim_start_matches('/').to_owned();
        let request = CreateRunRequest { spec: Some(RunSpec { images, ..spec(1) }), ..CreateRunRequest::default() };
        let run = coordinator.runs().create_run(request).await.unwrap().into_inner().run.unwrap();
        for part in ["", "/fragment"] {
            let (status, answer) = get(&page_of(&coordinator), &format!("/runs/{}{part}", run.run_id), &[]);
            assert!(status == 200 && answer.contains(&format!("<code>{folder_of}</code>")), "{folder_of}: {answer}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_live_page_speaks_tls_when_the_api_does_and_wrong_addresses_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let files = authority.install(folder.path());
    let coordinator = alone(&folder, &files.server());
    let page = page_of(&coordinator);
    let client = "import ssl, sys, urllib.request\n\
                  url, ca, *identity = sys.argv[1:]\n\
                  context = ssl.create_default_context(cafile=ca)\n\
                  if identity: context.load_cert_chain(*identity)\n\
                  print(urllib.request.urlopen(url, context=context).read().decode())";
    let ask = |identity: &[&str]| {
        let url = format!("https://{page}/healthz");
        Command::new("python3").args(["-c", client, &url, text(&files.ca)]).args(identity).output().unwrap()
    };
    let answer = ask(&[text(&files.cert), text(&files.key)]);
    assert_eq!(String::from_utf8_lossy(&answer.stdout).trim(), "ok", "{}", String::from_utf8_lossy(&answer.stderr));
    assert!(!ask(&[]).status.success(), "a visitor without a certificate was let in");

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    for (address, word) in [
        ("nowhere".to_owned(), "--http 'nowhere'"),
        (taken.local_addr().unwrap().to_string(), "--http: cannot listen on 127.0.0.1"),
    ] {
        let volume = folder.path().join("other");
        let mut command = Command::new(program("deepcluster-coordinator"));
        command.args([format!("--volume={}", text(&volume)), "--listen=127.0.0.1:0".to_owned(), format!("--http={address}")]);
        let output = command.output().unwrap();
        let sentence = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && sentence.contains(word), "{sentence}");
    }
}
