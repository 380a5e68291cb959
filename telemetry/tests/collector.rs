//! Traces, to a collector on loopback.

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::trace::v1::Span;
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::codegen::http::Request;
use tonic::metadata::MetadataMap;
use tracing::Instrument;

#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<(String, Span)>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        for resource in request.into_inner().resource_spans {
            let attributes = resource.resource.unwrap_or_default().attributes;
            let service = attributes.iter().find(|attribute| attribute.key == "service.name");
            let service = format!("{:?}", service.and_then(|attribute| attribute.value.clone()));
            let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            self.0.lock().unwrap().extend(spans.map(|span| (service.clone(), span)));
        }
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

/// A process of its own: what a program traces is set up once, from its environment.
#[test]
fn a_request_is_one_trace_across_programs() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let collector = Collector::default();
    let address = runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(collector.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        address
    });
    let done = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "--nocapture", "traced_program"])
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{address}"))
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let spans = collector.0.lock().unwrap().clone();
    let named =
        |name: &str| spans.iter().find(|(_, span)| span.name == name).unwrap_or_else(|| panic!("{name}: {spans:?}"));
    let (outer, inner, step) = (&named("svc/Outer").1, &named("svc/Inner").1, &named("step").1);
    assert!(outer.parent_span_id.is_empty());
    assert_eq!((&inner.trace_id, &inner.parent_span_id), (&outer.trace_id, &outer.span_id));
    assert_eq!((&step.trace_id, &step.parent_span_id), (&outer.trace_id, &inner.span_id));
    assert!(spans.iter().all(|(service, _)| service.contains("fsb-test")), "{spans:?}");
    assert_eq!(spans.len(), 3, "libraries are not traced: {spans:?}");
}

#[test]
#[ignore = "is a process of another test"]
fn traced_program() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let traces = fsb_telemetry::init("fsb-test");
        let call = Request::builder().uri("http://x/svc/Outer").body(()).unwrap();
        let mut metadata = MetadataMap::new();
        async { fsb_telemetry::inject(&mut metadata) }.instrument(fsb_telemetry::request_span(&call)).await;
        let mut call = Request::builder().uri("http://y/svc/Inner").body(()).unwrap();
        *call.headers_mut() = metadata.into_headers();
        let step = async { tracing::debug_span!(target: "fsb_agent::start", "step").in_scope(|| ()) };
        step.instrument(fsb_telemetry::request_span(&call)).await;
        tokio::task::spawn_blocking(move || drop(traces)).await.unwrap();
    });
}

#[test]
fn without_a_collector_nothing_is_traced() {
    let call = Request::builder().uri("http://x/svc/Call").body(()).unwrap();
    assert!(fsb_telemetry::request_span(&call).is_none());
    let mut metadata = MetadataMap::new();
    fsb_telemetry::inject(&mut metadata);
    assert!(metadata.is_empty());
}
