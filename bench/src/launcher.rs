//! The process that floors and peers are started from: small and single-threaded, so that a fork copies little.

use crate::burst::{self, Burst};
use crate::cell::Started;
use crate::clock;
use crate::floor::cold::Cold;
use crate::floor::process::{self, Program};
use crate::image::Image;
use crate::payload::{Payload, read_stamp};
use crate::peer::{Bundles, Runtime};
use crate::protocol::{Answer, Ask, Line};
use anyhow::{Context, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::time::Duration;

/// How long a program may take to its stamp.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a launcher is told.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The bench's socket.
    #[arg(long)]
    pub connect: PathBuf,
    /// The bench's directory.
    #[arg(long)]
    pub root: PathBuf,
    /// Name of the bench's cgroup.
    #[arg(long)]
    pub cgroup: String,
    /// Take the v2 mount of a hybrid host away first: crun takes such a host for a pure v2 one.
    #[arg(long)]
    pub hide_unified: bool,
}

/// Gives this thread a mount namespace of its own, from which nothing spreads.
pub fn private_mounts() -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
}

/// Serves the bench until it hangs up.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let line = Line::new(UnixStream::connect(&args.connect).context("connect to the bench")?)?;
    private_mounts().context("make a private mount namespace")?;
    if args.hide_unified {
        let unified = Path::new("/sys/fs/cgroup/unified");
        if unified.exists() {
            umount2(unified, MntFlags::MNT_DETACH).context("unmount /sys/fs/cgroup/unified")?;
        }
    }
    let mut launcher = Launcher::open(args)?;
    line.serve(|ask| match ask {
        Ask::Start { cell, payload, due_ns } => Ok(Answer::Started(launcher.start(&cell, payload, due_ns)?)),
        Ask::Burst { cell, ask } => Ok(Answer::Burst(launcher.burst(&cell, ask)?)),
        Ask::Hold { .. } | Ask::Stages => bail!("a launcher only starts"),
    })?;
    Ok(())
}

struct Launcher {
    rootfs: PathBuf,
    cold: Option<Cold>,
    bundles: Bundles,
    started: u64,
}

impl Launcher {
    fn open(args: &Args) -> anyhow::Result<Self> {
        let rootfs = Image::rootfs_in(&args.root);
        // The launcher of crun has no use for it, and on hybrid hosts not all of its cgroups.
        let cold = match args.hide_unified {
            true => None,
            false => Some(
                Cold::prepare(
                    &format!("{}/floor", args.cgroup),
                    &args.root.join(format!("floor-layers-{}", std::process::id())),
                    &rootfs,
                )
                .context("prepare floor-cold")?,
            ),
        };
        let name = if args.hide_unified { "crun" } else { "plain" };
        let bundles = Bundles::create(
            &args.root.join("peers").join(name),
            &args.root.join("run").join(name),
            &rootfs,
            &args.cgroup,
        )?;
        Ok(Self { rootfs, cold, bundles, started: 0 })
    }

    fn burst(&mut self, cell: &str, ask: burst::Ask) -> anyhow::Result<Burst> {
        if cell != "floor-spawn" {
            bail!("{cell} starts one at a time");
        }
        let outside = self.rootfs.join(ask.payload.path().trim_start_matches('/'));
        Ok(spawn_all(&Program::new([outside.as_os_str().as_encoded_bytes()])?, ask.count))
    }

    fn start(&mut self, cell: &str, payload: Payload, due_ns: Option<u64>) -> anyhow::Result<Started> {
        self.started += 1;
        let outside = self.rootfs.join(payload.path().trim_start_matches('/'));
        let outside = || Program::new([outside.as_os_str().as_encoded_bytes()]);
        let wait = || due_ns.into_iter().for_each(clock::wait_until);
        match cell {
            "floor-fork" | "floor-spawn" => {
                let program = outside()?;
                wait();
                finish(if cell == "floor-fork" { process::fork(&program)? } else { process::spawn(&program)? })
            }
            "floor-cold" => {
                let cold = self.cold.as_mut().context("this launcher has no floor-cold")?;
                let program = Program::new([payload.path()])?;
                wait();
                let container = cold.start(&program)?;
                let called_ns = container.called_ns;
                let stamp = read_stamp(&container.stdout, PATIENCE);
                cold.finish(container, stamp.is_err())?;
                Ok(Started { called_ns, stamp_ns: stamp?, source: None })
            }
            _ => {
                let runtime = Runtime::named(cell).with_context(|| format!("no such cell: {cell}"))?;
                let command =
                    self.bundles.run(runtime, payload, &format!("{cell}-{}-{}", std::process::id(), self.started))?;
                let program = Program::new(command)?;
                wait();
                finish(process::spawn(&program)?)
            }
        }
    }
}

/// Starts the program `count` times as fast as all processors together can: one thread on each.
fn spawn_all(program: &Program, count: usize) -> Burst {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(count);
    let ready = Barrier::new(threads + 1);
    let mut called_ns = 0;
    let mut children = Vec::with_capacity(count);
    std::thread::scope(|scope| {
        let spawners: Vec<_> = (0..threads)
            .map(|thread| {
                let (ready, share) = (&ready, count / threads + usize::from(thread < count % threads));
                scope.spawn(move || {
                    ready.wait();
                    (0..share).map(|_| process::spawn(program)).collect::<Vec<_>>()
                })
            })
            .collect();
        called_ns = clock::now_ns();
        ready.wait();
        children.extend(spawners.into_iter().flat_map(|spawner| spawner.join().unwrap_or_default()));
    });
    let mut burst = Burst::at(called_ns);
    for child in children {
        burst.put(child.map_err(Into::into).and_then(finish).map(|started| started.stamp_ns));
    }
    burst
}

fn finish(child: process::Child) -> anyhow::Result<Started> {
    let stamp = read_stamp(&child.stdout, PATIENCE);
    if stamp.is_err() {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.pid), nix::sys::signal::Signal::SIGKILL);
    }
    let status = child.wait()?;
    let stamp_ns = stamp?;
    if status != 0 {
        bail!("the program ended with wait status {status:#x}");
    }
    Ok(Started { called_ns: child.called_ns, stamp_ns, source: None })
}
