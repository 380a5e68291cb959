use super::*;
use crate::claims::{Phase, Policy};
use fsb_proto::SandboxSpec;
use rand::{Rng, SeedableRng, rngs::StdRng};
use redb::StorageBackend;
use std::collections::BTreeMap;
use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;

fn claim(name: &str, uid: &str) -> Claim {
    let spec = SandboxSpec { image: "busybox".into(), pool: "default-pool".into(), ..Default::default() };
    Claim::new(Key::new("default", name), uid.into(), Arc::new(spec), Policy::default(), 1)
}

fn job(op: Op) -> Job {
    Job { op, urgent: true, done: oneshot::channel().0 }
}

fn put(claim: &Claim) -> Job {
    job(Op::Put { claim: Arc::new(claim.clone()) })
}

fn remove(claim: &Claim) -> Job {
    job(Op::Remove { key: claim.key.to_string(), uid: claim.uid.clone(), entomb: false })
}

#[tokio::test]
async fn what_was_written_is_there_after_opening_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new/folder/claims.redb");
    {
        let (store, recovery) = Embedded::open(&path).unwrap();
        assert_eq!(recovery, Recovery::Clean);
        for name in ["a", "b", "c"] {
            store.put(Arc::new(claim(name, name)), false).await.unwrap();
        }
        let mut changed = claim("a", "a");
        changed.status.phase = Phase::Running;
        store.put(Arc::new(changed), true).await.unwrap();
        store.remove(Key::new("default", "b"), "b".into(), false).await.unwrap();
        store.remove(Key::new("default", "c"), "another".into(), true).await.unwrap();
        store.close().await;
        let late = store.put(Arc::new(claim("d", "d")), true).await;
        assert!(matches!(late, Err(WriteError::Transient(_))));
    }
    let (store, recovery) = Embedded::open(&path).unwrap();
    assert_eq!(recovery, Recovery::Clean);
    let loaded = store.load().await.unwrap();
    let names: Vec<_> = loaded.claims.iter().map(|claim| (&*claim.key.name, claim.status.phase)).collect();
    assert_eq!(names, [("a", Phase::Running), ("c", Phase::Pending)]);
    assert_eq!(loaded.tombstones, ["another".into()]);
}

#[tokio::test]
async fn a_write_that_somebody_waits_for_takes_along_what_lingers() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Embedded::open(&dir.path().join("claims.redb")).unwrap();
    let mut lingering = store.put(Arc::new(claim("a", "1")), false);
    let mut look = async || std::future::poll_fn(|cx| std::task::Poll::Ready(lingering.as_mut().poll(cx))).await;
    // Handed over, and not written yet.
    assert!(look().await.is_pending());
    store.put(Arc::new(claim("b", "2")), true).await.unwrap();
    // One commit wrote both, so the first one's answer is there as well.
    assert_eq!(look().await, std::task::Poll::Ready(Ok(())));
}

#[test]
fn whoever_is_in_a_hurry_ends_the_wait() {
    let hurry = Hurry::default();
    let hour = Duration::from_secs(3600);
    std::thread::scope(|scope| {
        scope.spawn(|| hurry.ask());
        hurry.wait(hour);
    });
    // It stays asked for until it was looked at.
    hurry.wait(hour);
    // And from then on nobody is in a hurry.
    hurry.clear();
    let (pause, since) = (Duration::from_millis(20), Instant::now());
    hurry.wait(pause);
    assert!(since.elapsed() >= pause, "the wait was over after {:?}", since.elapsed());
}

#[tokio::test]
async fn a_name_belongs_to_its_first_uid() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Embedded::open(&dir.path().join("claims.redb")).unwrap();
    store.put(Arc::new(claim("a", "first")), true).await.unwrap();
    let second = store.put(Arc::new(claim("a", "second")), true).await;
    assert!(matches!(second, Err(WriteError::Final { reason: "DuplicateName", .. })));
    store.remove(Key::new("default", "a"), "first".into(), false).await.unwrap();
    store.put(Arc::new(claim("a", "second")), true).await.unwrap();
}

#[test]
fn a_store_that_another_process_has_open_is_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("claims.redb");
    let _open = Embedded::open(&path).unwrap();
    assert!(matches!(Embedded::open(&path), Err(Error::StoreInUse { .. })));
}

