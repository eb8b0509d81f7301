//! Extractors are found by name: every address that it stands for at the moment is one.
//!
//! The name comes from a file of hosts that only the coordinator sees, which some machines let no test arrange.

use crate::recovery::same_as_undisturbed;
use crate::stack::{Service, Stack, Workers, create, has_ended, is_phase, spec, watch_until, worker_flags};
use crate::support::{program, text};
use deepcluster_proto::v1::watch_run_response::Update;
use nix::sys::signal::Signal;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

/// What puts a file in the place of /etc/hosts for one program.
fn with_hosts(hosts: &Path) -> Vec<String> {
    let script = "mount --bind \"$0\" /etc/hosts && exec \"$@\"";
    ["unshare", "--mount", "--map-root-user", "sh", "-c", script, text(hosts)].map(str::to_owned).to_vec()
}

/// The file keeps its place on the disk, so that who has opened it sees what is in it now.
fn point(hosts: &Path, address: &str) {
    let lines = format!("127.0.0.1 localhost\n{address} pool.test\n");
    std::fs::OpenOptions::new().create(true).write(true).truncate(true).open(hosts).unwrap();
    std::io::Write::write_all(&mut std::fs::OpenOptions::new().write(true).open(hosts).unwrap(), lines.as_bytes()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn extractors_of_a_name_come_and_go() {
    let folder = tempfile::tempdir().unwrap();
    let hosts = folder.path().join("hosts");
    point(&hosts, "127.0.0.2");
    let prefix = with_hosts(&hosts);
    if !Command::new(&prefix[0]).args(&prefix[1..]).arg("true").status().is_ok_and(|status| status.success()) {
        println!("left out: this machine lets nobody mount a file");
        return;
    }
    let Workers { volume, workers } = Stack::workers_only(1);
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let extractor = |host: &str| {
        let listener = TcpListener::bind(format!("{host}:{port}")).unwrap();
        Service::start_on(listener, &[], &program("deepcluster-extractor"), volume.path(), &[], &[])
    };
    let first = extractor("127.0.0.2");
    let mut flags = worker_flags(&workers);
    flags[0] = format!("--extractors=pool.test:{port}");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let coordinator = Service::start_on(listener, &prefix, &program("deepcluster-coordinator"), volume.path(), &flags, &[]);
    let mut runs = coordinator.runs();
    let run = create(&mut runs, spec(2)).await;
    watch_until(&mut runs, &run.run_id, is_phase(0, "train")).await;
    // Gone for good; nobody is left.
    drop(first);
    let starved = |update: &Update| matches!(update, Update::Event(event) if event.json.contains("waiting for an extractor"));
    let events = watch_until(&mut runs, &run.run_id, starved).await;
    assert!(events.last().unwrap().json.contains(&format!("pool.test:{port}")));
    // Another one comes, at an address that the name has not stood for.
    point(&hosts, "127.0.0.3");
    let second = extractor("127.0.0.3");
    watch_until(&mut runs, &run.run_id, has_ended).await;
    same_as_undisturbed(volume.path());
    second.signal(Signal::SIGTERM);
}
