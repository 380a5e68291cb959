//! A keeper with its directories and cgroups, and the test's end of its agent.

use crate::standin;
use fsb_host::cgroup::{self, Tree};
use fsb_host::confine::confine;
use fsb_host::paths::Paths;
use fsb_host::wire::{self, Binding, FromKeeper, Make, Overlay, Profile, Recipe, Record, Runtime, ToKeeper, User};
use fsb_host::{pidfd, socket};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::MsgFlags;
use nix::unistd::Pid;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// After this a test is given up; nothing takes a noticeable part of it.
const DEADLINE: Duration = Duration::from_secs(30);

/// Polls until `is_so`.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < end, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A running keeper. Dropping it removes all it made.
pub(crate) struct Node {
    dir: tempfile::TempDir,
    keeper: Child,
    listener: UnixListener,
    cgroup: String,
    next: Cell<u64>,
    pub(crate) paths: Paths,
    pub(crate) tree: Tree,
}

impl Node {
    /// Starts a keeper with `environment` on top of a private one.
    pub(crate) fn start(environment: &[(&str, &str)]) -> Self {
        Self::start_below(environment, None)
    }

    /// [`Node::start`] below a seccomp filter.
    pub(crate) fn start_below(environment: &[(&str, &str)], filter: Option<Vec<u8>>) -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "these tests make containers' cgroups and processes: run them as root"
        );
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let dir = tempfile::Builder::new().prefix("fsbk").tempdir_in("/tmp").unwrap();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let cgroup = format!("fsb-test-{}-{number}/a", std::process::id());
        let listener = UnixListener::bind(dir.path().join("agent.sock")).unwrap();
        let at = |name: &str| dir.path().join(name);
        let paths = Paths::new(at("run"), at("state"), at("log"), "a");
        let tree = Tree::discover(&cgroup).unwrap();
        let mut command = Self::command(dir.path(), &cgroup);
        command.envs(environment.iter().copied()).stderr(File::create(at("stderr")).unwrap());
        if let Some(filter) = filter {
            confine(&mut command, filter);
        }
        let keeper = command.spawn().unwrap();
        Self { dir, keeper, listener, cgroup, next: Cell::new(0), paths, tree }
    }

    fn command(dir: &Path, cgroup: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fsb-keeper"));
        command
            .env("FSB_RUN_DIR", dir.join("run"))
            .env("FSB_STATE_DIR", dir.join("state"))
            .env("FSB_LOG_DIR", dir.join("log"))
            .env("POD_NAME", "a")
            .env("FSB_CGROUP", cgroup)
            .env("FSB_SPAWNER_PROGRAM", standin::program("spawner"))
            .env("FSB_AGENT_PROGRAM", standin::program("agent"))
            .env(standin::DIR, dir)
            .env("LOG_LEVEL", "debug")
            .stdout(Stdio::null());
        command
    }

    /// Starts another keeper on the same directories and cgroups.
    pub(crate) fn second_keeper(&self) -> std::process::Output {
        Self::command(self.dir.path(), &self.cgroup).output().unwrap()
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn keeper_pid(&self) -> i32 {
        self.keeper.id() as i32
    }

    /// What the keeper has logged.
    pub(crate) fn stderr(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("stderr")).unwrap_or_default()
    }

    /// Waits for the keeper's end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let end = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.keeper.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < end, "the keeper does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The next agent that the keeper starts; it has not said hello.
    pub(crate) fn silent_agent(&self) -> Agent {
        let mut fds = [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
        let ready = poll(&mut fds, PollTimeout::try_from(DEADLINE).unwrap()).unwrap();
        assert!(ready > 0, "no agent came:\n{}", self.stderr());
        let (stream, _) = self.listener.accept().unwrap();
        let mut buffer = [0; 16];
        let (bytes, mut fds) = socket::recv(&stream, &mut buffer, MsgFlags::empty()).unwrap();
        let pid = std::str::from_utf8(&buffer[..bytes]).unwrap().parse().unwrap();
        Agent { socket: fds.remove(0), pid, stash: RefCell::default(), binds: None }
    }

    /// The next agent, and what it was told in answer to its hello.
    pub(crate) fn agent(&self) -> (Agent, Vec<(Record, Vec<OwnedFd>)>, String) {
        let mut agent = self.silent_agent();
        agent.send(&ToKeeper::Hello);
        let mut known = Vec::new();
        loop {
            match agent.next() {
                (FromKeeper::Known(record), fds) => known.push((record, fds)),
                (FromKeeper::Ready { incarnation }, fds) => {
                    agent.binds = fds.into_iter().next();
                    return (agent, known, incarnation);
                }
                (other, _) => panic!("{other:?} in answer to a hello"),
            }
        }
    }

    /// A new instance id.
    pub(crate) fn id(&self) -> String {
        self.next.set(self.next.get() + 1);
        format!("{:032x}", self.next.get())
    }

    /// Asks for a paused container and waits for it.
    pub(crate) fn paused(&self, agent: &Agent) -> Paused {
        let id = self.id();
        agent.make(&id, "plain");
        agent.take_made(&id)
    }

    /// Makes, binds and starts `sh -c script`.
    pub(crate) fn start_shell(&self, agent: &Agent, script: &str) -> Paused {
        let paused = self.paused(agent);
        agent.bind(&paused.id, "claim");
        paused.hand_off(&["sh", "-c", script]);
        agent.wait_for("bound", |message| matches!(message, FromKeeper::Bound { id } if *id == paused.id));
        paused
    }

    /// The record's file, if it is there.
    pub(crate) fn record_file(&self, id: &str) -> Option<Record> {
        let text = std::fs::read(self.paths.records().join(format!("{id}.json"))).ok()?;
        Some(serde_json::from_slice(&text).unwrap())
    }

    /// A log, its rotated files included, the oldest first.
    pub(crate) fn log(&self, id: &str) -> String {
        let path = self.paths.log(id);
        let numbered = |number: usize| PathBuf::from(format!("{}.{number}", path.display()));
        let mut files: Vec<PathBuf> = (1..).map(numbered).take_while(|path| path.exists()).collect();
        files.reverse();
        files.push(path);
        files
            .iter()
            .map(|path| String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned())
            .collect()
    }

    /// The texts of one stream of a log: whole lines with their `\n`, parts without.
    pub(crate) fn texts(&self, id: &str, stream: &str) -> String {
        let log = self.log(id);
        let mut texts = String::new();
        for line in log.split_terminator('\n') {
            let mut fields = line.splitn(4, ' ');
            let (_, of, tag) = (fields.next(), fields.next().unwrap(), fields.next().unwrap());
            if of == stream {
                texts.push_str(fields.next().unwrap());
                texts.push_str(if tag == "F" { "\n" } else { "" });
            }
        }
        texts
    }

    /// The process id of the spawner.
    pub(crate) fn spawner_pid(&self) -> i32 {
        let path = self.dir.path().join("spawner.pid");
        eventually("a spawner", || std::fs::read_to_string(&path).is_ok_and(|text| !text.is_empty()));
        std::fs::read_to_string(&path).unwrap().parse().unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the keeper said:\n{}", self.stderr());
        }
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
        // Daemons die with the keeper; it is no PID 1 here, so sandboxes do not.
        let end = Instant::now() + DEADLINE;
        for id in self.tree.list() {
            while cgroup::remove(&self.tree.sandbox(&id), Duration::ZERO).is_err() && Instant::now() < end {
                for pid in cgroup::processes(&self.tree.sandbox(&id)).into_iter().filter(|pid| *pid > 0) {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        for dir in self.tree.dirs().map(|(_, dir)| dir.to_owned()).chain(self.tree.devices().map(Path::to_owned)) {
            let mut below = Vec::new();
            directories(dir.parent().unwrap(), &mut below);
            let _ = cgroup::remove(&below, Duration::from_secs(2));
        }
    }
}

fn recipe(image: &str) -> Recipe {
    Recipe {
        image: image.into(),
        lowers: Vec::new(),
        user: User::default(),
        profile: Profile::Default,
        runtime: Runtime::Container,
        plugins: Vec::new(),
        overlay: Overlay::Disk,
    }
}

/// `dir` and all below it, the deepest first.
fn directories(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            directories(&entry.path(), found);
        }
    }
    found.push(dir.to_owned());
}