#[tokio::test]
async fn a_file_damaged_beyond_repair_is_moved_aside() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("claims.redb");
    for round in 0..60 {
        {
            let (store, _) = Embedded::open(&path).unwrap();
            for number in 0..20 {
                store.put(Arc::new(claim(&format!("s{number}"), "u")), false).await.unwrap();
            }
            store.close().await;
        }
        let mut bytes = std::fs::read(&path).unwrap();
        match round % 3 {
            0 => bytes.truncate(random.random_range(0..bytes.len())),
            1 => (0..200).for_each(|_| {
                let at = random.random_range(0..bytes.len());
                bytes[at] = random.random();
            }),
            _ => {
                let at = random.random_range(0..bytes.len());
                bytes[at..].fill(0);
            }
        }
        std::fs::write(&path, &bytes).unwrap();
        let (store, recovery) = Embedded::open(&path).unwrap();
        if let Recovery::MovedAside(aside) = &recovery {
            assert_eq!(std::fs::metadata(aside).unwrap().len(), bytes.len() as u64, "it is kept");
        }
        store.put(Arc::new(claim("new", "u")), true).await.unwrap();
        store.close().await;
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn a_claim_that_the_store_cannot_take_fails_alone() {
    for bad in 0..100 {
        let (mut commits, mut taken) = (0, Vec::<usize>::new());
        let batch: Vec<usize> = (0..100).collect();
        let results = each_alone(&batch, &mut 0, &mut |part: &[usize]| {
            commits += 1;
            if part.contains(&bad) {
                return Err("value too large".into());
            }
            taken.extend(part);
            Ok(vec![Ok(()); part.len()])
        });
        assert_eq!(results.iter().position(Result::is_err), Some(bad));
        assert_eq!((results.len(), taken.len()), (100, 99), "each of the others once");
        assert!(commits < 20, "{commits}");
    }
    let mut commits = 0;
    let results = each_alone(&[0; BATCH], &mut 0, &mut |_: &[i32]| {
        commits += 1;
        Err("no space left on device".into())
    });
    assert!(results.len() == BATCH && results.iter().all(Result::is_err));
    assert!(commits < 2 * MAX_FAILURES, "a full disk is not asked for each claim: {commits}");
}

#[tokio::test]
async fn a_claim_too_large_for_a_row_is_refused_and_those_it_came_with_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Embedded::open(&dir.path().join("claims.redb")).unwrap();
    let mut large = claim("large", "2");
    large.labels.insert("a".into(), "x".repeat(MAX_ROW_BYTES));
    let (small, large, other) = tokio::join!(
        store.put(Arc::new(claim("small", "1")), false),
        store.put(Arc::new(large), false),
        store.put(Arc::new(claim("other", "3")), true),
    );
    assert!(matches!(large, Err(WriteError::Final { reason: "TooLarge", .. })), "{large:?}");
    assert_eq!((small, other), (Ok(()), Ok(())));
}

#[tokio::test]
async fn a_row_that_is_no_claim_is_put_aside_and_its_name_is_free() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("claims.redb");
    {
        let database = Database::create(&path).unwrap();
        let transaction = database.begin_write().unwrap();
        {
            let mut claims = transaction.open_table(CLAIMS).unwrap();
            claims.insert("default/garbage", ("u", b"{\"key\":".as_slice())).unwrap();
            let moved = claim("somewhere-else", "v").to_document();
            claims.insert("default/moved", ("v", moved.as_slice())).unwrap();
            let good = claim("good", "w").to_document();
            claims.insert("default/good", ("w", good.as_slice())).unwrap();
        }
        transaction.commit().unwrap();
    }
    let bad = [Key::new("default", "garbage"), Key::new("default", "moved")];
    for _ in 0..2 {
        let (store, recovery) = Embedded::open(&path).unwrap();
        assert_eq!(recovery, Recovery::Clean);
        let loaded = store.load().await.unwrap();
        assert_eq!(loaded.claims.iter().map(|claim| &*claim.key.name).collect::<Vec<_>>(), ["good"]);
        assert_eq!(loaded.unreadable, bad, "it is said at every start");
        store.close().await;
    }
    let (store, _) = Embedded::open(&path).unwrap();
    store.put(Arc::new(claim("garbage", "new")), true).await.unwrap();
    store.close().await;
    drop(store);
    let loaded = Embedded::open(&path).unwrap().0.load().await.unwrap();
    assert_eq!((loaded.claims.len(), loaded.unreadable.as_slice()), (2, &bad[1..]));
}

