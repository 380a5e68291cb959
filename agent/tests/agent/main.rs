//! The agent's promises, kept on a stand-in keeper: what the specification calls A1, A2, F5, F6, F7, R1, R2, R5, R7
//! and R8, and what a restarted agent finds again.

mod following;
mod keeper;
mod listening;
mod node;
mod recovering;
mod stalling;
mod starting;
mod stopping;
mod watching;
