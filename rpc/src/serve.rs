//! The server's side of a connection.

use crate::Pings;
use crate::body::{self, Incoming};
use crate::readers::READERS;
use bytes::Bytes;
use h2::server::SendResponse;
use http::{Request, Response};
use http_body::Body;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::pin;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::codegen::Service;

/// How much of a request may be on its way that nobody has read, in bytes, for each and for all together.
const WINDOW: u32 = 1 << 20;
/// Calls at a time on one connection.
const CALLS: u32 = 4096;
/// What may wait in an answer for its receiver beside the message that is being sent, in bytes: one frame.
const SEND_BUFFER: usize = 16 << 10;
/// Calls that a client may let go of before they were taken, at a time; one more, and HTTP/2's library closes the
/// connection, with every other call on it. As many as there may be readers of logs, who may all go at once.
const LET_GO: usize = READERS as usize;
/// How many bytes the frames that lie unread may be short of 256 each, all together; one byte more, and HTTP/2's library
/// closes the connection, with every call on it. Enough for two small frames of each call: many come at once, before the
/// first is read. A client that sends single bytes has 8,192 frames of them here, at about 200 bytes each.
const SMALL_FRAMES: usize = CALLS as usize * 2 * 256;
/// The most that the headers of a call may take, in bytes.
const HEADERS: u32 = 16 << 10;

/// Serves one connection, each call in a task of its own, until the client closes it, or is silent for too long. Once
/// `stop` is there no call is taken any more, and the connection ends with the last one. A call whose client has let go
/// of it is dropped.
///
/// # Errors
/// If the client breaks HTTP/2's rules, or goes away in the middle of something.
pub async fn serve<T, S, B>(
    stream: T,
    service: S,
    pings: Pings,
    stop: impl Future<Output = ()>,
) -> Result<(), h2::Error>
where
    T: AsyncRead + AsyncWrite + Unpin,
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: Body<Data = Bytes, Error: Send> + Send + 'static,
{
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_concurrent_streams(CALLS)
        .max_send_buffer_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(LET_GO)
        .data_frame_budget(SMALL_FRAMES)
        .max_header_list_size(HEADERS);
    let mut stop = pin!(stop);
    let mut connection = tokio::select! {
        biased;
        connection = builder.handshake(stream) => connection?,
        () = &mut stop => return Ok(()),
        () = tokio::time::sleep(pings.timeout) => return Ok(()),
    };
    let mut silent = pin!(pings.unanswered(connection.ping_pong()));
    let mut stopping = false;
    loop {
        tokio::select! {
            biased;
            call = connection.accept() => match call {
                None => return Ok(()),
                Some(Err(error)) => return Err(error),
                Some(Ok((request, respond))) => {
                    let request = request.map(Incoming::from);
                    tokio::spawn(answer(service.clone(), request, respond));
                }
            },
            () = &mut stop, if !stopping => {
                stopping = true;
                connection.graceful_shutdown();
            }
            () = &mut silent => return Ok(()),
        }
    }
}

async fn answer<S, B>(mut service: S, request: Request<Incoming>, mut respond: SendResponse<Bytes>)
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    B: Body<Data = Bytes>,
{
    let mut ready = pin!(async {
        let Ok(()) = poll_fn(|cx| service.poll_ready(cx)).await;
        let Ok(response) = service.call(request).await;
        response
    });
    let response = tokio::select! {
        biased;
        response = &mut ready => response,
        _ = poll_fn(|cx| respond.poll_reset(cx)) => return,
    };
    let (head, body) = response.into_parts();
    let is_all = body.is_end_stream();
    if let Ok(mut stream) = respond.send_response(Response::from_parts(head, ()), is_all)
        && !is_all
    {
        body::send(&mut stream, body).await;
    }
}
