//! A connection whose first bytes have been looked at.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// What a client of HTTP/2 sends first (RFC 9113, 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection that gives the bytes again which told what is spoken on it.
pub(crate) struct Opened<S> {
    seen: [u8; PREFACE.len()],
    length: usize,
    given: usize,
    stream: S,
}

impl<S: AsyncRead + Unpin> Opened<S> {
    /// Reads as much as it takes to tell.
    pub(crate) async fn read(stream: S) -> io::Result<Self> {
        let mut opened = Self { seen: [0; PREFACE.len()], length: 0, given: 0, stream };
        while opened.length < PREFACE.len() && opened.seen[..opened.length] == PREFACE[..opened.length] {
            match opened.stream.read(&mut opened.seen[opened.length..]).await? {
                0 => break,
                n => opened.length += n,
            }
        }
        Ok(opened)
    }

    pub(crate) fn is_http2(&self) -> bool {
        self.seen == *PREFACE
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Opened<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.given == self.length {
            return Pin::new(&mut self.stream).poll_read(cx, buffer);
        }
        let end = self.length.min(self.given + buffer.remaining());
        buffer.put_slice(&self.seen[self.given..end]);
        self.given = end;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Opened<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn what_is_spoken_is_told_by_the_first_bytes_and_none_of_them_is_lost() {
        for (said, is_http2) in [
            (&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nframes"[..], true),
            (b"POST / HTTP/1.1\r\n\r\n", false),
            (b"PRI * HTTP/1.1\r\n\r\nand more", false),
            (b"PRI", false),
            (b"", false),
        ] {
            let (mut client, server) = tokio::io::duplex(1);
            tokio::spawn(async move { client.write_all(said).await });
            // Byte by byte, as a slow client does.
            let mut opened = Opened::read(server).await.unwrap();
            assert_eq!(opened.is_http2(), is_http2);
            let mut all = Vec::new();
            opened.read_to_end(&mut all).await.unwrap();
            assert_eq!(all, said);
        }
    }
}
