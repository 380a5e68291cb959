//! Pages.

use fsb_rpc::serve_http1;
use http::{Request, Response};
use hyper::body::Incoming;
use std::convert::Infallible;
use std::future::{Ready, pending, ready};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tonic::body::Body;
use tonic::codegen::Service;

/// An empty page.
#[derive(Clone)]
struct Page;

impl Service<Request<Incoming>> for Page {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Incoming>) -> Self::Future {
        ready(Ok(Response::new(Body::empty())))
    }
}

fn served() -> DuplexStream {
    let (client, server) = duplex(1 << 16);
    tokio::spawn(serve_http1(server, Page, pending()));
    client
}

/// Sends a head that never ends, byte by byte, until the connection is closed.
async fn trickle(mut client: DuplexStream) {
    while client.write_all(b"G").await.is_ok() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn until_closed(mut client: DuplexStream, first: &[u8]) -> Vec<u8> {
    client.write_all(first).await.unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn who_sends_no_head_in_time_is_closed_silent_or_slow_at_first_or_between_two_requests() {
    let request = b"GET / HTTP/1.1\r\nhost: here\r\n\r\n";
    let since = Instant::now();
    let all = async { tokio::join!(until_closed(served(), b""), until_closed(served(), request), trickle(served())) };
    let (_, answer, ()) = tokio::time::timeout(Duration::from_secs(30), all).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    assert!(since.elapsed() >= Duration::from_secs(4), "and has time until then");
}
