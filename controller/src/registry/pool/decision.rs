//! Which agent gets a sandbox, and what becomes of its reservation.

use super::super::bitmap::{Bitmap, Filter};
use super::super::holdings::Key;
use super::super::images::ImageNumber;
use super::super::ports::PortList;
use super::super::prefetch::prefetch;
use super::super::{Class, Holder, NoPlace, Wanted};
use super::{INLINE, Paused, Place, PoolIndex, Room, Stock, Totals};
use rand::RngCore;
use std::collections::BTreeSet;

/// A decision that is still to be written down.
#[derive(Debug)]
pub struct Placed {
    key: Key,
    /// The image of which it takes a paused container.
    stock: Option<ImageNumber>,
}

/// The most reservations that wait to be settled.
const UNSETTLED: usize = 8;

impl PoolIndex {
    /// Chooses an agent, reserves slot and ports on it. `image` is canonical; `except` are those who refused already.
    #[inline]
    pub fn place(&mut self, wanted: &Wanted<'_>, image: &str, mut except: Vec<Place>) -> Result<(Key, Class), NoPlace> {
        let (image, chance) = (self.images.find(image), self.random.next_u64());
        if let Some(image) = image {
            self.images.agents(image).stock.expect(chance);
        }
        let hash = self.holdings.hash(wanted.holder);
        self.holdings.expect(hash);
        except.retain(|place| self.room(*place).is_some());
        let Some((index, class)) = self.choose(wanted, image, chance, &except) else {
            return Err(self.explain(wanted, &except));
        };
        prefetch(&self.stocks, index as usize);
        let key = self.holdings.key(hash, Place { index, epoch: self.rooms[index as usize].epoch });
        self.count(index, true);
        for &port in wanted.ports {
            self.ports.take(port, index);
        }
        self.placed = Some(Placed { key, stock: image.filter(|_| class == Class::Stock) });
        Ok((key, class))
    }

    /// The better of two that are drawn from the best class that has any.
    #[inline]
    fn choose(
        &mut self,
        wanted: &Wanted<'_>,
        image: Option<ImageNumber>,
        chance: u64,
        except: &[Place],
    ) -> Option<(u32, Class)> {
        let better = |rooms: &[Room], (first, second): (u32, u32)| {
            let used = |index: u32| rooms[index as usize].used;
            if used(second) < used(first) { second } else { first }
        };
        let busy = self.ports.busy(wanted.ports);
        let free = Filter { with: None, without: &busy, except };
        let open = Filter { with: Some(self.open.bits()), ..free };
        if let Some(image) = image {
            let agents = self.images.agents(image);
            if let Some(drawn) = agents.stock.draw_two(chance, open, &mut self.random) {
                return Some((better(&self.rooms, drawn), Class::Stock));
            }
            if let Some(drawn) = agents.have.draw_two(chance, open, &mut self.random) {
                return Some((better(&self.rooms, drawn), Class::Image));
            }
        }
        let drawn = self.open.draw_two(chance, free, &mut self.random)?;
        Some((better(&self.rooms, drawn), Class::Any))
    }

    #[cold]
    fn explain(&self, wanted: &Wanted<'_>, except: &[Place]) -> NoPlace {
        let Totals { healthy, cordoned, capacity, used, .. } = self.totals;
        if healthy == 0 {
            return NoPlace::NoHealthyAgent;
        }
        let open = |without: &[&Bitmap]| self.open.bits().first_from(0, Filter { with: None, without, except });
        if open(&[]).is_none() {
            return if healthy == cordoned {
                NoPlace::AllCordoned { agents: healthy }
            } else {
                NoPlace::Full { capacity, used }
            };
        }
        let taken = wanted
            .ports
            .iter()
            .copied()
            .find(|port| self.ports.users(*port).is_some_and(|users| open(&[users]).is_none()));
        NoPlace::PortsTaken { port: taken, ports: wanted.ports.clone() }
    }

    /// Reserves on a given agent, whether there is room or not: the sandbox is there already. `None`: there is no such
    /// agent.
    pub fn hold(&mut self, place: Place, holder: &Holder, ports: &BTreeSet<u16>) -> Option<Key> {
        self.room(place)?;
        let key = self.key(place, holder);
        let at = self.take(key);
        self.holdings.reserve(at);
        for &port in ports {
            self.ports.take(port, place.index);
        }
        Some(key)
    }

    /// Takes a reservation back. Only a dropped [`super::super::Reservation`] does it, once.
    pub fn give_back(&mut self, key: Key, ports: PortList) {
        prefetch(&self.rooms, key.place.index as usize);
        self.holdings.expect(key.identity);
        self.given_back.push((key, ports));
        if self.given_back.len() == UNSETTLED {
            self.settle();
        }
    }

    /// Writes down what has been decided and given back. Whoever looks at the index calls it first.
    ///
    /// The tables are too large for a processor's caches: when it comes to this, the memory has had the time of an
    /// operation, or of several, to arrive, and nobody waits for it.
    #[inline]
    pub fn settle(&mut self) {
        // A decision has all before it settled, so this is their order.
        if let Some(placed) = self.placed.take() {
            self.settle_placed(placed);
        }
        if !self.given_back.is_empty() {
            self.settle_given_back();
        }
    }

    fn settle_placed(&mut self, placed: Placed) {
        let Placed { key, stock } = placed;
        let (at, new) = self.holdings.find_or_add(key);
        self.holdings.reserve(at);
        if !new {
            // The holder had a slot there already: this one was counted twice.
            self.count(key.place.index, false);
        }
        if let Some(image) = stock {
            self.use_stock(key.place.index, image);
        }
    }

    fn settle_given_back(&mut self) {
        let mut given_back = std::mem::take(&mut self.given_back);
        for (key, ports) in given_back.drain(..) {
            let Some(at) = self.holdings.find(key) else { continue };
            self.holdings.unreserve(at);
            self.release(key, at, ports.as_slice());
        }
        self.given_back = given_back;
    }

    /// A paused container is about to be used: the agent's next report says so too.
    fn use_stock(&mut self, index: u32, image: ImageNumber) {
        let left = match stock_of(&mut self.stocks[index as usize], image) {
            Some(paused) => {
                paused.count = paused.count.saturating_sub(1);
                paused.count.into()
            }
            None => {
                let further = &mut self.lists[index as usize].stock;
                let Some((_, count)) = further.iter_mut().find(|(other, _)| *other == image) else { return };
                *count = count.saturating_sub(1);
                *count
            }
        };
        if left == 0 {
            self.images.set_stock(image, index, false);
        }
    }
}

/// The paused containers of an image. Looks at all of them: which one it is cannot be predicted.
fn stock_of(stock: &mut Stock, image: ImageNumber) -> Option<&mut Paused> {
    let at = (0..INLINE).fold(INLINE, |at, next| if stock[next].image() == Some(image) { next } else { at });
    stock.get_mut(at)
}
