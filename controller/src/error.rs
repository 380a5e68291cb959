//! What can go wrong before the controller serves.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use thiserror::Error;

/// An error of the controller itself. What goes wrong in a call is a gRPC status.
#[derive(Debug, Error)]
pub enum Error {
    /// A file of the claim store.
    #[error("claim store {path}: {source}", path = .path.display())]
    StoreFile {
        /// Its path.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The claim store cannot be used.
    #[error("claim store {path}: {why}", path = .path.display())]
    Store {
        /// Its path.
        path: PathBuf,
        /// In words.
        why: String,
    },
    /// Another process has it open.
    #[error("claim store {path} is in use by another process; hint: is another controller running? give this one another --claims", path = .path.display())]
    StoreInUse {
        /// Its path.
        path: PathBuf,
    },
    /// An address that cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// As it was given.
        address: String,
        /// The system's error.
        source: io::Error,
    },
    /// An address that other machines reach, without authentication.
    #[error(
        "{address} is reached from other machines, and with --auth none by anybody there; hint: --fastpath-bind-address 127.0.0.1:9090, or --auth-token-file FILE, or --insecure-bind if that is meant"
    )]
    OpenToAll {
        /// As it was bound.
        address: SocketAddr,
    },
    /// A socket of another controller that lives.
    #[error("{path} is served by another process; hint: stop that one, or give another --fastpath-socket", path = .path.display())]
    SocketInUse {
        /// Its path.
        path: PathBuf,
    },
    /// What is not needed cannot be given up.
    #[error("cannot drop privileges: {0}")]
    Privileges(String),
    /// A token file.
    #[error("token file {path}: {why}", path = .path.display())]
    TokenFile {
        /// Its path.
        path: PathBuf,
        /// In words.
        why: String,
    },
    /// An agent's address.
    #[error("agent address {address}: {why}")]
    AgentAddress {
        /// As it was given.
        address: String,
        /// In words.
        why: String,
    },
}
