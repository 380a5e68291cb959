//! Calls from a [`Channel`] to [`serve`] over a unix socket.

use bytes::Bytes;
use fsb_rpc::{Address, Channel, Incoming, Pings, Stream, serve};
use http::{Request, Response};
use http_body::{Body, Frame};
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;
use tonic::codegen::{Service, StdError};
use tonic::{Code, Status};

const PATIENCE: Duration = Duration::from_secs(20);
const PINGS: Pings = Pings { every: Duration::from_secs(5), timeout: Duration::from_secs(5) };

/// Gives a request's body back; to a request of `/never` it gives no answer, to one of `/flood` one without an end.
#[derive(Clone, Default)]
struct Echo {
    /// Calls and answers that somebody waits for.
    busy: Arc<AtomicUsize>,
}

struct Busy(Arc<AtomicUsize>);

impl Busy {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

struct Flood(Busy);

impl Body for Flood {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let _ = &self.0;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[7; 1000])))))
    }
}

impl Service<Request<Incoming>> for Echo {
    type Response = Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let busy = Busy::new(&self.busy);
        Box::pin(async move {
            let body = match request.uri().path() {
                "/never" => return std::future::pending().await,
                "/flood" => tonic::body::Body::new(Flood(busy)),
                _ => tonic::body::Body::new(request.into_body()),
            };
            Ok(Response::new(body))
        })
    }
}

/// Serves at `path`, one connection after the other.
fn server(path: &Path, service: Echo) -> JoinHandle<()> {
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).unwrap();
    tokio::spawn(async move {
        loop {
            let stream = Stream::try_from(listener.accept().await.unwrap().0).unwrap();
            let _ = serve(stream, service.clone(), PINGS, std::future::pending()).await;
        }
    })
}

struct World {
    service: Echo,
    server: JoinHandle<()>,
    channel: Channel,
    path: PathBuf,
    _dir: tempfile::TempDir,
}

fn world(ping: Option<Duration>) -> World {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let service = Echo::default();
    let channel = Channel::new(Address::Unix(path.clone()), PATIENCE, ping);
    World { server: server(&path, service.clone()), service, channel, path, _dir: dir }
}

struct Whole(Option<Bytes>);

impl Body for Whole {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|data| Ok(Frame::data(data))))
    }
}

fn request(path: &str, body: &[u8]) -> Request<tonic::body::Body> {
    let body = tonic::body::Body::new(Whole(Some(Bytes::copy_from_slice(body))));
    Request::builder().uri(path).body(body).unwrap()
}

