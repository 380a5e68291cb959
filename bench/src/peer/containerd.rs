//! containerd over its gRPC API, called as a node daemon without paused containers calls it: snapshots prepare,
//! containers create, tasks create, tasks start. It is started on private directories, below a pid and a mount
//! namespace of its own, so that the kernel ends its shims with it; /run is private too, where shims make sockets.

use super::containerd_api::containers::containers_client::ContainersClient;
use super::containerd_api::snapshots::snapshots_client::SnapshotsClient;
use super::containerd_api::tasks::tasks_client::TasksClient;
use super::containerd_api::{containers, snapshots, tasks, types};
use super::{find, spec};
use crate::agent::{channel, runtime};
use crate::cell::{Cell, Started};
use crate::helper::Process;
use crate::image::Image;
use crate::payload::{Payload, read_stamp};
use crate::workspace::Workspace;
use crate::{clock, interrupt};
use anyhow::{Context, bail};
use fsb_rpc::Channel;
use nix::sys::stat::Mode;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tonic::Request;
use tonic::metadata::MetadataValue;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(30);
const SNAPSHOTTER: &str = "overlayfs";
/// The image, unpacked.
const BASE: &str = "base";
const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

/// The cell `containerd`.
pub struct Containerd {
    runtime: Rc<Runtime>,
    client: Client,
    dir: PathBuf,
    cgroup: String,
    count: u64,
    /// Ends with this.
    _process: Process,
}

#[derive(Clone)]
struct Client {
    snapshots: SnapshotsClient<Channel>,
    containers: ContainersClient<Channel>,
    tasks: TasksClient<Channel>,
}

impl Containerd {
    /// Starts one in `workspace` and gives it the image.
    pub fn start(workspace: &Workspace, image: &Image) -> anyhow::Result<Self> {
        let program = find("containerd")?;
        find("containerd-shim-runc-v2")?;
        let dir = workspace.path().join("containerd");
        std::fs::create_dir_all(&dir)?;
        let socket = dir.join("containerd.sock");
        let config = dir.join("config.toml");
        std::fs::write(&config, settings(&dir, &socket))?;
        let log = dir.join("out");
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--kill-child=SIGKILL", "--mount", "--mount-proc", "--"]);
        command.args(["sh", "-c", "mount -t tmpfs tmpfs /run && exec \"$0\" --config \"$1\""]);
        command.arg(&program).arg(&config);
        let mut process = Process::start(&mut command, "containerd", &log)?;
        let runtime = runtime()?;
        let end = Instant::now() + PATIENCE;
        let client = loop {
            process.check(&log)?;
            interrupt::check()?;
            match runtime.block_on(Client::connect(&socket, &image.rootfs)) {
                Ok(client) => break client,
                Err(error) if Instant::now() > end => return Err(error.context(format!("see {}", log.display()))),
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        };
        let cgroup = format!("{}/containerd", workspace.name());
        Ok(Self { runtime, client, dir, cgroup, count: 0, _process: process })
    }

    /// A pipe with a name, which a shim opens too, and its read end.
    fn pipe(&self, id: &str) -> anyhow::Result<(PathBuf, OwnedFd)> {
        let path = self.dir.join(format!("{id}.out"));
        nix::unistd::mkfifo(&path, Mode::from_bits_truncate(0o600))?;
        // Open for writing too: that does not wait for the other end (fifo(7)).
        let file = std::fs::File::options().read(true).write(true).open(&path)?;
        Ok((path, file.into()))
    }
}

impl Cell for Containerd {
    fn name(&self) -> &'static str {
        "containerd"
    }

    fn leaves_out(&self) -> &'static str {
        "seccomp, log"
    }

    fn start(&mut self, payload: Payload, due_ns: Option<u64>) -> anyhow::Result<Started> {
        self.count += 1;
        let id = format!("bench-{}", self.count);
        let (path, output) = self.pipe(&id)?;
        let spec = spec::spec(payload, Path::new("rootfs"), &format!("{}/{id}", self.cgroup)).to_string();
        let mut client = self.client.clone();
        let runtime = self.runtime.clone();
        due_ns.into_iter().for_each(clock::wait_until);
        let called_ns = clock::now_ns();
        let started = runtime
            .block_on(async { tokio::time::timeout(PATIENCE, client.start(&id, spec.into_bytes(), &path)).await });
        let stamp = match started {
            Ok(Ok(())) => read_stamp(&output, PATIENCE).map_err(anyhow::Error::from),
            Ok(Err(status)) => Err(status.into()),
            Err(_) => Err(anyhow::anyhow!("no answer within {PATIENCE:?}")),
        };
        let removed =
            runtime.block_on(async { tokio::time::timeout(PATIENCE, client.remove(&id, stamp.is_ok())).await });
        let _ = std::fs::remove_file(path);
        let stamp_ns = stamp?;
        removed.with_context(|| format!("{id} is not gone after {PATIENCE:?}"))??;
        Ok(Started { called_ns, stamp_ns, source: None })
    }
}

