//! Listening: gRPC and HTTP/JSON on one unix socket, and on one TCP port where there is a token to guard it.

use crate::Agent;
use crate::http;
use crate::opened::Opened;
use crate::rpc::Service;
use anyhow::Context as _;
use axum::Router;
use axum::http::{Request, Response, StatusCode, header};
use axum::response::IntoResponse;
use bytes::Bytes;
use fsb_files::Access;
use fsb_proto::agent::agent_service_server::{AgentServiceServer, SERVICE_NAME};
use fsb_rpc::{Bounds, Guest, Listener, Pings};
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, TryFutureExt};
use http_body::Body;
use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tracing::Instrument;
use tracing::instrument::Instrumented;

/// The longest gRPC message: a create at the kernel's limit for arguments and environment.
const LONGEST_MESSAGE: usize = 4 << 20;
/// Connections of each listener at a time, where there are descriptors for so many. Each has its own: who may only knock
/// must not keep out who may come in.
const CONNECTIONS: Bounds = Bounds { strangers: 256, known: 1024 };
/// How long a peer has for a first request that shows it may be here.
const STRANGER_DEADLINE: Duration = Duration::from_secs(5);
/// A peer that is gone without a word is noticed after these two: also what "no controller watches" rests on.
const PINGS: Pings = Pings { every: Duration::from_secs(3), timeout: Duration::from_secs(4) };

/// Where an agent listens.
pub struct Listeners {
    unix: UnixListener,
    tcp: Option<(TcpListener, Arc<str>)>,
}

impl Listeners {
    /// Binds the unix socket (mode 0600; one that a dead agent left is replaced), and the TCP port if there is a
    /// token file. Without one there is no TCP.
    pub async fn bind(socket: &Path, port: u16, token_file: Option<&Path>) -> anyhow::Result<Self> {
        let unix = bind_unix(socket).with_context(|| format!("listen on {}", socket.display()))?;
        let tcp = match (port, token_file) {
            (0, _) => None,
            (_, None) => {
                tracing::info!("no TCP: AGENT_TOKEN_FILE is not set");
                None
            }
            (port, Some(file)) => {
                let token = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
                let token = token.trim();
                anyhow::ensure!(!token.is_empty(), "{} holds no token", file.display());
                let any = std::net::Ipv6Addr::UNSPECIFIED;
                let listener = match TcpListener::bind((any, port)).await {
                    Ok(listener) => listener,
                    // A machine without IPv6.
                    Err(_) => TcpListener::bind((std::net::Ipv4Addr::UNSPECIFIED, port))
                        .await
                        .with_context(|| format!("listen on port {port}"))?,
                };
                Some((listener, token.into()))
            }
        };
        Ok(Self { unix, tcp })
    }

    /// The TCP port, if there is one.
    pub fn port(&self) -> Option<u16> {
        self.tcp.as_ref()?.0.local_addr().ok().map(|address| address.port())
    }
}

fn bind_unix(socket: &Path) -> std::io::Result<UnixListener> {
    if let Some(dir) = socket.parent().filter(|dir| !dir.is_dir()) {
        fsb_files::create_dir(dir, Access::Owner)?;
    }
    let listener = fsb_files::listen(socket, Access::Owner)?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// Serves until `stop` is cancelled; then connections may finish what they are at.
pub async fn serve(agent: Arc<Agent>, listeners: Listeners, stop: CancellationToken) {
    let calls = AgentServiceServer::new(Service(agent.clone()))
        .max_decoding_message_size(LONGEST_MESSAGE)
        .max_encoding_message_size(usize::MAX);
    let pages = http::router(agent).fallback(nothing_here);
    let app = App { calls, pages, token: None };
    let [unix, tcp] = Bounds::fit([CONNECTIONS; 2], fsb_rpc::raise_open_files());
    let unix = accept(listeners.unix, unix, app.clone(), stop.clone());
    match listeners.tcp {
        None => unix.await,
        Some((listener, token)) => {
            tokio::join!(unix, accept(listener, tcp, App { token: Some(token), ..app }, stop));
        }
    }
}

/// What answers: gRPC's calls, and pages.
#[derive(Clone)]
struct App {
    calls: AgentServiceServer<Service>,
    pages: Router,
    /// What a request must show.
    token: Option<Arc<str>>,
}

/// The same for one connection.
#[derive(Clone)]
struct Guarded {
    app: App,
    guest: Guest,
}

impl<B> tonic::codegen::Service<Request<B>> for Guarded
where
    B: Body<Data = Bytes, Error: Into<tonic::codegen::StdError> + Send> + Send + 'static,
{
    type Response = Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Instrumented<BoxFuture<'static, Result<Self::Response, Infallible>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    /// Each request is a span, of its caller's trace.
    fn call(&mut self, request: Request<B>) -> Self::Future {
        let span = fsb_telemetry::request_span(&request);
        let _within = span.enter();
        let app = &mut self.app;
        if app.token.as_ref().is_some_and(|token| !has(&request, token)) {
            let message = "a bearer token is needed; hint: Authorization: Bearer <token>";
            let refused = refuse(&request, StatusCode::UNAUTHORIZED, Status::unauthenticated(message));
            let refused = std::future::ready(Ok(refused.map(tonic::body::Body::new))).boxed();
            return refused.instrument(span.clone());
        }
        self.guest.admit();
        let answer = if request.uri().path().strip_prefix('/').is_some_and(|path| path.starts_with(SERVICE_NAME)) {
            app.calls.call(request)
        } else {
            let page = app.pages.call(request.map(axum::body::Body::new));
            page.map_ok(|page| page.map(tonic::body::Body::new)).boxed()
        };
        answer.instrument(span.clone())
    }
}

/// Whether the request shows the token.
fn has<B>(request: &Request<B>, token: &str) -> bool {
    fsb_rpc::bearer(request.headers()).is_some_and(|given| fsb_rpc::same_token(given, token))
}

/// For paths that are neither a call nor a page.
async fn nothing_here(request: Request<axum::body::Body>) -> axum::response::Response {
    let message = format!("there is nothing at {}", request.uri().path());
    refuse(&request, StatusCode::NOT_FOUND, Status::unimplemented(message))
}

/// An error in the words of whoever asks: a gRPC status, or JSON.
fn refuse<B>(request: &Request<B>, code: StatusCode, status: Status) -> axum::response::Response {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if kind.is_some_and(|kind| kind.starts_with("application/grpc")) {
        return status.into_http();
    }
    let body = serde_json::json!({ "success": false, "message": status.message() });
    (code, axum::Json(body)).into_response()
}

async fn accept(listener: impl Listener, bounds: Bounds, app: App, stop: CancellationToken) {
    let serve = |stream, guest| connection(stream, Guarded { app: app.clone(), guest }, stop.clone());
    fsb_rpc::accept(listener, bounds, STRANGER_DEADLINE, stop.cancelled(), serve).await;
}

/// HTTP/2 is gRPC's, HTTP/1 that of people and scripts; the first bytes tell.
async fn connection<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    app: Guarded,
    stop: CancellationToken,
) {
    // Gone before it said anything.
    let Ok(stream) = Opened::read(stream).await else { return };
    let result: Result<(), tonic::codegen::StdError> = if stream.is_http2() {
        fsb_rpc::serve(stream, app, PINGS, stop.cancelled()).await.map_err(Into::into)
    } else {
        fsb_rpc::serve_http1(stream, app, stop.cancelled()).await.map_err(Into::into)
    };
    if let Err(error) = result {
        tracing::debug!(error, "a connection ended");
    }
}
