//! Threads of the native libraries: how many, and how they wait, however a service is started.

use crate::stack::{Service, Stack, until_serving};
use std::collections::BTreeMap;
use std::net::TcpListener;

/// Variables of a process, as it was started.
fn variables(pid: u32) -> BTreeMap<String, String> {
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    let environment = String::from_utf8_lossy(&environment).into_owned();
    let pairs = environment.split('\0').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn threads_of_every_worker_wait_without_spinning_for_long() {
    let stack = Stack::start();
    for worker in &stack.workers {
        until_serving(worker.channel()).await;
        let found = variables(worker.child.id());
        assert!(found["GOMP_SPINCOUNT"].parse::<u32>().unwrap() < 300_000, "{found:?}");
        assert!(found["OPENBLAS_THREAD_TIMEOUT"].parse::<u32>().unwrap() < 26, "{found:?}");
        assert!(worker.log().contains("threads count="), "{}", worker.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_user_sets_about_threads_stays() {
    let folder = tempfile::tempdir().unwrap();
    let set = [("OMP_WAIT_POLICY", "active"), ("OMP_NUM_THREADS", "1")].map(|(name, value)| (name.to_owned(), value.to_owned()));
    let programs = crate::support::program("deepcluster");
    let service = Service::start_from(programs.parent().unwrap(), "clusterer", folder.path(), &[], &set);
    until_serving(service.channel()).await;
    let found = variables(service.child.id());
    assert_eq!((found["OMP_WAIT_POLICY"].as_str(), found["OMP_NUM_THREADS"].as_str()), ("active", "1"));
    assert!(!found.contains_key("GOMP_SPINCOUNT"), "{found:?}");
    assert!(service.log().contains("OMP_WAIT_POLICY=active"), "{}", service.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn threads_follow_the_affinity() {
    let folder = tempfile::tempdir().unwrap();
    let program = crate::support::program("deepcluster-clusterer");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let service = Service::start_on(listener, &["taskset", "-c", "0"].map(str::to_owned), &program, folder.path(), &[], &[]);
    until_serving(service.channel()).await;
    assert!(service.log().contains("threads count=1 "), "{}", service.log());
    if std::thread::available_parallelism().unwrap().get() > 1 {
        assert!(service.log().contains("CPU affinity; the host has"), "{}", service.log());
    }
}
