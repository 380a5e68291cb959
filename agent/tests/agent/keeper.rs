//! A stand-in for the keeper and the spawner at the seam, the socket. Its containers are real processes (a shell that
//! sleeps), parked by a thread that reads the real hand-off message; their cgroups and layers are plain directories.
//!
//! The first argument of a hand-off says what the "program" does: `fail ERRNO`, `exit CODE`, `oom`, `die` (before it
//! runs), anything else runs until it is killed.

use fsb_host::paths::SPARE;
use fsb_host::wire::{
    Binding, End, FromKeeper, How, KEEPER_FD, MAX_MESSAGE, Made, Make, MakeFailed, Recipe, Record, Stage, ToKeeper,
    decode, encode,
};
use fsb_host::{pidfd, socket};
use fsb_park::handoff::{HEADER, Header, INLINE, Stage as HandoffStage, Strings, roused_from};
use nix::sys::signal::Signal;
use nix::sys::socket::MsgFlags;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

/// What was handed over to a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Handed {
    pub argv: Vec<String>,
    pub env: Vec<String>,
    pub cwd: String,
}

/// How the stand-in behaves from here on.
#[derive(Debug, Clone, Default)]
pub struct Mood {
    /// Makes are not answered.
    pub ignores_makes: bool,
    /// Makes fail with this error.
    pub makes_fail: Option<String>,
    /// Containers come without their descriptors.
    pub loses_descriptors: bool,
    /// The next so many binds find a dead container.
    pub dead_at_bind: usize,
    /// Parked processes do not look at their hand-off.
    pub ignores_handoffs: bool,
    /// Processes do not end at SIGTERM.
    pub ignores_term: bool,
}

struct Entry {
    record: Record,
    pidfd: OwnedFd,
    ctl: Option<OwnedFd>,
    handed: Option<Handed>,
    /// How it is to end, if not as it really did.
    verdict: Option<End>,
    /// Its program runs, which the keeper finds out when it has reason to look.
    runs: bool,
    /// The agent has said so.
    told: bool,
}

impl Entry {
    /// The keeper looks: what it says, if that is news.
    fn saw_start(&mut self, at_ms: i64) -> Option<FromKeeper> {
        if !self.runs || self.record.stage != Stage::Bound {
            return None;
        }
        self.record.stage = Stage::Started { at_ms };
        self.ctl = None;
        Some(FromKeeper::Started { id: self.record.made.id.clone(), at_ms })
    }
}

#[derive(Default)]
struct State {
    entries: BTreeMap<String, Entry>,
    agent: Option<Arc<OwnedFd>>,
    mood: Mood,
    makes: usize,
    binds: Vec<String>,
    forgotten: Vec<String>,
}

impl State {
    fn launched(&mut self, id: String, said: i64) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.told = true;
        let started = entry.saw_start(said);
        match &mut entry.record.stage {
            Stage::Started { at_ms } => *at_ms = said,
            Stage::Ended(end) => end.started_at_ms = said,
            _ => {}
        }
        started.iter().for_each(|message| tell(self, message, &[]));
    }
}

/// The stand-in. Dropped, it kills its containers.
pub struct Keeper {
    state: Arc<Mutex<State>>,
    pub cgroups: PathBuf,
    pub layers: PathBuf,
    pub logs: PathBuf,
}

impl Keeper {
    pub fn new(cgroups: PathBuf, layers: PathBuf, logs: PathBuf) -> Self {
        assert_eq!(KEEPER_FD, 3);
        for dir in [&cgroups, &layers, &logs] {
            std::fs::create_dir_all(dir).unwrap();
        }
        Self { state: Arc::default(), cgroups, layers, logs }
    }

    /// A new agent's end of the socket. The one before is cut off, as if that agent had died.
    pub fn connect(&self) -> OwnedFd {
        let (ours, theirs) = socket::pair().unwrap();
        let ours = Arc::new(ours);
        self.lock().agent = Some(ours.clone());
        let keeper = Self {
            state: self.state.clone(),
            cgroups: self.cgroups.clone(),
            layers: self.layers.clone(),
            logs: self.logs.clone(),
        };
        thread::spawn(move || {
            let keeper = std::mem::ManuallyDrop::new(keeper);
            keeper.serve(&ours);
        });
        theirs
    }

