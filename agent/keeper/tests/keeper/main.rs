//! The keeper's promises, with stand-ins for spawner and agent that speak its wire (`standin`) and real processes.

mod idle;
mod logs;
mod node;
mod records;
mod spawner;
mod standin;
mod stop;
