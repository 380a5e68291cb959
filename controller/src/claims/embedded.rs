//! The embedded store: one redb file, one writer thread, one commit for everything that waits.
//!
//! A commit is durable when it returns. The file survives being cut off at any write: redb recovers to the last
//! commit. A file that is damaged beyond that is moved aside, loudly, and the claims of running sandboxes come back
//! from the agents, which carry them.

use super::{Claim, ClaimStore, Key, Loaded, WriteError};
use crate::clock;
use crate::error::Error;
use futures_util::future::BoxFuture;
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableDefinition};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// `namespace/name` → (UID, document).
const CLAIMS: TableDefinition<'_, &str, (&str, &[u8])> = TableDefinition::new("claims-v1");
/// UID → Unix milliseconds of the removal.
const TOMBSTONES: TableDefinition<'_, &str, i64> = TableDefinition::new("tombstones-v1");

/// How long a tombstone stays in the file.
const TOMBSTONE_DAYS: i64 = 7;
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
    Put { key: String, uid: Arc<str>, document: Vec<u8> },
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
            std::fs::create_dir_all(parent).map_err(io)?;
        }
        let (database, loaded, recovery) = match open_and_read(path) {
            Ok((database, loaded)) => (database, loaded, Recovery::Clean),
            Err(OpenError::Fatal(error)) => return Err(error),
            Err(OpenError::Damaged(why)) => {
                let aside = path.with_extension(format!("damaged-{}", clock::now_ms()));
                std::fs::rename(path, &aside).map_err(io)?;
                tracing::error!(path = %path.display(), aside = %aside.display(), why,
                    "the claim store is damaged and was moved aside; claims of running sandboxes come back from their agents");
                match open_and_read(path) {
                    Ok((database, loaded)) => (database, loaded, Recovery::MovedAside(aside)),
                    Err(OpenError::Fatal(error)) => return Err(error),
                    Err(OpenError::Damaged(why)) => return Err(Error::Store { path: path.to_owned(), why }),
                }
            }
        };
        let (jobs, queue) = mpsc::channel(QUEUE);
        let hurry = Arc::new(Hurry::default());
        let writer = Writer { path: path.to_owned(), hurry: hurry.clone(), database: Some(database) };
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
        let op = Op::Put { key: claim.key.to_string(), uid: claim.uid.clone(), document: claim.to_document() };
        Box::pin(self.run(op, urgent))
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

enum OpenError {
    Damaged(String),
    Fatal(Error),
}

/// Opens the file and reads all of it: what cannot be read is damage. redb may panic on a file that it did not write.
fn open_and_read(path: &Path) -> Result<(Database, Loaded), OpenError> {
    let attempt = catch_unwind(AssertUnwindSafe(|| -> Result<(Database, Loaded), redb::Error> {
        let mut database = Database::create(path)?;
        database.check_integrity()?;
        let transaction = database.begin_write()?;
        transaction.open_table(CLAIMS)?;
        let mut tombstones = transaction.open_table(TOMBSTONES)?;
        let oldest = clock::now_ms() - TOMBSTONE_DAYS * 86_400_000;
        tombstones.retain(|_, removed_at| removed_at > oldest)?;
        drop(tombstones);
        transaction.commit()?;
        let loaded = read(&database)?;
        Ok((database, loaded))
    }));
    match attempt {
        Ok(Ok(opened)) => Ok(opened),
        Ok(Err(error)) => Err(classify(path, error)),
        Err(_) => Err(OpenError::Damaged("reading it panicked".into())),
    }
}

fn read(database: &Database) -> Result<Loaded, redb::Error> {
    let transaction = database.begin_read()?;
    let mut loaded = Loaded::default();
    for row in transaction.open_table(CLAIMS)?.iter()? {
        let (key, value) = row?;
        match Claim::from_document(value.value().1) {
            Ok(claim) => loaded.claims.push(claim),
            Err(error) => tracing::error!(claim = key.value(), %error, "a claim cannot be read and is left out"),
        }
    }
    for row in transaction.open_table(TOMBSTONES)?.iter()? {
        loaded.tombstones.push(row?.0.value().into());
    }
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

struct Writer {
    path: PathBuf,
    hurry: Arc<Hurry>,
    /// `None` after a failed commit: redb wants to be opened again after an IO error.
    database: Option<Database>,
}

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
            let results = catch_unwind(AssertUnwindSafe(|| self.commit(&batch)))
                .unwrap_or_else(|_| Err("the store panicked".into()));
            committed = Some(Instant::now());
            match results {
                Ok(results) => {
                    for (job, result) in batch.drain(..).zip(results) {
                        // Who asked may have gone.
                        let _ = job.done.send(result);
                    }
                }
                Err(why) => {
                    self.database = None;
                    for job in batch.drain(..) {
                        let _ = job.done.send(Err(WriteError::Transient(why.clone())));
                    }
                }
            }
        }
    }

    fn commit(&mut self, batch: &[Job]) -> Result<Vec<Result<(), WriteError>>, String> {
        let database = match self.database.take() {
            Some(database) => database,
            None => Database::open(&self.path).map_err(|error: DatabaseError| error.to_string())?,
        };
        let results = write(&database, batch).map_err(|error| error.to_string())?;
        self.database = Some(database);
        Ok(results)
    }
}

fn write(database: &Database, batch: &[Job]) -> Result<Vec<Result<(), WriteError>>, redb::Error> {
    let transaction = database.begin_write()?;
    let mut results = Vec::with_capacity(batch.len());
    {
        let mut claims = transaction.open_table(CLAIMS)?;
        let mut tombstones = transaction.open_table(TOMBSTONES)?;
        for job in batch {
            results.push(match &job.op {
                Op::Put { key, uid, document } => {
                    let owner = owner(&claims, key)?;
                    if owner.as_deref().is_some_and(|owner| owner != &**uid) {
                        Err(WriteError::Final {
                            reason: "DuplicateName",
                            message: format!("{key} belongs to another claim"),
                        })
                    } else {
                        claims.insert(key.as_str(), (&**uid, document.as_slice()))?;
                        Ok(())
                    }
                }
                Op::Remove { key, uid, entomb } => {
                    if owner(&claims, key)?.as_deref() == Some(&**uid) {
                        claims.remove(key.as_str())?;
                    }
                    if *entomb {
                        tombstones.insert(&**uid, clock::now_ms())?;
                    }
                    Ok(())
                }
            });
        }
    }
    transaction.commit()?;
    Ok(results)
}

fn owner(
    claims: &impl ReadableTable<&'static str, (&'static str, &'static [u8])>,
    key: &str,
) -> Result<Option<String>, StorageError> {
    Ok(claims.get(key)?.map(|row| row.value().0.to_owned()))
}

#[cfg(test)]
mod tests;
