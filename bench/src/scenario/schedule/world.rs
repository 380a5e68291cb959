//! A registry full of agents, and beside it everything that is on them, so that the exact best can be looked up.

use anyhow::{Context, bail};
use fsb_controller::registry::{AgentFacts, Class, Holder, PoolKey, Registry, Reservation, Wanted};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

/// Slots of an agent.
const CAPACITY: u32 = 16;
/// Images that there are; the first ones are asked for more often.
const IMAGES: usize = 64;
/// Images that an agent has.
const IMAGES_OF_AGENT: usize = 8;
/// Of these, images that it keeps paused containers of.
const STOCKED: usize = 4;
/// Paused containers of a stocked image.
const PAUSED: u32 = 4;
/// Ports that are asked for.
const PORTS: std::ops::Range<u16> = 8000..8016;
/// One request in so many asks for a port, and one in four of these for two.
const ASKS_PORT: u32 = 4;

/// What is on an agent.
struct Mirror {
    images: Vec<usize>,
    /// By image, for the stocked ones.
    paused: Vec<(usize, u32)>,
    used: u32,
    /// Bit n = port `PORTS.start + n` is in use.
    ports: u32,
}

struct Request {
    image: usize,
    ports: BTreeSet<u16>,
    mask: u32,
    holder: Holder,
}

struct Held {
    reservation: Reservation,
    agent: usize,
    mask: u32,
}

/// Time of a batch.
pub struct Took {
    /// Choosing and booking.
    pub place_ns: u64,
    /// Giving back.
    pub release_ns: u64,
}

/// How good decisions were.
#[derive(Debug, Default)]
pub struct Quality {
    /// Share that chose the best class there was.
    pub best_class: f64,
    /// Mean of sandboxes on the chosen agent above those of the emptiest in the best class.
    pub excess: f64,
    /// The same for any agent of the best class.
    pub excess_at_random: f64,
    /// Decisions.
    pub compared: usize,
}

/// The registry with its mirror.
pub struct World {
    registry: Registry,
    key: PoolKey,
    names: Vec<Arc<str>>,
    index: HashMap<Arc<str>, usize>,
    mirrors: Vec<Mirror>,
    images: Vec<String>,
    held: VecDeque<Held>,
    random: StdRng,
    next: u64,
}

impl World {
    /// `agents` agents with half of their slots taken.
    pub fn new(agents: usize, seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let images: Vec<String> = (0..IMAGES).map(|number| format!("registry.test/image-{number}:v1")).collect();
        let key = PoolKey { namespace: "default".into(), pool: "default-pool".into() };
        let registry = Registry::default();
        let names: Vec<Arc<str>> = (0..agents).map(|number| format!("agent-{number}").into()).collect();
        let mut mirrors = Vec::with_capacity(agents);
        for name in &names {
            let own: Vec<usize> = rand::seq::index::sample(&mut random, IMAGES, IMAGES_OF_AGENT).into_vec();
            let paused: Vec<(usize, u32)> = own[..STOCKED].iter().map(|&image| (image, PAUSED)).collect();
            let facts = AgentFacts {
                capacity: CAPACITY,
                images: own.iter().map(|&image| images[image].clone()).collect(),
                stock: stock(&images, &paused),
                ..AgentFacts::default()
            };
            registry.report(name, &key, &facts);
            mirrors.push(Mirror { images: own, paused, used: 0, ports: 0 });
        }
        let index = names.iter().enumerate().map(|(index, name)| (name.clone(), index)).collect();
        let held = VecDeque::new();
        let mut world = Self { registry, key, names, index, mirrors, images, held, random, next: 0 };
        let half = agents * CAPACITY as usize / 2;
        while world.held.len() < half {
            let request = world.request();
            match world.place(&request) {
                Ok(reservation) => drop(world.book(reservation, &request)),
                // So many ports are rarely free on few agents.
                Err(_) => continue,
            }
        }
        world
    }

    /// Reservations at any time.
    pub fn reservations(&self) -> usize {
        self.held.len()
    }

    /// As many new reservations as `count`, then the end of as many of the oldest: both are timed.
    pub fn turn_over(&mut self, count: usize) -> anyhow::Result<Took> {
        let requests: Vec<Request> = (0..count).map(|_| self.request()).collect();
        let mut placed = Vec::with_capacity(count);
        let began = Instant::now();
        for request in &requests {
            placed.push(self.place(request));
        }
        let place_ns = began.elapsed().as_nanos() as u64;
        let mut used = Vec::new();
        for (reservation, request) in placed.into_iter().zip(&requests) {
            used.extend(self.book(reservation.context("a decision in steady state")?, request));
        }
        let ended: Vec<Reservation> = (0..count).filter_map(|_| self.take_oldest()).collect();
        let began = Instant::now();
        for reservation in ended {
            drop(reservation);
        }
        let release_ns = began.elapsed().as_nanos() as u64;
        self.refill(used);
        Ok(Took { place_ns, release_ns })
    }

