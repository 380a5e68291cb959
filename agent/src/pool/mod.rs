//! The stock of paused containers. [`policy`] decides, this carries it out.

mod likely;
pub(crate) mod policy;
pub(crate) mod warm;

use crate::Agent;
use crate::config::MakeMode;
use crate::error::Result;
use crate::images::ImagePin;
use crate::keeper::Paused;
use crate::lock;
use fsb_host::wire::{How, Recipe};
use fsb_proto::agent::{self, Source};
use likely::Likely;
use policy::{Bounds, Demand, View};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// How long a refill may take.
const MAKE_DEADLINE: Duration = Duration::from_secs(30);
/// Nothing to do: woken up by whatever changes that.
const IDLE_LOOK: Duration = Duration::from_secs(600);

/// Between two reports of the stock to the controllers.
const REPORT_EVERY: Duration = Duration::from_millis(50);

/// The stock of one recipe.
pub(crate) struct Shelf {
    pub(crate) recipe: Recipe,
    /// A name of its image, for people.
    pub(crate) reference: String,
    stock: Mutex<Stock>,
    likely: Mutex<Likely>,
    /// Keeps the image on the node.
    pub(crate) pin: ImagePin,
}

struct Stock {
    ready: VecDeque<Paused>,
    pending: usize,
    demand: Demand,
    used: Instant,
    failures: u32,
    blocked_until: Instant,
}

impl Shelf {
    fn pop(&self) -> Option<Paused> {
        lock(&self.stock).ready.pop_front()
    }

    /// Calls `see` with the container that the next start will take, if there is one.
    pub(crate) fn with_next(&self, see: impl FnOnce(&Paused)) {
        if let Some(paused) = lock(&self.stock).ready.front() {
            see(paused);
        }
    }

    fn ready(&self) -> usize {
        lock(&self.stock).ready.len()
    }

    /// The next start will probably be of this program, searched for along the PATH of `env`.
    pub(crate) fn expect(&self, program: &str, env: &[String]) {
        lock(&self.likely).expect(program, env);
    }

    /// What a container for this shelf looks up while it is made.
    pub(crate) fn lookups(&self) -> Vec<PathBuf> {
        lock(&self.likely).lookups()
    }
}

pub(crate) struct Pool {
    mode: MakeMode,
    per_image: usize,
    total: usize,
    began: Instant,
    shelves: Mutex<HashMap<Recipe, Arc<Shelf>>>,
    /// Names that are to be kept warm: those of the configuration, and those that a controller gave.
    warm: Mutex<(Vec<String>, Vec<String>)>,
    /// Recipes of those that are here.
    warm_recipes: Mutex<HashSet<Recipe>>,
    last_take: Mutex<Instant>,
    /// Starts that wait for a container of their own.
    urgent: AtomicUsize,
    wake: Notify,
    /// Warm images are to be looked up again.
    look: Notify,
}

struct Urgent<'a>(&'a Pool);

impl Drop for Urgent<'_> {
    fn drop(&mut self) {
        self.0.urgent.fetch_sub(1, Ordering::Relaxed);
        self.0.wake.notify_one();
    }
}

impl Pool {
    /// A pool of at most `per_image` per recipe and `bytes` altogether.
    pub(crate) fn new(mode: MakeMode, per_image: usize, bytes: u64, warm: Vec<String>) -> Self {
        let now = Instant::now();
        Self {
            mode,
            per_image,
            total: if mode == MakeMode::Stock { (bytes / policy::BYTES_EACH) as usize } else { 0 },
            began: now,
            shelves: Mutex::default(),
            warm: Mutex::new((warm, Vec::new())),
            warm_recipes: Mutex::default(),
            last_take: Mutex::new(now),
            urgent: AtomicUsize::new(0),
            wake: Notify::new(),
            look: Notify::new(),
        }
    }

    /// The shelf of a recipe.
    pub(crate) fn shelf(&self, recipe: Recipe, reference: &str, pin: ImagePin) -> Arc<Shelf> {
        let now = Instant::now();
        let mut shelves = lock(&self.shelves);
        if let Some(shelf) = shelves.get(&recipe) {
            return shelf.clone();
        }
        let stock = Stock {
            ready: VecDeque::new(),
            pending: 0,
            demand: Demand::default(),
            used: now,
            failures: 0,
            blocked_until: now,
        };
        let shelf = Arc::new(Shelf {
            recipe: recipe.clone(),
            reference: reference.to_owned(),
            stock: Mutex::new(stock),
            likely: Mutex::default(),
            pin,
        });
        shelves.insert(recipe, shelf.clone());
        shelf
    }

