//! A connection.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

/// A connection over a unix socket.
#[derive(Debug)]
pub struct Stream {
    /// Known to the event loop for what can be read, and for nothing else.
    socket: AsyncFd<UnixStream>,
    /// The same socket, known to the event loop for room to write, while a writer waits for some.
    full: Option<AsyncFd<OwnedFd>>,
}

impl Stream {
    /// Connects to the server that listens at `path`.
    ///
    /// # Errors
    /// If nobody listens there.
    pub async fn connect(path: &Path) -> io::Result<Self> {
        tokio::net::UnixStream::connect(path).await?.try_into()
    }

    /// Tries `write` until there is room for something.
    fn poll_room(
        &mut self,
        cx: &mut Context<'_>,
        mut write: impl FnMut(&UnixStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            let full = match write(self.socket.get_ref()) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => match &self.full {
                    Some(full) => full,
                    None => {
                        let same = self.socket.get_ref().as_fd().try_clone_to_owned()?;
                        self.full.insert(register(same, Interest::WRITABLE)?)
                    }
                },
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                done => {
                    self.full = None;
                    return Poll::Ready(done);
                }
            };
            let mut ready = ready!(full.poll_write_ready(cx))?;
            // Believed once. Room that came since the last try is told again.
            ready.clear_ready();
        }
    }
}

impl TryFrom<tokio::net::UnixStream> for Stream {
    type Error = io::Error;

    /// Takes over a connection, as one that was accepted.
    fn try_from(stream: tokio::net::UnixStream) -> io::Result<Self> {
        Ok(Self { socket: register(stream.into_std()?, Interest::READABLE)?, full: None })
    }
}

/// What tokio has instead of the deprecated call is `unsafe`, because `AsRawFd` promises nothing about who owns the
/// descriptor; the bound `AsFd` here does.
#[allow(deprecated)]
fn register<T: AsFd + AsRawFd>(inner: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(inner, interest)
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.socket.poll_read_ready(cx))?;
            let room = buffer.initialize_unfilled();
            let wanted = room.len();
            match ready.get_inner().read(room) {
                Ok(n) => {
                    // Less than was asked for: the socket is empty, and what comes is told by the event loop.
                    if 0 < n && n < wanted {
                        ready.clear_ready();
                    }
                    buffer.advance(n);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => ready.clear_ready(),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().poll_room(cx, |mut socket| socket.write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_room(cx, |mut socket| socket.write_vectored(parts))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.socket.get_ref().shutdown(Shutdown::Write))
    }
}

#[cfg(test)]
mod tests;