    pub fn set(&self, change: impl FnOnce(&mut Mood)) {
        change(&mut self.lock().mood);
    }

    pub fn handed(&self, id: &str) -> Handed {
        self.lock().entries[id].handed.clone().unwrap()
    }

    pub fn binding(&self, id: &str) -> Option<Binding> {
        self.lock().entries.get(id).and_then(|entry| entry.record.binding.clone())
    }

    /// Changes a record, as if it had been written so.
    pub fn edit(&self, id: &str, change: impl FnOnce(&mut Record)) {
        change(&mut self.lock().entries.get_mut(id).unwrap().record);
    }

    /// Whether the agent has said that this one runs.
    pub fn told(&self, id: &str) -> bool {
        self.lock().entries[id].told
    }

    pub fn recipe(&self, id: &str) -> Recipe {
        self.lock().entries[id].record.made.recipe.clone()
    }

    pub fn ids(&self) -> Vec<String> {
        self.lock().entries.keys().cloned().collect()
    }

    pub fn binds(&self) -> usize {
        self.lock().binds.len()
    }

    pub fn makes(&self) -> usize {
        self.lock().makes
    }

    pub fn kill(&self, id: &str) {
        let _ = pidfd::kill(&self.lock().entries[id].pidfd, Signal::SIGKILL);
    }