    /// A container from the stock, or one made for this start.
    pub(crate) async fn take(&self, agent: &Agent, shelf: &Shelf) -> Result<(Paused, Source)> {
        if self.mode == MakeMode::Stock
            && let Some(paused) = shelf.pop()
        {
            return Ok((paused, Source::Stock));
        }
        agent.room.check()?;
        self.urgent.fetch_add(1, Ordering::Relaxed);
        let _urgent = Urgent(self);
        let how = match self.mode {
            MakeMode::Stock => None,
            MakeMode::Cast => Some(How::Cast),
            MakeMode::Libcontainer => Some(How::Libcontainer),
        };
        let paused = agent.keeper.make(shelf, how, true, &agent.spares).await?;
        let source = match paused.made.how {
            How::Cast => Source::Cast,
            How::Libcontainer => Source::Libcontainer,
        };
        Ok((paused, source))
    }

    /// A start of this recipe is under way or done: counts for demand, and a refill waits a moment.
    pub(crate) fn took(&self, shelf: &Shelf) {
        let now = Instant::now();
        *lock(&self.last_take) = now;
        let mut stock = lock(&shelf.stock);
        stock.demand.bump(now - self.began);
        stock.used = now;
        drop(stock);
        self.wake.notify_one();
    }

    /// What is to be made may have changed.
    pub(crate) fn look_at_stock(&self) {
        self.wake.notify_one();
    }

    /// Puts a container that nobody waits for into the stock of its recipe. Handed back if there is no such shelf, or
    /// no room on it.
    pub(crate) fn put(&self, paused: Paused) -> Option<Paused> {
        let shelf = lock(&self.shelves).get(&paused.made.recipe).cloned();
        let Some(shelf) = shelf.filter(|_| self.mode == MakeMode::Stock) else { return Some(paused) };
        let mut stock = lock(&shelf.stock);
        if stock.ready.len() >= self.per_image {
            return Some(paused);
        }
        stock.ready.push_back(paused);
        None
    }

    /// Takes a container that has died out of the stock.
    pub(crate) fn remove(&self, id: &str) -> Option<Paused> {
        let shelves: Vec<Arc<Shelf>> = lock(&self.shelves).values().cloned().collect();
        shelves.iter().find_map(|shelf| {
            let mut stock = lock(&shelf.stock);
            let at = stock.ready.iter().position(|paused| paused.made.id == id)?;
            stock.ready.remove(at)
        })
    }

    /// Ids in stock.
    pub(crate) fn ids(&self) -> Vec<String> {
        let shelves: Vec<Arc<Shelf>> = lock(&self.shelves).values().cloned().collect();
        let ids = |shelf: &Arc<Shelf>| -> Vec<String> {
            lock(&shelf.stock).ready.iter().map(|paused| paused.made.id.clone()).collect()
        };
        shelves.iter().flat_map(ids).collect()
    }

    /// Digests of the images that have a shelf.
    pub(crate) fn images(&self) -> HashSet<String> {
        lock(&self.shelves).keys().map(|recipe| recipe.image.clone()).collect()
    }

    /// Empties the shelves of an image, so that nothing pins it. Its containers are the caller's to discard.
    pub(crate) fn drain(&self, digest: &str) -> Vec<Paused> {
        let mut shelves = lock(&self.shelves);
        let gone: Vec<Recipe> = shelves.keys().filter(|recipe| recipe.image == digest).cloned().collect();
        let shelves: Vec<Arc<Shelf>> = gone.iter().filter_map(|recipe| shelves.remove(recipe)).collect();
        lock(&self.warm_recipes).retain(|recipe| recipe.image != digest);
        shelves.iter().flat_map(|shelf| std::mem::take(&mut lock(&shelf.stock).ready)).collect()
    }

    /// Paused containers of the image with this digest.
    pub(crate) fn count(&self, digest: &str) -> usize {
        let shelves = lock(&self.shelves);
        shelves.values().filter(|shelf| shelf.recipe.image == digest).map(|shelf| shelf.ready()).sum()
    }

    /// Paused containers per image: by name.
    pub(crate) fn report(&self) -> Vec<agent::Stock> {
        let shelves: Vec<Arc<Shelf>> = lock(&self.shelves).values().cloned().collect();
        let mut per_image: BTreeMap<&str, i32> = BTreeMap::new();
        for shelf in &shelves {
            *per_image.entry(&shelf.reference).or_default() += shelf.ready() as i32;
        }
        per_image.into_iter().map(|(image, paused)| agent::Stock { image: image.to_owned(), paused }).collect()
    }

    /// Replaces the controller's part of the warm images.
    pub(crate) fn set_warm(&self, images: Vec<String>) {
        lock(&self.warm).1 = images;
        self.look.notify_one();
    }

    /// Names to be kept warm.
    fn warm_names(&self) -> Vec<String> {
        let warm = lock(&self.warm);
        let mut names = [warm.0.as_slice(), warm.1.as_slice()].concat();
        names.sort();
        names.dedup();
        names
    }

    /// Images came or went: warm ones are looked up again.
    pub(crate) fn look_again(&self) {
        self.look.notify_one();
    }

