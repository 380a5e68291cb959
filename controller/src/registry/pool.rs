//! The agents of one pool and the decision which of them gets a sandbox.

use super::bitmap::{Bitmap, Query};
use super::holdings::{Holdings, Number};
use super::images::{ImageNumber, Images};
use super::ports::Ports;
use super::{AgentFacts, Class, Holder, NoPlace, Wanted, image_name::canonical};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The index of one pool. Every operation costs the same whatever the number of agents.
///
/// What a decision looks at lies close together: a machine with thousands of agents in its caches misses them often.
#[derive(Debug)]
pub struct PoolIndex {
    /// Room, by the agent's index.
    rooms: Vec<Room>,
    names: Vec<Arc<str>>,
    lists: Vec<Lists>,
    vacant: Vec<u32>,
    /// Healthy, not cordoned, with a free slot, and not just refused for being full.
    open: Bitmap,
    images: Images,
    ports: Ports,
    holdings: Holdings,
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

/// What is free on an agent.
#[derive(Debug, Clone, Copy, Default)]
struct Room {
    /// 0 = nobody has this index.
    epoch: u32,
    used: u32,
    capacity: u32,
    cordoned: bool,
    healthy: bool,
    /// It refused as full: its own admission knows better until it reports again.
    refused_full: bool,
    /// Paused containers by image, some of them none any more; further ones are in [`Lists`].
    stock: [Option<(ImageNumber, u32)>; INLINE],
}

/// Images whose stock lies in the room itself: few agents keep more of them warm.
const INLINE: usize = 4;

/// What an agent has, and what it says is on it.
#[derive(Debug, Default)]
struct Lists {
    images: Vec<ImageNumber>,
    /// Stock that the room has no place for.
    stock: Vec<(ImageNumber, u32)>,
    reported: Vec<Number>,
}

/// Where an agent is in the index. The epoch tells a later agent in the same place apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub(super) index: u32,
    pub(super) epoch: u32,
}

