//! What can be seen of a running system: numbers for Prometheus, and spans of one trace from the client to the workers.

use crate::stack::{Service, has_ended, spec, watch_until};
use deepcluster_proto::v1::*;
use nix::sys::signal::Signal;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use tonic::{Request, Response, Status};

/// Keeps the spans that it is sent, with the names of their services.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<(String, Span)>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(&self, request: Request<ExportTraceServiceRequest>) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for of_service in request.into_inner().resource_spans {
            let attributes = of_service.resource.unwrap().attributes;
            let name = attributes.into_iter().find(|attribute| attribute.key == "service.name").unwrap();
            let Some(Value::StringValue(name)) = name.value.unwrap().value else { panic!("a service without a name") };
            let spans = of_service.scope_spans.into_iter().flat_map(|scope| scope.spans);
            self.0.lock().unwrap().extend(spans.map(|span| (name.clone(), span)));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// Starts a collector; its address.
async fn collector() -> (Collector, String) {
    let collector = Collector::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(collector.clone()));
    tokio::spawn(server.serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener)));
    (collector, address)
}

/// What a service tells Prometheus.
pub fn numbers(port: u16) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// The value of one line.
pub fn value(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{name} is missing in {text}")).parse().unwrap()
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_can_be_seen_in_numbers_and_in_one_trace() {
    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    let (collector, address) = collector().await;
    let volume = tempfile::tempdir().unwrap();
    let environment = [("OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(), address)];
    let ports: [u16; 4] = std::array::from_fn(|_| free_port());
    let start = |kind: &str, port: u16, more: Vec<String>| {
        let programs = crate::support::program("deepcluster");
        let flags = [vec![format!("--metrics=127.0.0.1:{port}"), "--log-format=json".to_owned()], more].concat();
        Service::start_from(programs.parent().unwrap(), kind, volume.path(), &flags, &environment)
    };
    let mut workers: Vec<Service> =
        ["extractor", "clusterer", "trainer"].into_iter().zip(ports).map(|(kind, port)| start(kind, port, Vec::new())).collect();
    let mut coordinator = start("coordinator", ports[3], crate::stack::worker_flags(&workers));
    let mut runs = coordinator.runs();
    let mut request = Request::new(CreateRunRequest { spec: Some(spec(1)), ..Default::default() });
    request.metadata_mut().insert("traceparent", format!("00-{TRACE}-b7ad6b7169203331-01").parse().unwrap());
    let run = runs.create_run(request).await.unwrap().into_inner().run.unwrap();
    watch_until(&mut runs, &run.run_id, has_ended).await;

    let [extractor, clusterer, trainer, all] = ports.map(numbers);
    assert_eq!(value(&extractor, "deepcluster_images_total"), 200.0);
    assert!(
        value(&extractor, "deepcluster_data_wait_seconds_count") >= 4.0
            && value(&extractor, "deepcluster_job_seconds_count") == 4.0
    );
    assert!(value(&trainer, "deepcluster_images_total") >= 190.0 && value(&trainer, "deepcluster_step_seconds_count") >= 7.0);
    assert!(value(&trainer, "deepcluster_loss") > 0.0 && value(&clusterer, "deepcluster_kmeans_objective") > 0.0);
    for (name, expected) in [
        ("deepcluster_epochs_total", 1.0),
        ("deepcluster_runs{state=\"finished\"}", 1.0),
        ("deepcluster_runs{state=\"running\"}", 0.0),
        ("deepcluster_shards_waiting", 0.0),
        ("deepcluster_shards_under_way", 0.0),
        ("deepcluster_shard_seconds_count", 4.0),
        ("deepcluster_rpcs_total{method=\"/deepcluster.v1.Runs/CreateRun\",code=\"Ok\"}", 1.0),
    ] {
        assert_eq!(value(&all, name), expected, "{name}");
    }
    assert!(value(&all, "deepcluster_run_loss{run=\"run-0001\"}") > 0.0);
    assert!(workers[0].log().lines().any(|line| line.contains("\"run\":\"\\\"run-0001\\\"\"") && line.contains("\"shard\":3")));

    // Spans that are left are sent when a service ends.
    for service in workers.iter_mut().chain([&mut coordinator]) {
        service.signal(Signal::SIGTERM);
        assert!(service.child.wait().unwrap().success());
    }
    let spans = collector.0.lock().unwrap().clone();
    let of_trace: Vec<_> = spans.iter().filter(|(_, span)| hex(&span.trace_id) == TRACE).collect();
    for (service, name) in [
        ("deepcluster.v1.Runs", "rpc"),
        ("deepcluster.v1.Runs", "epoch"),
        ("deepcluster.v1.Extractor", "extract"),
        ("deepcluster.v1.Clusterer", "cluster"),
        ("deepcluster.v1.Trainer", "train"),
    ] {
        assert!(of_trace.iter().any(|(of, span)| of == service && span.name == name), "no {name} of {service}");
    }
    let mut shards: Vec<i64> = of_trace.iter().filter_map(|(_, span)| shard_of(span)).collect();
    shards.sort_unstable();
    assert_eq!(shards, [0, 1, 2, 3]);
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn shard_of(span: &Span) -> Option<i64> {
    let shard = span.attributes.iter().find(|attribute| attribute.key == "shard")?;
    match shard.value.as_ref()?.value.as_ref()? {
        Value::IntValue(shard) => Some(*shard),
        Value::StringValue(shard) => shard.parse().ok(),
        _ => None,
    }
}
