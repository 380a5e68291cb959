//! A sandbox that fills the disk of its node.

use crate::node::{Calls, Node, PATIENCE, block_on};
use fsb_proto::fastpath::fast_path_service_client::FastPathServiceClient;
use fsb_proto::fastpath::{DeleteRequest, ListAgentsRequest};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statvfs::statvfs;
use std::path::Path;
use std::time::{Duration, Instant};
use tonic::Code;
use tonic::transport::Channel;

/// A small file system, which goes with the value.
struct Disk(tempfile::TempDir);

impl Disk {
    fn new(options: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("fsbd").rand_bytes(4).tempdir_in("/tmp").unwrap();
        mount(Some("small"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some(options)).unwrap();
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Whether there is nothing left: no block, or no file.
    fn is_full(&self) -> bool {
        let disk = statvfs(self.path()).unwrap();
        disk.blocks_available() == 0 || disk.files_available() == 0
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        umount2(self.path(), MntFlags::MNT_DETACH).unwrap();
    }
}

/// State, logs and images lie on one disk, which one sandbox fills.
fn outlives(options: &str, fill: &str) {
    let disk = Disk::new(options);
    let node = Node::down_below(disk.path());
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
        let programs = ["fsb-keeper", "fsb-agent", "fsb-spawner", "fsb-controller"].map(|name| node.pids(name));
        let end = Instant::now() + 2 * PATIENCE;
        while client.list_agents(ListAgentsRequest {}).await.unwrap().into_inner().items[0].paused < 5 {
            assert!(Instant::now() < end, "there is no stock");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        client.create("writer", fill).await.unwrap();
        while !disk.is_full() {
            assert!(Instant::now() < end, "the disk is not full");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
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
        assert!(client.list().await.len() > 5, "some came from the stock");
        assert_eq!(ids(&mut client).await, before, "who did nothing runs on");
        let now = ["fsb-keeper", "fsb-agent", "fsb-spawner", "fsb-controller"].map(|name| node.pids(name));
        assert_eq!(now, programs, "no program of the node has ended");
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
    node.finish();
}

#[test]
fn a_node_outlives_a_disk_without_space() {
    outlives("size=96m", "dd if=/dev/zero of=/fill bs=64k; echo full; dd if=/dev/zero of=/rest bs=512; sleep 1000");
}

#[test]
fn a_node_outlives_a_disk_without_inodes() {
    outlives("size=256m,nr_inodes=6000", "i=0; while :; do i=$((i+1)); true > /f$i || sleep 1000; done");
}
