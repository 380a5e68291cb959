//! Measures Fast Sandbox, honestly: a start ends when the user's own program reads the clock, never when one of our
//! calls returns; every cell is sampled in one interleaved run; what a peer leaves out is said in its row.
//!
//! Reading guide: [`scenario`] says what is run, [`cell`] what a sample is, [`stand`] what cells run on, [`sampler`] how
//! samples are taken and [`plan`] in which order, [`stats`] and [`bootstrap`] what becomes of them, [`report`] how they
//! are shown. [`launcher`] and `lib_cells` are processes
//! of their own, since a floor forks from a small single-threaded process and our agent's library belongs below a
//! keeper.

pub mod agent;
pub mod bootstrap;
pub mod burst;
pub mod busy;
pub mod cell;
pub mod cli;
pub mod clock;
pub mod floor;
pub mod helper;
pub mod image;
pub mod interrupt;
pub mod keeper;
pub mod launcher;
pub mod lib_cells;
pub mod machine;
pub mod node;
pub mod paused;
pub mod payload;
pub mod peer;
pub mod plan;
pub mod progress;
pub mod protocol;
pub mod refill;
pub mod report;
pub mod rpc;
pub mod sampler;
pub mod scenario;
pub mod stand;
pub mod stats;
pub mod sweep;
pub mod workspace;
