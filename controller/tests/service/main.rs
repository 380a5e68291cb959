//! The controller as its clients and agents see it: the whole library between a real Fast-Path client and agents
//! that speak the agents' wire.

mod bounds;
mod clocks;
mod create;
mod doors;
mod fake;
mod restart;
mod rules;
mod streams;
mod tenants;
mod world;
