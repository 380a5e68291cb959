//! What a daemon may do: it drops what it does not need before it has threads.

use caps::{CapSet, Capability, CapsHashSet, errors::CapsError};

/// Keeps these capabilities and gives all others up, for this thread and what it starts. Call it before any thread
/// exists.
pub fn keep(capabilities: &[Capability]) -> Result<(), CapsError> {
    let wanted: CapsHashSet = capabilities.iter().copied().collect();
    let present = caps::read(None, CapSet::Permitted)?;
    // The bounding set first: dropping from it needs SETPCAP, which goes after.
    for capability in caps::all() {
        if !wanted.contains(&capability) && caps::has_cap(None, CapSet::Bounding, capability)? {
            caps::drop(None, CapSet::Bounding, capability)?;
        }
    }
    let kept: CapsHashSet = present.intersection(&wanted).copied().collect();
    for set in [CapSet::Effective, CapSet::Permitted] {
        caps::set(None, set, &kept)?;
    }
    caps::clear(None, CapSet::Inheritable)
}