#[tokio::test]
async fn tombstones_stay_however_old_the_clock_says_they_are_and_keep_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("claims.redb");
    {
        let database = Database::create(&path).unwrap();
        let transaction = database.begin_write().unwrap();
        {
            let mut tombstones = transaction.open_table(TOMBSTONES).unwrap();
            tombstones.insert("of-1970", 1).unwrap();
            tombstones.insert("of-2100", 4_102_444_800_000).unwrap();
        }
        transaction.commit().unwrap();
    }
    let (store, _) = Embedded::open(&path).unwrap();
    assert_eq!(store.load().await.unwrap().tombstones, ["of-1970".into(), "of-2100".into()]);
    for uid in ["second", "third", "second"] {
        store.remove(Key::new("default", "a"), uid.into(), true).await.unwrap();
    }
    store.close().await;
    drop(store);
    let tombstones = Embedded::open(&path).unwrap().0.load().await.unwrap().tombstones;
    assert_eq!(tombstones, ["of-1970", "of-2100", "second", "third"].map(Arc::from));
}

#[test]
fn the_store_keeps_a_bounded_number_of_tombstones_and_the_oldest_goes_first() {
    let database = Database::builder().create_with_backend(redb::backends::InMemoryBackend::new()).unwrap();
    let mut open = Open { database, burials: Burials::default() };
    let bury = |number: usize| job(Op::Remove { key: "n/a".into(), uid: number.to_string().into(), entomb: true });
    let most = super::super::tombstones::MAX_LASTING;
    let jobs: Vec<Job> = (0..most + 3).map(bury).collect();
    write(&mut open, &jobs).unwrap();
    let kept = Open::new(open.database).unwrap().burials.uids();
    assert_eq!((kept.len(), &*kept[0]), (most, "3"));
}

#[tokio::test]
async fn the_store_and_what_was_moved_aside_are_their_owners_alone_in_whatever_directory_they_lie() {
    let dir = tempfile::tempdir().unwrap();
    let set = |path: &Path, mode| std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    set(dir.path(), 0o755);
    let (path, before, other) =
        (dir.path().join("claims.redb"), dir.path().join("claims.damaged-17"), dir.path().join("other"));
    std::fs::write(&before, "secret").unwrap();
    std::fs::write(&other, "not ours").unwrap();
    [&before, &other].into_iter().for_each(|path| set(path, 0o644));
    Embedded::open(&path).unwrap().0.close().await;
    assert_eq!((mode(&path), mode(&before)), (0o600, 0o600));
    set(&path, 0o644);
    std::fs::write(&path, vec![1; 8192]).unwrap();
    let (store, recovery) = Embedded::open(&path).unwrap();
    store.close().await;
    let Recovery::MovedAside(aside) = recovery else { panic!("it is damaged") };
    assert_eq!((mode(&path), mode(&aside)), (0o600, 0o600));
    assert_eq!((mode(dir.path()), mode(&other)), (0o755, 0o644), "they may be somebody's choice");
}

/// A file that remembers how it came to be.
#[derive(Debug, Default, Clone)]
struct Recorder {
    content: Arc<Mutex<Vec<u8>>>,
    history: Arc<Mutex<Vec<Event>>>,
}

#[derive(Debug, Clone)]
enum Event {
    Length(u64),
    Write(u64, Vec<u8>),
    Sync,
}

