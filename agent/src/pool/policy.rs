//! How many paused containers of each recipe to keep, and what to make next. Pure.

use std::time::Duration;

/// What a paused container is reckoned with, in bytes: measured at 345 KB of MemAvailable with eight v1 cgroups.
pub const BYTES_EACH: u64 = 400 << 10;
/// A refill that starts in the same instant as a hand-off slows it.
pub const AFTER_TAKE: Duration = Duration::from_millis(4);
/// Refills under way at the same time.
pub const IN_FLIGHT: usize = 2;
/// Fewer missing than this are never worth a refill that does not wait.
const LOW: usize = 4;
/// After so long without a start a recipe that nobody asked to keep warm is dropped.
pub const IDLE: Duration = Duration::from_secs(300);
/// Demand counts half after so long.
const HALF_LIFE: Duration = Duration::from_secs(30);
/// First pause after a failed make; it doubles with each further one.
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);

/// Recent starts of one recipe, older ones counting less.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Demand {
    value: f64,
    at: Duration,
}

impl Demand {
    /// Counts a start at `now` (any clock that only goes forward).
    pub fn bump(&mut self, now: Duration) {
        *self = Self { value: self.at(now) + 1.0, at: now };
    }

    /// What is left of it at `now`.
    pub fn at(&self, now: Duration) -> f64 {
        let halves = now.saturating_sub(self.at).as_secs_f64() / HALF_LIFE.as_secs_f64();
        self.value * 0.5f64.powf(halves)
    }
}

/// How long to leave a recipe alone after so many failures in a row.
pub fn backoff(failures: u32) -> Duration {
    FIRST_BACKOFF.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(LONGEST_BACKOFF)
}

/// One recipe.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct View {
    /// Somebody asked to keep it warm.
    pub warm: bool,
    /// Paused containers in stock.
    pub ready: usize,
    /// Refills under way.
    pub pending: usize,
    /// Recent starts.
    pub demand: f64,
    /// Time since the last start, or since it became known.
    pub idle: Duration,
    /// Left of the pause after a failure.
    pub blocked: Duration,
}

/// What the whole pool has to obey.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Paused containers per recipe.
    pub per_image: usize,
    /// Paused containers altogether.
    pub total: usize,
    /// Time since the last start of any recipe.
    pub since_take: Duration,
    /// Starts that wait for a container of their own right now.
    pub urgent: usize,
}

/// What to do now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Start a refill of each of these recipes.
    pub make: Vec<usize>,
    /// Drop so many of these recipes' stock.
    pub drop: Vec<(usize, usize)>,
    /// Look again after this time, if nothing happens before.
    pub again: Option<Duration>,
}

/// How many to keep of each. Warm ones come first, then those started last; together never more than the budget.
pub fn targets(views: &[View], bounds: &Bounds) -> Vec<usize> {
    let mut order: Vec<usize> = (0..views.len()).collect();
    order.sort_by(|a, b| views[*b].warm.cmp(&views[*a].warm).then(views[*a].idle.cmp(&views[*b].idle)));
    let mut left = bounds.total;
    let mut targets = vec![0; views.len()];
    for index in order {
        let view = &views[index];
        let wanted = match view {
            View { warm: true, .. } => bounds.per_image,
            View { idle, .. } if *idle >= IDLE => 0,
            View { demand, .. } => (demand.ceil() as usize).clamp(1, bounds.per_image.max(1)).min(bounds.per_image),
        };
        targets[index] = wanted.min(left);
        left -= targets[index];
    }
    targets
}

/// Decides what to make and what to drop.
pub fn plan(views: &[View], bounds: &Bounds) -> Plan {
    let targets = targets(views, bounds);
    let mut plan = Plan::default();
    let mut again = |wait: Duration| plan.again = Some(plan.again.map_or(wait, |known| known.min(wait)));
    let mut pending: usize = views.iter().map(|view| view.pending).sum();
    let mut missing: Vec<(usize, usize)> = Vec::new();
    for (index, (view, target)) in views.iter().zip(&targets).enumerate() {
        let have = view.ready + view.pending;
        // Demand falls slowly: what is there already stays until nobody has started one for a while, or until the
        // budget needs its room.
        let keep =
            if view.idle >= IDLE || view.warm { *target } else { (*target).max(view.ready.min(bounds.per_image)) };
        if view.ready > keep {
            plan.drop.push((index, view.ready - keep));
        }
        if have < *target {
            if view.blocked.is_zero() {
                missing.push((index, *target - have));
            } else {
                again(view.blocked);
            }
        }
        if !view.warm && view.idle < IDLE && have > 0 {
            again(IDLE - view.idle);
        }
    }
    let kept: usize = views.iter().map(|view| view.ready).sum::<usize>() - plan.drop.iter().map(|d| d.1).sum::<usize>();
    if kept > bounds.total {
        shed(views, &targets, kept - bounds.total, &mut plan.drop);
    }
    if missing.is_empty() || bounds.urgent > 0 {
        // A start that ends wakes the pool up again.
        return plan;
    }
    // With starts that come faster than that the stock would only ever shrink: below its half it is refilled at once.
    let low = missing.iter().any(|(index, n)| *n >= LOW && *n * 2 > targets[*index]);
    if bounds.since_take < AFTER_TAKE && !low {
        again(AFTER_TAKE - bounds.since_take);
        return plan;
    }
    // One after the other over the recipes, so that a big one does not starve the others.
    while pending < IN_FLIGHT && !missing.is_empty() {
        missing.retain_mut(|(index, n)| {
            if pending < IN_FLIGHT && *n > 0 {
                plan.make.push(*index);
                pending += 1;
                *n -= 1;
            }
            *n > 0
        });
    }
    plan
}

