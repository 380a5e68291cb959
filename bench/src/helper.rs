//! Helper processes: how the bench starts them, talks to them and ends them.

use crate::burst::{self, Burst};
use crate::cell::Started;
use crate::payload::Payload;
use crate::protocol::{Answer, Ask, Line};
use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a helper may take for one answer, or to set itself up.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long it may take to end by itself.
const FAREWELL: Duration = Duration::from_secs(5);

/// A child process that does not outlive this value.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    /// Whether it ends by itself soon; if not, it is killed at once.
    ends: bool,
}

impl Process {
    /// Starts `command` with its output in `log`, in a process group of its own: Ctrl-C in the terminal is for the
    /// bench alone, which then ends what it started in the right order.
    pub fn start(command: &mut Command, name: &str, log: &Path) -> anyhow::Result<Self> {
        let output =
            std::fs::File::options().create(true).append(true).open(log).with_context(|| log.display().to_string())?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {name} ({})", command.get_program().to_string_lossy()))?;
        Ok(Self { child, name: name.to_owned(), ends: false })
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// An error if it has ended, with the end of its output.
    pub fn check(&mut self, log: &Path) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait()? {
            let text = std::fs::read_to_string(log).unwrap_or_default();
            let tail: Vec<&str> = text.lines().rev().take(5).collect();
            bail!("{} ended ({status}): {}", self.name, tail.into_iter().rev().collect::<Vec<_>>().join(" | "));
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

impl Process {
    /// Ends it, if it has not ended.
    fn end(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        let end = Instant::now() + if self.ends { FAREWELL } else { Duration::ZERO };
        while Instant::now() < end {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        // A keeper is the child of the program that made its namespaces, and all below it ends with it.
        for pid in children(self.pid()).into_iter().chain([self.pid()]) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            let end = Instant::now() + FAREWELL;
            while pid != self.pid() && Path::new("/proc").join(pid.to_string()).exists() && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        let _ = self.child.wait();
    }
}

/// The children of a process, of all its threads.
pub fn children(pid: i32) -> Vec<i32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks
        .flat_map(|task| {
            let text = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>()
        })
        .collect()
}

/// Where helpers find the bench.
#[derive(Debug)]
pub struct Hub {
    listener: UnixListener,
    path: PathBuf,
}

impl Hub {
    /// A socket called `name` in `dir`.
    pub fn open(dir: &Path, name: &str) -> anyhow::Result<Self> {
        let path = dir.join(name);
        // Of a helper before this one.
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).with_context(|| path.display().to_string())?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, path })
    }

    /// For a helper's `--connect`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until the helper that `process` is, or has started, is set up.
    pub fn accept(&self, mut process: Process, log: &Path, ends: bool) -> anyhow::Result<Helper> {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false)?;
                    stream.set_read_timeout(Some(PATIENCE))?;
                    let mut line = Line::new(stream)?;
                    match line.receive()? {
                        Some(Answer::Ready) => {}
                        other => bail!("{} did not get ready: {other:?}; see {}", process.name, log.display()),
                    }
                    process.ends = ends;
                    return Ok(Helper { line: Some(line), process, again: None });
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    process.check(log)?;
                    crate::interrupt::check()?;
                    if Instant::now() > end {
                        bail!("{} did not get ready within {PATIENCE:?}; see {}", process.name, log.display());
                    }
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// A helper that is set up. It ends when this is dropped.
pub struct Helper {
    line: Option<Line>,
    process: Process,
    again: Option<Box<dyn Fn() -> anyhow::Result<Self>>>,
}

impl Helper {
    /// Its process, or the one that started it.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// The same, but for one that is made anew when it does not answer any more.
    pub fn restarted_by(mut self, again: impl Fn() -> anyhow::Result<Self> + 'static) -> Self {
        self.again = Some(Box::new(again));
        self
    }

    /// One question, one answer.
    pub fn ask(&mut self, ask: &Ask) -> anyhow::Result<Answer> {
        if let (None, Some(again)) = (&self.line, &self.again) {
            // Its successor uses the same directories.
            self.process.end();
            let mut next = again()?;
            next.again = self.again.take();
            *self = next;
        }
        let name = self.process.name.clone();
        let line = self.line.as_mut().with_context(|| format!("{name} is gone"))?;
        let answer = line.send(ask).and_then(|()| line.receive());
        match answer {
            Ok(Some(Answer::Failed { error })) => bail!("{error}"),
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => {
                self.line = None;
                bail!("{name} ended")
            }
            // An answer that comes too late would be taken for that of the next question.
            Err(error) => {
                self.line = None;
                Err(error).with_context(|| format!("ask {name}"))
            }
        }
    }

    /// One sample.
    pub fn start(&mut self, cell: &str, payload: Payload, due_ns: Option<u64>) -> anyhow::Result<Started> {
        match self.ask(&Ask::Start { cell: cell.to_owned(), payload, due_ns })? {
            Answer::Started(started) => Ok(started),
            other => bail!("unexpected answer {other:?}"),
        }
    }
}

impl Helper {
    /// Many samples at once.
    pub fn burst(&mut self, cell: &str, ask: burst::Ask) -> anyhow::Result<Burst> {
        match self.ask(&Ask::Burst { cell: cell.to_owned(), ask })? {
            Answer::Burst(burst) => Ok(burst),
            other => bail!("unexpected answer {other:?}"),
        }
    }

    /// Where the time of the starts so far went, in mean microseconds; empty if it cannot say.
    pub fn stages(&mut self) -> BTreeMap<String, f64> {
        match self.ask(&Ask::Stages) {
            Ok(Answer::Stages(stages)) => stages,
            _ => BTreeMap::new(),
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // End-of-file tells it to end.
        self.line = None;
    }
}
