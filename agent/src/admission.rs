//! Who gets in: slots, ports, generations of claims, and creates that come twice. Pure.
//!
//! A slot and its ports are one value, the [`Grant`]. It cannot be copied and [`Ledger::release`] consumes it, so
//! freeing twice cannot be written; a [`Ticket`] frees it when it is dropped, wherever a start ends.

use crate::error::{Error, Result};
use crate::lock;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex};

/// How many deleted or forgotten claims are remembered, so that a late call for them is refused.
pub const TOMBSTONES: usize = 8192;

/// A create, as far as admission is concerned.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// The claim's UID.
    pub uid: &'a str,
    /// `None` = whatever comes next: the caller knows no generations (the HTTP interface).
    pub generation: Option<i64>,
    /// Equal for requests that are the same.
    pub spec_hash: u64,
    /// Another name for the instance; empty = none.
    pub alias: &'a str,
    /// Ports that are to be the sandbox's alone.
    pub ports: &'a BTreeSet<u16>,
}

/// A slot and its ports.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "dropping a grant leaks its slot: release it"]
pub struct Grant {
    uid: Arc<str>,
    generation: i64,
    ports: Box<[u16]>,
}

impl Grant {
    /// The claim's UID, shared with the ledger.
    pub fn uid(&self) -> &Arc<str> {
        &self.uid
    }
}

/// The answer to an [`Ask`].
#[derive(Debug, PartialEq, Eq)]
pub enum Decision<T> {
    /// It may start.
    Admitted(Grant),
    /// The same create came before: this is what it made.
    Existing(T),
    /// An older generation of the claim is alive here: end it, then ask again.
    Superseded(T),
}

#[derive(Debug)]
struct Claim<T> {
    generation: i64,
    /// `None` = not known; a create of this generation is taken for the same.
    spec_hash: Option<u64>,
    alias: Box<str>,
    alive: bool,
    handle: T,
}

/// All claims of an agent and what they hold. `T` is the caller's handle to an instance.
#[derive(Debug)]
pub struct Ledger<T> {
    /// 0 = no limit.
    capacity: u32,
    used: u32,
    cordoned: bool,
    ports: HashMap<u16, Arc<str>>,
    claims: HashMap<Arc<str>, Claim<T>>,
    aliases: HashMap<Box<str>, Arc<str>>,
    tombstones: Tombstones,
}

impl<T: Clone> Ledger<T> {
    /// An empty ledger with so many slots; 0 = no limit.
    pub fn new(capacity: u32) -> Self {
        Self {
            capacity,
            used: 0,
            cordoned: false,
            ports: HashMap::new(),
            claims: HashMap::new(),
            aliases: HashMap::new(),
            tombstones: Tombstones::default(),
        }
    }

    /// Decides about a create. `handle` is called for the admitted generation.
    pub fn admit(&mut self, ask: &Ask<'_>, handle: impl FnOnce(i64) -> T) -> Result<Decision<T>> {
        let buried = self.tombstones.get(ask.uid);
        let claim = self.claims.get(ask.uid);
        let generation = ask.generation.unwrap_or_else(|| match (claim, buried) {
            (Some(claim), _) => claim.generation,
            (None, Some(buried)) => buried + 1,
            (None, None) => 1,
        });
        let stale = |known| Err(Error::Stale { uid: ask.uid.to_owned(), asked: generation, known });
        if let Some(claim) = claim {
            if generation < claim.generation {
                return stale(claim.generation);
            }
            if generation == claim.generation {
                if claim.spec_hash.is_none_or(|known| known == ask.spec_hash) {
                    return Ok(Decision::Existing(claim.handle.clone()));
                }
                return Err(Error::Conflict(format!(
                    "claim {} exists on this agent with another image, command, environment, ports, limits or user",
                    ask.uid
                )));
            }
        }
        if let Some(known) = buried.filter(|known| generation <= *known) {
            return stale(known);
        }
        if let Some(claim) = claim.filter(|claim| claim.alive) {
            return Ok(Decision::Superseded(claim.handle.clone()));
        }
        if let Some(owner) = self.aliases.get(ask.alias).filter(|owner| &***owner != ask.uid) {
            return Err(Error::Conflict(format!("{} is the name of another sandbox (claim {owner})", ask.alias)));
        }
        if self.cordoned {
            return Err(Error::Cordoned);
        }
        if self.capacity != 0 && self.used >= self.capacity {
            return Err(Error::Full { capacity: self.capacity });
        }
        for port in ask.ports {
            if let Some(holder) = self.ports.get(port) {
                return Err(Error::PortTaken { port: *port, holder: holder.to_string() });
            }
        }
        let ports = ask.ports.iter().copied();
        Ok(Decision::Admitted(self.adopt(
            ask.uid,
            generation,
            Some(ask.spec_hash),
            ask.alias,
            ports,
            handle(generation),
        )))
    }

