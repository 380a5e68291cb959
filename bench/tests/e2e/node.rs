//! A private local node.

use fsb_proto::agent::agent_service_client::AgentServiceClient;
use fsb_proto::fastpath::fast_path_service_client::FastPathServiceClient;
use fsb_proto::fastpath::{
    CreateRequest, CreateResponse, DeleteRequest, GetRequest, ListRequest, LogStream, LogsRequest, SandboxInfo,
};
use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// How long anything may take before a test gives up on it. Nothing depends on it being short.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A node that goes, with all that it left, when this is dropped.
pub struct Node {
    root: tempfile::TempDir,
    before: Traces,
    checked: bool,
}

/// A program of this build.
pub fn program(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_fsb-bench")).with_file_name(name);
    assert!(path.exists(), "{} is missing: run the tests with `make test`", path.display());
    path
}

impl Node {
    /// A node with these flags of `local up`, and an image named `busybox`.
    pub fn up(flags: &[&str]) -> Self {
        Self::up_with(flags, &[])
    }

    /// [`Node::up`] with variables of a user's environment.
    pub fn up_with(flags: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::begin(&[&["--no-egress"], flags].concat(), environment)
    }

    /// [`Node::up`] with a way out for its sandboxes.
    pub fn up_with_egress(flags: &[&str]) -> Self {
        Self::begin(flags, &[])
    }

    fn begin(flags: &[&str], environment: &[(&str, &str)]) -> Self {
        let node = Self::down();
        let mut command = node.command(&["local", "up"]);
        let output = command.args(flags).envs(environment.iter().copied()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "fsb-ctl local up: {}\n{said}{}", output.status, node.node_log());
        node.import_busybox();
        node
    }