/// The agent's end of its socket, and the process that stands for it.
pub(crate) struct Agent {
    socket: OwnedFd,
    pub(crate) pid: i32,
    stash: RefCell<VecDeque<(FromKeeper, Vec<OwnedFd>)>>,
    binds: Option<OwnedFd>,
}

impl Agent {
    pub(crate) fn send(&self, message: &ToKeeper) {
        socket::send(&self.socket, &wire::encode(message).unwrap(), &[], MsgFlags::empty()).unwrap();
    }

    pub(crate) fn make(&self, id: &str, image: &str) {
        self.make_with(id, image, &[]);
    }

    /// [`Agent::make`] for the stock: nobody waits for it.
    pub(crate) fn refill(&self, id: &str) {
        self.send(&ToKeeper::Make(Make {
            id: id.into(),
            recipe: recipe("plain"),
            how: None,
            urgent: false,
            lookups: Vec::new(),
            spare: None,
        }));
    }

    /// The same, with descriptors.
    pub(crate) fn make_with(&self, id: &str, image: &str, fds: &[RawFd]) {
        let message = ToKeeper::Make(Make {
            id: id.into(),
            recipe: recipe(image),
            how: None,
            urgent: true,
            lookups: Vec::new(),
            spare: None,
        });
        socket::send(&self.socket, &wire::encode(&message).unwrap(), fds, MsgFlags::empty()).unwrap();
    }

