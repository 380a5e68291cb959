//! The spawner's loop: one request after the other, those that somebody waits for first. A cast goes its way by itself,
//! in a process of its own, so the next container is begun meanwhile.

use crate::filler::{Ends, Failure, Filler, validate};
use anyhow::{Context, Result};
use fsb_host::wire::{FromSpawner, How, MAX_MESSAGE, Made, Make, MakeFailed, ToSpawner, decode, encode};
use fsb_host::{park, pidfd, socket};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::socket::MsgFlags;
use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

/// How long a cast may take until it is parked.
const PATIENCE: Duration = Duration::from_secs(5);

/// A container that is not parked yet.
struct Cast {
    made: Made,
    ends: Ends,
    until: Instant,
}

/// How long what is left of a failed container is tried to be removed, and how often. Then it is the agent's sweep's.
const UNDO: Duration = Duration::from_millis(500);
const UNDO_AGAIN: Duration = Duration::from_millis(5);

/// A container that failed, of which something may be left. It is told when that has gone.
struct Undo {
    id: String,
    failure: Failure,
    until: Instant,
}

impl Undo {
    fn new(id: String, failure: Failure) -> Self {
        Self { id, failure, until: Instant::now() + UNDO }
    }

    /// Tries it. Returns whether it is over, one way or the other.
    fn attempt(&self, filler: &dyn Filler) -> bool {
        match filler.undo(&self.id) {
            Ok(()) => true,
            Err(_) if Instant::now() < self.until => false,
            Err(error) => {
                tracing::warn!(id = self.id, "left to the agent's sweep: {error:#}");
                true
            }
        }
    }
}

/// Serves until the keeper is gone.
pub fn serve(keeper: BorrowedFd<'_>, filler: &mut dyn Filler) -> Result<()> {
    serve_within(keeper, filler, PATIENCE)
}

