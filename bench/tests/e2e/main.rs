//! The whole system, as a user has it: `fsb-ctl`, controller, agents, real containers. Each test has a node of its own
//! below a directory of its own, and proves at its end that nothing of it is left.

mod access;
mod attached;
mod bad_input;
mod crashes;
mod doors;
mod ends;
mod full_disk;
mod go_era;
mod isolation;
mod journey;
mod networks;
mod node;
mod placement;
mod private;
mod readers;
mod shared;
mod silent;
mod stranger;
mod stubborn;
mod surroundings;
mod users;
