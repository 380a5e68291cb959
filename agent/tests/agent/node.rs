//! One agent on a stand-in keeper, in a directory of its own, with an image in a real store.

use crate::keeper::Keeper;
use fsb_agent::{Agent, Config};
use fsb_image::{Import, Store};
use fsb_proto::agent::{Claim, CreateRequest, Instance, InstancePhase};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The image that every node has: root, and a user `app` (1000) with the home `/home/app`.
pub const IMAGE: &str = "tools";

pub struct Node {
    pub agent: Arc<Agent>,
    pub keeper: Keeper,
    pub dir: TempDir,
    pub config: Config,
}

impl Node {
    /// With these variables over the defaults of the tests.
    pub async fn new(vars: &[(&str, &str)]) -> Self {
        Self::with(vars, |_| ()).await
    }

    /// The same, with files that are there before the agent is.
    pub async fn with(vars: &[(&str, &str)], before: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::Builder::new().prefix("fsba").tempdir_in("/tmp").unwrap();
        before(dir.path());
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let mut env: BTreeMap<String, String> = [
            ("POD_NAME", "a".to_owned()),
            ("FSB_RUN_DIR", path("run")),
            ("FSB_STATE_DIR", path("state")),
            ("FSB_LOG_DIR", path("log")),
            ("AGENT_SOCKET", path("agent.sock")),
            ("INFRA_DIR_IN_POD", path("infra")),
            ("AGENT_PORT", "0".to_owned()),
            ("POOL_MEMORY", "1Gi".to_owned()),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect();
        env.extend(vars.iter().map(|(key, value)| (key.to_string(), value.to_string())));
        let config = Config::parse(|key| env.get(key).cloned()).unwrap();
        import(&dir, &config).await;
        let keeper = Keeper::new(dir.path().join("cgroup"), config.paths.layers(), config.paths.logs().to_owned());
        let agent = Agent::open(config.clone(), keeper.connect()).await.unwrap();
        Self { agent, keeper, dir, config }
    }

    /// The agent is killed, another one comes up.
    pub async fn restart(&mut self) {
        let socket = self.keeper.connect();
        self.agent.close(Duration::ZERO).await;
        self.agent = Agent::open(self.config.clone(), socket).await.unwrap();
    }

    pub fn used(&self) -> i32 {
        self.agent.snapshot().used_slots
    }

    pub fn instance(&self, id: &str) -> Option<Instance> {
        self.agent.snapshot().instances.into_iter().find(|instance| instance.instance_id == id)
    }

    pub fn phase(&self, id: &str) -> Option<InstancePhase> {
        self.instance(id).map(|instance| instance.phase())
    }

    /// Waits until there are so many paused containers.
    pub async fn stocked(&self, n: usize) {
        eventually("the stock is full", || self.agent.stock(IMAGE) == n).await;
    }

    /// Nothing of any sandbox is left, on either side.
    pub async fn empty(&self) {
        eventually("nothing is left", || {
            self.keeper.left_behind().is_empty() && self.keeper.ids().is_empty() && self.used() == 0
        })
        .await;
        assert!(self.agent.snapshot().instances.is_empty());
    }
}

/// Puts the image into the store of the node, as another agent would.
pub async fn import_as(node: &Node, reference: &str) {
    let store = Store::open(node.config.paths.images()).unwrap();
    let import = Import { reference: reference.into(), cmd: vec!["other".into()], ..Default::default() };
    store.import(node.dir.path().join("rootfs.tar"), import).await.unwrap();
}

async fn import(dir: &TempDir, config: &Config) {
    let root = dir.path().join("rootfs");
    std::fs::create_dir_all(root.join("etc")).unwrap();
    std::fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n").unwrap();
    let tar = dir.path().join("rootfs.tar");
    let packed = Command::new("tar").args(["-C", root.to_str().unwrap(), "-cf", tar.to_str().unwrap(), "."]).status();
    assert!(packed.unwrap().success());
    let store = Store::open(config.paths.images()).unwrap();
    let import = Import {
        reference: IMAGE.into(),
        entrypoint: vec!["run".into()],
        cmd: vec!["for".into(), "ever".into()],
        env: vec!["FROM=image".into()],
        ..Default::default()
    };
    store.import(PathBuf::from(&tar), import).await.unwrap();
}

/// A claim of its own with the first generation.
pub fn request(command: &str) -> CreateRequest {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    CreateRequest {
        claim: Some(claim(&format!("box-{n}"), 1)),
        image: IMAGE.into(),
        command: command.split_whitespace().map(str::to_owned).collect(),
        ..Default::default()
    }
}

pub fn claim(name: &str, generation: i64) -> Claim {
    Claim { namespace: "default".into(), name: name.into(), uid: format!("uid-{name}"), generation }
}

/// Waits for what has to come; the limit only ends a test that has failed.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < end, "not so after 20 s: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