impl StorageBackend for Recorder {
    fn len(&self) -> io::Result<u64> {
        Ok(self.content.lock().unwrap().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let content = self.content.lock().unwrap();
        let range = offset as usize..offset as usize + out.len();
        out.copy_from_slice(content.get(range).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        apply(&mut self.content.lock().unwrap(), &Event::Length(len));
        self.history.lock().unwrap().push(Event::Length(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.history.lock().unwrap().push(Event::Sync);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let event = Event::Write(offset, data.to_vec());
        apply(&mut self.content.lock().unwrap(), &event);
        self.history.lock().unwrap().push(event);
        Ok(())
    }
}

fn apply(content: &mut Vec<u8>, event: &Event) {
    match event {
        Event::Length(len) => content.resize(*len as usize, 0),
        Event::Write(offset, data) => {
            let end = *offset as usize + data.len();
            if content.len() < end {
                content.resize(end, 0);
            }
            content[*offset as usize..end].copy_from_slice(data);
        }
        Event::Sync => {}
    }
}

/// The file as a power failure may leave it after `cut` events: everything up to the last sync, and of what came
/// after it any part, the last write torn.
fn cut_off(history: &[Event], cut: usize, random: &mut StdRng) -> Vec<u8> {
    let synced = history[..cut].iter().rposition(|event| matches!(event, Event::Sync)).map_or(0, |at| at + 1);
    let mut content = Vec::new();
    history[..synced].iter().for_each(|event| apply(&mut content, event));
    for (index, event) in history[synced..cut].iter().enumerate() {
        let last = synced + index + 1 == cut;
        match event {
            Event::Write(offset, data) if last => {
                let part = random.random_range(0..=data.len());
                apply(&mut content, &Event::Write(*offset, data[..part].to_vec()));
            }
            Event::Write(..) if random.random_bool(0.3) => {}
            event => apply(&mut content, event),
        }
    }
    content
}

#[tokio::test]
async fn the_store_opens_after_being_cut_off_at_any_write_with_every_acknowledged_claim() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let recorder = Recorder::default();
    let database = Database::builder().create_with_backend(recorder.clone()).unwrap();
    let mut open = Open { database, burials: Burials::default() };
    let mut expected: BTreeMap<String, (String, i64)> = BTreeMap::new();
    // After so many events, this is what had been acknowledged.
    let mut acknowledged = vec![(recorder.history.lock().unwrap().len(), expected.clone())];
    for commit in 0..40i64 {
        let batch: Vec<Job> = (0..random.random_range(1..6))
            .map(|_| {
                let name = format!("s{}", random.random_range(0..30));
                match expected.get(&name).cloned() {
                    Some((uid, _)) if random.random_bool(0.3) => {
                        expected.remove(&name);
                        remove(&claim(&name, &uid))
                    }
                    known => {
                        let uid = known.map_or_else(|| format!("u{}", random.random::<u32>()), |(uid, _)| uid);
                        let mut changed = claim(&name, &uid);
                        changed.created_at_ms = commit;
                        expected.insert(name, (uid, commit));
                        put(&changed)
                    }
                }
            })
            .collect();
        assert!(write(&mut open, &batch).unwrap().iter().all(Result::is_ok));
        acknowledged.push((recorder.history.lock().unwrap().len(), expected.clone()));
    }
    let history = recorder.history.lock().unwrap().clone();
    let dir = tempfile::tempdir().unwrap();
    let (mut opened, first_commit) = (0, acknowledged[1].0);
    for cut in 0..=history.len() {
        let path = dir.path().join("claims.redb");
        std::fs::write(&path, cut_off(&history, cut, &mut random)).unwrap();
        let (store, recovery) = Embedded::open(&path).unwrap();
        let loaded = store.load().await.unwrap();
        store.close().await;
        std::fs::remove_file(&path).unwrap();
        if cut < first_commit {
            assert!(loaded.claims.len() <= acknowledged[1].1.len());
            continue;
        }
        assert_eq!(recovery, Recovery::Clean, "cut {cut} of {}", history.len());
        let found: BTreeMap<String, (String, i64)> = loaded
            .claims
            .iter()
            .map(|claim| (claim.key.name.to_string(), (claim.uid.to_string(), claim.created_at_ms)))
            .collect();
        let last = acknowledged.iter().rposition(|(at, _)| *at <= cut).unwrap();
        // The commit that was under way is there as a whole or not at all.
        let possible = &acknowledged[last..acknowledged.len().min(last + 2)];
        assert!(possible.iter().any(|(_, state)| *state == found), "cut {cut} of {}: {found:?}", history.len());
        opened += 1;
    }
    assert!(opened > 100, "{opened}");
}

/// Not a test of its own: the process that the next one kills.
#[tokio::test]
async fn writer_that_is_killed() {
    let Ok(path) = std::env::var("FSB_TEST_CLAIMS") else { return };
    let (store, _) = Embedded::open(Path::new(&path)).unwrap();
    for number in 0.. {
        let mut written = claim(&format!("s{}", number % 50), "u");
        written.created_at_ms = number;
        store.put(Arc::new(written), true).await.unwrap();
        println!("written {number}");
    }
}

#[tokio::test]
async fn a_writer_killed_at_any_moment_loses_nothing_that_it_acknowledged() {
    use std::io::{BufRead, BufReader};
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("claims.redb");
    for _ in 0..12 {
        let _ = std::fs::remove_file(&path);
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["claims::embedded::tests::writer_that_is_killed", "--exact", "--nocapture"])
            .env("FSB_TEST_CLAIMS", &path)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let wanted = random.random_range(1..120);
        let mut last = -1;
        for line in lines {
            let line = line.unwrap();
            let Some(number) = line.rsplit_once("written ").and_then(|(_, number)| number.parse().ok()) else {
                continue;
            };
            last = number;
            if number == wanted {
                std::thread::sleep(Duration::from_micros(random.random_range(0..3000)));
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(last >= wanted);
        let (store, recovery) = Embedded::open(&path).unwrap();
        assert_eq!(recovery, Recovery::Clean);
        let newest = store.load().await.unwrap().claims.iter().map(|claim| claim.created_at_ms).max();
        assert!(newest >= Some(last), "{newest:?} {last}");
        store.close().await;
    }
}
