//! Logs to standard error, as text or JSON; and spans to a collector, when `OTEL_EXPORTER_OTLP_ENDPOINT` names one.
//!
//! Every call is a span, with the run, epoch and shard that it is about. The W3C trace context (`traceparent`) of a call that
//! creates a run is kept with the run, and goes on to every worker that does something for it.

use crate::Config;
use http::HeaderMap;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use std::collections::HashMap;
use std::io::IsTerminal;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

/// Where spans go, by the convention of OpenTelemetry.
const COLLECTOR: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// Sends what is left of the spans when the process ends.
pub struct Telemetry {
    spans: SdkTracerProvider,
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        // A collector that is away must not keep the service from ending well.
        let _ = self.spans.shutdown();
    }
}

/// Starts logging and tracing for the process. Must be called in a tokio runtime.
///
/// # Errors
/// One clause, when the collector's address is none.
pub fn init(config: &Config, service: &'static str) -> Result<Telemetry, String> {
    let filter = config.log.parse::<EnvFilter>().unwrap_or_default();
    // A line that cannot be written, on a full disk, must not end the service: saying so on standard error would panic.
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).log_internal_errors(false);
    let lines = lines.with_ansi(std::io::stderr().is_terminal());
    let lines = if config.log_json { lines.json().boxed() } else { lines.boxed() };
    let resource = Resource::builder().with_service_name(service).build();
    let mut spans = SdkTracerProvider::builder().with_resource(resource);
    if std::env::var_os(COLLECTOR).is_some() {
        let exporter = opentelemetry_otlp::SpanExporter::builder().with_tonic().build();
        spans = spans.with_batch_exporter(exporter.map_err(|error| format!("{COLLECTOR}: {error}"))?);
    }
    let spans = spans.build();
    let traced = tracing_opentelemetry::layer().with_tracer(spans.tracer(service));
    // A second start, as in tests of several services in one process, changes nothing.
    let _ = tracing_subscriber::registry().with(filter).with(lines).with(traced).try_init();
    Ok(Telemetry { spans })
}

/// Makes a span part of the trace that a call's headers name, if they name one.
pub fn continue_trace(span: &Span, headers: &HeaderMap) {
    continue_from(span, &Headers(headers));
}

/// Makes a span part of the trace of a `traceparent`; an empty one names none.
pub fn continue_traceparent(span: &Span, traceparent: &str) {
    if !traceparent.is_empty() {
        continue_from(span, &HashMap::from([("traceparent".to_owned(), traceparent.to_owned())]));
    }
}

/// The `traceparent` of the current span; empty when it belongs to no trace.
pub fn traceparent() -> String {
    let mut carrier = HashMap::<String, String>::new();
    TraceContextPropagator::new().inject_context(&Span::current().context(), &mut carrier as &mut dyn Injector);
    carrier.remove("traceparent").unwrap_or_default()
}

fn continue_from(span: &Span, carrier: &dyn Extractor) {
    // Fails only for a span that nobody records.
    let _ = span.set_parent(TraceContextPropagator::new().extract(carrier));
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}
