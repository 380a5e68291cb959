//! The server's side of a connection over HTTP/1, for people, scripts and probes.

use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::pin::pin;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::codegen::{Service, StdError};

/// How long a client may take to send a request's head, also the next one's.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// What of an answer may wait for its receiver, in bytes, and how long a request's head may be.
const BUFFER_BYTES: usize = 16 << 10;

/// Serves one connection until the client closes it, or sends no request for five seconds. Once `stop` is there it ends
/// with the request that is under way.
///
/// # Errors
/// If the client breaks HTTP's rules, is silent for too long, or goes away in the middle of something.
pub async fn serve_http1<T, S, B>(stream: T, service: S, stop: impl Future<Output = ()>) -> Result<(), hyper::Error>
where
    T: AsyncRead + AsyncWrite + Unpin,
    S: Service<Request<Incoming>, Response = Response<B>> + Clone,
    S::Error: Into<StdError>,
    B: Body<Error: Into<StdError>> + 'static,
{
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(BUFFER_BYTES);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service)));
    tokio::select! {
        result = connection.as_mut() => result,
        () = stop => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    }
}
