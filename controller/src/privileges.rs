//! What the controller may do: it drops what it does not need before it has threads.

use crate::error::Error;
use caps::{CapSet, Capability, CapsHashSet};

/// To give its socket to a group, to reach files and sockets that others own (tokens, a root directory below somebody's
/// home), to listen on ports below 1024, and nothing else.
pub const NEEDED: [Capability; 3] =
    [Capability::CAP_CHOWN, Capability::CAP_DAC_OVERRIDE, Capability::CAP_NET_BIND_SERVICE];

/// Keeps [`NEEDED`] where they are there and gives all others up, for good: no_new_privs holds what a program that it
/// starts would get back. Call it before any thread exists.
pub fn drop_others() -> Result<(), Error> {
    let wrong = |error: caps::errors::CapsError| Error::Privileges(error.to_string());
    let present = caps::read(None, CapSet::Permitted).map_err(wrong)?;
    let kept: CapsHashSet = NEEDED.into_iter().filter(|capability| present.contains(capability)).collect();
    for set in [CapSet::Effective, CapSet::Permitted] {
        caps::set(None, set, &kept).map_err(wrong)?;
    }
    caps::clear(None, CapSet::Inheritable).map_err(wrong)?;
    nix::sys::prctl::set_no_new_privs().map_err(|errno| Error::Privileges(errno.desc().to_owned()))
}
