//! The agents of one pool and the decision which of them gets a sandbox.

use super::bitmap::{Bitmap, Query};
use super::{AgentFacts, Class, Holder, NoPlace, Wanted, image_name::canonical};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// The index of one pool. Every operation costs the same whatever the number of agents.
#[derive(Debug)]
pub struct PoolIndex {
    agents: Vec<Option<AgentSlot>>,
    vacant: Vec<u32>,
    /// Healthy, not cordoned, with a free slot, and not just refused for being full.
    open: Bitmap,
    /// By canonical reference: who has it.
    images: HashMap<String, Bitmap>,
    /// By canonical reference: who has a paused container for it.
    stock: HashMap<String, Bitmap>,
    /// By port: on whom it is in use.
    ports: HashMap<u16, Bitmap>,
    totals: Totals,
    random: SmallRng,
    next_epoch: u64,
}

/// Sums over the pool, kept up to date, for error messages and metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Agents that are known.
    pub agents: usize,
    /// Agents whose stream is up.
    pub healthy: usize,
    /// Healthy agents that take nothing new.
    pub cordoned: usize,
    /// Slots of healthy agents; agents without a limit are not counted.
    pub capacity: u64,
    /// Slots in use on healthy agents.
    pub used: u64,
}

#[derive(Debug)]
struct AgentSlot {
    name: Arc<str>,
    epoch: u64,
    capacity: u32,
    cordoned: bool,
    healthy: bool,
    /// It refused as full: its own admission knows better until it reports again.
    refused_full: bool,
    holdings: HashMap<Holder, Holding>,
    port_users: HashMap<u16, u32>,
    images: BTreeSet<String>,
    stock: HashMap<String, u32>,
}

/// Why a slot is taken: by a reservation of ours, by the agent's report, or both. It is free when neither is left.
#[derive(Debug)]
struct Holding {
    reserved: bool,
    reported: bool,
    ports: BTreeSet<u16>,
}

/// Where an agent is in the index. The epoch tells a later agent in the same place apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub(super) index: u32,
    pub(super) epoch: u64,
}

impl AgentSlot {
    fn used(&self) -> usize {
        self.holdings.len()
    }

    fn open(&self) -> bool {
        self.healthy
            && !self.cordoned
            && !self.refused_full
            && (self.capacity == 0 || self.used() < self.capacity as usize)
    }

    fn add_to(&self, totals: &mut Totals) {
        totals.agents += 1;
        if self.healthy {
            totals.healthy += 1;
            totals.cordoned += usize::from(self.cordoned);
            totals.capacity += u64::from(self.capacity);
            totals.used += self.used() as u64;
        }
    }

    fn take_from(&self, totals: &mut Totals) {
        totals.agents -= 1;
        if self.healthy {
            totals.healthy -= 1;
            totals.cordoned -= usize::from(self.cordoned);
            totals.capacity -= u64::from(self.capacity);
            totals.used -= self.used() as u64;
        }
    }
}

impl PoolIndex {
    /// An empty pool. The seed decides the two random choices.
    pub fn new(seed: u64) -> Self {
        Self {
            agents: Vec::new(),
            vacant: Vec::new(),
            open: Bitmap::default(),
            images: HashMap::new(),
            stock: HashMap::new(),
            ports: HashMap::new(),
            totals: Totals::default(),
            random: SmallRng::seed_from_u64(seed),
            next_epoch: 0,
        }
    }

    /// Adds an agent with nothing on it.
    pub fn add(&mut self, name: Arc<str>) -> Place {
        self.next_epoch += 1;
        let slot = AgentSlot {
            name,
            epoch: self.next_epoch,
            capacity: 0,
            cordoned: false,
            healthy: false,
            refused_full: false,
            holdings: HashMap::new(),
            port_users: HashMap::new(),
            images: BTreeSet::new(),
            stock: HashMap::new(),
        };
        slot.add_to(&mut self.totals);
        let index = match self.vacant.pop() {
            Some(index) => {
                self.agents[index as usize] = Some(slot);
                index
            }
            None => {
                self.agents.push(Some(slot));
                (self.agents.len() - 1) as u32
            }
        };
        Place { index, epoch: self.next_epoch }
    }

    /// Takes an agent out. Reservations on it become worthless and may still be dropped.
    pub fn remove(&mut self, place: Place) {
        let Some(slot) = self.slot(place) else { return };
        let (images, stock, ports) = (
            slot.images.clone(),
            slot.stock.keys().cloned().collect::<Vec<_>>(),
            slot.port_users.keys().copied().collect::<Vec<_>>(),
        );
        for image in images {
            set_in(&mut self.images, image, place.index, false);
        }
        for image in stock {
            set_in(&mut self.stock, image, place.index, false);
        }
        for port in ports {
            set_in(&mut self.ports, port, place.index, false);
        }
        self.open.set(place.index, false);
        if let Some(slot) = self.agents[place.index as usize].take() {
            slot.take_from(&mut self.totals);
        }
        self.vacant.push(place.index);
    }

