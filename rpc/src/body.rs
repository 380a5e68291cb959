//! Bodies on their way over HTTP/2.

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http_body::{Body, Frame};
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

/// A body that comes in; by default empty, for what an interceptor of tonic refuses.
#[derive(Debug, Default)]
pub struct Incoming(Option<RecvStream>);

impl From<RecvStream> for Incoming {
    fn from(stream: RecvStream) -> Self {
        Self(Some(stream))
    }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let Some(stream) = &mut self.0 else { return Poll::Ready(None) };
        if let Some(data) = ready!(stream.poll_data(cx)) {
            let data = data?;
            // Only fails where more is given back than came.
            let _ = stream.flow_control().release_capacity(data.len());
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        let trailers = ready!(stream.poll_trailers(cx))?;
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(RecvStream::is_end_stream)
    }
}

/// Sends a body, no faster than its receiver reads, until it ends or the receiver has gone.
pub(crate) async fn send<B: Body<Data = Bytes>>(stream: &mut SendStream<Bytes>, body: B) {
    let mut body = pin!(body);
    loop {
        let frame = poll_fn(|cx| match stream.poll_reset(cx) {
            Poll::Ready(_) => Poll::Ready(Err(())),
            Poll::Pending => body.as_mut().poll_frame(cx).map(Ok),
        });
        let sent = match frame.await {
            Err(()) => return,
            Ok(None) => return drop(stream.send_data(Bytes::new(), true)),
            Ok(Some(Err(_))) => return stream.send_reset(Reason::INTERNAL_ERROR),
            Ok(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => send_data(stream, data).await,
                Err(frame) => match frame.into_trailers() {
                    Ok(trailers) => return drop(stream.send_trailers(trailers)),
                    Err(_) => Some(()),
                },
            },
        };
        if sent.is_none() {
            return;
        }
    }
}

/// `None` = the receiver has gone.
async fn send_data(stream: &mut SendStream<Bytes>, mut data: Bytes) -> Option<()> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        while stream.capacity() == 0 {
            poll_fn(|cx| stream.poll_capacity(cx)).await?.ok()?;
        }
        let room = stream.capacity().min(data.len());
        stream.send_data(data.split_to(room), false).ok()?;
    }
    Some(())
}