    /// Takes in an instance that runs already, whatever the capacity: it cannot be refused any more. A port that
    /// another one holds stays with that one.
    pub fn adopt(
        &mut self,
        uid: &str,
        generation: i64,
        spec_hash: Option<u64>,
        alias: &str,
        ports: impl IntoIterator<Item = u16>,
        handle: T,
    ) -> Grant {
        let uid = self.remember(uid, generation, spec_hash, alias, true, handle);
        let ports: Box<[u16]> = ports.into_iter().filter(|port| !self.ports.contains_key(port)).collect();
        for port in &ports {
            self.ports.insert(*port, uid.clone());
        }
        self.used += 1;
        Grant { uid, generation, ports }
    }

    /// Takes in an instance that has ended: it holds nothing, but its claim is known.
    pub fn remember_ended(&mut self, uid: &str, generation: i64, spec_hash: Option<u64>, alias: &str, handle: T) {
        self.remember(uid, generation, spec_hash, alias, false, handle);
    }

    fn remember(
        &mut self,
        uid: &str,
        generation: i64,
        spec_hash: Option<u64>,
        alias: &str,
        alive: bool,
        handle: T,
    ) -> Arc<str> {
        let known = self.claims.get_key_value(uid).map(|(uid, claim)| (uid.clone(), claim.generation));
        let uid = known.as_ref().map_or_else(|| Arc::from(uid), |(uid, _)| uid.clone());
        if known.is_none_or(|(_, newest)| newest <= generation) {
            let claim = Claim { generation, spec_hash, alias: alias.into(), alive, handle };
            if let Some(old) = self.claims.insert(uid.clone(), claim) {
                self.aliases.remove(&old.alias);
            }
            if !alias.is_empty() {
                self.aliases.insert(alias.into(), uid.clone());
            }
        }
        uid
    }

    /// Frees a slot and its ports.
    pub fn release(&mut self, grant: Grant) {
        self.used -= 1;
        for port in &grant.ports {
            self.ports.remove(port);
        }
        if let Some(claim) = self.claims.get_mut(&grant.uid).filter(|claim| claim.generation == grant.generation) {
            claim.alive = false;
        }
    }

    /// Drops the memory of a claim's generation. With `bury` a later create of it, or of an older one, is refused.
    pub fn forget(&mut self, uid: &str, generation: i64, bury: bool) {
        if self.claims.get(uid).is_some_and(|claim| claim.generation == generation)
            && let Some(claim) = self.claims.remove(uid)
        {
            self.aliases.remove(&claim.alias);
        }
        if bury {
            self.tombstones.bury(uid, generation);
        }
    }

    /// The instance of a claim, unless a newer generation than `generation` is known.
    pub fn find(&self, uid: &str, generation: i64) -> Result<Option<T>> {
        let newest = self.claims.get(uid).map(|claim| claim.generation).max(self.tombstones.get(uid));
        if let Some(known) = newest.filter(|known| *known > generation) {
            return Err(Error::Stale { uid: uid.to_owned(), asked: generation, known });
        }
        Ok(self.claims.get(uid).filter(|claim| claim.generation == generation).map(|claim| claim.handle.clone()))
    }

    /// The instance of a claim of an older generation than `generation`, if one is here.
    pub fn older(&self, uid: &str, generation: i64) -> Option<T> {
        self.claims.get(uid).filter(|claim| claim.generation < generation).map(|claim| claim.handle.clone())
    }

    /// The newest instance of a claim.
    pub fn newest(&self, uid: &str) -> Option<T> {
        self.claims.get(uid).map(|claim| claim.handle.clone())
    }

    /// The instance with another name.
    pub fn by_alias(&self, alias: &str) -> Option<T> {
        self.newest(self.aliases.get(alias)?)
    }

    /// All claims' newest instances.
    pub fn handles(&self) -> impl Iterator<Item = &T> {
        self.claims.values().map(|claim| &claim.handle)
    }

    /// Slots in use.
    pub fn used(&self) -> u32 {
        self.used
    }

    /// Slots altogether; 0 = no limit.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// From here on nothing new is admitted.
    pub fn cordon(&mut self) {
        self.cordoned = true;
    }

    /// Whether nothing new is admitted.
    pub fn cordoned(&self) -> bool {
        self.cordoned
    }
}