    /// Takes over a whole report: what the agent is, what runs on it, what it has.
    pub fn report(&mut self, place: Place, facts: &AgentFacts) {
        self.change(place, |slot| {
            slot.capacity = facts.capacity;
            slot.cordoned = facts.cordoned;
            slot.healthy = true;
            slot.refused_full = false;
        });
        let Some(slot) = self.slot(place) else { return };
        let gone: Vec<Holder> = slot
            .holdings
            .iter()
            .filter(|(holder, holding)| holding.reported && !facts.holders.iter().any(|(now, _)| now == *holder))
            .map(|(holder, _)| holder.clone())
            .collect();
        for holder in gone {
            self.vacated(place, &holder);
        }
        for (holder, ports) in &facts.holders {
            self.occupied(place, holder, ports);
        }
        self.set_images(place, &facts.images);
        self.set_stock(place, &facts.stock);
    }

    /// The agent's stream is up or down.
    pub fn set_healthy(&mut self, place: Place, healthy: bool) {
        self.change(place, |slot| slot.healthy = healthy);
    }

    /// The agent refused as full: it is left out until it has reported again.
    pub fn refused_full(&mut self, place: Place) {
        self.change(place, |slot| slot.refused_full = true);
    }

    /// The agent has given a sign of its use: a refusal for being full is forgotten.
    pub fn heartbeat(&mut self, place: Place) {
        if self.slot(place).is_some_and(|slot| slot.refused_full) {
            self.change(place, |slot| slot.refused_full = false);
        }
    }

    /// The agent says that this sandbox runs on it.
    pub fn occupied(&mut self, place: Place, holder: &Holder, ports: &BTreeSet<u16>) {
        self.take(place, holder, ports, |holding| holding.reported = true);
    }

    /// The agent says that this sandbox holds nothing any more.
    pub fn vacated(&mut self, place: Place, holder: &Holder) {
        self.release(place, holder, |holding| holding.reported = false);
    }

    /// Replaces the images that the agent has.
    pub fn set_images(&mut self, place: Place, images: &[String]) {
        let wanted: BTreeSet<String> = images.iter().map(|image| canonical(image)).collect();
        let Some(slot) = self.slot_mut(place) else { return };
        let had = std::mem::replace(&mut slot.images, wanted.clone());
        for image in had.difference(&wanted) {
            set_in(&mut self.images, image.clone(), place.index, false);
        }
        for image in wanted.difference(&had) {
            set_in(&mut self.images, image.clone(), place.index, true);
        }
    }

    /// Replaces the stock of paused containers.
    pub fn set_stock(&mut self, place: Place, stock: &[(String, u32)]) {
        let mut wanted: HashMap<String, u32> = HashMap::new();
        for (image, paused) in stock {
            if *paused > 0 {
                *wanted.entry(canonical(image)).or_default() += paused;
            }
        }
        let Some(slot) = self.slot_mut(place) else { return };
        let had = std::mem::replace(&mut slot.stock, wanted.clone());
        for image in had.into_keys().filter(|image| !wanted.contains_key(image)) {
            set_in(&mut self.stock, image, place.index, false);
        }
        for image in wanted.into_keys() {
            set_in(&mut self.stock, image, place.index, true);
        }
    }

    /// Chooses an agent, reserves slot and ports on it. `image` is canonical; `except` are those who refused already.
    pub fn place(
        &mut self,
        wanted: &Wanted<'_>,
        image: &str,
        except: &[u32],
    ) -> Result<(Place, Arc<str>, Class), NoPlace> {
        let chance: [u32; 2] = self.random.random();
        let busy: Vec<&Bitmap> = wanted.ports.iter().filter_map(|port| self.ports.get(port)).collect();
        let classes =
            [(Class::Stock, self.stock.get(image)), (Class::Image, self.images.get(image)), (Class::Any, None)];
        let mut chosen = None;
        for (class, members) in classes {
            let narrow;
            let wide;
            let with: &[&Bitmap] = match (class, members) {
                (Class::Any, _) => {
                    wide = [&self.open];
                    &wide
                }
                (_, None) => continue,
                (_, Some(members)) => {
                    narrow = [members, &self.open];
                    &narrow
                }
            };
            let query = Query { with, without: &busy, except };
            let Some((first, second)) = query.sample(chance) else { continue };
            let used = |index: u32| self.agents[index as usize].as_ref().map_or(usize::MAX, AgentSlot::used);
            chosen = Some((if used(second) < used(first) { second } else { first }, class));
            break;
        }
        let Some((index, class)) = chosen else { return Err(self.explain(wanted, except)) };
        let Some(slot) = self.agents[index as usize].as_mut() else { return Err(NoPlace::NoHealthyAgent) };
        let (name, place) = (slot.name.clone(), Place { index, epoch: slot.epoch });
        if class == Class::Stock
            && let Some(paused) = slot.stock.get_mut(image)
        {
            *paused -= 1;
            if *paused == 0 {
                slot.stock.remove(image);
                set_in(&mut self.stock, image.to_owned(), index, false);
            }
        }
        self.reserve(place, &wanted.holder, wanted.ports);
        Ok((place, name, class))
    }

