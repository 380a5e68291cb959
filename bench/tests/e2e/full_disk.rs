//! A sandbox that fills the disk of its node.

use crate::node::{Calls, Node, PATIENCE, block_on};
use fsb_proto::fastpath::fast_path_service_client::FastPathServiceClient;
use fsb_proto::fastpath::{DeleteRequest, ListAgentsRequest};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statvfs::statvfs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tonic::Code;
use tonic::transport::Channel;

/// A small file system, which goes with the value.
struct Disk {
    dir: tempfile::TempDir,
    /// Where it is mounted besides.
    place: Option<PathBuf>,
}

impl Disk {
    fn new(options: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("fsbd").rand_bytes(4).tempdir_in("/tmp").unwrap();
        mount(Some("small"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some(options)).unwrap();
        Self { dir, place: None }
    }

    /// One on which nothing but this directory of a node lies.
    fn of(node: &Node, directory: &str, options: &str) -> Self {
        let mut disk = Self::new(options);
        let place = node.root().join(directory);
        std::fs::create_dir_all(&place).unwrap();
        mount(Some(disk.path()), &place, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        disk.place = Some(place);
        disk
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Whether there is nothing left: no block, or no file.
    fn is_full(&self) -> bool {
        let disk = statvfs(self.path()).unwrap();
        disk.blocks_available() == 0 || disk.files_available() == 0
    }

    async fn until_full(&self, end: Instant) {
        while !self.is_full() {
            assert!(Instant::now() < end, "the disk is not full");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        for place in self.place.as_deref().into_iter().chain([self.path()]) {
            umount2(place, MntFlags::MNT_DETACH).unwrap();
        }
    }
}

/// The processes of a node's own programs.
fn programs(node: &Node) -> [Vec<i32>; 4] {
    ["fsb-keeper", "fsb-agent", "fsb-spawner", "fsb-controller"].map(|name| node.pids(name))
}

/// Waits until `local status` and `doctor` name the writer: each agent tells its controller every two seconds.
fn until_told(node: &Node, writer: &str) {
    let end = Instant::now() + PATIENCE;
    for command in [["local", "status"].as_slice(), &["doctor"]] {
        loop {
            let output = node.ctl(command);
            let told = String::from_utf8_lossy(&output.stdout);
            if told.contains(writer) {
                break;
            }
            assert!(Instant::now() < end, "{command:?} does not name {writer}: {told}{}", node.node_log());
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// State, logs and images lie on one disk, which one sandbox fills.
fn outlives(options: &str, fill: &str) {
    let disk = Disk::new(options);
    let node = Node::down_below(disk.path());
    fills(&node, &disk, fill);
    node.finish();
}

/// One sandbox fills the disk on which the node's layers lie.
fn fills(node: &Node, disk: &Disk, fill: &str) {
    node.start(&["--warm-image", "busybox"]);
    node.import_busybox();
    block_on(async {
        let mut client = node.client().await;
        let bystanders = ["a", "b", "c"];
        for name in bystanders {
            client.create(name, "while :; do echo tick; sleep 0.05; done").await.unwrap();
        }
        let ids = async |client: &mut FastPathServiceClient<Channel>| {
            let mut ids = Vec::new();
            for name in bystanders {
                let info = client.info(name).await.unwrap();
                assert_eq!(info.phase, "Running", "{name}");
                ids.push(info.instance_id);
            }
            ids
        };
        let before = ids(&mut client).await;
        let running = programs(node);
        let end = Instant::now() + 2 * PATIENCE;
        while client.list_agents(ListAgentsRequest {}).await.unwrap().into_inner().items[0].paused < 5 {
            assert!(Instant::now() < end, "there is no stock");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        client.create("writer", fill).await.unwrap();
        disk.until_full(end).await;
        // The agent looks each second.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        // Starts from the stock go on; when it is empty, creates are refused, with who has filled the disk.
        let refused = loop {
            assert!(Instant::now() < end, "nothing is refused");
            match client.create("", "sleep 100").await {
                Ok(_) => {}
                Err(status) => break status,
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
        assert!(refused.message().contains("default/writer"), "{refused:?}");
        until_told(node, "default/writer");
        assert!(client.list().await.len() > 5, "some came from the stock");
        assert_eq!(ids(&mut client).await, before, "who did nothing runs on");
        assert_eq!(programs(node), running, "no program of the node has ended");
        // The writer can be removed, and then all is as before.
        let delete = DeleteRequest { sandbox_id: "writer".into(), force: true, ..Default::default() };
        client.delete_sandbox(delete).await.unwrap();
        while client.info("writer").await.is_ok() || disk.is_full() {
            assert!(Instant::now() < end, "the writer does not go, or its space");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        while let Err(status) = client.create("after", "sleep 100").await {
            assert!(Instant::now() < end, "{status:?}");
            client.delete_sandbox(DeleteRequest { sandbox_id: "after".into(), ..Default::default() }).await.ok();
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        assert_eq!(ids(&mut client).await, before);
    });
}

#[test]
fn a_node_outlives_a_disk_without_space() {
    outlives("size=96m", "dd if=/dev/zero of=/fill bs=64k; echo full; dd if=/dev/zero of=/rest bs=512; sleep 1000");
}

#[test]
fn a_node_outlives_a_disk_without_inodes() {
    outlives("size=256m,nr_inodes=6000", "i=0; while :; do i=$((i+1)); true > /f$i || sleep 1000; done");
}

/// Takes the node away, and the disks that are mounted below it.
fn finish<const N: usize>(node: Node, disks: [Disk; N]) {
    node.ctl_ok(&["local", "down", "--purge"]);
    drop(disks);
    node.finish();
}

#[test]
fn a_disk_of_logs_alone_that_is_full_holds_up_those_who_write_and_loses_no_line() {
    let node = Node::down();
    let disk = Disk::of(&node, "log", "size=2m");
    node.start(&[]);
    node.import_busybox();
    block_on(async {
        let mut client = node.client().await;
        let count = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done";
        client.create("bystander", count).await.unwrap();
        client.create("writer", "while :; do echo 0123456789012345678901234567890123456789; done").await.unwrap();
        let end = Instant::now() + 2 * PATIENCE;
        disk.until_full(end).await;
        let running = programs(&node);
        for name in ["new", "newer"] {
            client.create(name, "echo hello; sleep 1000").await.unwrap();
        }
        for name in ["bystander", "writer", "new", "newer"] {
            assert_eq!(client.info(name).await.unwrap().phase, "Running", "{name}");
        }
        let delete = DeleteRequest { sandbox_id: "writer".into(), force: true, ..Default::default() };
        client.delete_sandbox(delete).await.unwrap();
        // Its log goes with it, and everybody else's goes on where it was.
        let logged = async || -> Vec<u64> {
            let log = node.ctl(&["logs", "bystander"]).stdout;
            String::from_utf8_lossy(&log).lines().map(|line| line.parse().unwrap()).collect()
        };
        let before = logged().await.len();
        loop {
            let lines = logged().await;
            assert!(lines.iter().copied().eq(1..=lines.len() as u64), "a line is missing: {lines:?}");
            if lines.len() > before + 50 && !disk.is_full() {
                break;
            }
            assert!(Instant::now() < end, "logs do not go on{}", node.node_log());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        node.until_logged("new", "hello\n");
        assert_eq!(programs(&node), running, "no program of the node has ended");
    });
    finish(node, [disk]);
}

#[test]
fn a_disk_of_images_alone_that_is_full_refuses_an_image_and_keeps_what_it_has() {
    let node = Node::down();
    let disk = Disk::of(&node, "lib/images", "size=8m");
    node.start(&[]);
    node.import_busybox();
    let large = node.root().join("large");
    std::fs::create_dir(&large).unwrap();
    std::fs::write(large.join("file"), vec![7; 16 << 20]).unwrap();
    let tar = node.root().join("large.tar");
    let made = std::process::Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(&large).arg(".").status().unwrap();
    assert!(made.success());
    let free = || statvfs(disk.path()).unwrap().blocks_available();
    let before = free();
    let output = node.ctl(&["image", "import", &tar.display().to_string(), "--name", "large"]);
    let why = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && why.contains("no space left"), "{why}");
    assert_eq!(free(), before, "what was unpacked of it is gone");
    assert_eq!(node.ctl_ok(&["run", "--rm", "--image", "busybox", "--", "echo", "hello"]), "hello\n");
    std::fs::remove_file(tar).unwrap();
    std::fs::remove_dir_all(large).unwrap();
    finish(node, [disk]);
}

#[test]
fn a_disk_of_claims_and_layers_alone_that_is_full_stops_nothing_that_runs() {
    let node = Node::down();
    let disk = Disk::of(&node, "lib", "size=96m");
    std::fs::create_dir(node.root().join("lib/images")).unwrap();
    let images = Disk::of(&node, "lib/images", "size=64m");
    fills(&node, &disk, "dd if=/dev/zero of=/fill bs=64k; echo full; dd if=/dev/zero of=/rest bs=512; sleep 1000");
    finish(node, [images, disk]);
}
