//! Connections that come in.

use fsb_rpc::{Bounds, Guest, accept};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

const PATIENCE: Duration = Duration::from_secs(20);
/// Says that the peer may be here.
const SHOW: &[u8] = b"t";

/// Admits who shows it may be here, and answers each byte.
async fn serve(mut stream: fsb_rpc::Stream, guest: Guest) {
    let mut byte = [0];
    while stream.read_exact(&mut byte).await.is_ok() {
        if byte == SHOW {
            guest.admit();
        }
        if stream.write_all(b"!").await.is_err() {
            return;
        }
    }
}

struct Server {
    _dir: tempfile::TempDir,
    path: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    serving: JoinHandle<()>,
}

impl Server {
    fn start(strangers: u32, known: u32, patience: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let bounds = Bounds { strangers, known };
        let serving = tokio::spawn(accept(listener, bounds, patience, async { drop(stopped.await) }, serve));
        Self { _dir: dir, path, stop: Some(stop), serving }
    }

    async fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.path).await.unwrap()
    }

    async fn known(&self) -> UnixStream {
        let mut stream = self.connect().await;
        assert!(answers(&mut stream, SHOW).await);
        stream
    }
}

async fn answers(stream: &mut UnixStream, byte: &[u8]) -> bool {
    stream.write_all(byte).await.is_ok() && stream.read_exact(&mut [0]).await.is_ok()
}

async fn closed(stream: &mut UnixStream) -> bool {
    tokio::time::timeout(PATIENCE, stream.read(&mut [0])).await.is_ok_and(|read| read.is_ok_and(|read| read == 0))
}

#[tokio::test]
async fn strangers_however_many_keep_nobody_out_who_may_come_in() {
    let server = Server::start(4, 2, PATIENCE);
    let mut known = server.known().await;
    let mut strangers = Vec::new();
    for _ in 0..50 {
        strangers.push(server.connect().await);
    }
    let mut second = server.known().await;
    assert!(answers(&mut known, b"x").await && answers(&mut second, b"x").await, "who is known stays");
    for stranger in &mut strangers[..46] {
        assert!(closed(stranger).await, "the first strangers make room");
    }
    // More than are kept a place for are served as long as there is no crowd.
    let mut third = server.known().await;
    assert!(answers(&mut third, b"x").await);
    drop(known);
    let mut fourth = server.known().await;
    assert!(answers(&mut fourth, b"x").await, "the place of one that left is free");
}

#[tokio::test]
async fn who_does_not_show_in_time_that_it_may_be_here_is_closed_also_if_it_talks_all_the_time() {
    let server = Server::start(4, 4, Duration::from_millis(300));
    let (mut silent, mut talker, mut known) = (server.connect().await, server.connect().await, server.known().await);
    let since = Instant::now();
    while answers(&mut talker, b"x").await {
        assert!(since.elapsed() < PATIENCE, "it talks on");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(closed(&mut silent).await);
    assert!(answers(&mut known, b"x").await);
}

#[tokio::test]
async fn the_last_one_may_end_after_the_stop() {
    let mut server = Server::start(4, 4, PATIENCE);
    let (known, stranger) = (server.known().await, server.connect().await);
    server.stop.take();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!server.serving.is_finished(), "two are still served");
    drop((known, stranger));
    tokio::time::timeout(PATIENCE, &mut server.serving).await.unwrap().unwrap();
    assert!(UnixStream::connect(Path::new(&server.path)).await.is_err(), "nobody listens any more");
}
