//! Fast-Path over the connections that come in.

use crate::fast_path::Tokens;
use fsb_rpc::{Bounds, Guest, Incoming, Listener, Pings};
use futures_util::future::{Either, Ready, ready};
use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tonic::codegen::{Service, http};
use tracing::Instrument;
use tracing::instrument::Instrumented;

/// A connection whose peer does not answer for so long is closed.
const KEEP_ALIVE: Pings = Pings { every: Duration::from_secs(20), timeout: Duration::from_secs(20) };
/// Connections of a listener at a time, where there are descriptors for so many.
pub const CONNECTIONS: Bounds = Bounds { strangers: 512, known: 4096 };
/// How long a peer has for a first request that shows it may be here.
const STRANGER_DEADLINE: Duration = Duration::from_secs(5);

/// The service of one connection, whose requests are spans, of their callers' traces. What comes without a token that is
/// known is refused before its body is read.
#[derive(Clone)]
struct Guarded<S> {
    service: S,
    tokens: Option<Arc<Tokens>>,
    guest: Guest,
}

impl<S> Service<http::Request<Incoming>> for Guarded<S>
where
    S: Service<http::Request<Incoming>, Response = http::Response<tonic::body::Body>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<Ready<Result<S::Response, S::Error>>, Instrumented<S::Future>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Incoming>) -> Self::Future {
        if let Some(Err(refused)) = self.tokens.as_ref().map(|tokens| tokens.knows(request.headers())) {
            return Either::Left(ready(Ok(refused.into_http())));
        }
        self.guest.admit();
        let span = fsb_telemetry::request_span(&request);
        let _within = span.enter();
        Either::Right(self.service.call(request).instrument(span.clone()))
    }
}

/// Serves until `stop` is cancelled and the last call has ended. With tokens, every request needs one.
pub async fn serve<L, S>(listener: L, bounds: Bounds, service: S, tokens: Option<Arc<Tokens>>, stop: CancellationToken)
where
    L: Listener,
    S: Service<http::Request<Incoming>, Response = http::Response<tonic::body::Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    let connection = |stream, guest| {
        let service = Guarded { service: service.clone(), tokens: tokens.clone(), guest };
        let stopped = stop.clone().cancelled_owned();
        async move {
            if let Err(error) = fsb_rpc::serve(stream, service, KEEP_ALIVE, stopped).await {
                tracing::debug!(%error, "a connection ended");
            }
        }
    };
    fsb_rpc::accept(listener, bounds, STRANGER_DEADLINE, stop.cancelled(), connection).await;
}
