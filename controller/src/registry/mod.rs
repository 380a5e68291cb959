//! Which agent gets a sandbox: an index of pools, free slots, images and ports, and nothing else.
//!
//! The registry is a fast hint. It does no IO and knows no clock; what it knows comes from agents' reports and from
//! its own reservations, and the agent's admission has the last word. A slot and its ports are one value, a
//! [`Reservation`], which frees them when it is dropped: freeing twice cannot be written.
//!
//! Each pool has a lock of its own, held for a decision (well below a microsecond) and never across anything else.

mod bitmap;
mod hash;
mod holdings;
mod image_name;
mod images;
mod members;
mod pool;
mod ports;
mod prefetch;

pub use image_name::canonical;
pub use pool::{Place, PoolIndex, Totals};

use hash::Seed;
use holdings::Key;
use ports::PortList;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// A pool's identity: a sandbox only ever runs on agents of its own namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolKey {
    /// Namespace of the agents and of their sandboxes.
    pub namespace: String,
    /// The pool's name.
    pub pool: String,
}

/// Who holds a slot: one generation of one claim.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Holder {
    /// The claim's UID.
    pub uid: Arc<str>,
    /// The instance generation.
    pub generation: i64,
}

/// What an agent says of itself.
#[derive(Debug, Clone, Default)]
pub struct AgentFacts {
    /// Slots; 0 = no limit.
    pub capacity: u32,
    /// Takes no new sandboxes.
    pub cordoned: bool,
    /// References of the images that it has.
    pub images: Vec<String>,
    /// Paused containers by image reference.
    pub stock: Vec<(String, u32)>,
    /// Sandboxes that hold a slot and ports.
    pub holders: Vec<(Holder, BTreeSet<u16>)>,
}

/// What a sandbox needs.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// The image's reference.
    pub image: &'a str,
    /// Ports that have to be free.
    pub ports: &'a BTreeSet<u16>,
    /// For whom.
    pub holder: &'a Holder,
    /// Names of agents that have refused already.
    pub except: &'a [Arc<str>],
}

/// How good the chosen agent is for the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// It has a paused container.
    Stock,
    /// It has the image.
    Image,
    /// It has to get the image first.
    Any,
}

/// Why no agent could be chosen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoPlace {
    /// No agent ever reported this pool in this namespace.
    #[error("pool {wanted:?} does not exist in namespace {namespace:?}: {}", existing_pools(.existing))]
    NoSuchPool {
        /// What was asked for.
        wanted: String,
        /// Where.
        namespace: String,
        /// The pools that there are in this namespace.
        existing: Vec<String>,
    },
    /// No stream to any agent of the pool is up.
    #[error("no healthy agent in the pool")]
    NoHealthyAgent,
    /// Every healthy agent is cordoned.
    #[error("all {agents} healthy agents of the pool are cordoned")]
    AllCordoned {
        /// Their number.
        agents: usize,
    },
    /// No free slot.
    #[error("the pool is full: {used} of {capacity} slots are in use")]
    Full {
        /// Slots of healthy agents.
        capacity: u64,
        /// Slots in use.
        used: u64,
    },
    /// Every agent that has a free slot has one of the ports in use.
    #[error("{}", ports_taken(.port, .ports))]
    PortsTaken {
        /// The port that is taken everywhere, if one alone is the cause.
        port: Option<u16>,
        /// All ports that were asked for.
        ports: BTreeSet<u16>,
    },
}

fn existing_pools(existing: &[String]) -> String {
    if existing.is_empty() {
        "no agent has reported any pool there".into()
    } else {
        format!("there is {}", existing.join(", "))
    }
}

fn ports_taken(port: &Option<u16>, ports: &BTreeSet<u16>) -> String {
    match port {
        Some(port) => format!("port {port} is in use on every agent that has a free slot"),
        None => {
            let list: Vec<String> = ports.iter().map(u16::to_string).collect();
            format!("no agent with a free slot has the ports {} free together", list.join(", "))
        }
    }
}

type Pool = Mutex<PoolIndex>;

/// The pool with everything settled that was decided before.
fn lock(pool: &Pool) -> MutexGuard<'_, PoolIndex> {
    let mut index = pool.lock().unwrap_or_else(PoisonError::into_inner);
    index.settle();
    index
}

/// A slot and its ports on one agent, reserved until this value is dropped.
#[derive(Debug)]
#[must_use = "dropping it frees slot and ports"]
pub struct Reservation {
    pool: Arc<Pool>,
    key: Key,
    ports: PortList,
    class: Class,
    generation: i64,
}

impl Reservation {
    /// The agent's name; `None` if the agent is gone.
    pub fn agent(&self) -> Option<Arc<str>> {
        lock(&self.pool).name(self.key.place).cloned()
    }

    /// Which generation of the claim it is for.
    pub fn generation(&self) -> i64 {
        self.generation
    }

    /// How good the choice was.
    pub fn class(&self) -> Class {
        self.class
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let ports = std::mem::take(&mut self.ports);
        self.pool.lock().unwrap_or_else(PoisonError::into_inner).give_back(self.key, ports);
    }
}

#[derive(Debug, Clone)]
struct Located {
    key: Arc<PoolKey>,
    pool: Arc<Pool>,
    place: Place,
}

/// All pools.
#[derive(Debug, Default)]
pub struct Registry {
    pools: RwLock<HashMap<PoolKey, Arc<Pool>, Seed>>,
    agents: RwLock<HashMap<Arc<str>, Located, Seed>>,
}

