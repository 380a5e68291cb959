//! Why an agent refused a create: typed, so that a controller knows what to try next.

use tonic::{Code, Status, metadata::MetadataValue};

/// The metadata key of a refusal in a gRPC status.
pub const REFUSAL_KEY: &str = "fsb-refusal";

/// A rule that an agent's admission or start refused by. Nothing of the create is left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// No free slot. Another agent may have one.
    Full,
    /// One of the ports is in use on this agent. Another agent may have it free.
    PortTaken,
    /// The agent takes no new sandboxes. Another agent may.
    Cordoned,
    /// A newer generation of this claim is known here. Final.
    Stale,
    /// A claim of this UID and generation exists with another spec. Final.
    Conflict,
    /// The image is not on the node and could not be brought there.
    Image,
    /// The process could not be started: execve, working directory, user. Final.
    Start,
    /// The request itself is wrong. Final.
    Invalid,
    /// This agent cannot make containers now. Another agent may.
    Unavailable,
    /// Little is left of the disk of this agent, and the create needs some. Another agent may have it.
    DiskFull,
}

impl Refusal {
    const ALL: [(Refusal, &'static str, Code); 10] = [
        (Refusal::Full, "full", Code::ResourceExhausted),
        (Refusal::PortTaken, "port-taken", Code::FailedPrecondition),
        (Refusal::Cordoned, "cordoned", Code::Unavailable),
        (Refusal::Stale, "stale", Code::FailedPrecondition),
        (Refusal::Conflict, "conflict", Code::AlreadyExists),
        (Refusal::Image, "image", Code::NotFound),
        (Refusal::Start, "start", Code::FailedPrecondition),
        (Refusal::Invalid, "invalid", Code::InvalidArgument),
        (Refusal::Unavailable, "unavailable", Code::Unavailable),
        (Refusal::DiskFull, "disk-full", Code::ResourceExhausted),
    ];

    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|entry| entry.0 == self).map_or("", |entry| entry.1)
    }

    /// Whether another agent may succeed where this one refused.
    pub fn elsewhere(self) -> bool {
        use Refusal::{Cordoned, DiskFull, Full, PortTaken, Unavailable};
        matches!(self, Full | PortTaken | Cordoned | Unavailable | DiskFull)
    }

    /// The status that carries this refusal.
    pub fn status(self, message: impl Into<String>) -> Status {
        let code = Self::ALL.iter().find(|entry| entry.0 == self).map_or(Code::Unknown, |entry| entry.2);
        let mut status = Status::new(code, message);
        status.metadata_mut().insert(REFUSAL_KEY, MetadataValue::from_static(self.as_str()));
        status
    }

    /// The refusal in a status, if it is one. A status without it says nothing about what was left behind.
    pub fn of(status: &Status) -> Option<Refusal> {
        let word = status.metadata().get(REFUSAL_KEY)?.to_str().ok()?;
        Self::ALL.iter().find(|entry| entry.1 == word).map(|entry| entry.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_survives_the_wire() {
        for (refusal, _, code) in Refusal::ALL {
            let status = refusal.status("no");
            assert_eq!(status.code(), code);
            assert_eq!(Refusal::of(&status), Some(refusal));
        }
        assert_eq!(Refusal::of(&Status::unavailable("broken pipe")), None);
    }
}