/// A grant that is released when this is dropped.
#[derive(Debug)]
pub struct Ticket<T: Clone> {
    grant: Option<Grant>,
    ledger: Arc<Mutex<Ledger<T>>>,
}

impl<T: Clone> Ticket<T> {
    /// Guards `grant` of `ledger`. The ledger's lock must not be held where a ticket is dropped.
    pub fn new(grant: Grant, ledger: Arc<Mutex<Ledger<T>>>) -> Self {
        Self { grant: Some(grant), ledger }
    }
}

impl<T: Clone> Drop for Ticket<T> {
    fn drop(&mut self) {
        if let Some(grant) = self.grant.take() {
            lock(&self.ledger).release(grant);
        }
    }
}

/// The newest generations of claims that are no more; the oldest are dropped first.
#[derive(Debug, Default)]
struct Tombstones {
    generations: HashMap<Arc<str>, i64>,
    order: VecDeque<Arc<str>>,
}

impl Tombstones {
    fn get(&self, uid: &str) -> Option<i64> {
        self.generations.get(uid).copied()
    }

    fn bury(&mut self, uid: &str, generation: i64) {
        if let Some(known) = self.generations.get_mut(uid) {
            *known = generation.max(*known);
            return;
        }
        if self.order.len() >= TOMBSTONES
            && let Some(oldest) = self.order.pop_front()
        {
            self.generations.remove(&oldest);
        }
        let uid: Arc<str> = uid.into();
        self.order.push_back(uid.clone());
        self.generations.insert(uid, generation);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    static NONE: BTreeSet<u16> = BTreeSet::new();

    fn ask<'a>(uid: &'a str, generation: i64, spec_hash: u64, ports: &'a BTreeSet<u16>) -> Ask<'a> {
        Ask { uid, generation: Some(generation), spec_hash, alias: "", ports }
    }

    fn admitted(decision: Result<Decision<i64>>) -> Grant {
        match decision {
            Ok(Decision::Admitted(grant)) => grant,
            other => panic!("not admitted: {other:?}"),
        }
    }

    #[test]
    fn the_same_create_again_gets_what_is_there_and_another_spec_is_a_conflict() {
        let mut ledger = Ledger::new(5);
        let grant = admitted(ledger.admit(&ask("u", 1, 7, &NONE), |_| 42));
        assert_eq!(ledger.admit(&ask("u", 1, 7, &NONE), |_| 0), Ok(Decision::Existing(42)));
        assert!(matches!(ledger.admit(&ask("u", 1, 8, &NONE), |_| 0), Err(Error::Conflict(_))));
        assert_eq!(ledger.used(), 1);
        ledger.release(grant);
        assert_eq!(ledger.admit(&ask("u", 1, 7, &NONE), |_| 0), Ok(Decision::Existing(42)));
    }

    #[test]
    fn an_older_generation_is_refused_and_a_newer_one_ends_the_old_first() {
        let mut ledger = Ledger::new(5);
        let two = admitted(ledger.admit(&ask("u", 2, 7, &NONE), |g| g));
        assert!(matches!(ledger.admit(&ask("u", 1, 7, &NONE), |g| g), Err(Error::Stale { known: 2, .. })));
        assert_eq!(ledger.admit(&ask("u", 3, 7, &NONE), |g| g), Ok(Decision::Superseded(2)));
        ledger.release(two);
        let three = admitted(ledger.admit(&ask("u", 3, 7, &NONE), |g| g));
        ledger.forget("u", 2, true);
        assert_eq!(ledger.find("u", 3), Ok(Some(3)));
        ledger.release(three);
    }

    #[test]
    fn what_an_earlier_version_has_started_is_the_same_to_a_create_of_its_generation() {
        let mut ledger = Ledger::new(5);
        let grant = ledger.adopt("u", 1, None, "", [], 42);
        assert_eq!(ledger.admit(&ask("u", 1, 7, &NONE), |_| 0), Ok(Decision::Existing(42)));
        assert_eq!(ledger.admit(&ask("u", 2, 7, &NONE), |_| 0), Ok(Decision::Superseded(42)));
        ledger.release(grant);
    }

    #[test]
    fn a_deleted_generation_never_comes_back() {
        let mut ledger = Ledger::<i64>::new(5);
        ledger.forget("u", 4, true);
        assert!(matches!(ledger.admit(&ask("u", 4, 1, &NONE), |g| g), Err(Error::Stale { known: 4, .. })));
        assert!(ledger.find("u", 3).is_err());
        let _grant = admitted(ledger.admit(&ask("u", 5, 1, &NONE), |g| g));
    }

    #[test]
    fn a_caller_without_generations_gets_the_next_one_after_a_delete() {
        let mut ledger = Ledger::new(5);
        let free = Ask { generation: None, ..ask("box", 0, 1, &NONE) };
        let first = admitted(ledger.admit(&free, |g| g));
        assert_eq!(first.generation, 1);
        assert_eq!(ledger.admit(&free, |g| g), Ok(Decision::Existing(1)));
        ledger.release(first);
        ledger.forget("box", 1, true);
        assert_eq!(admitted(ledger.admit(&free, |g| g)).generation, 2);
    }

    #[test]
    fn an_alias_belongs_to_one_claim() {
        let mut ledger = Ledger::new(5);
        let _one = admitted(ledger.admit(&Ask { alias: "a", ..ask("u", 1, 1, &NONE) }, |g| g));
        let other = Ask { alias: "a", ..ask("v", 1, 1, &NONE) };
        assert!(matches!(ledger.admit(&other, |g| g), Err(Error::Conflict(_))));
        assert_eq!(ledger.by_alias("a"), Some(1));
        ledger.forget("u", 1, false);
        assert_eq!(ledger.by_alias("a"), None);
    }

    #[test]
    fn a_ticket_frees_its_slot_when_it_is_dropped() {
        let ledger = Arc::new(Mutex::new(Ledger::new(1)));
        let ports = BTreeSet::from([80]);
        let grant = admitted(lock(&ledger).admit(&ask("u", 1, 1, &ports), |g| g));
        let ticket = Ticket::new(grant, ledger.clone());
        assert!(matches!(lock(&ledger).admit(&ask("v", 1, 1, &NONE), |g| g), Err(Error::Full { capacity: 1 })));
        drop(ticket);
        assert_eq!(lock(&ledger).used(), 0);
        let _grant = admitted(lock(&ledger).admit(&ask("v", 1, 1, &ports), |g| g));
    }

    #[test]
    fn tombstones_are_bounded() {
        let mut ledger = Ledger::<i64>::new(0);
        for i in 0..3 * TOMBSTONES {
            ledger.forget(&format!("u{i}"), 1, true);
        }
        assert_eq!(ledger.tombstones.order.len(), TOMBSTONES);
        assert_eq!(ledger.tombstones.generations.len(), TOMBSTONES);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Create { uid: u8, generation: i64, spec: u64, ports: BTreeSet<u16> },
        End { nth: usize },
        Forget { uid: u8, generation: i64, bury: bool },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..6u8, 1..4i64, 0..2u64, prop::collection::btree_set(1..6u16, 0..3))
                .prop_map(|(uid, generation, spec, ports)| Step::Create { uid, generation, spec, ports }),
            2 => (0..8usize).prop_map(|nth| Step::End { nth }),
            1 => (0..6u8, 1..4i64, any::<bool>())
                .prop_map(|(uid, generation, bury)| Step::Forget { uid, generation, bury }),
        ]
    }

    proptest! {
        #[test]
        fn slots_and_ports_are_never_double_booked_and_never_leak(steps in prop::collection::vec(step(), 0..200)) {
            let mut ledger = Ledger::new(3);
            let mut live: Vec<Grant> = Vec::new();
            for step in steps {
                match step {
                    Step::Create { uid, generation, spec, ports } => {
                        let uid = format!("u{uid}");
                        let before = (ledger.used(), ledger.ports.len());
                        match ledger.admit(&ask(&uid, generation, spec, &ports), |g| g) {
                            Ok(Decision::Admitted(grant)) => {
                                prop_assert!(live.len() < 3);
                                prop_assert!(live.iter().all(|other| other.uid != grant.uid), "one per claim");
                                prop_assert!(live.iter().all(|o| o.ports.iter().all(|p| !ports.contains(p))));
                                live.push(grant);
                            }
                            _ => prop_assert_eq!(before, (ledger.used(), ledger.ports.len()), "no side effect"),
                        }
                    }
                    Step::End { nth } => {
                        if nth < live.len() {
                            ledger.release(live.swap_remove(nth));
                        }
                    }
                    // As the agent does it: only what holds nothing is forgotten.
                    Step::Forget { uid, generation, bury } => {
                        let uid = format!("u{uid}");
                        if live.iter().all(|grant| *grant.uid != *uid) {
                            ledger.forget(&uid, generation, bury);
                        }
                    }
                }
                prop_assert_eq!(ledger.used() as usize, live.len());
                prop_assert_eq!(ledger.ports.len(), live.iter().map(|grant| grant.ports.len()).sum::<usize>());
            }
            for grant in live {
                ledger.release(grant);
            }
            prop_assert_eq!((ledger.used(), ledger.ports.len()), (0, 0));
        }
    }
}
