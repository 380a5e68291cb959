//! The agents of one pool: what they report, and what is taken on them.

mod decision;

use super::hash::Seed;
use super::holdings::{Holdings, Key, Position};
use super::images::{ImageNumber, Images};
use super::members::Members;
use super::ports::{PortList, Ports};
use super::{AgentFacts, Holder, image_name::canonical};
use decision::Placed;
use rand::{SeedableRng, rngs::SmallRng};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// The index of one pool. Every operation costs the same whatever the number of agents.
///
/// What a decision looks at lies close together and is small: with thousands of agents it is the memory that a decision
/// waits for. For the same reason some of what it changes is settled later; whoever looks at the index has it settled
/// first, see [`PoolIndex::settle`].
#[derive(Debug)]
pub struct PoolIndex {
    // By the agent's index:
    rooms: Vec<Room>,
    stocks: Vec<Stock>,
    names: Vec<Arc<str>>,
    lists: Vec<Lists>,
    /// Indexes that nobody has.
    vacant: Vec<u32>,
    /// Healthy, not cordoned, with a free slot, and not just refused for being full.
    open: Members,
    images: Images,
    ports: Ports,
    holdings: Holdings,
    /// The last decision, and the reservations that ended since then, as far as they are not settled yet.
    placed: Option<Placed>,
    given_back: Vec<(Key, PortList)>,
    totals: Totals,
    random: SmallRng,
    next_epoch: u32,
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

/// What is free on an agent: all that a decision looks at, as small as can be.
#[derive(Debug, Clone, Copy, Default)]
#[repr(align(16))]
struct Room {
    /// 0 = nobody has this index.
    epoch: u32,
    used: u32,
    capacity: u32,
    cordoned: bool,
    healthy: bool,
    /// It refused as full: its own admission knows better until it reports again.
    refused_full: bool,
}

/// Paused containers of an agent by image; what has no place here is in [`Lists`].
type Stock = [Paused; INLINE];

/// Images that have a place in a [`Stock`]: few agents keep more of them warm.
const INLINE: usize = 4;

/// Paused containers of one image, perhaps none any more.
#[derive(Debug, Clone, Copy, Default)]
struct Paused {
    /// The image's number plus one; 0 = nothing is here.
    image: u16,
    count: u16,
}

/// What an agent has, and what it says is on it.
#[derive(Debug, Default)]
struct Lists {
    images: Vec<ImageNumber>,
    /// What the agent's [`Stock`] has no place for.
    stock: Vec<(ImageNumber, u32)>,
    /// Sandboxes that it says are on it, by their keys' identities, with their ports.
    reported: HashMap<u64, Vec<u16>, Seed>,
}

/// Where an agent is in the index. The epoch tells a later agent in the same place apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub(super) index: u32,
    pub(super) epoch: u32,
}

impl Paused {
    /// `None` if a number is too large for this form.
    fn new(image: ImageNumber, count: u32) -> Option<Self> {
        Some(Self { image: u16::try_from(image).ok()?.checked_add(1)?, count: count.try_into().ok()? })
    }

    fn image(self) -> Option<ImageNumber> {
        self.image.checked_sub(1).map(ImageNumber::from)
    }
}

impl Room {
    fn open(&self) -> bool {
        self.healthy && !self.cordoned && !self.refused_full && (self.capacity == 0 || self.used < self.capacity)
    }

    fn add_to(&self, totals: &mut Totals) {
        totals.agents += 1;
        if self.healthy {
            totals.healthy += 1;
            totals.cordoned += usize::from(self.cordoned);
            totals.capacity += u64::from(self.capacity);
            totals.used += u64::from(self.used);
        }
    }

    fn take_from(&self, totals: &mut Totals) {
        totals.agents -= 1;
        if self.healthy {
            totals.healthy -= 1;
            totals.cordoned -= usize::from(self.cordoned);
            totals.capacity -= u64::from(self.capacity);
            totals.used -= u64::from(self.used);
        }
    }
}

impl PoolIndex {
    /// An empty pool. The seed decides the two random choices.
    pub fn new(seed: u64) -> Self {
        Self {
            rooms: Vec::new(),
            stocks: Vec::new(),
            names: Vec::new(),
            lists: Vec::new(),
            vacant: Vec::new(),
            open: Members::default(),
            images: Images::default(),
            ports: Ports::default(),
            holdings: Holdings::default(),
            placed: None,
            given_back: Vec::new(),
            totals: Totals::default(),
            random: SmallRng::seed_from_u64(seed),
            next_epoch: 0,
        }
    }