    /// A node that was never up.
    pub fn down() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "these tests create containers: run them as root");
        Self::down_below(Path::new("/tmp"))
    }

    /// A node that was never up, in a directory of its own below this one.
    pub fn down_below(parent: &Path) -> Self {
        let root = tempfile::Builder::new().prefix("fsb").rand_bytes(4).tempdir_in(parent).unwrap();
        Self { root, before: Traces::now(), checked: false }
    }

    /// Brings the image named `busybox` to it.
    pub fn import_busybox(&self) {
        let image = self.busybox();
        self.ctl_ok(&["image", "import", &image.display().to_string(), "--name", "busybox", "--cmd", "sh"]);
    }

    /// Brings an image to it that is one program, in C, which is its command.
    pub fn import_program(&self, name: &str, source: &str) {
        let dir = tempfile::Builder::new().prefix(name).tempdir_in(self.root()).unwrap();
        let (code, root, tar) = (dir.path().join("main.c"), dir.path().join("root"), dir.path().join("root.tar"));
        std::fs::create_dir(&root).unwrap();
        std::fs::write(&code, source).unwrap();
        compile(&code, &root.join("main"));
        assert!(Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&tar).arg(".").status().unwrap().success());
        self.ctl_ok(&["image", "import", &tar.display().to_string(), "--name", name, "--entrypoint", "/main"]);
    }

    pub fn start(&self, flags: &[&str]) {
        let mut args = vec!["local", "up", "--no-egress"];
        args.extend(flags);
        self.ctl_ok(&args);
    }

    pub fn root(&self) -> &Path {
        self.root.path()
    }

    pub fn run_dir(&self) -> PathBuf {
        self.root().join("run")
    }

    /// `fsb-ctl` for this node.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program("fsb-ctl"));
        command.arg("--root").arg(self.root()).args(args).stdin(Stdio::null());
        for key in ["FSB_ROOT", "FSB_ENDPOINT", "FSB_NAMESPACE", "FSB_TOKEN"] {
            command.env_remove(key);
        }
        command
    }

    pub fn ctl(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs it, expects success, returns what it wrote to stdout.
    pub fn ctl_ok(&self, args: &[&str]) -> String {
        let output = self.ctl(args);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "fsb-ctl {args:?}: {}\n{out}\n{err}{}", output.status, self.node_log());
        out.into_owned()
    }

    /// Waits until a sandbox's log is this.
    pub fn until_logged(&self, sandbox: &str, text: &str) {
        let end = Instant::now() + PATIENCE;
        loop {
            let log = self.ctl_ok(&["logs", sandbox]);
            if log == text {
                return;
            }
            assert!(Instant::now() < end, "{sandbox} has logged {log:?}, not {text:?}{}", self.node_log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The end of the node's own log, for a failing test.
    pub fn node_log(&self) -> String {
        let text = std::fs::read_to_string(self.root().join("log/node.log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(60).collect();
        lines.into_iter().rev().map(|line| format!("\nnode.log: {line}")).collect()
    }

    fn busybox(&self) -> PathBuf {
        let (dir, tar) = (self.root().join("busybox"), self.root().join("busybox.tar"));
        for path in ["bin", "etc", "tmp", "home/user", "root"] {
            std::fs::create_dir_all(dir.join(path)).unwrap();
        }
        std::fs::copy("/bin/busybox", dir.join("bin/busybox")).expect("busybox-static is installed (make setup)");
        let applets = Command::new("/bin/busybox").arg("--list").output().unwrap();
        for applet in String::from_utf8(applets.stdout).unwrap().lines().filter(|name| *name != "busybox") {
            symlink("busybox", dir.join("bin").join(applet)).unwrap();
        }
        std::fs::write(dir.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n")
            .unwrap();
        std::fs::write(dir.join("etc/group"), "root:x:0:\nuser:x:1000:\nextra:x:2000:user\n").unwrap();
        let done = Command::new("tar").arg("-C").arg(&dir).arg("-cf").arg(&tar).arg(".").status().unwrap();
        assert!(done.success());
        std::fs::remove_dir_all(dir).unwrap();
        tar
    }

    /// A connection to the controller.
    pub async fn client(&self) -> FastPathServiceClient<Channel> {
        FastPathServiceClient::new(connect(&self.run_dir().join("controller.sock")).await)
    }

    /// A connection to an agent.
    pub async fn agent(&self, name: &str) -> AgentServiceClient<Channel> {
        AgentServiceClient::new(connect(&self.run_dir().join(format!("{name}.sock"))).await)
    }

    /// Process ids of this node's programs whose name or command line holds `word`.
    pub fn pids(&self, word: &str) -> Vec<i32> {
        let own = format!("FSB_RUN_DIR={}", self.run_dir().display());
        let controller = self.run_dir().join("controller.sock").display().to_string();
        processes()
            .into_iter()
            .filter(|pid| {
                let read = |file: &str| std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
                let command = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
                let environment = String::from_utf8_lossy(&read("environ")).into_owned();
                let ours = environment.split('\0').any(|entry| entry == own) || command.contains(&controller);
                ours && command.split(' ').next().is_some_and(|program| program.ends_with(word))
            })
            .collect()
    }

    /// kill -9.
    pub fn kill(&self, word: &str) -> i32 {
        let pids = self.pids(word);
        let pid = *pids.first().unwrap_or_else(|| panic!("no {word} runs{}", self.node_log()));
        kill(pid);
        pid
    }

    /// Takes the node away and checks that nothing of it is left.
    pub fn finish(mut self) {
        self.checked = true;
        self.ctl_ok(&["local", "down", "--purge"]);
        let left = Traces::now().of(self.root(), &self.before);
        assert!(left.is_empty(), "left behind: {left:#?}");
        for dir in ["run", "lib", "log"] {
            assert!(!self.root().join(dir).exists(), "{dir} is left behind");
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if !self.checked {
            if std::thread::panicking() {
                eprintln!("{}", self.node_log());
            }
            let _ = self.ctl(&["local", "down", "--purge"]);
        }
    }
}

/// Makes a program of C that needs nothing beside it.
pub fn compile(code: &Path, program: &Path) {
    let mut compiler = Command::new("gcc");
    compiler.args(["-static", "-O1", "-pthread", "-o"]).arg(program).arg(code);
    assert!(compiler.status().expect("gcc is installed (make setup)").success());
}

pub fn kill(pid: i32) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
}

async fn connect(socket: &Path) -> Channel {
    let end = Instant::now() + PATIENCE;
    loop {
        match Endpoint::from_shared(format!("unix:{}", socket.display())).unwrap().connect().await {
            Ok(channel) => return channel,
            Err(error) if Instant::now() > end => panic!("{}: {error:?}", socket.display()),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// What the machine shows of nodes.
struct Traces {
    mounts: BTreeSet<String>,
    cgroups: BTreeSet<String>,
    links: BTreeSet<String>,
    /// nftables' own, without what is in them.
    tables: BTreeSet<String>,
    processes: BTreeSet<String>,
}

impl Traces {
    fn now() -> Self {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap().lines().map(str::to_owned).collect();
        let mut cgroups = BTreeSet::new();
        for hierarchy in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            walk(&hierarchy.path(), 4, &mut cgroups);
        }
        let links = std::fs::read_dir("/sys/class/net").unwrap().flatten();
        let links = links.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        let tables = Command::new("nft").args(["list", "tables"]).output().expect("nftables is installed (make setup)");
        let tables = String::from_utf8_lossy(&tables.stdout).lines().map(str::to_owned).collect();
        let processes = processes().into_iter().filter_map(describe).collect();
        Self { mounts, cgroups, links, tables, processes }
    }

    /// What is here, was not before, and is of the node below `root`.
    fn of(&self, root: &Path, before: &Self) -> Vec<String> {
        let name = root.display().to_string();
        let mut left: Vec<String> = Vec::new();
        let new = |now: &BTreeSet<String>, then: &BTreeSet<String>| -> Vec<String> {
            now.difference(then).cloned().collect()
        };
        left.extend(new(&self.mounts, &before.mounts).into_iter().filter(|line| line.contains(&name)));
        left.extend(new(&self.processes, &before.processes).into_iter().filter(|line| line.contains(&name)));
        // Cgroups, links and tables carry a hash of the root in their names.
        let hash = format!("fsb{:08x}", fnv1a(root));
        let dashed = hash.replacen("fsb", "fsb-", 1);
        let joined = hash.replacen("fsb", "fsb_", 1);
        let own = |line: &String| line.contains(&hash) || line.contains(&dashed) || line.contains(&joined);
        left.extend(new(&self.cgroups, &before.cgroups).into_iter().filter(own));
        left.extend(new(&self.links, &before.links).into_iter().filter(own));
        left.extend(new(&self.tables, &before.tables).into_iter().filter(own));
        left
    }
}

fn fnv1a(root: &Path) -> u32 {
    let real = std::fs::canonicalize(root).unwrap();
    real.as_os_str()
        .as_encoded_bytes()
        .iter()
        .fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

fn walk(dir: &Path, depth: usize, found: &mut BTreeSet<String>) {
    if depth == 0 {
        return;
    }
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.insert(entry.path().display().to_string());
            walk(&entry.path(), depth - 1, found);
        }
    }
}

fn processes() -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn describe(pid: i32) -> Option<String> {
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok().filter(|line| !line.is_empty())?;
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace('\0', " ");
    Some(format!("{pid} {} {}", text(&command), text(&environment)))
}

/// Calls that the tests make all the time.
pub trait Calls {
    async fn create(&mut self, name: &str, script: &str) -> Result<CreateResponse, Status>;
    async fn create_as(&mut self, request: CreateRequest) -> Result<CreateResponse, Status>;
    async fn info(&mut self, name: &str) -> Result<SandboxInfo, Status>;
    async fn until(&mut self, name: &str, phase: &str) -> SandboxInfo;
    async fn list(&mut self) -> Vec<SandboxInfo>;
    async fn delete(&mut self, name: &str);
    /// Deletes and waits until it is gone.
    async fn remove(&mut self, name: &str);
    /// All that it wrote to both streams, until it has ended.
    async fn output(&mut self, name: &str) -> String;
}

/// A shell script in a busybox.
pub fn shell(name: &str, script: &str) -> CreateRequest {
    CreateRequest {
        image: "busybox".into(),
        name: name.into(),
        command: ["sh", "-c", script].map(str::to_owned).to_vec(),
        grace_period_seconds: Some(1),
        ..Default::default()
    }
}

impl Calls for FastPathServiceClient<Channel> {
    async fn create(&mut self, name: &str, script: &str) -> Result<CreateResponse, Status> {
        self.create_as(shell(name, script)).await
    }

    async fn create_as(&mut self, request: CreateRequest) -> Result<CreateResponse, Status> {
        Ok(self.create_sandbox(request).await?.into_inner())
    }

    async fn info(&mut self, name: &str) -> Result<SandboxInfo, Status> {
        let request = GetRequest { sandbox_id: name.into(), namespace: String::new() };
        Ok(self.get_sandbox(request).await?.into_inner())
    }

    async fn until(&mut self, name: &str, phase: &str) -> SandboxInfo {
        let end = Instant::now() + PATIENCE;
        loop {
            let info = self.info(name).await;
            match &info {
                Ok(info) if info.phase == phase => return info.clone(),
                _ if Instant::now() > end => panic!("{name} is not {phase}: {info:?}"),
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    async fn list(&mut self) -> Vec<SandboxInfo> {
        let request = ListRequest { namespace: String::new(), all_namespaces: true };
        self.list_sandboxes(request).await.unwrap().into_inner().items
    }

    async fn delete(&mut self, name: &str) {
        let request = DeleteRequest { sandbox_id: name.into(), ..Default::default() };
        self.delete_sandbox(request).await.unwrap();
    }

    async fn remove(&mut self, name: &str) {
        self.delete(name).await;
        let end = Instant::now() + PATIENCE;
        loop {
            match self.info(name).await {
                Err(status) if status.code() == Code::NotFound => return,
                other if Instant::now() > end => panic!("{name} does not go: {other:?}"),
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    async fn output(&mut self, name: &str) -> String {
        let request = LogsRequest { sandbox_id: name.into(), follow: true, ..Default::default() };
        let end = Instant::now() + PATIENCE;
        let mut chunks = loop {
            match self.logs(request.clone()).await {
                Ok(chunks) => break chunks.into_inner(),
                // Its agent was killed a moment ago and is not connected yet.
                Err(status) if status.code() == Code::Unavailable && Instant::now() < end => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(status) => panic!("{status}"),
            }
        };
        let mut text = String::new();
        while let Some(chunk) = tokio::time::timeout(PATIENCE, chunks.message()).await.expect("logs end").unwrap() {
            for line in chunk.lines {
                if line.stream == LogStream::Stderr as i32 {
                    text.push_str("stderr: ");
                }
                text.push_str(&String::from_utf8_lossy(&line.text));
                if !line.partial {
                    text.push('\n');
                }
            }
        }
        text
    }
}

/// A runtime for one test.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}
