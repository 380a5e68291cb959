//! Taking connections in.

use crate::guest::Hall;
use crate::{Bounds, Guest, Stream};
use std::io;
use std::pin::pin;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener};

/// Out of descriptors, as a rule: accepting at once again would only spin.
const PAUSE: Duration = Duration::from_millis(100);

/// Where connections come from.
pub trait Listener {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next one.
    fn accept(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Listener for UnixListener {
    type Stream = Stream;

    async fn accept(&self) -> io::Result<Stream> {
        UnixListener::accept(self).await?.0.try_into()
    }
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<TcpStream> {
        let (stream, _) = TcpListener::accept(self).await?;
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }
}

/// Serves connections, each in a task of its own, until `stop` is done and the last one has ended.
///
/// Nobody waits at the door: each connection is taken in as a stranger, and where there are too many of them the one
/// that came first is closed. So whoever shows at once that it may come in does come in, however many others are silent,
/// slow, or wrong. A stranger that nobody has admitted after `patience` is closed too.
pub async fn accept<L: Listener, F>(
    listener: L,
    bounds: Bounds,
    patience: Duration,
    stop: impl Future<Output = ()>,
    serve: impl Fn(L::Stream, Guest) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let hall = Hall::new(bounds);
    let mut stop = pin!(stop);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stop => break,
        };
        match accepted {
            Ok(stream) => {
                let (guest, shown_out) = hall.enter().await;
                let connection = serve(stream, guest.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        biased;
                        () = connection => {}
                        () = guest.overstayed(patience, shown_out) => {}
                    }
                    guest.leave();
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    drop(listener);
    hall.empty().await;
}