    /// Reserves on a given agent, whether there is room or not: the sandbox is there already.
    pub fn reserve(&mut self, place: Place, holder: &Holder, ports: &BTreeSet<u16>) {
        self.take(place, holder, ports, |holding| holding.reserved = true);
    }

    /// Gives a reservation back. Only [`super::Reservation`] calls it, once.
    pub(super) fn unreserve(&mut self, place: Place, holder: &Holder) {
        self.release(place, holder, |holding| holding.reserved = false);
    }

    /// Sums over the pool.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Slots in use on an agent.
    pub fn used(&self, place: Place) -> usize {
        self.slot(place).map_or(0, AgentSlot::used)
    }

    /// Where an agent's name stands in an `except` list.
    pub(super) fn is_at(&self, place: Place) -> Option<u32> {
        self.slot(place).map(|_| place.index)
    }

    fn explain(&self, wanted: &Wanted<'_>, except: &[u32]) -> NoPlace {
        let Totals { healthy, cordoned, capacity, used, .. } = self.totals;
        if healthy == 0 {
            return NoPlace::NoHealthyAgent;
        }
        let open = Query { with: &[&self.open], without: &[], except };
        if open.is_empty() {
            return if healthy == cordoned {
                NoPlace::AllCordoned { agents: healthy }
            } else {
                NoPlace::Full { capacity, used }
            };
        }
        let taken = wanted.ports.iter().copied().find(|port| {
            let Some(users) = self.ports.get(port) else { return false };
            Query { with: &[&self.open], without: &[users], except }.is_empty()
        });
        NoPlace::PortsTaken { port: taken, ports: wanted.ports.clone() }
    }

    fn slot(&self, place: Place) -> Option<&AgentSlot> {
        self.agents.get(place.index as usize)?.as_ref().filter(|slot| slot.epoch == place.epoch)
    }

    fn slot_mut(&mut self, place: Place) -> Option<&mut AgentSlot> {
        self.agents.get_mut(place.index as usize)?.as_mut().filter(|slot| slot.epoch == place.epoch)
    }

    /// Changes an agent and keeps the sums and the open set right.
    fn change<T>(&mut self, place: Place, change: impl FnOnce(&mut AgentSlot) -> T) -> Option<T> {
        let slot = self.agents.get_mut(place.index as usize)?.as_mut().filter(|slot| slot.epoch == place.epoch)?;
        slot.take_from(&mut self.totals);
        let result = change(slot);
        slot.add_to(&mut self.totals);
        self.open.set(place.index, slot.open());
        Some(result)
    }

    fn take(&mut self, place: Place, holder: &Holder, ports: &BTreeSet<u16>, mark: impl FnOnce(&mut Holding)) {
        let newly = self.change(place, |slot| {
            let holding = slot.holdings.entry(holder.clone()).or_insert_with(|| Holding {
                reserved: false,
                reported: false,
                ports: BTreeSet::new(),
            });
            mark(holding);
            let newly: Vec<u16> = ports.difference(&holding.ports).copied().collect();
            holding.ports.extend(&newly);
            for port in &newly {
                *slot.port_users.entry(*port).or_default() += 1;
            }
            newly
        });
        for port in newly.into_iter().flatten() {
            set_in(&mut self.ports, port, place.index, true);
        }
    }

    fn release(&mut self, place: Place, holder: &Holder, mark: impl FnOnce(&mut Holding)) {
        let freed = self.change(place, |slot| {
            let Some(holding) = slot.holdings.get_mut(holder) else { return Vec::new() };
            mark(holding);
            if holding.reserved || holding.reported {
                return Vec::new();
            }
            let ports = slot.holdings.remove(holder).map(|holding| holding.ports).unwrap_or_default();
            let mut freed = Vec::new();
            for port in ports {
                if let Some(users) = slot.port_users.get_mut(&port) {
                    *users -= 1;
                    if *users == 0 {
                        slot.port_users.remove(&port);
                        freed.push(port);
                    }
                }
            }
            freed
        });
        for port in freed.into_iter().flatten() {
            set_in(&mut self.ports, port, place.index, false);
        }
    }
}

/// Sets a bit in a map of sets and drops sets that became empty.
fn set_in<K: std::hash::Hash + Eq>(sets: &mut HashMap<K, Bitmap>, key: K, index: u32, on: bool) {
    use std::collections::hash_map::Entry;
    match sets.entry(key) {
        Entry::Occupied(mut set) => {
            set.get_mut().set(index, on);
            if set.get().is_empty() {
                set.remove();
            }
        }
        Entry::Vacant(vacant) if on => vacant.insert(Bitmap::default()).set(index, true),
        Entry::Vacant(_) => {}
    }
}
