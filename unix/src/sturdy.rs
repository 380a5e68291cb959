//! A connection that outlives what its streams do.

use tonic::transport::Endpoint;

/// How much a stream may hold that nobody has read, in bytes.
const STREAM: u32 = 64 << 10;
/// The same of all streams together: no limit of its own.
const CONNECTION: u32 = (1 << 31) - 1;

/// An endpoint for servers that are trusted. HTTP/2's library takes a peer for an attacker, and closes the connection with
/// every other call and watch on it, once a thousand messages came for streams that were let go of, or once small messages
/// lie unread that make up a part of the connection's window: both are what followers of a log do that go away, or do not
/// read on. How much they may leave unread is bounded for each instead.
pub fn sturdy(endpoint: Endpoint) -> Endpoint {
    endpoint
        .http2_max_local_error_reset_streams(None)
        .initial_stream_window_size(STREAM)
        .initial_connection_window_size(CONNECTION)
}
