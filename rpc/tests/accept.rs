//! Connections that come in.

use fsb_rpc::accept;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;

const PATIENCE: Duration = Duration::from_secs(20);

/// Says hello, then waits until its client has gone.
async fn greet(mut stream: fsb_rpc::Stream) {
    let _ = stream.write_all(b"!").await;
    let _ = stream.read(&mut [0]).await;
}

async fn greeted(stream: &mut UnixStream, within: Duration) -> bool {
    tokio::time::timeout(within, stream.read_exact(&mut [0])).await.is_ok_and(|read| read.is_ok())
}

async fn connect(path: &Path) -> UnixStream {
    UnixStream::connect(path).await.unwrap()
}

#[tokio::test]
async fn connections_beyond_the_bound_wait_and_the_last_one_may_end_after_the_stop() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(accept(listener, 2, async { drop(stopped.await) }, greet));

    let (mut first, mut second) = (connect(&path).await, connect(&path).await);
    assert!(greeted(&mut first, PATIENCE).await && greeted(&mut second, PATIENCE).await);
    let mut third = connect(&path).await;
    assert!(!greeted(&mut third, Duration::from_millis(50)).await, "it has to wait");
    drop(first);
    assert!(greeted(&mut third, PATIENCE).await);

    stop.send(()).unwrap();
    drop(second);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!serving.is_finished(), "one is still served");
    drop(third);
    tokio::time::timeout(PATIENCE, serving).await.unwrap().unwrap();
    assert!(UnixStream::connect(&path).await.is_err(), "nobody listens any more");
}
