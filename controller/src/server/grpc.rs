//! Fast-Path over the connections that come in.

use fsb_rpc::{Incoming, Pings};
use futures_util::{Stream, StreamExt};
use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::codegen::{Service, http};
use tracing::Instrument;
use tracing::instrument::Instrumented;

/// A connection whose peer does not answer for so long is closed.
const KEEP_ALIVE: Pings = Pings { every: Duration::from_secs(20), timeout: Duration::from_secs(20) };
/// Out of descriptors, as a rule: accepting at once again would only spin.
const PAUSE: Duration = Duration::from_millis(100);

/// A service whose requests are spans, of their callers' traces.
#[derive(Clone)]
pub struct Traced<S>(pub S);

impl<S: Service<http::Request<Incoming>>> Service<http::Request<Incoming>> for Traced<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = Instrumented<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Incoming>) -> Self::Future {
        let span = fsb_telemetry::request_span(&request);
        let _within = span.enter();
        self.0.call(request).instrument(span.clone())
    }
}

/// Serves until `stop` is cancelled and the last call has ended.
pub async fn serve<T, S>(incoming: impl Stream<Item = io::Result<T>>, service: S, stop: CancellationToken)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<http::Request<Incoming>, Response = http::Response<tonic::body::Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    let connections = TaskTracker::new();
    let mut incoming = pin!(incoming.take_until(stop.cancelled()));
    while let Some(accepted) = incoming.next().await {
        match accepted {
            Ok(stream) => {
                let (service, stop) = (service.clone(), stop.clone().cancelled_owned());
                connections.spawn(async move {
                    if let Err(error) = fsb_rpc::serve(stream, service, KEEP_ALIVE, stop).await {
                        tracing::debug!(%error, "a connection ended");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    connections.close();
    connections.wait().await;
}
