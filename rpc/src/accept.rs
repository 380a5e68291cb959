//! Taking connections in.

use crate::Stream;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::Semaphore;

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

/// Serves connections, each in a task of its own, until `stop` is done and the last one has ended. At most `most` at a
/// time; the next one waits in the listen queue.
pub async fn accept<L: Listener, F>(
    listener: L,
    most: u32,
    stop: impl Future<Output = ()>,
    serve: impl Fn(L::Stream) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let room = Arc::new(Semaphore::new(most as usize));
    let mut stop = pin!(stop);
    loop {
        let next = async { (room.clone().acquire_owned().await, listener.accept().await) };
        let (permit, accepted) = tokio::select! {
            next = next => next,
            () = &mut stop => break,
        };
        match accepted {
            Ok(stream) => {
                let connection = serve(stream);
                tokio::spawn(async move {
                    connection.await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    drop(listener);
    // Nobody is left when all room is free again.
    let _ = room.acquire_many(most).await;
}
