//! Connections of the gRPC interfaces: unix stream sockets which wake up nobody who does not wait, and channels that are
//! not given up for what a stream does.
//!
//! When bytes are read from a unix socket, the kernel tells its other end that there is room again, and an event loop
//! that asked for that (as tokio's own `UnixStream` always does) wakes up: its sender, who has nothing to write and
//! sleeps until the answer, at the moment in which the receiver begins to work. On a virtual machine that wake-up costs
//! the receiver 20 to 170 µs, on every message. A [`Stream`] asks whether there is room only while there is none.

mod connect;
mod stream;
mod sturdy;

pub use connect::Connector;
pub use stream::Stream;
pub use sturdy::sturdy;
