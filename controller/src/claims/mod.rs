//! Claims: what they are, where they are written, in which order, and what of them is true right now.
//!
//! [`Table`] is the truth in memory, written or not. [`Queue`] brings it to a [`ClaimStore`], one operation of a name
//! after the other. Nothing waits for the store but what has to survive before an answer.

mod burials;
mod claim;
mod embedded;
mod queue;
mod table;
mod tombstones;

pub use claim::{AgentRef, Claim, Deletion, Key, Leftover, Phase, Policy, Previous, Status, new_uid};
pub use embedded::{Embedded, Recovery};
pub use queue::{Outcome, Queue};
pub use table::{AttachedReader, Change, Entry, Refused, Table, Turn};
pub use tombstones::Tombstones;

use futures_util::future::BoxFuture;
use std::sync::Arc;
use thiserror::Error;

/// What a store has.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Every claim.
    pub claims: Vec<Claim>,
    /// UIDs of claims that were removed while an instance could have been left on an agent out of reach, the oldest
    /// first.
    pub tombstones: Vec<Arc<str>>,
    /// Names of rows that are no claims: they are kept apart, the names are free.
    pub unreadable: Vec<Key>,
}

/// Why a write did not happen.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum WriteError {
    /// Worth another try: a full disk, a store out of reach.
    #[error("{0}")]
    Transient(String),
    /// Another try would be refused again: invalid, forbidden, over a quota, or the name belongs to another UID.
    #[error("{reason}: {message}")]
    Final {
        /// A word: Invalid, TooLarge, Forbidden, Quota, DuplicateName.
        reason: &'static str,
        /// The store's sentence.
        message: String,
    },
}

/// Where claims are kept: the embedded store, or later the Kubernetes API.
pub trait ClaimStore: Send + Sync + 'static {
    /// Everything, once, at the start.
    fn load(&self) -> BoxFuture<'_, Result<Loaded, WriteError>>;

    /// Writes a claim; it is durable when this returns. A name that belongs to another UID is refused. `urgent`: a
    /// client waits for it.
    fn put(&self, claim: Arc<Claim>, urgent: bool) -> BoxFuture<'_, Result<(), WriteError>>;

    /// Removes the claim of this UID; one that is not there, or is another one, is left alone. `entomb`: remember the
    /// UID, because an instance may be left somewhere out of reach.
    fn remove(&self, key: Key, uid: Arc<str>, entomb: bool) -> BoxFuture<'_, Result<(), WriteError>>;

    /// No more writes: lets go of files and locks.
    fn close(&self) -> BoxFuture<'_, ()>;
}
