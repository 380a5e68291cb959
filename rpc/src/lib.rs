//! Connections of the gRPC interfaces: tonic's clients and servers straight on HTTP/2, with as few tasks and wake-ups
//! between a message and whoever waits for it as there can be.
//!
//! tonic's own transport takes a call through three tasks on the client's side and a router and layers on the
//! server's, which makes up a third of the time that a call takes on a node where calls are rare and all that code is
//! cold. What it has and is not here: TLS, balancing.
//!
//! When bytes are read from a unix socket, the kernel tells its other end that there is room again, and an event loop
//! that asked for that (as tokio's own `UnixStream` always does) wakes up: its sender, who has nothing to write and
//! sleeps until the answer, at the moment in which the receiver begins to work. On a virtual machine that wake-up costs
//! the receiver 20 to 170 µs, on every message. A [`Stream`] asks whether there is room only while there is none.
#![warn(clippy::print_stderr, clippy::print_stdout)]

mod accept;
mod body;
mod bounds;
mod channel;
mod feed;
mod guest;
mod heap;
mod pings;
mod readers;
mod serve;
mod serve_http1;
mod stream;
mod timeout;
mod token;

pub use accept::{Listener, accept};
pub use body::Incoming;
pub use bounds::{Bounds, raise_open_files};
pub use channel::{Address, Channel};
pub use feed::{Behind, Feed, Watcher};
pub use guest::Guest;
pub use pings::Pings;
pub use readers::{READERS, READERS_OF_NAMESPACE, Reader, Readers};
pub use serve::serve;
pub use serve_http1::serve_http1;
pub use stream::Stream;
pub use timeout::timeout_of;
pub use token::{bearer, same_token};
