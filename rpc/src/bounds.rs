//! How many connections there may be, so that they never take the descriptors that other work needs.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Descriptors of a connection: over a unix socket a second one, while its writer waits for room ([`crate::Stream`]).
const DESCRIPTORS: u64 = 2;
/// The part of a process's descriptors that connections may have: one of so many.
const SHARE: u64 = 2;
/// Where the limit cannot be read: what a shell gives.
const USUAL: u64 = 1024;

/// How many connections a listener has at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Of peers that have not shown that they may be there.
    pub strangers: u32,
    /// Of peers that have, besides.
    pub known: u32,
}

impl Bounds {
    /// The bounds of all listeners of a process that may have so many files open: those that are wanted where they fit,
    /// else the largest ones are halved until they do. A listener takes at least one connection.
    pub fn fit<const N: usize>(mut wanted: [Self; N], open_files: u64) -> [Self; N] {
        while descriptors(&wanted) > open_files / SHARE {
            let all = wanted.iter_mut().flat_map(|bounds| [&mut bounds.strangers, &mut bounds.known]);
            let Some(largest) = all.max_by_key(|bound| **bound).filter(|bound| **bound > 1) else { break };
            *largest /= 2;
        }
        wanted
    }
}

/// The most descriptors that connections within these bounds take.
fn descriptors(bounds: &[Bounds]) -> u64 {
    // One connection of each listener is accepted before room is made for it.
    let most = |bounds: &Bounds| u64::from(bounds.strangers) + u64::from(bounds.known) + 1;
    bounds.iter().map(most).sum::<u64>() * DESCRIPTORS
}

/// Raises this process's soft limit of open files to the hard one. Returns what it is then.
pub fn raise_open_files() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return USUAL };
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(error) => {
            tracing::warn!(%error, soft, hard, "the limit of open files stays as it is");
            soft
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bounds_of_all_listeners_take_at_most_half_of_the_descriptors_however_few_there_are() {
        let wanted = [(512, 4096), (512, 4096), (128, 0), (128, 0), (16, 0)];
        let wanted = wanted.map(|(strangers, known)| Bounds { strangers, known });
        assert_eq!(Bounds::fit(wanted, 1 << 16), wanted, "where there are enough, nothing is taken away");
        for open_files in [64, 100, 256, 1000, 1024, 4096, 20_000, 1 << 20, u64::MAX] {
            let fitted = Bounds::fit(wanted, open_files);
            let connections: u64 = fitted.iter().map(|bounds| u64::from(bounds.strangers + bounds.known)).sum();
            assert!(2 * (connections + 5) <= open_files / 2, "{open_files}: {fitted:?}");
            for (fitted, wanted) in fitted.iter().zip(&wanted) {
                assert!(fitted.strangers >= 1 && fitted.strangers <= wanted.strangers, "{open_files}: {fitted:?}");
                assert!((fitted.known >= 1) == (wanted.known >= 1), "{open_files}: {fitted:?}");
            }
        }
        let at_1024 = Bounds::fit(wanted, 1024);
        assert!(at_1024.iter().all(|bounds| bounds.strangers >= 16), "still some for everybody: {at_1024:?}");
    }
}
