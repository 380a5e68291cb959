//! Keeping promises after the answer: what has to happen to a claim is decided in pure functions and carried out by
//! thin ones. Looks are level-triggered: whatever was missed, the next look sees all of it.

mod adopt;
mod apply;
mod decide;
mod wakeups;

pub use adopt::{Verdict, judge, observed};
pub use apply::run;
pub use decide::{Facts, Life, Observed, Standing, Step, Which, decide};
pub use wakeups::Wakeups;
