//! Other container runtimes, run as their users run them: one command line per container, on an OCI bundle.
//!
//! The bundle asks for what a sandbox of ours is: new pid, mount, ipc and uts namespaces, the network namespace of
//! the caller, limits of memory and pids, the same capabilities, masked and read-only paths, no_new_privs. Left out,
//! to the peers' advantage: a seccomp filter and an overlay (all containers share one directory).

use crate::payload::Payload;
use anyhow::Context;
use fsb_proto::domain::{DEFAULT_MEMORY_BYTES, DEFAULT_PIDS};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// A runtime with runc's command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    Runc,
    Crun,
}

impl Runtime {
    /// By its cell's name.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "runc" => Some(Runtime::Runc),
            "crun" => Some(Runtime::Crun),
            _ => None,
        }
    }

    /// Its program, which is also its cell's name.
    pub fn name(self) -> &'static str {
        match self {
            Runtime::Runc => "runc",
            Runtime::Crun => "crun",
        }
    }

    /// Where it is installed.
    pub fn find(self) -> Option<PathBuf> {
        let path = std::env::var("PATH").unwrap_or_default();
        path.split(':')
            .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"])
            .map(|dir| Path::new(dir).join(self.name()))
            .find(|path| path.is_file())
    }
}

/// A bundle for each payload.
#[derive(Debug)]
pub struct Bundles {
    dir: PathBuf,
    state: PathBuf,
}

impl Bundles {
    /// Writes them below `dir`, with the runtime's own state in `state`; their containers stand in the cgroup `cgroup`.
    pub fn create(dir: &Path, state: &Path, rootfs: &Path, cgroup: &str) -> anyhow::Result<Self> {
        for payload in Payload::ALL {
            let bundle = dir.join(payload.name());
            std::fs::create_dir_all(&bundle).with_context(|| bundle.display().to_string())?;
            std::fs::write(bundle.join("config.json"), config(payload, rootfs, cgroup).to_string())?;
        }
        std::fs::create_dir_all(state)?;
        Ok(Self { dir: dir.to_owned(), state: state.to_owned() })
    }

    /// The command line that runs `payload` in the new container `id`.
    pub fn run(&self, runtime: Runtime, payload: Payload, id: &str) -> anyhow::Result<Vec<Vec<u8>>> {
        let program = runtime.find().with_context(|| format!("{} is not installed", runtime.name()))?;
        let words = [
            program.into_os_string(),
            "--root".into(),
            self.state.clone().into(),
            "run".into(),
            "--bundle".into(),
            self.dir.join(payload.name()).into(),
            id.into(),
        ];
        Ok(words.into_iter().map(|word| word.into_encoded_bytes()).collect())
    }
}

fn config(payload: Payload, rootfs: &Path, cgroup: &str) -> Value {
    let capabilities: Vec<String> = [
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "SETGID",
        "SETUID",
        "SETPCAP",
        "NET_BIND_SERVICE",
        "SYS_CHROOT",
        "MKNOD",
        "AUDIT_WRITE",
        "SETFCAP",
    ]
    .iter()
    .map(|name| format!("CAP_{name}"))
    .collect();
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": kind, "options": options});
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": [payload.path()],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "noNewPrivileges": true,
        },
        "root": {"path": rootfs, "readonly": false},
        "hostname": "peer",
        "mounts": [
            mount("/proc", "proc", &[]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        ],
        "linux": {
            "cgroupsPath": format!("/{cgroup}/peer"),
            "resources": {"memory": {"limit": DEFAULT_MEMORY_BYTES}, "pids": {"limit": DEFAULT_PIDS}},
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}],
            "maskedPaths": ["/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys",
                "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi",
                "/sys/firmware", "/sys/devices/virtual/powercap"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}