impl World {
    async fn call(&self, request: Request<tonic::body::Body>) -> Result<Vec<u8>, StdError> {
        let mut body = pin!(self.channel.clone().call(request).await?.into_body());
        let mut all = Vec::new();
        while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
            if let Ok(data) = frame?.into_data() {
                all.extend_from_slice(&data);
            }
        }
        Ok(all)
    }

    async fn idle(&self) {
        let end = tokio::time::Instant::now() + PATIENCE;
        while self.service.busy.load(Ordering::SeqCst) > 0 {
            assert!(tokio::time::Instant::now() < end, "a call goes on whose client is gone");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test]
async fn what_is_larger_than_every_window_arrives_as_it_was_sent() {
    let world = world(None);
    for length in [0, 1, 100_000, 8 << 20] {
        let sent: Vec<u8> = (0..length).map(|n: u32| (n % 251) as u8).collect();
        assert!(world.call(request("/echo", &sent)).await.unwrap() == sent, "{length} bytes");
    }
}

/// Hands bytes on, one way, and says how often some came.
fn relay(mut from: std::os::unix::net::UnixStream, mut to: std::os::unix::net::UnixStream) -> Arc<AtomicUsize> {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    std::thread::spawn(move || {
        let mut bytes = [0; 1 << 16];
        while let Ok(n @ 1..) = from.read(&mut bytes) {
            counter.fetch_add(1, Ordering::SeqCst);
            to.write_all(&bytes[..n]).unwrap();
        }
        let _ = to.shutdown(std::net::Shutdown::Both);
    });
    count
}

/// Whoever is woken up by headers alone may take the sender's processor for it, and then waits for the rest.
#[tokio::test]
async fn a_request_is_one_write_and_so_is_its_answer() {
    let world = world(None);
    let path = world.path.with_extension("relay");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let channel = Channel::new(Address::Unix(path), PATIENCE, None);
    channel.connect().await.unwrap();
    let client = listener.accept().unwrap().0;
    let server = std::os::unix::net::UnixStream::connect(&world.path).unwrap();
    let requests = relay(client.try_clone().unwrap(), server.try_clone().unwrap());
    let answers = relay(server, client);
    for round in 0..10 {
        let before = (requests.load(Ordering::SeqCst), answers.load(Ordering::SeqCst));
        let mut body = pin!(channel.clone().call(request("/echo", b"hello")).await.unwrap().into_body());
        while poll_fn(|cx| body.as_mut().poll_frame(cx)).await.is_some() {}
        // What the first one has to say about the connection itself.
        if round > 0 {
            let after = (requests.load(Ordering::SeqCst), answers.load(Ordering::SeqCst));
            assert_eq!(after, (before.0 + 1, before.1 + 1), "round {round}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn calls_at_once_do_not_wait_for_each_other() {
    let world = world(None);
    let never = tokio::spawn(world.channel.clone().call(request("/never", b"")));
    let calls = (0..300).map(|n: u32| {
        let call = world.channel.clone().call(request("/echo", &n.to_le_bytes()));
        tokio::spawn(async move { call.await.unwrap().status().as_u16() })
    });
    for call in calls.collect::<Vec<_>>() {
        assert_eq!(call.await.unwrap(), 200);
    }
    never.abort();
}

#[tokio::test]
async fn as_many_calls_as_may_be_at_a_time_come_at_once_before_any_is_read() {
    let world = world(None);
    let stream = UnixStream::connect(&world.path).await.unwrap();
    let (mut calls, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut open = Vec::new();
    for n in 0..4096 {
        // As tonic's clients send a call: its end is a frame of its own.
        let path = if n < 4095 { "/never" } else { "/" };
        calls = calls.ready().await.unwrap();
        let (answer, mut body) = calls.send_request(request(path, b"").map(|_| ()), false).unwrap();
        body.send_data(Bytes::from_static(b"small"), false).unwrap();
        body.send_data(Bytes::new(), true).unwrap();
        open.push(answer);
    }
    let last = tokio::time::timeout(PATIENCE, open.pop().unwrap()).await.expect("it is answered").unwrap();
    let echo = last.into_body().data().await.unwrap().unwrap();
    assert_eq!(&echo[..], b"small");
    assert!(!connection.is_finished());
}

#[tokio::test]
async fn a_call_whose_client_has_let_go_of_it_is_dropped() {
    let world = world(None);
    for path in ["/never", "/flood"] {
        let call = tokio::time::timeout(Duration::from_millis(50), world.call(request(path, b"")));
        assert!(call.await.is_err(), "{path}");
        world.idle().await;
    }
    assert_eq!(world.call(request("/echo", b"still here")).await.unwrap(), b"still here");
}

#[tokio::test]
async fn a_call_ends_when_its_time_is_over() {
    let world = world(None);
    let mut timed = request("/never", b"");
    timed.headers_mut().insert("grpc-timeout", "50m".parse().unwrap());
    let error = world.call(timed).await.unwrap_err();
    assert_eq!(error.downcast_ref::<Status>().unwrap().code(), Code::DeadlineExceeded);
    world.idle().await;
}

#[tokio::test]
async fn a_connection_that_broke_is_made_again_and_its_calls_fail() {
    let mut world = world(None);
    assert_eq!(world.call(request("/echo", b"1")).await.unwrap(), b"1");
    let under_way = tokio::spawn(world.channel.clone().call(request("/never", b"")));
    while world.service.busy.load(Ordering::SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    world.server.abort();
    under_way.await.unwrap().unwrap_err();
    std::fs::remove_file(&world.path).unwrap();
    let nobody = world.call(request("/echo", b"2")).await.unwrap_err();
    let nobody = nobody.downcast_ref::<std::io::Error>().unwrap();
    assert_eq!(nobody.kind(), std::io::ErrorKind::NotFound);
    world.server = server(&world.path, world.service.clone());
    assert_eq!(world.call(request("/echo", b"3")).await.unwrap(), b"3");
}

#[tokio::test]
async fn a_server_that_answers_no_ping_is_given_up() {
    let world = world(Some(Duration::from_millis(50)));
    world.server.abort();
    std::fs::remove_file(&world.path).unwrap();
    // Takes the connection and is silent.
    let silent = UnixListener::bind(&world.path).unwrap();
    let call = tokio::time::timeout(PATIENCE, world.call(request("/echo", b"")));
    call.await.expect("it waits for ever").unwrap_err();
    drop(silent);
}

#[tokio::test]
async fn a_client_that_says_nothing_is_given_up() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let pings = Pings { every: PATIENCE, timeout: Duration::from_millis(50) };
    let served = serve(Stream::try_from(theirs).unwrap(), Echo::default(), pings, std::future::pending());
    tokio::time::timeout(PATIENCE, served).await.expect("it is waited for for ever").unwrap();
    drop(ours);
}

#[tokio::test]
async fn a_server_that_stops_finishes_what_it_is_at() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let served = tokio::spawn(async move {
        let stream = Stream::try_from(listener.accept().await.unwrap().0).unwrap();
        serve(stream, Echo::default(), PINGS, async { drop(stopped.await) }).await
    });
    let channel = Channel::new(Address::Unix(path), PATIENCE, None);
    let answer = channel.clone().call(request("/flood", b"")).await.unwrap();
    stop.send(()).unwrap();
    let mut body = pin!(answer.into_body());
    let mut read = 0;
    while read < 1 << 20 {
        let frame = poll_fn(|cx| body.as_mut().poll_frame(cx)).await.unwrap().unwrap();
        read += frame.into_data().unwrap().len();
    }
    assert!(!served.is_finished());
    drop(channel);
    body.set(Incoming::default());
    tokio::time::timeout(PATIENCE, served).await.expect("it goes on").unwrap().unwrap();
}