impl Client {
    /// Connects, and imports the image in `rootfs` as a snapshot that containers are made from.
    async fn connect(socket: &Path, rootfs: &Path) -> anyhow::Result<Self> {
        if !socket.exists() {
            bail!("containerd does not serve at {}", socket.display());
        }
        let channel = channel(socket).await?;
        let mut client = Self {
            snapshots: SnapshotsClient::new(channel.clone()),
            containers: ContainersClient::new(channel.clone()),
            tasks: TasksClient::new(channel),
        };
        let mounts = client.prepare("import", "").await?;
        // The first layer of an image is a plain directory.
        let layer = mounts.first().filter(|mount| mount.r#type == "bind").context("not a bind mount")?;
        let copied = Command::new("cp").arg("-a").arg(rootfs.join(".")).arg(&layer.source).status()?;
        if !copied.success() {
            bail!("the image was not copied to {}: {copied}", layer.source);
        }
        let commit = snapshots::CommitSnapshotRequest {
            snapshotter: SNAPSHOTTER.into(),
            name: BASE.into(),
            key: "import".into(),
            labels: kept(),
        };
        client.snapshots.commit(request(commit)).await?;
        Ok(client)
    }

    async fn prepare(&mut self, key: &str, parent: &str) -> Result<Vec<types::Mount>, tonic::Status> {
        let prepare = snapshots::PrepareSnapshotRequest {
            snapshotter: SNAPSHOTTER.into(),
            key: key.into(),
            parent: parent.into(),
            labels: kept(),
        };
        Ok(self.snapshots.prepare(request(prepare)).await?.into_inner().mounts)
    }

    async fn start(&mut self, id: &str, spec: Vec<u8>, stdout: &Path) -> Result<(), tonic::Status> {
        let rootfs = self.prepare(id, BASE).await?;
        let container = containers::Container {
            id: id.into(),
            runtime: Some(containers::container::Runtime { name: "io.containerd.runc.v2".into(), options: None }),
            spec: Some(types::Any { type_url: SPEC_TYPE.into(), value: spec }),
            snapshotter: SNAPSHOTTER.into(),
            snapshot_key: id.into(),
            ..Default::default()
        };
        self.containers.create(request(containers::CreateContainerRequest { container: Some(container) })).await?;
        let task = tasks::CreateTaskRequest {
            container_id: id.into(),
            rootfs,
            stdout: stdout.display().to_string(),
            stderr: "/dev/null".into(),
            ..Default::default()
        };
        self.tasks.create(request(task)).await?;
        self.tasks.start(request(tasks::StartRequest { container_id: id.into(), ..Default::default() })).await?;
        Ok(())
    }

    /// Removes all of it; what a start that failed has not made is not missed.
    async fn remove(&mut self, id: &str, started: bool) -> Result<(), tonic::Status> {
        let container_id = id.to_owned();
        let waited = match started {
            true => {
                self.tasks.wait(request(tasks::WaitRequest { container_id, ..Default::default() })).await.map(|_| ())
            }
            false => Ok(()),
        };
        let steps = [
            waited,
            self.tasks.delete(request(tasks::DeleteTaskRequest { container_id: id.into() })).await.map(|_| ()),
            self.containers.delete(request(containers::DeleteContainerRequest { id: id.into() })).await.map(|_| ()),
            self.snapshots
                .remove(request(snapshots::RemoveSnapshotRequest { snapshotter: SNAPSHOTTER.into(), key: id.into() }))
                .await
                .map(|_| ()),
        ];
        match started {
            true => steps.into_iter().collect(),
            false => Ok(()),
        }
    }
}

/// Keeps a snapshot from the garbage collector, which otherwise takes what no container refers to yet.
fn kept() -> BTreeMap<String, String> {
    BTreeMap::from([("containerd.io/gc.root".to_owned(), "2026-01-01T00:00:00Z".to_owned())])
}

fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", MetadataValue::from_static("fsb-bench"));
    request
}

fn settings(dir: &Path, socket: &Path) -> String {
    let dir = dir.display();
    format!(
        "version = 2\nroot = \"{dir}/root\"\nstate = \"/run/containerd\"\n\
         disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.tracing.processor.v1.otlp\"]\n\
         [grpc]\naddress = \"{}\"\n[debug]\nlevel = \"warn\"\n",
        socket.display()
    )
}
