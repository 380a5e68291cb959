//! A disk that does not answer: only who needs it waits.

use crate::node::{IMAGE, Node, import_as, request};
use fsb_agent::Error;
use fsb_proto::agent::{CreateRequest, DeleteRequest, Source};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::fs::OpenOptions;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const STALL: Duration = Duration::from_secs(5);
const STOCK: usize = 12;

/// A stall of the disk: for as long as this value lives, but no longer than [`STALL`], since what waits for it on the
/// agent's one thread stops the clocks of the test too.
struct Stall {
    end: Option<Sender<()>>,
    ender: Option<JoinHandle<()>>,
}

impl Stall {
    fn until(end: impl FnOnce() + Send + 'static) -> Self {
        let (sender, ended) = channel::<()>();
        let ender = std::thread::spawn(move || {
            let _ = ended.recv_timeout(STALL);
            end();
        });
        Self { end: Some(sender), ender: Some(ender) }
    }

    /// Of a directory: a file system that never answers (fuse(4) without a program behind it).
    fn directory(path: &Path) -> Self {
        let fuse = OpenOptions::new().read(true).write(true).open("/dev/fuse").unwrap();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", fuse.as_raw_fd());
        mount(Some("stalled"), path, Some("fuse"), MsFlags::empty(), Some(options.as_str())).unwrap();
        let path = path.to_owned();
        Self::until(move || {
            // Who waits is let go first: the mount is theirs as long as they do.
            drop(fuse);
            umount2(&path, MntFlags::MNT_DETACH).unwrap();
        })
    }

    /// Of a file: a pipe in its place, which nobody has open to write.
    fn file(path: &Path) -> Self {
        let (pipe, whole) = (path.with_extension("pipe"), path.with_extension("whole"));
        std::fs::copy(path, &whole).unwrap();
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::fs::rename(&pipe, path).unwrap();
        let path = path.to_owned();
        Self::until(move || {
            let writer = OpenOptions::new().read(true).write(true).open(&path).unwrap();
            std::fs::rename(&whole, &path).unwrap();
            drop(writer);
        })
    }
}

impl Drop for Stall {
    fn drop(&mut self) {
        self.end.take();
        let _ = self.ender.take().map(JoinHandle::join);
    }
}

/// The slowest of some starts from the stock.
async fn slowest_start(node: &Node) -> Duration {
    let mut slowest = Duration::ZERO;
    for _ in 0..3 {
        let since = Instant::now();
        let started = node.agent.start(request("run")).await.unwrap();
        slowest = slowest.max(since.elapsed());
        assert_eq!(started.source, Source::Stock);
        let delete = DeleteRequest {
            instance_id: started.instance_id,
            grace_period_seconds: Some(0),
            remove_logs: true,
            ..Default::default()
        };
        node.agent.delete(delete).await.unwrap();
    }
    slowest
}

/// One thread, as the agent has it: whoever waits on it keeps everybody waiting.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_disk_that_stalls_delays_no_start_from_stock() {
    let node = Node::new(&[("WARM_IMAGES", IMAGE), ("POOL_PER_IMAGE", &STOCK.to_string())]).await;
    node.stocked(STOCK).await;
    let images = node.config.paths.images();
    let layer = std::fs::read_dir(images.join("layers")).unwrap().next().unwrap().unwrap().path();
    for (n, part) in [images.join("pins"), layer.join("fs/etc")].into_iter().enumerate() {
        // Another image, and a user, of whom the agent has to find out everything.
        let (other, user) = (format!("other-{n}"), format!("{}", 7 + n));
        import_as(&node, &other).await;
        node.stocked(STOCK).await;
        let stalled = Stall::directory(&part);
        let cold = tokio::spawn({
            let (agent, request) = (node.agent.clone(), CreateRequest { image: other, user, ..request("run") });
            async move { agent.start(request).await }
        });
        tokio::time::sleep(Duration::from_millis(100)).await;
        let mut slowest = slowest_start(&node).await;
        for _ in 0..2 {
            if slowest > Duration::from_millis(100) {
                node.stocked(STOCK).await;
                slowest = slowest.min(slowest_start(&node).await);
            }
        }
        assert!(slowest <= Duration::from_millis(100), "{part:?} stalls: {slowest:?}");
        assert!(!cold.is_finished(), "all waited until {part:?} answered, or nobody needed it");
        drop(stalled);
        let cold = cold.await.unwrap();
        assert!(matches!(&cold, Err(error) if !matches!(error.cause, Error::Deadline(_))) || cold.is_ok(), "{cold:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_index_that_cannot_be_read_for_a_while_keeps_no_other_call_waiting() {
    let node = Node::new(&[("FSB_MAKE", "cast")]).await;
    let started = node.agent.start(request("run")).await.unwrap();
    let stalled = Stall::file(&node.config.paths.images().join("index.json"));
    let cold = tokio::spawn({
        let agent = node.agent.clone();
        async move { agent.start(request("run")).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let since = Instant::now();
    node.agent.stop_and_remove(&started.instance_id).await.unwrap();
    assert!(since.elapsed() < STALL / 2, "a removal waited for the index: {:?}", since.elapsed());
    assert!(!cold.is_finished(), "all waited until the index could be read, or nobody read it");
    drop(stalled);
    let _ = cold.await.unwrap();
    node.agent.start(request("run")).await.unwrap();
}
