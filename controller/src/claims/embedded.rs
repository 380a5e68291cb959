//! The embedded store: one redb file, one writer thread, one commit for everything that waits.
//!
//! A commit is durable when it returns. The file survives being cut off at any write: redb recovers to the last
//! commit. On a full disk it goes on with the room that it has in advance ([`room`]). A file that is damaged beyond that
//! is moved aside, loudly, and the claims of running sandboxes come back from the agents, which carry them.

mod room;

use super::burials::{Burials, TOMBSTONES};
use super::{Claim, ClaimStore, Key, Loaded, WriteError};
use crate::clock;
use crate::error::Error;
use fsb_files::Access;
use futures_util::future::BoxFuture;
use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, StorageError, TableDefinition};
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// `namespace/name` → (UID, document).
const CLAIMS: TableDefinition<'_, &str, (&str, &[u8])> = TableDefinition::new("claims-v1");
/// Rows of [`CLAIMS`] that are no claims, until a claim of their name is written again.
const UNREADABLE: TableDefinition<'_, &str, (&str, &[u8])> = TableDefinition::new("unreadable-claims-v1");

/// The largest row, in bytes: what a request may have, each byte written as six, and as much again. A larger one is
/// refused before the store sees it.
const MAX_ROW_BYTES: usize = 32 << 20;
/// Failed commits of one batch after which its parts are not tried any more: enough to find two claims among all.
const MAX_FAILURES: u32 = 24;
/// Begins the extension of a store that was moved aside.
const DAMAGED: &str = "damaged-";
/// Writes that may wait for the writer thread.
const QUEUE: usize = 4096;
/// The most that one commit takes.
const BATCH: usize = 1024;
/// How long a write that nobody waits for waits for others to share its commit; one that somebody waits for takes it
/// along at once.
const LINGER: Duration = Duration::from_millis(10);
/// How long any write waits that comes so soon after the last commit: where many come, each commit has several of them.
const PAUSE: Duration = Duration::from_millis(2);

/// What became of the file when it was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recovery {
    /// It was as it should be, or new.
    Clean,
    /// It was damaged and lies at this path now; the store is new and empty.
    MovedAside(PathBuf),
}

enum Op {
    Put { claim: Arc<Claim> },
    Remove { key: String, uid: Arc<str>, entomb: bool },
}

struct Job {
    op: Op,
    urgent: bool,
    done: oneshot::Sender<Result<(), WriteError>>,
}

/// Claims in a redb file.
#[derive(Debug)]
pub struct Embedded {
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    hurry: Arc<Hurry>,
    writer: Mutex<Option<std::thread::JoinHandle<()>>>,
    loaded: Mutex<Option<Loaded>>,
}

impl Embedded {
    /// Opens or creates the file and starts the writer thread, which ends with the value.
    pub fn open(path: &Path) -> Result<(Self, Recovery), Error> {
        let io = |source| Error::StoreFile { path: path.to_owned(), source };
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            if !parent.is_dir() {
                fsb_files::create_dir(parent, Access::Owner).map_err(io)?;
            }
            if let Err(error) = close_damaged(parent, path) {
                tracing::warn!(dir = %parent.display(), %error, "damaged stores of before may be readable to others");
            }
        }
        let (open, loaded, recovery) = match open_and_read(path) {
            Ok((open, loaded)) => (open, loaded, Recovery::Clean),
            Err(OpenError::Fatal(error)) => return Err(error),
            Err(OpenError::Damaged(why)) => {
                let aside = path.with_extension(format!("{DAMAGED}{}", clock::now_ms()));
                std::fs::rename(path, &aside).map_err(io)?;
                tracing::error!(path = %path.display(), aside = %aside.display(), why,
                    "the claim store is damaged and was moved aside; claims of running sandboxes come back from their agents");
                match open_and_read(path) {
                    Ok((open, loaded)) => (open, loaded, Recovery::MovedAside(aside)),
                    Err(OpenError::Fatal(error)) => return Err(error),
                    Err(OpenError::Damaged(why)) => return Err(Error::Store { path: path.to_owned(), why }),
                }
            }
        };
        let (jobs, queue) = mpsc::channel(QUEUE);
        let hurry = Arc::new(Hurry::default());
        let writer = Writer { path: path.to_owned(), hurry: hurry.clone(), open: Some(open) };
        let writer =
            std::thread::Builder::new().name("claim-writer".into()).spawn(move || writer.run(queue)).map_err(io)?;
        let store = Self {
            jobs: Mutex::new(Some(jobs)),
            hurry,
            writer: Mutex::new(Some(writer)),
            loaded: Mutex::new(Some(loaded)),
        };
        Ok((store, recovery))
    }

    async fn run(&self, op: Op, urgent: bool) -> Result<(), WriteError> {
        let (done, result) = oneshot::channel();
        let gone = || WriteError::Transient("the claim writer has ended".into());
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or_else(gone)?;
        jobs.send(Job { op, urgent, done }).await.map_err(|_| gone())?;
        if urgent {
            self.hurry.ask();
        }
        result.await.map_err(|_| gone())?
    }
}