    fn views(&self, shelves: &[Arc<Shelf>], now: Instant) -> Vec<View> {
        let warm = lock(&self.warm_recipes).clone();
        shelves
            .iter()
            .map(|shelf| {
                let stock = lock(&shelf.stock);
                View {
                    warm: warm.contains(&shelf.recipe),
                    ready: stock.ready.len(),
                    pending: stock.pending,
                    demand: stock.demand.at(now - self.began),
                    idle: now.saturating_duration_since(stock.used),
                    blocked: stock.blocked_until.saturating_duration_since(now),
                }
            })
            .collect()
    }
}

/// Keeps the stock as the policy wants it, until the agent stops. What there is, is told to the controllers at even
/// times: they count what they use themselves.
pub(crate) async fn run(agent: Arc<Agent>) {
    if agent.pool.mode != MakeMode::Stock {
        return;
    }
    let (mut reported, mut told) = (Vec::new(), Instant::now() - REPORT_EVERY);
    loop {
        let mut again = step(&agent).unwrap_or(IDLE_LOOK);
        let report = agent.pool.report();
        if report != reported {
            let due = REPORT_EVERY.saturating_sub(told.elapsed());
            // An image that comes or goes is told at once.
            if due.is_zero() || known(&report) != known(&reported) {
                agent.metrics.stock(&report);
                agent.hub.stock(report.clone());
                (reported, told) = (report, Instant::now());
            } else {
                again = again.min(due);
            }
        }
        tokio::select! {
            () = agent.pool.wake.notified() => {}
            () = tokio::time::sleep(again) => {}
            () = agent.shutdown.cancelled() => return,
        }
    }
}

/// Images with a paused container.
fn known(report: &[agent::Stock]) -> Vec<&str> {
    report.iter().filter(|stock| stock.paused > 0).map(|stock| stock.image.as_str()).collect()
}

/// One look at the stock, and what follows from it. Says when to look again.
fn step(agent: &Arc<Agent>) -> Option<Duration> {
    let pool = &agent.pool;
    let now = Instant::now();
    let shelves: Vec<Arc<Shelf>> = lock(&pool.shelves).values().cloned().collect();
    let bounds = Bounds {
        per_image: pool.per_image,
        total: pool.total,
        since_take: now.saturating_duration_since(*lock(&pool.last_take)),
        urgent: pool.urgent.load(Ordering::Relaxed),
    };
    let views = pool.views(&shelves, now);
    let plan = policy::plan(&views, &bounds);
    for (index, n) in plan.drop {
        for _ in 0..n {
            // From the back: the front is what a start takes next.
            let Some(paused) = lock(&shelves[index].stock).ready.pop_back() else { break };
            agent.discard(paused);
        }
    }
    // What the disk still has is for those who run.
    let make = if agent.room.is_low() { Vec::new() } else { plan.make };
    for index in make {
        lock(&shelves[index].stock).pending += 1;
        agent.tracker.spawn(refill(agent.clone(), shelves[index].clone()));
    }
    // A shelf that is empty, idle and unwanted lets go of its image.
    let mut all = lock(&pool.shelves);
    for (shelf, view) in shelves.iter().zip(&views) {
        if view.ready == 0 && view.pending == 0 && !view.warm && view.idle >= policy::IDLE {
            all.remove(&shelf.recipe);
            agent.images.drop_cached(&shelf.recipe.image);
        }
    }
    plan.again
}

async fn refill(agent: Arc<Agent>, shelf: Arc<Shelf>) {
    let making = agent.keeper.make(&shelf, None, false, &agent.spares);
    let made = tokio::time::timeout(MAKE_DEADLINE, making).await;
    let failed = {
        // The shelves before a stock, as everywhere: and nobody takes this one away in between.
        let shelves = lock(&agent.pool.shelves);
        let is_there = shelves.get(&shelf.recipe).is_some_and(|known| Arc::ptr_eq(known, &shelf));
        let mut stock = lock(&shelf.stock);
        stock.pending -= 1;
        match made {
            // Its image was removed meanwhile.
            Ok(Ok(paused)) if !is_there => {
                agent.discard(paused);
                None
            }
            Ok(Ok(paused)) => {
                stock.failures = 0;
                stock.ready.push_back(paused);
                None
            }
            failed => {
                stock.failures += 1;
                stock.blocked_until = Instant::now() + policy::backoff(stock.failures);
                Some(failed.map_or_else(
                    |_| "not done in time".to_owned(),
                    |made| made.err().map_or_else(String::new, |e| e.to_string()),
                ))
            }
        }
    };
    if let Some(error) = failed {
        agent.metrics.refill_failed(&shelf.reference);
        tracing::warn!(image = shelf.reference, error, "a paused container could not be made");
    }
    agent.pool.wake.notify_one();
}