    /// Compares decisions with the exact best, one at a time.
    pub fn compare(&mut self, count: usize) -> anyhow::Result<Quality> {
        let (mut best, mut excess, mut at_random) = (0, 0.0, 0.0);
        for _ in 0..count {
            let request = self.request();
            let Some((class, least, mean)) = self.exact(&request) else { bail!("no agent can take a sandbox") };
            let reservation = self.place(&request)?;
            let agent = self.agent(&reservation)?;
            // Its class as the mirror knows it, not as the registry says.
            if self.class(agent, request.image) == class && reservation.class() == class {
                best += 1;
                excess += f64::from(self.mirrors[agent].used - least);
                at_random += mean - f64::from(least);
            }
            let used = self.book(reservation, &request);
            drop(self.take_oldest());
            self.refill(used.into_iter().collect());
        }
        let by = |sum: f64, count: usize| sum / count.max(1) as f64;
        Ok(Quality {
            best_class: by(f64::from(best), count),
            excess: by(excess, best as usize),
            excess_at_random: by(at_random, best as usize),
            compared: count,
        })
    }

    fn request(&mut self) -> Request {
        self.next += 1;
        // The smaller of two draws: popular images are asked for more often. One in a hundred nobody has.
        let image = if self.random.random_ratio(1, 100) {
            IMAGES
        } else {
            self.random.random_range(0..IMAGES).min(self.random.random_range(0..IMAGES))
        };
        let mut ports = BTreeSet::new();
        if self.random.random_ratio(1, ASKS_PORT) {
            ports.insert(self.random.random_range(PORTS));
            if self.random.random_ratio(1, 4) {
                ports.insert(self.random.random_range(PORTS));
            }
        }
        let mask = ports.iter().map(|port| 1 << (port - PORTS.start)).sum();
        let uid = format!("{:08x}-0000-4000-8000-{:012x}", self.random.random::<u32>(), self.next).into();
        Request { image, ports, mask, holder: Holder { uid, generation: 1 } }
    }

    fn place(&self, request: &Request) -> Result<Reservation, fsb_controller::registry::NoPlace> {
        let image = self.images.get(request.image).map_or("registry.test/unknown:v1", String::as_str);
        let wanted = Wanted { image, ports: &request.ports, holder: &request.holder, except: &[] };
        self.registry.place(&self.key, &wanted)
    }

    fn agent(&self, reservation: &Reservation) -> anyhow::Result<usize> {
        let name = reservation.agent().context("the agent that was chosen is gone")?;
        Ok(self.index[&name])
    }

    /// Notes a reservation in the mirror. Returns the agent if it used a paused container.
    fn book(&mut self, reservation: Reservation, request: &Request) -> Option<usize> {
        let agent = self.agent(&reservation).ok()?;
        let used_stock = reservation.class() == Class::Stock;
        let mirror = &mut self.mirrors[agent];
        mirror.used += 1;
        mirror.ports |= request.mask;
        if used_stock && let Some(paused) = mirror.paused.iter_mut().find(|(image, _)| *image == request.image) {
            paused.1 = paused.1.saturating_sub(1);
        }
        self.held.push_back(Held { reservation, agent, mask: request.mask });
        used_stock.then_some(agent)
    }

    /// Takes the oldest reservation out of the mirror. It is given back when the caller drops it.
    fn take_oldest(&mut self) -> Option<Reservation> {
        let held = self.held.pop_front()?;
        let mirror = &mut self.mirrors[held.agent];
        mirror.used -= 1;
        mirror.ports &= !held.mask;
        Some(held.reservation)
    }

    /// The agents have cast new paused containers and say so.
    fn refill(&mut self, agents: Vec<usize>) {
        for agent in agents {
            let mirror = &mut self.mirrors[agent];
            mirror.paused.iter_mut().for_each(|(_, paused)| *paused = PAUSED);
            self.registry.set_stock(&self.names[agent], &stock(&self.images, &mirror.paused));
        }
    }

    fn class(&self, agent: usize, image: usize) -> Class {
        let mirror = &self.mirrors[agent];
        match mirror.paused.iter().any(|(stocked, paused)| *stocked == image && *paused > 0) {
            true => Class::Stock,
            false if mirror.images.contains(&image) => Class::Image,
            false => Class::Any,
        }
    }

    /// The best class that can take the request, its least used slots and their mean.
    fn exact(&self, request: &Request) -> Option<(Class, u32, f64)> {
        let rank = |class| match class {
            Class::Stock => 0,
            Class::Image => 1,
            Class::Any => 2,
        };
        let mut best: Option<(Class, u32, u64, u64)> = None;
        for (agent, mirror) in self.mirrors.iter().enumerate() {
            if mirror.used >= CAPACITY || mirror.ports & request.mask != 0 {
                continue;
            }
            let class = self.class(agent, request.image);
            best = match best {
                Some((other, least, sum, count)) if other == class => {
                    Some((class, least.min(mirror.used), sum + u64::from(mirror.used), count + 1))
                }
                Some(other) if rank(other.0) < rank(class) => Some(other),
                _ => Some((class, mirror.used, u64::from(mirror.used), 1)),
            };
        }
        best.map(|(class, least, sum, count)| (class, least, sum as f64 / count as f64))
    }
}

fn stock(images: &[String], paused: &[(usize, u32)]) -> Vec<(String, u32)> {
    paused.iter().map(|&(image, paused)| (images[image].clone(), paused)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_and_the_registry_stay_the_same() {
        let mut world = World::new(40, 7);
        for _ in 0..20 {
            world.turn_over(16).unwrap();
        }
        for (name, mirror) in world.names.iter().zip(&world.mirrors) {
            assert_eq!(world.registry.used(name), mirror.used as usize);
        }
        let quality = world.compare(200).unwrap();
        assert_eq!((quality.best_class, quality.compared), (1.0, 200), "{quality:?}");
        assert!(quality.excess <= quality.excess_at_random, "{quality:?}");
    }
}