impl ClaimStore for Embedded {
    fn load(&self) -> BoxFuture<'_, Result<Loaded, WriteError>> {
        let loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default();
        Box::pin(async move { Ok(loaded) })
    }

    fn put(&self, claim: Arc<Claim>, urgent: bool) -> BoxFuture<'_, Result<(), WriteError>> {
        Box::pin(self.run(Op::Put { claim }, urgent))
    }

    fn remove(&self, key: Key, uid: Arc<str>, entomb: bool) -> BoxFuture<'_, Result<(), WriteError>> {
        Box::pin(self.run(Op::Remove { key: key.to_string(), uid, entomb }, false))
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        drop(self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take());
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        Box::pin(async move {
            if let Some(writer) = writer {
                // It ends after what waits; a panic in it was answered to those who waited.
                let _ = tokio::task::spawn_blocking(move || writer.join()).await;
            }
        })
    }
}

/// What was moved aside is as secret as the store, also where an older version did it.
fn close_damaged(parent: &Path, path: &Path) -> std::io::Result<()> {
    let damaged = path.with_extension(DAMAGED);
    for entry in std::fs::read_dir(parent)? {
        let aside = entry?.path();
        if aside.as_os_str().as_encoded_bytes().starts_with(damaged.as_os_str().as_encoded_bytes()) {
            fsb_files::open(&aside, File::options().read(true))?;
        }
    }
    Ok(())
}

enum OpenError {
    Damaged(String),
    Fatal(Error),
}

/// Opens the file and reads all of it: what cannot be read is damage. redb may panic on a file that it did not write.
fn open_and_read(path: &Path) -> Result<(Open, Loaded), OpenError> {
    let attempt = catch_unwind(AssertUnwindSafe(|| -> Result<(Open, Loaded), redb::Error> {
        let mut database = room::open(path, true)?;
        database.check_integrity()?;
        let loaded = read(&database)?;
        let open = Open::new(database)?;
        let tombstones = open.burials.uids();
        Ok((open, Loaded { tombstones, ..loaded }))
    }));
    match attempt {
        Ok(Ok(opened)) => Ok(opened),
        Ok(Err(error)) => Err(classify(path, error)),
        Err(_) => Err(OpenError::Damaged("reading it panicked".into())),
    }
}

/// All claims. Rows that are none move to a table of their own: in this one they would keep their names from being used.
fn read(database: &Database) -> Result<Loaded, redb::Error> {
    let transaction = database.begin_write()?;
    let mut loaded = Loaded::default();
    {
        let mut claims = transaction.open_table(CLAIMS)?;
        let mut unreadable = transaction.open_table(UNREADABLE)?;
        let mut bad = Vec::new();
        for row in claims.iter()? {
            let (key, value) = row?;
            match Claim::from_document(value.value().1) {
                Ok(claim) if claim.key.to_string() == key.value() && *claim.uid == *value.value().0 => {
                    loaded.claims.push(claim);
                }
                Ok(_) => bad.push((key.value().to_owned(), "it is another claim's".to_owned())),
                Err(error) => bad.push((key.value().to_owned(), error.to_string())),
            }
        }
        for (key, error) in bad {
            tracing::error!(claim = key, error, "a claim cannot be read and is put aside; its name is free");
            if let Some(row) = claims.remove(key.as_str())? {
                unreadable.insert(key.as_str(), row.value())?;
            }
        }
        for row in unreadable.iter()? {
            let key = row?.0.value().to_owned();
            let (namespace, name) = key.split_once('/').unwrap_or(("", &key));
            loaded.unreadable.push(Key::new(namespace, name));
        }
        transaction.open_table(TOMBSTONES)?;
    }
    transaction.commit()?;
    Ok(loaded)
}

fn classify(path: &Path, error: redb::Error) -> OpenError {
    use std::io::ErrorKind;
    match error {
        redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch => {
            OpenError::Fatal(Error::StoreInUse { path: path.to_owned() })
        }
        redb::Error::Io(source) if !matches!(source.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) => {
            OpenError::Fatal(Error::StoreFile { path: path.to_owned(), source })
        }
        redb::Error::UpgradeRequired(version) => OpenError::Fatal(Error::Store {
            path: path.to_owned(),
            why: format!("it was written in the old file format {version}"),
        }),
        other => OpenError::Damaged(other.to_string()),
    }
}

/// Adds what waits.
fn fill(batch: &mut Vec<Job>, queue: &mut mpsc::Receiver<Job>) {
    while batch.len() < BATCH
        && let Ok(job) = queue.try_recv()
    {
        batch.push(job);
    }
}

/// Somebody waits for what is in the queue.
#[derive(Debug, Default)]
struct Hurry {
    asked: Mutex<bool>,
    changed: Condvar,
}

impl Hurry {
    fn ask(&self) {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_one();
    }

    fn clear(&self) {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = false;
    }

    /// Until somebody asks, at most so long.
    fn wait(&self, most: Duration) {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.changed.wait_timeout_while(asked, most, |asked| !*asked));
    }
}

/// The open file, and what is known of it.
struct Open {
    database: Database,
    burials: Burials,
}

