//! The records of all instances, and what may become of them. Pure: `H` is whatever descriptors go with an instance.
//!
//! ```text
//! paused ── bind ──▶ bound ── started ──▶ started ──┐
//!    └────────────────┴──────── died ───────────────┴──▶ (its log is finished) ──▶ ended ──▶ forgotten
//! ```

use fsb_host::wire::{Binding, End, Made, Record, Stage};
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

/// Ended records that are kept at most.
pub(crate) const MAX_ENDED: usize = 10_000;
/// How long an ended record is kept while there is an agent that could have taken it.
pub(crate) const KEEP_ENDED: Duration = Duration::from_secs(3600);

/// One instance.
pub(crate) struct Entry<H> {
    pub(crate) record: Record,
    /// Its first process has not been reaped.
    pub(crate) alive: bool,
    /// It said that its execve failed.
    pub(crate) exec_failed: bool,
    /// It is killed for stopping too often for its tracer, us.
    pub(crate) stops_too_often: bool,
    pub(crate) handles: H,
    ended: Option<u64>,
}

/// What became of a bind.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Bind {
    Bound,
    /// It is dead, dying or unknown.
    NoSuch,
}

/// All instances.
pub(crate) struct Table<H> {
    entries: HashMap<String, Entry<H>>,
    /// Of those that have not been reaped.
    pids: HashMap<i32, String>,
    /// In the order in which they ended.
    ended: BTreeMap<u64, (Instant, String)>,
    next: u64,
}

impl<H> Default for Table<H> {
    fn default() -> Self {
        Self { entries: HashMap::new(), pids: HashMap::new(), ended: BTreeMap::new(), next: 0 }
    }
}

impl<H> Table<H> {
    /// A paused instance. One with the same id is replaced, which its maker rules out.
    pub(crate) fn insert(&mut self, made: Made, handles: H) {
        let (id, pid) = (made.id.clone(), made.pid);
        self.forget(&id);
        let record = Record { made, binding: None, stage: Stage::Paused };
        self.pids.insert(pid, id.clone());
        self.entries.insert(
            id,
            Entry { record, alive: true, exec_failed: false, stops_too_often: false, handles, ended: None },
        );
    }

    pub(crate) fn get(&self, id: &str) -> Option<&Entry<H>> {
        self.entries.get(id)
    }