/// Takes `excess` more from what is above its target, the longest unused first.
fn shed(views: &[View], targets: &[usize], mut excess: usize, drop: &mut Vec<(usize, usize)>) {
    let mut order: Vec<usize> = (0..views.len()).collect();
    order.sort_by_key(|index| std::cmp::Reverse(views[*index].idle));
    for index in order {
        let dropped = drop.iter().find(|entry| entry.0 == index).map_or(0, |entry| entry.1);
        let surplus = (views[index].ready - dropped).saturating_sub(targets[index]).min(excess);
        if surplus > 0 {
            match drop.iter_mut().find(|entry| entry.0 == index) {
                Some(entry) => entry.1 += surplus,
                None => drop.push((index, surplus)),
            }
            excess -= surplus;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LATER: Duration = Duration::from_secs(1);
    const BOUNDS: Bounds = Bounds { per_image: 4, total: 100, since_take: LATER, urgent: 0 };

    fn view(warm: bool, ready: usize) -> View {
        View { warm, ready, pending: 0, demand: 0.0, idle: LATER, blocked: Duration::ZERO }
    }

    #[test]
    fn a_warm_image_is_kept_at_its_full_number() {
        assert_eq!(targets(&[view(true, 0)], &BOUNDS), [4]);
        assert_eq!(plan(&[view(true, 0)], &BOUNDS).make, [0, 0]);
        assert_eq!(plan(&[view(true, 4)], &BOUNDS), Plan::default());
        assert_eq!(plan(&[view(true, 6)], &BOUNDS).drop, [(0, 2)]);
    }

    #[test]
    fn recent_demand_keeps_some_and_idleness_ends_it() {
        let busy = View { demand: 2.3, ..view(false, 0) };
        assert_eq!(targets(&[busy], &BOUNDS), [3]);
        assert_eq!(targets(&[View { demand: 99.0, ..busy }], &BOUNDS), [4]);
        let quiet = View { demand: 0.01, ready: 3, ..busy };
        assert_eq!(plan(&[quiet], &BOUNDS).drop, []);
        assert_eq!(plan(&[View { idle: IDLE, ..quiet }], &BOUNDS).drop, [(0, 3)]);
    }

    #[test]
    fn demand_halves_in_half_a_minute() {
        let mut demand = Demand::default();
        demand.bump(Duration::from_secs(100));
        demand.bump(Duration::from_secs(100));
        assert!((demand.at(Duration::from_secs(130)) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_refill_waits_after_a_take_and_yields_to_starts() {
        let soon = Bounds { since_take: Duration::from_millis(1), ..BOUNDS };
        let waits = plan(&[view(true, 3)], &soon);
        assert_eq!((waits.make.len(), waits.again), (0, Some(Duration::from_millis(3))));
        let soon = Bounds { per_image: 8, ..soon };
        assert_eq!(plan(&[view(true, 4)], &soon).make.len(), 0);
        // Starts that come faster than the pause do not empty the stock.
        assert_eq!(plan(&[view(true, 3)], &soon).make.len(), IN_FLIGHT);
        assert_eq!(plan(&[view(true, 0)], &Bounds { urgent: 1, ..BOUNDS }).make, [] as [usize; 0]);
    }

    #[test]
    fn a_recipe_that_failed_is_left_alone_for_longer_each_time() {
        assert!(backoff(1) < backoff(2) && backoff(40) == LONGEST_BACKOFF);
        let blocked = View { blocked: LATER, ..view(true, 0) };
        let plan = plan(&[blocked, view(true, 3)], &BOUNDS);
        assert_eq!((plan.make, plan.again), (vec![1], Some(LATER)));
    }

    #[test]
    fn the_budget_gives_way_from_what_was_not_used_for_longest() {
        let old = View { idle: Duration::from_secs(200), ..view(false, 3) };
        let new = View { demand: 3.0, ..view(false, 3) };
        let plan = plan(&[new, old], &Bounds { total: 4, ..BOUNDS });
        assert_eq!(plan.drop, [(1, 2)]);
    }

    proptest! {
        #[test]
        fn the_pool_never_grows_above_its_bounds(
            shapes in prop::collection::vec((any::<bool>(), 0..6usize, 0..2usize, 0.0..20.0f64, 0..600u64, 0..2u64), 0..8),
            per_image in 0..6usize,
            total in 0..20usize,
        ) {
            let views: Vec<View> = shapes.into_iter().map(|(warm, ready, pending, demand, idle, blocked)| View {
                warm, ready, pending, demand,
                idle: Duration::from_secs(idle),
                blocked: Duration::from_secs(blocked),
            }).collect();
            let bounds = Bounds { per_image, total, since_take: LATER, urgent: 0 };
            let targets = targets(&views, &bounds);
            prop_assert!(targets.iter().sum::<usize>() <= total);
            prop_assert!(targets.iter().all(|target| *target <= per_image));
            let plan = plan(&views, &bounds);
            let pending: usize = views.iter().map(|view| view.pending).sum();
            prop_assert!(plan.make.is_empty() || plan.make.len() + pending <= IN_FLIGHT);
            for (index, n) in &plan.drop {
                prop_assert!(*n <= views[*index].ready);
            }
            let left: usize = views.iter().map(|view| view.ready).sum::<usize>()
                - plan.drop.iter().map(|entry| entry.1).sum::<usize>();
            prop_assert!(left <= total.max(targets.iter().sum()));
            for index in &plan.make {
                prop_assert!(views[*index].ready + views[*index].pending < targets[*index]);
                prop_assert!(views[*index].blocked.is_zero());
            }
        }
    }
}
