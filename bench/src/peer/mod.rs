//! Other container runtimes, run as their users run them: one command line per container, or containerd's API.
//!
//! The specification asks for what a sandbox of ours is: new pid, mount, ipc and uts namespaces, the network namespace
//! of the caller, limits of memory and pids, the same capabilities, masked and read-only paths, no_new_privs. What a
//! peer leaves out, to its advantage, is said in its row.

pub mod containerd;
mod containerd_api;
mod spec;

use crate::payload::Payload;
use anyhow::Context;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// A runtime with a command line of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    Bwrap,
    Crun,
    Runc,
    Youki,
}

impl Runtime {
    /// By its cell's name.
    pub fn named(name: &str) -> Option<Self> {
        [Runtime::Bwrap, Runtime::Crun, Runtime::Runc, Runtime::Youki].into_iter().find(|one| one.name() == name)
    }

    /// Its program, which is also its cell's name.
    pub fn name(self) -> &'static str {
        match self {
            Runtime::Bwrap => "bwrap",
            Runtime::Crun => "crun",
            Runtime::Runc => "runc",
            Runtime::Youki => "youki",
        }
    }

    /// What it does not do that a sandbox of ours does.
    pub fn leaves_out(self) -> &'static str {
        match self {
            Runtime::Bwrap => "cgroup, seccomp, overlay, masks, log",
            _ => "seccomp, overlay, log",
        }
    }

    /// Where it is installed.
    pub fn find(self) -> anyhow::Result<PathBuf> {
        find(self.name())
    }
}

/// Where a program is installed.
pub fn find(name: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"])
        .map(|dir| Path::new(dir).join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("{name} is not installed"))
}

/// A bundle for each payload.
#[derive(Debug)]
pub struct Bundles {
    dir: PathBuf,
    state: PathBuf,
    rootfs: PathBuf,
}

impl Bundles {
    /// Writes them below `dir`, with the runtime's own state in `state`; their containers stand in the cgroup `cgroup`.
    pub fn create(dir: &Path, state: &Path, rootfs: &Path, cgroup: &str) -> anyhow::Result<Self> {
        for payload in Payload::ALL {
            let bundle = dir.join(payload.name());
            std::fs::create_dir_all(&bundle).with_context(|| bundle.display().to_string())?;
            let spec = spec::spec(payload, rootfs, &format!("{cgroup}/peer"));
            std::fs::write(bundle.join("config.json"), spec.to_string())?;
        }
        std::fs::create_dir_all(state)?;
        Ok(Self { dir: dir.to_owned(), state: state.to_owned(), rootfs: rootfs.to_owned() })
    }

    /// The command line that runs `payload` in the new container `id`.
    pub fn run(&self, runtime: Runtime, payload: Payload, id: &str) -> anyhow::Result<Vec<Vec<u8>>> {
        let mut words = vec![runtime.find()?.into_os_string()];
        match runtime {
            Runtime::Bwrap => words.extend(self.bwrap(payload)),
            _ => words.extend([
                "--root".into(),
                self.state.join(runtime.name()).into(),
                "run".into(),
                "--bundle".into(),
                self.dir.join(payload.name()).into(),
                id.into(),
            ]),
        }
        Ok(words.into_iter().map(|word| word.into_encoded_bytes()).collect())
    }

    fn bwrap(&self, payload: Payload) -> Vec<OsString> {
        let mut words: Vec<OsString> =
            ["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--hostname", "peer", "--bind"]
                .into_iter()
                .map(OsString::from)
                .collect();
        words.push(self.rootfs.clone().into());
        words.extend(["/", "--proc", "/proc", "--dev", "/dev", "--mqueue", "/dev/mqueue"].map(OsString::from));
        words.extend(["--cap-drop", "ALL"].map(OsString::from));
        for capability in spec::CAPABILITIES {
            words.extend(["--cap-add".into(), format!("CAP_{capability}").into()]);
        }
        words.extend(["--new-session", "--", payload.path()].map(OsString::from));
        words
    }
}