/// What was chosen and booked.
#[derive(Debug)]
pub struct Booked {
    /// Gives the slot back.
    pub number: Number,
    /// Where the agent is in the index.
    pub place: Place,
    /// How good it is for the image.
    pub class: Class,
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
            names: Vec::new(),
            lists: Vec::new(),
            vacant: Vec::new(),
            open: Bitmap::default(),
            images: Images::default(),
            ports: Ports::default(),
            holdings: Holdings::default(),
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
        for image in lists.images {
            self.images.set_have(image, place.index, false);
            self.images.release(image);
        }
        for (image, _) in room.stock.into_iter().flatten().chain(lists.stock) {
            self.images.set_stock(image, place.index, false);
            self.images.release(image);
        }
        for number in lists.reported {
            if let Some(holding) = self.holdings.get_mut(number) {
                holding.reported = None;
                if holding.reserved == 0 {
                    self.holdings.remove(number);
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
        let now: BTreeSet<Number> =
            facts.holders.iter().filter_map(|(holder, _)| self.holdings.find(place, holder)).collect();
        let reported = &self.lists[place.index as usize].reported;
        for number in reported.iter().copied().filter(|number| !now.contains(number)).collect::<Vec<_>>() {
            self.unreport(number);
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
        let Some(number) = self.take(place, holder, ports) else { return };
        let reported = &mut self.lists[place.index as usize].reported;
        if let Some(holding) = self.holdings.get_mut(number)
            && holding.reported.is_none()
        {
            holding.reported = Some(reported.len() as u32);
            reported.push(number);
        }
    }

    /// The agent says that this sandbox holds nothing any more.
    pub fn vacated(&mut self, place: Place, holder: &Holder) {
        if let Some(number) = self.holdings.find(place, holder) {
            self.unreport(number);
        }
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
        let stock = std::mem::take(&mut self.rooms[place.index as usize].stock);
        let further = std::mem::take(&mut self.lists[place.index as usize].stock);
        for (image, _) in stock.into_iter().flatten().chain(further) {
            self.images.set_stock(image, place.index, false);
            self.images.release(image);
        }
        for &(image, _) in &wanted {
            self.images.set_stock(image, place.index, true);
        }
        let mut wanted = wanted.into_iter();
        self.rooms[place.index as usize].stock = std::array::from_fn(|_| wanted.next());
        self.lists[place.index as usize].stock = wanted.collect();
    }

    /// Chooses an agent, reserves slot and ports on it. `image` is canonical; `except` are those who refused already.
    pub fn place(&mut self, wanted: &Wanted<'_>, image: &str, except: &[u32]) -> Result<Booked, NoPlace> {
        let Some((index, class, image)) = self.choose(wanted, image, except) else {
            return Err(self.explain(wanted, except));
        };
        let place = Place { index, epoch: self.rooms[index as usize].epoch };
        if let (Class::Stock, Some(image)) = (class, image) {
            self.use_stock(index, image);
        }
        let number = self.reserve(place, &wanted.holder, wanted.ports).ok_or(NoPlace::NoHealthyAgent)?;
        Ok(Booked { number, place, class })
    }

    /// The better of two that are drawn from the best class that has any.
    fn choose(
        &mut self,
        wanted: &Wanted<'_>,
        image: &str,
        except: &[u32],
    ) -> Option<(u32, Class, Option<ImageNumber>)> {
        let chance: [u32; 2] = self.random.random();
        let busy: Vec<&Bitmap> = wanted.ports.iter().filter_map(|port| self.ports.users(*port)).collect();
        let better = |(first, second): (u32, u32)| {
            let used = |index: u32| self.rooms[index as usize].used;
            if used(second) < used(first) { second } else { first }
        };
        let found = self.images.find(image);
        if let Some((number, agents)) = found {
            for (class, members) in [(Class::Stock, &agents.stock), (Class::Image, &agents.have)] {
                let query = Query { with: &[members, &self.open], without: &busy, except };
                if let Some(sample) = query.sample(chance) {
                    return Some((better(sample), class, Some(number)));
                }
            }
        }
        let query = Query { with: &[&self.open], without: &busy, except };
        query.sample(chance).map(|sample| (better(sample), Class::Any, found.map(|(number, _)| number)))
    }

    /// A paused container is about to be used: the agent's next report says so too.
    fn use_stock(&mut self, index: u32, image: ImageNumber) {
        let mut found = self.rooms[index as usize].stock.iter_mut().flatten().find(|(other, _)| *other == image);
        if found.is_none() {
            found = self.lists[index as usize].stock.iter_mut().find(|(other, _)| *other == image);
        }
        if let Some((_, paused)) = found {
            *paused = paused.saturating_sub(1);
            if *paused == 0 {
                self.images.set_stock(image, index, false);
            }
        }
    }

    /// Reserves on a given agent, whether there is room or not: the sandbox is there already. `None`: there is no such
    /// agent.
    pub fn reserve(&mut self, place: Place, holder: &Holder, ports: &BTreeSet<u16>) -> Option<Number> {
        let number = self.take(place, holder, ports)?;
        self.holdings.get_mut(number)?.reserved += 1;
        Some(number)
    }

    /// Gives a reservation back. Only [`super::Reservation`] calls it, once.
    pub(super) fn unreserve(&mut self, number: Number) {
        if let Some(holding) = self.holdings.get_mut(number) {
            holding.reserved -= 1;
            if holding.reserved == 0 && holding.reported.is_none() {
                self.release(number);
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

    /// Where an agent's name stands in an `except` list.
    pub(super) fn is_at(&self, place: Place) -> Option<u32> {
        self.room(place).map(|_| place.index)
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
            let Some(users) = self.ports.users(*port) else { return false };
            Query { with: &[&self.open], without: &[users], except }.is_empty()
        });
        NoPlace::PortsTaken { port: taken, ports: wanted.ports.clone() }
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
    fn count(&mut self, index: u32, more: bool) {
        let room = &mut self.rooms[index as usize];
        room.used = if more { room.used + 1 } else { room.used - 1 };
        if room.healthy {
            self.totals.used = if more { self.totals.used + 1 } else { self.totals.used - 1 };
        }
        self.open.set(index, room.open());
    }

    /// The holder's slot on this agent, taken if it is not yet, with these ports besides those that it has.
    fn take(&mut self, place: Place, holder: &Holder, ports: &BTreeSet<u16>) -> Option<Number> {
        self.room(place)?;
        let (number, new) = self.holdings.find_or_add(place, holder);
        if new {
            self.count(place.index, true);
        }
        if !ports.is_empty() {
            let holding = self.holdings.get_mut(number)?;
            let more: Vec<u16> =
                ports.iter().copied().filter(|port| holding.ports.binary_search(port).is_err()).collect();
            for &port in &more {
                self.ports.take(port, place.index);
            }
            if holding.ports.is_empty() {
                holding.ports = more.into();
            } else if !more.is_empty() {
                let mut all = [&*holding.ports, &more].concat();
                all.sort_unstable();
                holding.ports = all.into();
            }
        }
        Some(number)
    }

    fn unreport(&mut self, number: Number) {
        let Some(holding) = self.holdings.get_mut(number) else { return };
        let Some(position) = holding.reported.take() else { return };
        let (index, reserved) = (holding.place.index, holding.reserved);
        let reported = &mut self.lists[index as usize].reported;
        reported.swap_remove(position as usize);
        if let Some(moved) = reported.get(position as usize)
            && let Some(moved) = self.holdings.get_mut(*moved)
        {
            moved.reported = Some(position);
        }
        if reserved == 0 {
            self.release(number);
        }
    }

    /// Nobody holds it any more.
    fn release(&mut self, number: Number) {
        let Some(holding) = self.holdings.remove(number) else { return };
        // What an agent that went had is not the next one's in its place.
        if self.room(holding.place).is_some() {
            self.count(holding.place.index, false);
            for &port in &holding.ports {
                self.ports.free(port, holding.place.index);
            }
        }
    }
}
