//! Bounds on streams that stay open for as long as their readers like.

use crate::heap;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tonic::Status;

/// Streams of one namespace at a time.
pub const READERS_OF_NAMESPACE: u32 = 256;
/// Streams of all namespaces at a time.
pub const READERS: u32 = 1024;
/// So many that have gone held enough memory for a look at what the heap can give back.
const MANY: u32 = 64;

/// Counts who reads streams of one kind, so that no namespace takes what all of them share: each stream holds memory,
/// and a file as a rule, and its reader says for how long.
#[derive(Debug, Clone)]
pub struct Readers {
    /// What is read, in the plural: for the refusal.
    what: &'static str,
    open: Arc<Mutex<Open>>,
}

#[derive(Debug, Default)]
struct Open {
    /// By namespace, those that have any.
    of: HashMap<Box<str>, u32>,
    all: u32,
    /// The most that were open since the heap was last asked to give back.
    most: u32,
}

/// A place among the readers, until it is dropped.
#[derive(Debug)]
pub struct Reader {
    of: Readers,
    namespace: Box<str>,
}

impl Readers {
    /// Nobody reads yet. `what` is read, such as "logs".
    pub fn new(what: &'static str) -> Self {
        Self { what, open: Arc::default() }
    }

    /// Takes a place for one more stream of the namespace.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED if it has [`READERS_OF_NAMESPACE`] of them, or all have [`READERS`].
    pub fn admit(&self, namespace: &str) -> Result<Reader, Status> {
        let what = self.what;
        let mut open = self.open();
        if open.of.get(namespace).is_some_and(|open| *open >= READERS_OF_NAMESPACE) {
            return Err(Status::resource_exhausted(format!(
                "{READERS_OF_NAMESPACE} {what} of namespace {namespace:?} are open, and more are not served at a time; \
                 hint: try again when one of their readers has gone"
            )));
        }
        if open.all >= READERS {
            return Err(Status::resource_exhausted(format!(
                "{READERS} {what} are open, and more are not served at a time; \
                 hint: try again when one of their readers has gone"
            )));
        }
        *open.of.entry(namespace.into()).or_default() += 1;
        open.all += 1;
        open.most = open.most.max(open.all);
        drop(open);
        Ok(Reader { of: self.clone(), namespace: namespace.into() })
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut open = self.of.open();
        if let Some(count) = open.of.get_mut(&self.namespace) {
            *count -= 1;
            if *count == 0 {
                open.of.remove(&self.namespace);
            }
        }
        open.all -= 1;
        if open.most >= MANY && open.all <= open.most / 2 {
            open.most = open.all;
            heap::trim_soon();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    #[test]
    fn a_namespace_and_all_together_have_so_many_readers_and_places_come_back() {
        let readers = Readers::new("logs");
        let of = |namespace: &str| readers.admit(namespace);
        let first: Vec<Reader> = (0..READERS_OF_NAMESPACE).map(|_| of("a").unwrap()).collect();
        let refused = of("a").unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted);
        assert!(refused.message().starts_with("256 logs of namespace \"a\""), "{}", refused.message());
        let others: Vec<Reader> =
            (READERS_OF_NAMESPACE..READERS).map(|n| of(&format!("n{}", n % 100)).unwrap()).collect();
        assert_eq!(of("b").unwrap_err().code(), Code::ResourceExhausted, "{READERS} are all that there are");
        drop(first);
        let again = of("a").unwrap();
        drop((others, again));
        assert!(readers.open().of.is_empty() && readers.open().all == 0, "nothing is kept of who has gone");
    }
}
