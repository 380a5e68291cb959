//! Programs that the keeper starts in these tests: this test executable itself, told by `--exact` which one it is.
//! Run as tests they do nothing.

use fsb_host::cgroup::Tree;
use fsb_host::wire::{self, FromSpawner, How, Made, MakeFailed, ToSpawner};
use fsb_host::{pidfd, process, socket};
use nix::sys::socket::MsgFlags;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio, exit};
use std::time::Duration;

/// The directory of the test that a stand-in belongs to; not set in a test.
pub(crate) const DIR: &str = "FSB_TEST_DIR";

fn dir() -> Option<PathBuf> {
    std::env::var_os(DIR).map(PathBuf::from)
}

/// The command that starts a stand-in.
pub(crate) fn program(name: &str) -> String {
    format!("{} --exact standin::{name} --nocapture", std::env::current_exe().unwrap().display())
}

fn command(name: &str) -> Command {
    let program = program(name);
    let mut words = program.split(' ');
    let mut command = Command::new(words.next().unwrap());
    command.args(words).stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// Hands its socket to the test, which is the agent from then on, and waits to be killed.
#[test]
fn agent() {
    let Some(dir) = dir() else { return };
    let socket = process::keeper_socket().unwrap();
    let test = UnixStream::connect(dir.join("agent.sock")).unwrap();
    let pid = std::process::id().to_string();
    socket::send(&test, pid.as_bytes(), &[socket.as_raw_fd()], MsgFlags::empty()).unwrap();
    // Only the test has it now: it decides when it is closed.
    drop((socket, test));
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

/// Makes what the image's name says:
/// `plain` a parked process, `half` one that is never finished, `dead` one that has ended, `mould` a mould and an error,
/// anything else an error.
#[test]
fn spawner() {
    let Some(dir) = dir() else { return };
    std::fs::write(dir.join("spawner.pid"), std::process::id().to_string()).unwrap();
    if dir.join("spawner.broken").exists() {
        exit(1);
    }
    let keeper = process::keeper_socket().unwrap();
    let tree = Tree::from_json(&std::env::var("FSB_CGROUP_TREE").unwrap()).unwrap();
    let say = |message: &FromSpawner, fds: &[i32]| {
        socket::send(&keeper, &wire::encode(message).unwrap(), fds, MsgFlags::empty()).unwrap();
    };
    say(&FromSpawner::Ready, &[]);
    let mut buffer = vec![0; wire::MAX_MESSAGE];
    loop {
        let (bytes, _) = socket::recv(&keeper, &mut buffer, MsgFlags::empty()).unwrap();
        if bytes == 0 {
            exit(0);
        }
        let ToSpawner::Make(make) = wire::decode(&buffer[..bytes]).unwrap();
        if !["plain", "half", "dead", "mould"].contains(&make.recipe.image.as_str()) {
            let failed = MakeFailed { id: make.id, stage: "image".into(), error: "no such stand-in".into() };
            say(&FromSpawner::MakeFailed(failed), &[]);
            continue;
        }
        let is_mould = make.recipe.image == "mould";
        let cgroups = if is_mould { tree.mould(&make.id) } else { tree.create(&make.id).unwrap() };
        for dir in cgroups.iter().filter(|_| is_mould) {
            std::fs::create_dir(dir).unwrap();
        }
        let (ctl, ctl_inside) = socket::pair().unwrap();
        let pipe = || nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        let (out, err, started) = (pipe(), pipe(), pipe());
        let inside = [out.1.as_raw_fd(), err.1.as_raw_fd(), started.1.as_raw_fd()];
        socket::send(&ctl, b"!", &inside, MsgFlags::empty()).unwrap();
        let mut launcher = command("launcher");
        launcher.env("FSB_TEST_PID_FILE", dir.join(&make.id)).env("FSB_TEST_IMAGE", &make.recipe.image);
        let (launcher, launched) = process::spawn(&mut launcher, ctl_inside.as_fd()).unwrap();
        drop(ctl_inside);
        while !pidfd::ended(launched.as_fd()) {
            std::thread::sleep(Duration::from_micros(200));
        }
        process::reap(launcher).unwrap();
        let pid: i32 = std::fs::read_to_string(dir.join(&make.id)).unwrap().parse().unwrap();
        for dir in &cgroups {
            std::fs::write(dir.join("cgroup.procs"), pid.to_string()).unwrap();
        }
        if is_mould {
            say(&FromSpawner::Mould { pid, id: make.id.clone() }, &[]);
            let failed = MakeFailed { id: make.id, stage: "mould".into(), error: pid.to_string() };
            say(&FromSpawner::MakeFailed(failed), &[]);
            // Its control socket stays open, as a spawner keeps it.
            std::mem::forget(ctl);
            continue;
        }
        let layer = std::env::var("FSB_STATE_DIR").unwrap();
        std::fs::create_dir_all(format!("{layer}/a/layers/{}/upper", make.id)).unwrap();
        if make.recipe.image == "half" {
            std::fs::write(dir.join("half-made"), &make.id).unwrap();
            continue;
        }
        let pidfd = pidfd::open(pid).unwrap();
        if make.recipe.image == "dead" {
            pidfd::kill(&pidfd, nix::sys::signal::Signal::SIGKILL).unwrap();
            // Until the keeper has reaped it.
            while PathBuf::from(format!("/proc/{pid}")).exists() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        let fds = [&ctl, &pidfd, &out.0, &err.0, &started.0].map(|fd| fd.as_raw_fd());
        let made = Made { id: make.id, pid, how: How::Cast, recipe: make.recipe, cgroups };
        say(&FromSpawner::Made(made), &fds);
    }
}

/// Starts a parked process and ends, which makes the keeper its parent.
#[test]
fn launcher() {
    if dir().is_none() {
        return;
    }
    let parked = command("parked").stderr(Stdio::null()).spawn().unwrap();
    std::fs::write(std::env::var_os("FSB_TEST_PID_FILE").unwrap(), parked.id().to_string()).unwrap();
    exit(0);
}

/// Waits for its argv, as a parked process does.
#[test]
fn parked() {
    if dir().is_none() {
        return;
    }
    let ctl = process::keeper_socket().unwrap();
    while std::env::var("FSB_TEST_IMAGE").is_ok_and(|image| image == "half") {
        std::thread::sleep(Duration::from_secs(3600));
    }
    let mut buffer = vec![0; 64 << 10];
    let (_, mut fds) = socket::recv(&ctl, &mut buffer, MsgFlags::empty()).unwrap();
    let mut started = File::from(fds.pop().unwrap());
    let (err, out): (OwnedFd, OwnedFd) = (fds.pop().unwrap(), fds.pop().unwrap());
    let (bytes, _) = socket::recv(&ctl, &mut buffer, MsgFlags::empty()).unwrap();
    if bytes == 0 {
        exit(0);
    }
    let argv: Vec<String> = wire::decode(&buffer[..bytes]).unwrap();
    started.write_all(b"x").unwrap();
    let mut program = Command::new(&argv[0]);
    program.args(&argv[1..]).env_remove(DIR).stdin(Stdio::null()).stdout(out).stderr(err);
    let error = program.exec();
    started.write_all(b"N").unwrap();
    let number = error.raw_os_error().unwrap_or(0);
    let _ = socket::send(&ctl, &number.to_ne_bytes(), &[], MsgFlags::empty());
    exit(127);
}
