//! The client's side of a connection.

use crate::{Incoming, Pings, Stream, timeout_of};
use bytes::Bytes;
use h2::client::{Connection, SendRequest};
use http::uri::{Authority, Parts, PathAndQuery, Scheme};
use http::{Request, Response, Uri};
use http_body::Body;
use std::future::poll_fn;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tonic::Status;
use tonic::codegen::{Service, StdError};

/// How much a stream may hold that nobody has read, in bytes.
const STREAM: u32 = 64 << 10;
/// The same where streams stay open by the hundred and are read slowly, or not at all: so that 1,024 of them hold 32 MiB.
const BULK_STREAM: u32 = 32 << 10;
/// The same of all streams together: no limit of its own.
const CONNECTION: u32 = (1 << 31) - 1;

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// A TCP port, without TLS.
    Tcp(Authority),
}

/// A channel for the clients that tonic makes: handles on one connection, which is made when it is used and made again
/// when it broke. A call is handed to HTTP/2 by the one who makes it, and the answer is handed to him: the connection's
/// own task only reads and writes.
///
/// For calls with one request message; answers may be streams. The servers are trusted. HTTP/2's library takes a peer
/// for an attacker, and closes the connection with every other call and watch on it, once a thousand messages came for
/// streams that were let go of, or once small messages lie unread that make up a part of the connection's window: both
/// are what followers of a log do that go away, or do not read on. How much they may leave unread is bounded for each
/// instead.
#[derive(Debug, Clone)]
pub struct Channel(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    to: Address,
    patience: Duration,
    ping: Option<Duration>,
    stream: u32,
    calls: Mutex<Option<SendRequest<Bytes>>>,
}

impl Channel {
    /// A channel that has not connected yet. A connection that is not there after `patience` has failed; one whose
    /// server does not answer a ping for as long as `ping`, which is also how often one is sent, is broken.
    pub fn new(to: Address, patience: Duration, ping: Option<Duration>) -> Self {
        Self(Arc::new(Inner { to, patience, ping, stream: STREAM, calls: Mutex::default() }))
    }

    /// As [`new`](Self::new), for streams that stay open and may wait for their readers (logs): they have a connection
    /// of their own, so that no other call waits behind them, or breaks with them, and less of each is kept.
    pub fn bulk(to: Address, patience: Duration, ping: Option<Duration>) -> Self {
        Self(Arc::new(Inner { to, patience, ping, stream: BULK_STREAM, calls: Mutex::default() }))
    }

    /// Connects now.
    ///
    /// # Errors
    /// If nobody listens there.
    pub async fn connect(&self) -> io::Result<()> {
        self.0.calls().await.map(|_| ())
    }
}

impl Inner {
    /// A handle on a connection that was not broken a moment ago.
    async fn calls(&self) -> io::Result<SendRequest<Bytes>> {
        let mut current = self.calls.lock().await;
        if let Some(calls) = &*current
            && let Ok(calls) = calls.clone().ready().await
        {
            return Ok(calls);
        }
        *current = None;
        let connected = tokio::time::timeout(self.patience, self.open()).await;
        let calls = connected.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        Ok(current.insert(calls).clone())
    }

    fn uri(&self, path: Option<PathAndQuery>) -> Result<Uri, http::uri::InvalidUriParts> {
        let authority = match &self.to {
            Address::Unix(_) => Authority::from_static("localhost"),
            Address::Tcp(authority) => authority.clone(),
        };
        let mut parts = Parts::default();
        (parts.scheme, parts.authority, parts.path_and_query) = (Some(Scheme::HTTP), Some(authority), path);
        Uri::from_parts(parts)
    }

    async fn call(&self, request: Request<tonic::body::Body>) -> Result<Response<Incoming>, StdError> {
        let mut calls = self.calls().await?;
        let (mut head, mut body) = request.into_parts();
        head.uri = self.uri(head.uri.into_parts().path_and_query)?;
        let (answer, mut stream) = calls.send_request(Request::from_parts(head, ()), false)?;
        let mut last = Bytes::new();
        while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            if let Ok(data) = frame?.into_data() {
                let before = std::mem::replace(&mut last, data);
                if !before.is_empty() {
                    let _ = stream.send_data(before, false);
                }
            }
        }
        // A stream that is over takes nothing more; the answer says why.
        let _ = stream.send_data(last, true);
        Ok(answer.await?.map(Incoming::from))
    }

    async fn open(&self) -> io::Result<SendRequest<Bytes>> {
        match &self.to {
            Address::Unix(path) => self.begin(Stream::connect(path).await?).await,
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address.as_str()).await?;
                stream.set_nodelay(true)?;
                self.begin(stream).await
            }
        }
    }

    async fn begin<T: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
        &self,
        stream: T,
    ) -> io::Result<SendRequest<Bytes>> {
        let (calls, connection) = h2::client::Builder::new()
            .enable_push(false)
            .initial_window_size(self.stream)
            .initial_connection_window_size(CONNECTION)
            .max_local_error_reset_streams(None)
            .handshake(stream)
            .await
            .map_err(io::Error::other)?;
        tokio::spawn(drive(connection, self.ping));
        Ok(calls)
    }
}

/// Reads and writes until the connection breaks, or nobody has a handle or a call any more. Calls under way then fail.
async fn drive<T: AsyncRead + AsyncWrite + Unpin>(mut connection: Connection<T, Bytes>, ping: Option<Duration>) {
    let pings = connection.ping_pong();
    let unanswered = async {
        match ping {
            Some(time) => Pings { every: time, timeout: time }.unanswered(pings).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        // First what has come: after a pause of this process the answer may lie there already.
        _ = connection => {}
        () = unanswered => {}
    }
}

impl Service<Request<tonic::body::Body>> for Channel {
    type Response = Response<Incoming>;
    type Error = StdError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, StdError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), StdError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<tonic::body::Body>) -> Self::Future {
        let channel = self.0.clone();
        Box::pin(async move {
            match timeout_of(request.headers()) {
                None => channel.call(request).await,
                Some(timeout) => match tokio::time::timeout(timeout, channel.call(request)).await {
                    Ok(answer) => answer,
                    Err(_) => Err(Status::deadline_exceeded(format!("no answer came within {timeout:?}")).into()),
                },
            }
        })
    }
}
