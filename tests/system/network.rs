//! A bad network between coordinator and workers costs time, never the run.

use crate::recovery::same_as_undisturbed;
use crate::stack::{Service, Stack, create, has_ended, spec, watch_until};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

/// What happens to a connection, by its number.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Weather {
    Fair,
    /// Every piece arrives late.
    Slow,
    /// Both directions end in the middle of the answer.
    Cut,
    /// The worker's half ends as if it had nothing more to say; the other stays open.
    HalfClosed,
    /// The request never arrives and nobody says so.
    Swallowed,
    /// The answer is swallowed from some byte on.
    Silent,
}

const WEATHER: [Weather; 7] =
    [Weather::Cut, Weather::Slow, Weather::HalfClosed, Weather::Swallowed, Weather::Fair, Weather::Silent, Weather::Fair];

/// How much of an answer passes before something happens to it.
const PASSES: usize = 300;

/// Stands between coordinator and a worker. Says where.
async fn proxy(worker: String, n_connections: Arc<AtomicUsize>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((caller, _)) = listener.accept().await {
            let number = n_connections.fetch_add(1, Ordering::Relaxed);
            let weather = WEATHER[number % WEATHER.len()];
            let worker = worker.clone();
            tokio::spawn(async move {
                let Ok(worker) = TcpStream::connect(worker).await else { return };
                let (from_caller, to_caller) = caller.into_split();
                let (from_worker, to_worker) = worker.into_split();
                let requests = tokio::spawn(pass(
                    from_caller,
                    to_worker,
                    if weather == Weather::Swallowed { weather } else { Weather::Fair },
                ));
                pass(from_worker, to_caller, weather).await;
                if weather == Weather::Cut {
                    requests.abort();
                } else {
                    let _ = requests.await;
                }
            });
        }
    });
    address
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, weather: Weather) {
    let mut buffer = vec![0; 4096];
    let mut passed = 0;
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        passed += n;
        let late = passed > PASSES;
        match weather {
            Weather::Slow => tokio::time::sleep(Duration::from_millis(100)).await,
            Weather::Cut | Weather::HalfClosed if late => break,
            Weather::Silent if late => continue,
            Weather::Swallowed => continue,
            _ => {}
        }
        if to.write_all(&buffer[..n]).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
    if weather == Weather::HalfClosed {
        // The connection lives on, and nothing comes.
        tokio::time::sleep(Duration::from_secs(3600)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn delays_cuts_and_half_closed_connections_are_survived() {
    let stack = Stack::workers_only(1);
    let n_connections = Arc::new(AtomicUsize::new(0));
    let mut flags = vec!["--worker-silence=5".to_owned()];
    for (flag, worker) in ["extractors", "clusterer", "trainer"].into_iter().zip(&stack.workers) {
        flags.push(format!("--{flag}={}", proxy(worker.address(), Arc::clone(&n_connections)).await));
    }
    let coordinator = Service::start("coordinator", stack.volume.path(), &flags);
    let mut runs = coordinator.runs();
    let run = create(&mut runs, spec(2)).await;
    let events = watch_until(&mut runs, &run.run_id, has_ended).await;
    let n_faults = events.iter().filter(|event| event.kind == "fault").count();
    println!("{} connections, {n_faults} faults survived", n_connections.load(Ordering::Relaxed));
    assert!(n_faults >= 5, "{events:?}");
    same_as_undisturbed(stack.volume.path());
}