impl Open {
    fn new(database: Database) -> Result<Self, redb::Error> {
        let burials = Burials::read(&database.begin_read()?.open_table(TOMBSTONES)?)?;
        Ok(Self { database, burials })
    }
}

struct Writer {
    path: PathBuf,
    hurry: Arc<Hurry>,
    /// `None` after a failed commit: redb wants to be opened again after an IO error.
    open: Option<Open>,
}

type Written = Result<(), WriteError>;

impl Writer {
    fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        let mut batch = Vec::new();
        let mut committed: Option<Instant> = None;
        while queue.blocking_recv_many(&mut batch, BATCH) > 0 {
            if committed.is_some_and(|at| at.elapsed() < PAUSE) {
                std::thread::sleep(PAUSE);
            }
            // In this order: what is asked for from here on ends the wait, what was asked for before is in the queue.
            self.hurry.clear();
            fill(&mut batch, &mut queue);
            if batch.len() < BATCH && !batch.iter().any(|job| job.urgent) {
                self.hurry.wait(LINGER);
                fill(&mut batch, &mut queue);
            }
            let results = each_alone(&batch, &mut 0, &mut |batch| self.commit(batch));
            committed = Some(Instant::now());
            for (job, result) in batch.drain(..).zip(results) {
                // Who asked may have gone.
                let _ = job.done.send(result);
            }
        }
    }

    fn commit(&mut self, batch: &[Job]) -> Result<Vec<Written>, String> {
        // Left out where this fails or panics.
        let open = self.open.take();
        let written = catch_unwind(AssertUnwindSafe(|| -> Result<_, redb::Error> {
            let mut open = open.map_or_else(|| Open::new(room::open(&self.path, false)?), Ok)?;
            let results = write(&mut open, batch)?;
            Ok((open, results))
        }));
        let (open, results) =
            written.map_err(|_| "the store panicked".to_owned())?.map_err(|error| error.to_string())?;
        self.open = Some(open);
        Ok(results)
    }
}

/// Commits a batch. Where that fails, each half of it, so that what the store cannot take fails alone in the end, and not
/// the claims of others that it came with. After so many failures it is the store that takes nothing.
fn each_alone<T>(
    batch: &[T],
    failures: &mut u32,
    commit: &mut impl FnMut(&[T]) -> Result<Vec<Written>, String>,
) -> Vec<Written> {
    let why = match commit(batch) {
        Ok(results) => return results,
        Err(why) => why,
    };
    *failures += 1;
    if batch.len() < 2 || *failures >= MAX_FAILURES {
        return vec![Err(WriteError::Transient(why)); batch.len()];
    }
    let (first, second) = batch.split_at(batch.len() / 2);
    let mut results = each_alone(first, failures, commit);
    results.extend(each_alone(second, failures, commit));
    results
}

fn write(open: &mut Open, batch: &[Job]) -> Result<Vec<Written>, redb::Error> {
    let Open { database, burials } = open;
    let transaction = database.begin_write()?;
    let mut results = Vec::with_capacity(batch.len());
    {
        let mut claims = transaction.open_table(CLAIMS)?;
        let mut tombstones = transaction.open_table(TOMBSTONES)?;
        let mut unreadable = transaction.open_table(UNREADABLE)?;
        let any_unreadable = !unreadable.is_empty()?;
        for job in batch {
            results.push(match &job.op {
                Op::Put { claim } => {
                    let (key, uid) = (claim.key.to_string(), &*claim.uid);
                    match owner(&claims, &key)? {
                        Some(owner) if owner != uid => Err(WriteError::Final {
                            reason: "DuplicateName",
                            message: format!("{key} belongs to another claim"),
                        }),
                        _ => match row(claim) {
                            Ok(document) => {
                                claims.insert(key.as_str(), (uid, document.as_slice()))?;
                                if any_unreadable {
                                    unreadable.remove(key.as_str())?;
                                }
                                Ok(())
                            }
                            Err(refused) => Err(refused),
                        },
                    }
                }
                Op::Remove { key, uid, entomb } => {
                    if owner(&claims, key)?.as_deref() == Some(&**uid) {
                        claims.remove(key.as_str())?;
                    }
                    if *entomb {
                        burials.bury(&mut tombstones, uid)?;
                    }
                    Ok(())
                }
            });
        }
    }
    transaction.commit()?;
    Ok(results)
}

/// The claim as it is written.
fn row(claim: &Claim) -> Result<Vec<u8>, WriteError> {
    let refused = |reason, message| WriteError::Final { reason, message };
    let document = serde_json::to_vec(claim).map_err(|error| refused("Invalid", error.to_string()))?;
    if document.len() > MAX_ROW_BYTES {
        let sentence = format!("it takes {} bytes, the store takes {MAX_ROW_BYTES}", document.len());
        return Err(refused("TooLarge", sentence));
    }
    Ok(document)
}

fn owner(
    claims: &impl ReadableTable<&'static str, (&'static str, &'static [u8])>,
    key: &str,
) -> Result<Option<String>, StorageError> {
    Ok(claims.get(key)?.map(|row| row.value().0.to_owned()))
}

#[cfg(test)]
mod tests;