fn serve_within(keeper: BorrowedFd<'_>, filler: &mut dyn Filler, patience: Duration) -> Result<()> {
    // More would only take turns.
    let most = std::thread::available_parallelism().map_or(2, |processors| processors.get().max(2));
    let (mut urgent, mut refills, mut casts) = (VecDeque::new(), VecDeque::new(), Vec::<Cast>::new());
    let mut undos = Vec::<Undo>::new();
    let mut buffer = vec![0; MAX_MESSAGE];
    loop {
        for undo in undos.extract_if(.., |undo| undo.attempt(filler)) {
            failed(keeper, undo.id, undo.failure)?;
        }
        let work = casts.len() < most && !(urgent.is_empty() && refills.is_empty());
        let again = (!undos.is_empty()).then(|| Instant::now() + UNDO_AGAIN);
        let wait = if work { PollTimeout::ZERO } else { until(casts.iter().map(|cast| cast.until).chain(again).min()) };
        let mut fds = vec![PollFd::new(keeper, PollFlags::POLLIN)];
        fds.extend(casts.iter().map(|cast| PollFd::new(cast.ends.ctl.as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, wait) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("poll"),
        }
        let now = Instant::now();
        let spoke: Vec<bool> = fds[1..].iter().map(|fd| fd.any().unwrap_or(false)).collect();
        let mut spoke = spoke.into_iter();
        for cast in casts.extract_if(.., |cast| spoke.next().unwrap_or(false) || cast.until <= now) {
            undos.extend(arrived(keeper, cast)?);
        }
        // All that has come, so that what is urgent is known.
        loop {
            match socket::recv(keeper, &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok((0, _)) => return Ok(()),
                Ok((n, _)) => {
                    let ToSpawner::Make(make) = decode(&buffer[..n]).context("a message from the keeper")?;
                    if make.urgent { urgent.push_back(make) } else { refills.push_back(make) }
                }
                Err(Errno::EAGAIN) => break,
                Err(error) => return Err(error).context("the keeper's socket"),
            }
        }
        if casts.len() < most
            && let Some(make) = urgent.pop_front().or_else(|| refills.pop_front())
        {
            if let Err(error) = validate(&make) {
                // Nothing is undone either: its id may be a path.
                failed(keeper, make.id, Failure { stage: "recipe", error })?;
                continue;
            }
            match begin(keeper, filler, &make) {
                Err(failure) => undos.push(Undo::new(make.id, failure)),
                Ok((made, ends)) if made.how == How::Cast => {
                    casts.push(Cast { made, ends, until: Instant::now() + patience });
                }
                Ok((made, ends)) => deliver(keeper, made, &ends)?,
            }
        }
    }
}

/// For poll(2), in whole milliseconds: rather a little later than too early.
fn until(end: Option<Instant>) -> PollTimeout {
    let left = |end: Instant| end.saturating_duration_since(Instant::now()).as_millis() as i32 + 1;
    end.map_or(PollTimeout::NONE, |end| PollTimeout::try_from(left(end)).unwrap_or(PollTimeout::MAX))
}

fn begin(keeper: BorrowedFd<'_>, filler: &mut dyn Filler, make: &Make) -> Result<(Made, Ends), Failure> {
    let mut announce = |pid, id: &str| {
        // If the keeper is gone, so are we, at the next message.
        let _ = tell(keeper, &FromSpawner::Mould { pid, id: id.to_owned() }, &[]);
    };
    filler.fill(make, &mut announce)
}

/// A cast has said something, has ended, or its time is over. Returns what is to be undone.
fn arrived(keeper: BorrowedFd<'_>, cast: Cast) -> Result<Option<Undo>> {
    match park::ready(cast.ends.ctl.as_fd(), 0) {
        Ok(()) => deliver(keeper, cast.made, &cast.ends).map(|()| None),
        Err(error) => {
            let _ = pidfd::kill(&cast.ends.pidfd, Signal::SIGKILL);
            let error = anyhow::Error::new(error).context("cast");
            Ok(Some(Undo::new(cast.made.id, Failure { stage: "cast", error })))
        }
    }
}

fn deliver(keeper: BorrowedFd<'_>, made: Made, ends: &Ends) -> Result<()> {
    let Ends { ctl, pidfd, stdout, stderr, started } = ends;
    let fds = [ctl, pidfd, stdout, stderr, started].map(|fd| fd.as_raw_fd());
    tell(keeper, &FromSpawner::Made(made), &fds)
}

fn failed(keeper: BorrowedFd<'_>, id: String, Failure { stage, error }: Failure) -> Result<()> {
    tracing::warn!(id, stage, "{error:#}");
    let failed = MakeFailed { id, stage: stage.to_owned(), error: format!("{error:#}") };
    tell(keeper, &FromSpawner::MakeFailed(failed), &[])
}

/// Sends a message to the keeper.
pub fn tell(keeper: BorrowedFd<'_>, message: &FromSpawner, fds: &[i32]) -> Result<()> {
    socket::send(keeper, &encode(message)?, fds, MsgFlags::empty()).context("send to the keeper")
}

#[cfg(test)]
mod tests {
    use super::*;
    use fsb_host::wire::{Overlay, Recipe};
    use std::os::fd::OwnedFd;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Child, Command};
    use std::sync::{Arc, Mutex};

    #[derive(Default)]
    struct Seen {
        /// The container's end of each control socket.
        begun: Vec<OwnedFd>,
        processes: Vec<Child>,
        undone: Vec<String>,
        /// Of these something is left for as long as they are in here.
        stuck: Vec<String>,
    }

    /// Begins containers of which the test says when they are parked.
    struct Fake(Arc<Mutex<Seen>>);

    impl Filler for Fake {
        fn fill(&mut self, make: &Make, _: &mut dyn FnMut(i32, &str)) -> Result<(Made, Ends), Failure> {
            let (ctl, inner) = socket::pair().unwrap();
            let process = Command::new("sleep").arg("60").spawn().unwrap();
            let (pid, pidfd) = (process.id() as i32, pidfd::open(process.id() as i32).unwrap());
            let mut seen = self.0.lock().unwrap();
            seen.begun.push(inner);
            seen.processes.push(process);
            let (recipe, cgroups) = (make.recipe.clone(), Vec::new());
            let null = || std::fs::File::open("/dev/null").unwrap().into();
            let ends = Ends { ctl, pidfd, stdout: null(), stderr: null(), started: null() };
            Ok((Made { id: make.id.clone(), pid, how: How::Cast, recipe, cgroups }, ends))
        }

        fn undo(&self, id: &str) -> Result<()> {
            let mut seen = self.0.lock().unwrap();
            anyhow::ensure!(!seen.stuck.iter().any(|stuck| stuck == id), "busy");
            seen.undone.push(id.to_owned());
            Ok(())
        }
    }

    /// A spawner's loop, with the test as its keeper.
    fn start(patience: Duration) -> (OwnedFd, Arc<Mutex<Seen>>) {
        let (keeper, inner) = socket::pair().unwrap();
        let seen = Arc::<Mutex<Seen>>::default();
        let mut fake = Fake(seen.clone());
        std::thread::spawn(move || serve_within(inner.as_fd(), &mut fake, patience).unwrap());
        (keeper, seen)
    }

    fn id(number: u32) -> String {
        format!("{number:032x}")
    }

    fn ask(keeper: &OwnedFd, number: u32) {
        let recipe = Recipe {
            image: "image".into(),
            lowers: vec!["/".into()],
            user: Default::default(),
            profile: Default::default(),
            runtime: Default::default(),
            plugins: Vec::new(),
            overlay: Overlay::Disk,
        };
        let make = Make { id: id(number), recipe, how: None, urgent: false, lookups: Vec::new(), spare: None };
        socket::send(keeper, &encode(&ToSpawner::Make(make)).unwrap(), &[], MsgFlags::empty()).unwrap();
    }

    fn answer(keeper: &OwnedFd) -> (FromSpawner, Vec<OwnedFd>) {
        let mut buffer = vec![0; MAX_MESSAGE];
        let (n, fds) = socket::recv(keeper, &mut buffer, MsgFlags::empty()).unwrap();
        (decode(&buffer[..n]).unwrap(), fds)
    }

    fn begun(seen: &Mutex<Seen>, count: usize) {
        let until = Instant::now() + Duration::from_secs(20);
        while seen.lock().unwrap().begun.len() < count {
            assert!(Instant::now() < until, "it waits for the one before");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn the_next_container_is_begun_while_one_is_on_its_way() {
        let (keeper, seen) = start(Duration::from_secs(60));
        ask(&keeper, 0);
        ask(&keeper, 1);
        begun(&seen, 2);
        // The second one is parked first, and is not held up either.
        for number in [1, 0] {
            let inner = seen.lock().unwrap().begun[number].try_clone().unwrap();
            socket::send(&inner, park::READY, &[], MsgFlags::empty()).unwrap();
            let (FromSpawner::Made(made), fds) = answer(&keeper) else { panic!("not made") };
            assert_eq!((made.id, fds.len()), (id(number as u32), 5));
        }
        let mut seen = seen.lock().unwrap();
        assert!(seen.undone.is_empty());
        for process in &mut seen.processes {
            assert!(process.try_wait().unwrap().is_none());
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    #[test]
    fn a_failed_container_that_is_slow_to_go_holds_up_no_other() {
        let (keeper, seen) = start(Duration::from_secs(60));
        seen.lock().unwrap().stuck.push(id(0));
        let asked = Instant::now();
        ask(&keeper, 0);
        begun(&seen, 1);
        seen.lock().unwrap().begun[0] = std::fs::File::open("/dev/null").unwrap().into();
        for number in 1..3 {
            ask(&keeper, number);
            begun(&seen, number as usize + 1);
            let inner = seen.lock().unwrap().begun[number as usize].try_clone().unwrap();
            socket::send(&inner, park::READY, &[], MsgFlags::empty()).unwrap();
            let (FromSpawner::Made(made), _) = answer(&keeper) else { panic!("not made") };
            assert_eq!(made.id, id(number));
        }
        assert!(seen.lock().unwrap().undone.is_empty());
        // It is told when its time is over, and not before.
        let (FromSpawner::MakeFailed(failed), _) = answer(&keeper) else { panic!("not failed") };
        assert_eq!(failed.id, id(0));
        assert!(asked.elapsed() >= UNDO && seen.lock().unwrap().undone.is_empty());
        for process in &mut seen.lock().unwrap().processes {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    #[test]
    fn a_container_that_dies_or_is_not_parked_in_time_is_killed_and_undone() {
        let (keeper, seen) = start(Duration::from_secs(1));
        ask(&keeper, 0);
        ask(&keeper, 1);
        begun(&seen, 2);
        seen.lock().unwrap().begun.remove(1);
        let mut failed: Vec<(String, String)> = (0..2)
            .map(|_| match answer(&keeper) {
                (FromSpawner::MakeFailed(failed), _) => (failed.id, format!("{}: {}", failed.stage, failed.error)),
                (other, _) => panic!("{other:?}"),
            })
            .collect();
        failed.sort();
        assert!(failed[0].1.contains("cast: not parked in time"), "{failed:?}");
        assert!(failed[1].1.contains("cast: it ended before it was parked"), "{failed:?}");
        let mut seen = seen.lock().unwrap();
        seen.undone.sort();
        assert_eq!(seen.undone, [id(0), id(1)]);
        for process in &mut seen.processes {
            assert_eq!(process.wait().unwrap().signal(), Some(Signal::SIGKILL as i32));
        }
    }
}