    pub(crate) fn get_mut(&mut self, id: &str) -> Option<&mut Entry<H>> {
        self.entries.get_mut(id)
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry<H>> {
        self.entries.values()
    }

    /// Whether `pid` is the first process of an instance and not reaped.
    pub(crate) fn has_pid(&self, pid: i32) -> bool {
        self.pids.contains_key(&pid)
    }

    /// A paused instance gets an owner. Binding a bound one again changes its binding.
    pub(crate) fn bind(&mut self, id: &str, binding: Binding) -> Bind {
        let Some(entry) = self.entries.get_mut(id).filter(|entry| entry.alive) else { return Bind::NoSuch };
        entry.record.binding = Some(binding);
        if entry.record.stage == Stage::Paused {
            entry.record.stage = Stage::Bound;
        }
        Bind::Bound
    }

    /// Changes the binding of an instance that has one. Returns whether it has.
    pub(crate) fn rebind(&mut self, id: &str, binding: Binding) -> bool {
        match self.entries.get_mut(id) {
            Some(entry) if entry.record.binding.is_some() => {
                entry.record.binding = Some(binding);
                true
            }
            _ => false,
        }
    }

    /// A bound instance has exec'd. Returns whether that is news.
    pub(crate) fn started(&mut self, id: &str, at_ms: i64) -> bool {
        match self.entries.get_mut(id) {
            Some(entry) if entry.record.stage == Stage::Bound => {
                entry.record.stage = Stage::Started { at_ms };
                true
            }
            _ => false,
        }
    }

    /// The agent's word on when an instance has exec'd: it is what its caller was told, so it replaces what was seen here.
    pub(crate) fn launched(&mut self, id: &str, at_ms: i64) {
        match self.entries.get_mut(id).map(|entry| &mut entry.record.stage) {
            Some(Stage::Started { at_ms: seen }) => *seen = at_ms,
            Some(Stage::Ended(end)) if end.started_at_ms != 0 => end.started_at_ms = at_ms,
            _ => {}
        }
    }

    /// The process `pid` is killed for stopping too often for its tracer. Whether it is an instance's.
    pub(crate) fn stops_too_often(&mut self, pid: i32) -> bool {
        let Some(entry) = self.pids.get(&pid).and_then(|id| self.entries.get_mut(id)) else { return false };
        !std::mem::replace(&mut entry.stops_too_often, true)
    }

    /// The process `pid` is reaped. Returns the instance whose first process it was. Its stage stays until
    /// [`Table::ended`].
    pub(crate) fn died(&mut self, pid: i32) -> Option<&mut Entry<H>> {
        let id = self.pids.remove(&pid)?;
        let entry = self.entries.get_mut(&id)?;
        entry.alive = false;
        Some(entry)
    }

    /// A dead instance's log is complete. Returns its end, with the time of its start, if it is still known.
    pub(crate) fn ended(&mut self, id: &str, mut end: End, now: Instant) -> Option<End> {
        let entry = self.entries.get_mut(id).filter(|entry| entry.ended.is_none())?;
        if let Stage::Started { at_ms } = entry.record.stage {
            end.started_at_ms = at_ms;
        }
        entry.record.stage = Stage::Ended(end);
        entry.ended = Some(self.next);
        self.ended.insert(self.next, (now, id.to_owned()));
        self.next += 1;
        Some(end)
    }

    /// Takes an instance out.
    pub(crate) fn forget(&mut self, id: &str) -> Option<Entry<H>> {
        let entry = self.entries.remove(id)?;
        if entry.alive {
            self.pids.remove(&entry.record.made.pid);
        }
        if let Some(number) = entry.ended {
            self.ended.remove(&number);
        }
        Some(entry)
    }

    /// Ended instances that nobody will ask for, the oldest first: those beyond [`MAX_ENDED`], and, if an agent is
    /// `connected`, those older than [`KEEP_ENDED`].
    pub(crate) fn expired(&self, now: Instant, connected: bool) -> Vec<String> {
        let surplus = self.ended.len().saturating_sub(MAX_ENDED);
        let old = |at: Instant| connected && now.saturating_duration_since(at) >= KEEP_ENDED;
        let oldest = self.ended.values().enumerate();
        oldest.take_while(|(index, (at, _))| *index < surplus || old(*at)).map(|(_, (_, id))| id.clone()).collect()
    }

    /// When the next ended instance is old.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        self.ended.values().next().map(|(at, _)| *at + KEEP_ENDED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fsb_host::wire::{How, Overlay, Profile, Recipe, Runtime, User};

    fn made(id: &str, pid: i32) -> Made {
        let recipe = Recipe {
            image: "sha256:0".into(),
            lowers: Vec::new(),
            user: User::default(),
            profile: Profile::Default,
            runtime: Runtime::Container,
            plugins: Vec::new(),
            overlay: Overlay::Disk,
        };
        Made { id: id.into(), pid, how: How::Cast, recipe, cgroups: Vec::new() }
    }

    fn end() -> End {
        End { code: Some(0), finished_at_ms: 9, ..End::default() }
    }

    fn with(ids: &[&str]) -> Table<()> {
        let mut table = Table::default();
        for (index, id) in ids.iter().enumerate() {
            table.insert(made(id, index as i32 + 10), ());
        }
        table
    }

    #[test]
    fn an_instance_goes_from_paused_to_ended() {
        let mut table = with(&["a"]);
        assert_eq!(table.bind("a", Binding::default()), Bind::Bound);
        assert_eq!(table.get("a").unwrap().record.stage, Stage::Bound);
        assert!(table.started("a", 7));
        assert!(!table.started("a", 8));
        assert_eq!(table.get("a").unwrap().record.stage, Stage::Started { at_ms: 7 });
        assert_eq!(table.died(10).unwrap().record.made.id, "a");
        assert_eq!(table.get("a").unwrap().record.stage, Stage::Started { at_ms: 7 }, "its log is not finished yet");
        let ended = End { started_at_ms: 7, ..end() };
        assert_eq!(table.ended("a", end(), Instant::now()), Some(ended));
        assert_eq!(table.get("a").unwrap().record.stage, Stage::Ended(ended));
        assert!(table.forget("a").is_some());
        assert!(table.get("a").is_none() && table.ended.is_empty() && table.pids.is_empty());
    }

    #[test]
    fn the_agents_word_on_when_it_started_replaces_the_keepers() {
        let mut table = with(&["a", "never"]);
        table.launched("a", 5);
        assert_eq!(table.get("a").unwrap().record.stage, Stage::Paused);
        table.bind("a", Binding::default());
        table.started("a", 7);
        table.launched("a", 6);
        assert_eq!(table.get("a").unwrap().record.stage, Stage::Started { at_ms: 6 });
        table.died(10);
        table.ended("a", end(), Instant::now());
        table.launched("a", 5);
        assert_eq!(table.get("a").unwrap().record.stage, Stage::Ended(End { started_at_ms: 5, ..end() }));
        table.ended("never", end(), Instant::now());
        table.launched("never", 5);
        assert_eq!(table.get("never").unwrap().record.stage, Stage::Ended(end()), "it never ran");
    }

    #[test]
    fn what_is_dead_or_unknown_cannot_be_bound() {
        let mut table = with(&["a"]);
        assert_eq!(table.bind("b", Binding::default()), Bind::NoSuch);
        table.died(10);
        assert_eq!(table.bind("a", Binding::default()), Bind::NoSuch);
        table.ended("a", end(), Instant::now());
        assert_eq!(table.bind("a", Binding::default()), Bind::NoSuch);
    }

    #[test]
    fn only_what_is_bound_can_start_or_be_bound_anew() {
        let mut table = with(&["a"]);
        assert!(!table.started("a", 1));
        assert!(!table.rebind("a", Binding::default()));
        table.bind("a", Binding::default());
        assert!(table.rebind("a", Binding { claim: "x".into(), ..Default::default() }));
        assert_eq!(table.get("a").unwrap().record.binding.as_ref().unwrap().claim, "x");
    }

    #[test]
    fn an_unknown_child_is_nobodys() {
        let mut table = with(&["a"]);
        assert!(table.died(99).is_none());
        assert!(table.died(10).is_some());
        assert!(table.died(10).is_none(), "a process id may be used again once it is reaped");
    }

    #[test]
    fn a_forgotten_instance_cannot_end() {
        let mut table = with(&["a"]);
        table.died(10);
        table.forget("a");
        assert_eq!(table.ended("a", end(), Instant::now()), None);
    }

    #[test]
    fn ended_records_expire_by_age_only_while_an_agent_is_there() {
        let mut table = with(&["a", "b"]);
        let start = Instant::now();
        table.ended("b", end(), start);
        table.ended("a", end(), start + Duration::from_secs(60));
        assert_eq!(table.next_expiry(), Some(start + KEEP_ENDED));
        assert!(table.expired(start + KEEP_ENDED - Duration::from_secs(1), true).is_empty());
        assert_eq!(table.expired(start + KEEP_ENDED, true), ["b"]);
        assert!(table.expired(start + 3 * KEEP_ENDED, false).is_empty());
    }

    #[test]
    fn at_most_ten_thousand_ended_records_are_kept_and_a_million_leave_nothing() {
        let mut table = Table::default();
        let now = Instant::now();
        for pid in 0..MAX_ENDED as i32 + 3 {
            let id = format!("i{pid}");
            table.insert(made(&id, pid), ());
            table.died(pid);
            table.ended(&id, end(), now);
        }
        assert_eq!(table.expired(now, false), ["i0", "i1", "i2"]);
        for pid in 0..MAX_ENDED as i32 + 3 {
            table.forget(&format!("i{pid}"));
        }
        assert!(table.entries.is_empty() && table.pids.is_empty() && table.ended.is_empty());
    }
}