    /// Directories of containers, of either kind.
    pub fn left_behind(&self) -> Vec<String> {
        let list = |dir: &PathBuf| -> Vec<String> {
            std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect()
        };
        [list(&self.cgroups), list(&self.layers), list(&self.logs)].concat()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn serve(&self, agent: &OwnedFd) {
        let mut buffer = vec![0; MAX_MESSAGE];
        loop {
            let (n, fds) = match socket::recv(agent, &mut buffer, MsgFlags::empty()) {
                Ok((0, _)) | Err(_) => return,
                Ok(message) => message,
            };
            match decode::<ToKeeper>(&buffer[..n]).unwrap() {
                ToKeeper::Hello => self.hello(agent),
                ToKeeper::Make(make) => {
                    assert_eq!(fds.len(), 1, "a container's image is pinned by the keeper, too");
                    self.make(make);
                }
                ToKeeper::Bind { id, binding } => self.bind(id, binding),
                ToKeeper::Read { .. } => {}
                ToKeeper::Launched { programs } => {
                    let mut state = self.lock();
                    programs.into_iter().for_each(|(id, at_ms)| state.launched(id, at_ms));
                }
                ToKeeper::Rebind { id, binding } => {
                    if let Some(entry) = self.lock().entries.get_mut(&id) {
                        entry.record.binding = Some(binding);
                    }
                }
                ToKeeper::Forget { id } => {
                    let mut state = self.lock();
                    state.forgotten.push(id.clone());
                    if let Some(entry) = state.entries.remove(&id) {
                        let _ = pidfd::kill(&entry.pidfd, Signal::SIGKILL);
                    }
                }
            }
        }
    }

    fn hello(&self, agent: &OwnedFd) {
        let mut state = self.lock();
        // What an agent that is gone has not said, the keeper sees by itself.
        state.entries.values_mut().for_each(|entry| drop(entry.saw_start(now_ms())));
        for entry in state.entries.values() {
            let mut fds = vec![entry.pidfd.as_raw_fd()];
            fds.extend(entry.ctl.as_ref().map(|ctl| ctl.as_raw_fd()));
            let message = encode(&FromKeeper::Known(entry.record.clone())).unwrap();
            let _ = socket::send(agent, &message, &fds, MsgFlags::empty());
        }
        let ready = FromKeeper::Ready { incarnation: "keeper-1".into() };
        let _ = socket::send(agent, &encode(&ready).unwrap(), &[], MsgFlags::empty());
    }

    fn make(&self, make: Make) {
        let mut state = self.lock();
        state.makes += 1;
        if state.mood.ignores_makes {
            return;
        }
        if let Some(error) = state.mood.makes_fail.clone() {
            let failed = MakeFailed { id: make.id, stage: "overlay".into(), error };
            tell(&state, &FromKeeper::MakeFailed(failed), &[]);
            return;
        }
        let cgroup = self.cgroups.join(&make.id);
        std::fs::create_dir(&cgroup).unwrap();
        for file in ["memory.max", "pids.max", "cpu.max"] {
            std::fs::write(cgroup.join(file), "").unwrap();
        }
        if let Some(spare) = &make.spare {
            let _ = std::fs::rename(self.layers.join(format!("{spare}{SPARE}")), self.layers.join(&make.id));
        }
        std::fs::create_dir_all(self.layers.join(&make.id).join("upper")).unwrap();
        std::fs::create_dir_all(self.layers.join(&make.id).join("work")).unwrap();
        let script = if state.mood.ignores_term {
            "trap '' TERM; echo; while :; do sleep 9; done"
        } else {
            "echo; exec sleep 1000000"
        };
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        // Its traps are set.
        child.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
        let pidfd = pidfd::open(child.id() as i32).unwrap();
        let (ctl, parked) = socket::pair().unwrap();
        let how = make.how.unwrap_or(How::Cast);
        let made =
            Made { id: make.id.clone(), pid: child.id() as i32, how, recipe: make.recipe, cgroups: vec![cgroup] };
        let fds = [ctl.as_raw_fd(), pidfd.as_raw_fd()];
        tell(&state, &FromKeeper::Made(made.clone()), if state.mood.loses_descriptors { &[] } else { &fds });
        let record = Record { made, binding: None, stage: Stage::Paused };
        let entry = Entry { record, pidfd, ctl: Some(ctl), handed: None, verdict: None, runs: false, told: false };
        state.entries.insert(make.id.clone(), entry);
        drop(state);
        let shared = self.state.clone();
        let (id, log) = (make.id.clone(), self.logs.join(format!("{}.log", make.id)));
        thread::spawn(move || park(&shared, &id, parked, log));
        let (shared, id, cgroup) = (self.state.clone(), make.id, self.cgroups.clone());
        thread::spawn(move || {
            let status = child.wait().unwrap();
            let cgroup = cgroup.join(&id);
            for file in ["memory.max", "pids.max", "cpu.max"] {
                let _ = std::fs::remove_file(cgroup.join(file));
            }
            let mut state = shared.lock().unwrap_or_else(|e| e.into_inner());
            let Some(entry) = state.entries.get_mut(&id) else { return };
            let started = entry.saw_start(now_ms());
            let real = End {
                code: status.code(),
                signal: status.signal(),
                oom_killed: false,
                start_errno: None,
                finished_at_ms: now_ms(),
                ..End::default()
            };
            let mut end = entry.verdict.unwrap_or(real);
            if let Stage::Started { at_ms } = entry.record.stage {
                end.started_at_ms = at_ms;
            }
            entry.record.stage = Stage::Ended(end);
            entry.ctl = None;
            started.iter().for_each(|message| tell(&state, message, &[]));
            tell(&state, &FromKeeper::Ended { id, end }, &[]);
        });
    }

    fn bind(&self, id: String, binding: Binding) {
        let mut state = self.lock();
        state.binds.push(id.clone());
        if state.mood.dead_at_bind > 0 {
            state.mood.dead_at_bind -= 1;
            let pidfd = &state.entries[&id].pidfd;
            let _ = pidfd::kill(pidfd, Signal::SIGKILL);
            while !pidfd::ended(pidfd.as_fd()) {
                thread::yield_now();
            }
            tell(&state, &FromKeeper::NoSuch { id }, &[]);
            return;
        }
        match state.entries.get_mut(&id) {
            Some(entry) if !matches!(entry.record.stage, Stage::Ended(_)) => {
                entry.record.binding = Some(binding);
                if entry.record.stage == Stage::Paused {
                    entry.record.stage = Stage::Bound;
                }
                tell(&state, &FromKeeper::Bound { id }, &[]);
            }
            _ => tell(&state, &FromKeeper::NoSuch { id }, &[]),
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let mut state = self.lock();
        // What its agent still asks for in the background leaves nothing either.
        state.mood.ignores_makes = true;
        state.mood.ignores_handoffs = true;
        state.agent = None;
        for entry in state.entries.values() {
            let _ = pidfd::kill(&entry.pidfd, Signal::SIGKILL);
        }
    }
}

fn tell(state: &State, message: &FromKeeper, fds: &[i32]) {
    if let Some(agent) = &state.agent {
        let _ = socket::send(agent.as_fd(), &encode(message).unwrap(), fds, MsgFlags::empty());
    }
}

/// The parked process: reads one hand-off, roused before or not, and does what it says.
fn park(shared: &Mutex<State>, id: &str, ctl: OwnedFd, log: PathBuf) {
    let mut buffer = vec![0; HEADER + INLINE];
    let (n, fds) = loop {
        match socket::recv(&ctl, &mut buffer, MsgFlags::empty()) {
            Err(_) | Ok((0, _)) => return,
            Ok((n, _)) if roused_from(&buffer[..n]).is_some() => {}
            Ok(handoff) => break handoff,
        }
    };
    let header = Header::read(&buffer[..n]).unwrap();
    let mut body = buffer[HEADER..n].to_vec();
    if let Some(fd) = fds.into_iter().next() {
        body = vec![0; header.bytes];
        File::from(fd).read_exact_at(&mut body, 0).unwrap();
    }
    let strings = Strings::read(header, &body).unwrap();
    let text = |text: &std::ffi::CStr| text.to_str().unwrap().to_owned();
    let handed = Handed {
        argv: strings.args().map(text).collect(),
        env: strings.envs().map(text).collect(),
        cwd: text(strings.cwd),
    };
    let argv = handed.argv.clone();
    let number = argv.get(1).and_then(|n| n.parse::<i32>().ok()).unwrap_or(0);
    let mut state = shared.lock().unwrap_or_else(|e| e.into_inner());
    if state.mood.ignores_handoffs {
        std::mem::forget(ctl);
        return;
    }
    // The keeper reads a bind before it looks at what the program does.
    while !state.binds.iter().any(|bound| bound == id) {
        drop(state);
        thread::yield_now();
        state = shared.lock().unwrap_or_else(|e| e.into_inner());
    }
    let over = |code: Option<i32>, signal: Option<i32>, oom_killed: bool, start_errno: Option<i32>| End {
        code,
        signal,
        oom_killed,
        start_errno,
        finished_at_ms: now_ms(),
        ..End::default()
    };
    let Some(entry) = state.entries.get_mut(id) else { return };
    entry.handed = Some(handed);
    let verdict = match argv[0].as_str() {
        "fail" => Some(over(Some(127), None, false, Some(number))),
        "exit" => Some(over(Some(number), None, false, None)),
        "oom" => Some(over(None, Some(9), true, None)),
        _ => None,
    };
    entry.verdict = verdict;
    let ends = verdict.is_some() || argv[0] == "die";
    let runs = argv[0] != "die" && argv[0] != "fail";
    if runs {
        std::fs::write(log, "2026-01-01T00:00:01Z stdout F hello\n2026-01-01T00:00:02Z stderr F oops\n").unwrap();
        entry.runs = true;
    } else if argv[0] == "fail" {
        let message = [HandoffStage::Exec.code().to_le_bytes(), number.to_le_bytes()].concat();
        socket::send(&ctl, &message, &[], MsgFlags::empty()).unwrap();
    }
    let pidfd = state.entries[id].pidfd.try_clone().unwrap();
    drop(state);
    if ends {
        let _ = pidfd::kill(&pidfd, Signal::SIGKILL);
        // A process that dies lets go of its memory before it closes its descriptors.
        while !pidfd::ended(pidfd.as_fd()) {
            thread::yield_now();
        }
    }
    drop(ctl);
}

pub fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64
}