    /// Sends a bind and does not wait.
    pub(crate) fn bind(&self, id: &str, claim: &str) {
        let binding = Binding { claim: claim.into(), grace_seconds: 30, ..Default::default() };
        self.send(&ToKeeper::Bind { id: id.into(), binding });
    }

    /// Puts a bind where the keeper does not wait for it.
    pub(crate) fn bind_quietly(&self, id: &str, claim: &str) {
        let binding = Binding { claim: claim.into(), grace_seconds: 30, ..Default::default() };
        let message = wire::encode(&ToKeeper::Bind { id: id.into(), binding }).unwrap();
        socket::send(self.binds.as_ref().unwrap(), &message, &[], MsgFlags::empty()).unwrap();
    }

    pub(crate) fn forget(&self, id: &str) {
        self.send(&ToKeeper::Forget { id: id.into() });
    }

    /// The next message.
    pub(crate) fn next(&self) -> (FromKeeper, Vec<OwnedFd>) {
        if let Some(message) = self.stash.borrow_mut().pop_front() {
            return message;
        }
        self.receive()
    }

    fn receive(&self) -> (FromKeeper, Vec<OwnedFd>) {
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        assert!(poll(&mut fds, PollTimeout::try_from(DEADLINE).unwrap()).unwrap() > 0, "the keeper says nothing");
        let mut buffer = vec![0; wire::MAX_MESSAGE];
        let (bytes, fds) = socket::recv(&self.socket, &mut buffer, MsgFlags::empty()).unwrap();
        assert!(bytes > 0, "the keeper has closed the socket");
        (wire::decode(&buffer[..bytes]).unwrap(), fds)
    }

    /// The first message that `is_it`; the others stay for later.
    pub(crate) fn wait_for(&self, what: &str, is_it: impl Fn(&FromKeeper) -> bool) -> (FromKeeper, Vec<OwnedFd>) {
        let found = self.stash.borrow().iter().position(|(message, _)| is_it(message));
        if let Some(index) = found {
            return self.stash.borrow_mut().remove(index).unwrap();
        }
        let end = Instant::now() + DEADLINE;
        loop {
            let (message, fds) = self.receive();
            if is_it(&message) {
                return (message, fds);
            }
            self.stash.borrow_mut().push_back((message, fds));
            assert!(Instant::now() < end, "never heard: {what}; instead {:?}", self.stash.borrow());
        }
    }

    pub(crate) fn take_made(&self, id: &str) -> Paused {
        let about = |message: &FromKeeper| match message {
            FromKeeper::Made(made) => made.id == id,
            FromKeeper::MakeFailed(failed) => failed.id == id,
            _ => false,
        };
        let (FromKeeper::Made(made), fds) = self.wait_for("made", about) else { panic!("{id} was not made") };
        let [ctl, pidfd] = <[OwnedFd; 2]>::try_from(fds).unwrap();
        Paused { id: id.into(), pid: made.pid, ctl, pidfd }
    }

    pub(crate) fn make_failed(&self, id: &str) -> wire::MakeFailed {
        let is_it = |message: &FromKeeper| matches!(message, FromKeeper::MakeFailed(failed) if failed.id == id);
        let (FromKeeper::MakeFailed(failed), _) = self.wait_for("make failed", is_it) else { unreachable!() };
        failed
    }

    pub(crate) fn started(&self, id: &str) {
        self.wait_for("started", |message| matches!(message, FromKeeper::Started { id: of, .. } if of == id));
    }

    pub(crate) fn ended(&self, id: &str) -> wire::End {
        let is_it = |message: &FromKeeper| matches!(message, FromKeeper::Ended { id: of, .. } if of == id);
        let (FromKeeper::Ended { end, .. }, _) = self.wait_for("ended", is_it) else { unreachable!() };
        end
    }

    /// kill -9, as the out-of-memory killer does it.
    pub(crate) fn kill(self) {
        kill(Pid::from_raw(self.pid), Signal::SIGKILL).unwrap();
    }
}

/// A paused container.
pub(crate) struct Paused {
    pub(crate) id: String,
    pub(crate) pid: i32,
    pub(crate) ctl: OwnedFd,
    pub(crate) pidfd: OwnedFd,
}

impl Paused {
    pub(crate) fn hand_off(&self, argv: &[&str]) {
        hand_off(&self.ctl, argv);
    }

    pub(crate) fn is_alive(&self) -> bool {
        !pidfd::ended(self.pidfd.as_fd())
    }
}

/// Tells a parked process what to become.
pub(crate) fn hand_off(ctl: impl AsFd, argv: &[&str]) {
    socket::send(ctl, &wire::encode(&argv).unwrap(), &[], MsgFlags::empty()).unwrap();
}