    /// Adds an agent with nothing on it.
    pub fn add(&mut self, name: Arc<str>) -> Place {
        self.next_epoch = self.next_epoch.wrapping_add(1).max(1);
        let room = Room { epoch: self.next_epoch, ..Room::default() };
        room.add_to(&mut self.totals);
        let index = match self.vacant.pop() {
            Some(index) => {
                self.rooms[index as usize] = room;
                self.names[index as usize] = name;
                index
            }
            None => {
                self.rooms.push(room);
                self.stocks.push(Stock::default());
                self.names.push(name);
                self.lists.push(Lists::default());
                (self.rooms.len() - 1) as u32
            }
        };
        Place { index, epoch: room.epoch }
    }

    /// Takes an agent out. Reservations on it become worthless and may still be dropped.
    pub fn remove(&mut self, place: Place) {
        let Some(room) = self.room(place).copied() else { return };
        room.take_from(&mut self.totals);
        self.open.set(place.index, false);
        let lists = std::mem::take(&mut self.lists[place.index as usize]);
        for &image in &lists.images {
            self.images.set_have(image, place.index, false);
            self.images.release(image);
        }
        for image in stocked(&std::mem::take(&mut self.stocks[place.index as usize]), &lists) {
            self.images.set_stock(image, place.index, false);
            self.images.release(image);
        }
        for identity in lists.reported.into_keys() {
            if let Some(at) = self.holdings.find(Key { identity, place }) {
                self.holdings.set_reported(at, false);
                if self.holdings.is_over(at) {
                    self.holdings.remove(at);
                }
            }
        }
        self.ports.forget(place.index);
        self.rooms[place.index as usize] = Room::default();
        self.vacant.push(place.index);
    }

    /// Takes over a whole report: what the agent is, what runs on it, what it has.
    pub fn report(&mut self, place: Place, facts: &AgentFacts) {
        self.change(place, |room| {
            room.capacity = facts.capacity;
            room.cordoned = facts.cordoned;
            room.healthy = true;
            room.refused_full = false;
        });
        if self.room(place).is_none() {
            return;
        }
        let now: BTreeSet<u64> = facts.holders.iter().map(|(holder, _)| self.key(place, holder).identity).collect();
        let reported = self.lists[place.index as usize].reported.keys().copied();
        for identity in reported.filter(|identity| !now.contains(identity)).collect::<Vec<_>>() {
            self.unreport(Key { identity, place });
        }
        for (holder, ports) in &facts.holders {
            self.occupied(place, holder, ports);
        }
        self.set_images(place, &facts.images);
        self.set_stock(place, &facts.stock);
    }

    /// The agent's stream is up or down.
    pub fn set_healthy(&mut self, place: Place, healthy: bool) {
        self.change(place, |room| room.healthy = healthy);
    }

    /// The agent refused as full: it is left out until it has reported again.
    pub fn refused_full(&mut self, place: Place) {
        self.change(place, |room| room.refused_full = true);
    }

    /// The agent has given a sign of its use: a refusal for being full is forgotten.
    pub fn heartbeat(&mut self, place: Place) {
        if self.room(place).is_some_and(|room| room.refused_full) {
            self.change(place, |room| room.refused_full = false);
        }
    }

    /// The agent says that this sandbox runs on it.
    pub fn occupied(&mut self, place: Place, holder: &Holder, ports: &BTreeSet<u16>) {
        if self.room(place).is_none() {
            return;
        }
        let key = self.key(place, holder);
        let at = self.take(key);
        self.holdings.set_reported(at, true);
        // Ports that it had once stay its own as long as it is there.
        let known = self.lists[place.index as usize].reported.entry(key.identity).or_default();
        for &port in ports {
            if !known.contains(&port) {
                known.push(port);
                self.ports.take(port, place.index);
            }
        }
    }

    /// The agent says that this sandbox holds nothing any more.
    pub fn vacated(&mut self, place: Place, holder: &Holder) {
        self.unreport(self.key(place, holder));
    }

    /// Replaces the images that the agent has.
    pub fn set_images(&mut self, place: Place, images: &[String]) {
        if self.room(place).is_none() {
            return;
        }
        let wanted: BTreeSet<_> = images.iter().map(|image| canonical(image)).collect();
        // The new list takes its images before the old one gives them back: what is in both stays.
        let wanted: Vec<ImageNumber> = wanted.iter().map(|image| self.images.retain(image)).collect();
        let list = &mut self.lists[place.index as usize].images;
        for image in std::mem::take(list) {
            self.images.set_have(image, place.index, false);
            self.images.release(image);
        }
        for &image in &wanted {
            self.images.set_have(image, place.index, true);
        }
        *list = wanted;
    }