impl Registry {
    /// Takes over a whole report of the agent `name`, which is healthy from here on.
    pub fn report(&self, name: &Arc<str>, key: &PoolKey, facts: &AgentFacts) {
        let located = match self.locate(name) {
            Some(located) if *located.key == *key => located,
            other => {
                if other.is_some() {
                    self.remove(name);
                }
                let (pool, place) = self.add(name, key);
                let located = Located { key: Arc::new(key.clone()), pool, place };
                self.agents.write().unwrap_or_else(PoisonError::into_inner).insert(name.clone(), located.clone());
                located
            }
        };
        lock(&located.pool).report(located.place, facts);
    }

    /// Forgets an agent; its pool goes with its last one.
    pub fn remove(&self, name: &str) {
        let removed = self.agents.write().unwrap_or_else(PoisonError::into_inner).remove(name);
        let Some(located) = removed else { return };
        let mut pools = self.pools.write().unwrap_or_else(PoisonError::into_inner);
        let mut pool = lock(&located.pool);
        pool.remove(located.place);
        if pool.totals().agents == 0 {
            pools.remove(&*located.key);
        }
    }

    /// The agent's stream is up or down.
    pub fn set_healthy(&self, name: &str, healthy: bool) {
        self.with(name, |pool, place| pool.set_healthy(place, healthy));
    }

    /// The agent refused as full.
    pub fn refused_full(&self, name: &str) {
        self.with(name, |pool, place| pool.refused_full(place));
    }

    /// The agent gave a sign of life after it may have refused.
    pub fn heartbeat(&self, name: &str) {
        self.with(name, |pool, place| pool.heartbeat(place));
    }

    /// The agent reports a sandbox.
    pub fn occupied(&self, name: &str, holder: &Holder, ports: &BTreeSet<u16>) {
        self.with(name, |pool, place| pool.occupied(place, holder, ports));
    }

    /// The agent reports that a sandbox holds nothing any more.
    pub fn vacated(&self, name: &str, holder: &Holder) {
        self.with(name, |pool, place| pool.vacated(place, holder));
    }

    /// Replaces the images of an agent.
    pub fn set_images(&self, name: &str, images: &[String]) {
        self.with(name, |pool, place| pool.set_images(place, images));
    }

    /// Replaces the stock of an agent.
    pub fn set_stock(&self, name: &str, stock: &[(String, u32)]) {
        self.with(name, |pool, place| pool.set_stock(place, stock));
    }

    /// Chooses an agent for a sandbox and reserves slot and ports on it.
    pub fn place(&self, key: &PoolKey, wanted: &Wanted<'_>) -> Result<Reservation, NoPlace> {
        let pool = self.pools.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned();
        let Some(pool) = pool else {
            return Err(NoPlace::NoSuchPool {
                wanted: key.pool.clone(),
                namespace: key.namespace.clone(),
                existing: self.pools_of(&key.namespace),
            });
        };
        let image = canonical(wanted.image);
        let except = self.places(key, wanted.except);
        let (key, class) = lock(&pool).place(wanted, &image, except)?;
        let ports = PortList::new(wanted.ports);
        Ok(Reservation { pool, key, ports, class, generation: wanted.holder.generation })
    }

    /// Reserves for a sandbox that is known to be on this agent, whether there is room or not.
    pub fn hold(&self, name: &Arc<str>, holder: Holder, ports: &BTreeSet<u16>) -> Option<Reservation> {
        let located = self.locate(name)?;
        let key = lock(&located.pool).hold(located.place, &holder, ports)?;
        let (ports, generation) = (PortList::new(ports), holder.generation);
        Some(Reservation { pool: located.pool, key, ports, class: Class::Any, generation })
    }

    /// Slots in use on an agent.
    pub fn used(&self, name: &str) -> usize {
        self.with(name, |pool, place| pool.used(place)).unwrap_or(0)
    }

    /// All pools with their sums.
    pub fn pools(&self) -> Vec<(PoolKey, Totals)> {
        let pools = self.pools.read().unwrap_or_else(PoisonError::into_inner);
        pools.iter().map(|(key, pool)| (key.clone(), lock(pool).totals())).collect()
    }

    fn pools_of(&self, namespace: &str) -> Vec<String> {
        let pools = self.pools.read().unwrap_or_else(PoisonError::into_inner);
        let mut names: Vec<String> =
            pools.keys().filter(|key| key.namespace == namespace).map(|key| key.pool.clone()).collect();
        names.sort();
        names
    }

    /// Adds an agent to its pool. The lock over the pools is held, so that the pool cannot go meanwhile.
    fn add(&self, name: &Arc<str>, key: &PoolKey) -> (Arc<Pool>, Place) {
        let mut pools = self.pools.write().unwrap_or_else(PoisonError::into_inner);
        let pool =
            pools.entry(key.clone()).or_insert_with(|| Arc::new(Mutex::new(PoolIndex::new(rand::random())))).clone();
        let place = lock(&pool).add(name.clone());
        (pool, place)
    }

    /// Where those of these agents are that belong to this pool.
    fn places(&self, key: &PoolKey, names: &[Arc<str>]) -> Vec<Place> {
        if names.is_empty() {
            return Vec::new();
        }
        let located = names.iter().filter_map(|name| self.locate(name));
        located.filter(|located| *located.key == *key).map(|located| located.place).collect()
    }

    fn locate(&self, name: &str) -> Option<Located> {
        self.agents.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    fn with<T>(&self, name: &str, action: impl FnOnce(&mut PoolIndex, Place) -> T) -> Option<T> {
        let located = self.locate(name)?;
        let mut pool = lock(&located.pool);
        Some(action(&mut pool, located.place))
    }
}

#[cfg(test)]
mod tests;
