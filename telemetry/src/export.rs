//! Traces over OTLP (gRPC), by OpenTelemetry's standard variables, and their way from one program to the next: the
//! W3C `traceparent` header.

use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{ExporterBuildError, SpanExporter};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use std::sync::atomic::{AtomicBool, Ordering};
use tonic::codegen::http;
use tonic::metadata::{MetadataKey, MetadataMap};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

static TRACING: AtomicBool = AtomicBool::new(false);

/// The traces of this process, if it makes any. What was not sent yet is sent when this is dropped, which blocks for at
/// most five seconds.
#[derive(Default)]
pub struct Traces(Option<SdkTracerProvider>);

/// Sets up logs, and traces of `service` where a collector is named (`OTEL_EXPORTER_OTLP_ENDPOINT` or
/// `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`) and not switched off. Call it within the runtime, which carries the connection
/// and must outlive what is returned. A collector that cannot be reached is no reason not to run: what it does not take
/// is dropped.
pub fn init(service: &'static str) -> Traces {
    let logs = tracing_subscriber::registry().with(fsb_log::layer(""));
    if !is_wanted(|name| std::env::var(name).ok()) {
        logs.init();
        return Traces::default();
    }
    let provider = match provider(service) {
        Ok(provider) => provider,
        Err(error) => {
            logs.init();
            tracing::error!(%error, "no traces are exported");
            return Traces::default();
        }
    };
    // Our own spans, down to the steps of a start; the libraries' would be about the export itself.
    let ours = Targets::new().with_target("fsb", tracing::Level::DEBUG);
    let spans = tracing_opentelemetry::layer().with_tracer(provider.tracer(service)).with_filter(ours);
    logs.with(spans).init();
    TRACING.store(true, Ordering::Relaxed);
    Traces(Some(provider))
}

impl Drop for Traces {
    fn drop(&mut self) {
        if let Some(provider) = self.0.take()
            && let Err(error) = provider.shutdown()
        {
            tracing::warn!(%error, "the last traces were not sent");
        }
    }
}

/// Whether the variables ask for traces.
fn is_wanted(variable: impl Fn(&str) -> Option<String>) -> bool {
    let set = |name: &str| variable(name).is_some_and(|value| !value.is_empty());
    let is = |name: &str, word: &str| variable(name).is_some_and(|value| value.eq_ignore_ascii_case(word));
    (set("OTEL_EXPORTER_OTLP_ENDPOINT") || set("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"))
        && !is("OTEL_SDK_DISABLED", "true")
        && !is("OTEL_TRACES_EXPORTER", "none")
}

fn provider(service: &'static str) -> Result<SdkTracerProvider, ExporterBuildError> {
    let exporter = SpanExporter::builder().with_tonic().build()?;
    let mut resource = Resource::builder();
    let named = |name: &str, word: &str| std::env::var(name).is_ok_and(|value| value.contains(word));
    if !named("OTEL_SERVICE_NAME", "") && !named("OTEL_RESOURCE_ATTRIBUTES", "service.name=") {
        resource = resource.with_service_name(service);
    }
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.build()).build())
}

/// Whether this process traces.
pub fn is_tracing() -> bool {
    TRACING.load(Ordering::Relaxed)
}

/// The span of a request that has come in, a child of its caller's where it says so. None where nothing is traced.
pub fn request_span<B>(request: &http::Request<B>) -> Span {
    if !is_tracing() {
        return Span::none();
    }
    let path = request.uri().path().trim_start_matches('/');
    let span = tracing::debug_span!(target: "fsb", "request", otel.name = path, otel.kind = "server");
    // Nobody's, or not ours to read: then it begins a trace of its own.
    let _ = span.set_parent(TraceContextPropagator::new().extract(&Incoming(request.headers())));
    span
}

/// Tells the one who is called which span calls.
pub fn inject(metadata: &mut MetadataMap) {
    if is_tracing() {
        TraceContextPropagator::new().inject_context(&Span::current().context(), &mut Outgoing(metadata));
    }
}

struct Incoming<'a>(&'a http::HeaderMap);

impl Extractor for Incoming<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

struct Outgoing<'a>(&'a mut MetadataMap);

impl Injector for Outgoing<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(key), Ok(value)) = (MetadataKey::from_bytes(key.as_bytes()), value.parse()) {
            self.0.insert(key, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traces_are_made_where_a_collector_is_named_and_not_switched_off() {
        let wanted = |set: &[(&str, &str)]| {
            is_wanted(|name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
        };
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317");
        assert!(wanted(&[endpoint]));
        assert!(wanted(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:4317")]));
        assert!(!wanted(&[]));
        assert!(!wanted(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]));
        assert!(!wanted(&[endpoint, ("OTEL_SDK_DISABLED", "true")]));
        assert!(!wanted(&[endpoint, ("OTEL_TRACES_EXPORTER", "none")]));
    }
}
