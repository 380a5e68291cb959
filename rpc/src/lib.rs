//! Connections of the gRPC interfaces: tonic's clients and servers straight on HTTP/2, with as few tasks and wake-ups
//! between a message and whoever waits for it as there can be.
//!
//! tonic's own transport takes a call through three tasks on the client's side and a router and layers on the
//! server's, which makes up a third of the time that a call takes on a node where calls are rare and all that code is
//! cold. What it has and is not here: TLS, balancing, HTTP/1.
//!
//! When bytes are read from a unix socket, the kernel tells its other end that there is room again, and an event loop
//! that asked for that (as tokio's own `UnixStream` always does) wakes up: its sender, who has nothing to write and
//! sleeps until the answer, at the moment in which the receiver begins to work. On a virtual machine that wake-up costs
//! the receiver 20 to 170 µs, on every message. A [`Stream`] asks whether there is room only while there is none.

mod accept;
mod body;
mod channel;
mod pings;
mod serve;
mod stream;
mod timeout;

pub use accept::{Listener, accept};
pub use body::Incoming;
pub use channel::{Address, Channel};
pub use pings::Pings;
pub use serve::serve;
pub use stream::Stream;
pub use timeout::timeout_of;