    /// Replaces the stock of paused containers.
    pub fn set_stock(&mut self, place: Place, stock: &[(String, u32)]) {
        if self.room(place).is_none() {
            return;
        }
        let mut wanted = BTreeMap::new();
        for (image, paused) in stock.iter().filter(|(_, paused)| *paused > 0) {
            *wanted.entry(canonical(image)).or_insert(0) += paused;
        }
        let wanted: Vec<_> = wanted.into_iter().map(|(image, paused)| (self.images.retain(&image), paused)).collect();
        let (stock, lists) = (&mut self.stocks[place.index as usize], &mut self.lists[place.index as usize]);
        for image in stocked(stock, lists) {
            self.images.set_stock(image, place.index, false);
            self.images.release(image);
        }
        *stock = Stock::default();
        lists.stock.clear();
        let mut free = stock.iter_mut();
        for (image, count) in wanted {
            self.images.set_stock(image, place.index, true);
            match Paused::new(image, count).and_then(|paused| Some((free.next()?, paused))) {
                Some((free, paused)) => *free = paused,
                None => lists.stock.push((image, count)),
            }
        }
    }

    /// Sums over the pool.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Slots in use on an agent.
    pub fn used(&self, place: Place) -> usize {
        self.room(place).map_or(0, |room| room.used as usize)
    }

    /// The agent's name, if it is still there.
    pub(super) fn name(&self, place: Place) -> Option<&Arc<str>> {
        self.room(place).map(|_| &self.names[place.index as usize])
    }

    fn room(&self, place: Place) -> Option<&Room> {
        self.rooms.get(place.index as usize).filter(|room| room.epoch == place.epoch)
    }

    /// Changes what an agent is, and keeps the sums and the open set right.
    fn change(&mut self, place: Place, change: impl FnOnce(&mut Room)) {
        let Some(room) = self.rooms.get_mut(place.index as usize).filter(|room| room.epoch == place.epoch) else {
            return;
        };
        room.take_from(&mut self.totals);
        change(room);
        room.add_to(&mut self.totals);
        self.open.set(place.index, room.open());
    }

    /// One sandbox more or fewer on an agent.
    #[inline]
    fn count(&mut self, index: u32, more: bool) {
        let room = &mut self.rooms[index as usize];
        let was_open = room.open();
        let used = if more { room.used + 1 } else { room.used.saturating_sub(1) };
        if room.healthy {
            self.totals.used = self.totals.used + u64::from(used) - u64::from(room.used);
        }
        room.used = used;
        if room.open() != was_open {
            self.open.set(index, !was_open);
        }
    }

    fn key(&self, place: Place, holder: &Holder) -> Key {
        self.holdings.key(self.holdings.hash(holder), place)
    }

    /// A holder's slot on an agent that is there, taken if it is not yet.
    fn take(&mut self, key: Key) -> Position {
        let (at, new) = self.holdings.find_or_add(key);
        if new {
            self.count(key.place.index, true);
        }
        at
    }

    fn unreport(&mut self, key: Key) {
        let Some(at) = self.holdings.find(key) else { return };
        let Some(ports) = self.lists[key.place.index as usize].reported.remove(&key.identity) else { return };
        self.holdings.set_reported(at, false);
        self.release(key, at, &ports);
    }

    /// A reservation or a report is over, and with it its use of these ports. The slot is free with the last of them.
    fn release(&mut self, key: Key, at: Position, ports: &[u16]) {
        let free = self.holdings.is_over(at);
        if free {
            self.holdings.remove(at);
        }
        // What an agent that went had is not the next one's in its place.
        if self.room(key.place).is_none() {
            return;
        }
        if free {
            self.count(key.place.index, false);
        }
        for &port in ports {
            self.ports.free(port, key.place.index);
        }
    }
}

/// Images of which an agent has, or had, paused containers.
fn stocked(stock: &Stock, lists: &Lists) -> impl Iterator<Item = ImageNumber> + use<> {
    let further: Vec<ImageNumber> = lists.stock.iter().map(|(image, _)| *image).collect();
    (*stock).into_iter().filter_map(Paused::image).chain(further)
}
