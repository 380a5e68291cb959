//! What can go wrong, in words for the caller, and how it travels over gRPC.

use crate::stage::Stage;
use fsb_proto::{Invalid, Refusal};
use std::io;
use std::time::Duration;
use thiserror::Error;
use tonic::{Code, Status};

/// Why a call to the agent was refused or failed. Cheap to clone: callers that wait for the same create all get it.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
pub enum Error {
    /// The request is wrong in itself.
    #[error("{0}")]
    Invalid(#[from] Invalid),
    /// No slot is free.
    #[error("all {capacity} slots of this agent are in use; hint: remove a sandbox or use another pool")]
    Full { capacity: u32 },
    /// A port is in use by another sandbox of this agent.
    #[error("port {port} is in use by the claim with UID {holder} on this agent")]
    PortTaken { port: u16, holder: String },
    /// Too many streams are open.
    #[error("{0}")]
    TooMany(String),
    /// The agent drains.
    #[error("this agent takes no new sandboxes, it is being shut down")]
    Cordoned,
    /// A newer generation is known.
    #[error("generation {asked} of claim {uid} is outdated, this agent has seen {known}")]
    Stale { uid: String, asked: i64, known: i64 },
    /// The same claim with another spec, or an alias that belongs to another claim.
    #[error("{0}")]
    Conflict(String),
    /// The image is not there and could not be brought here.
    #[error("image {reference}: {reason}")]
    Image { reference: String, reason: String },
    /// The program could not be started.
    #[error("{0}")]
    Start(String),
    /// Containers cannot be made now.
    #[error("{0}")]
    Unavailable(String),
    /// The disk has less left than its reserve, and this needs some of it.
    #[error("{0}")]
    DiskFull(String),
    /// The caller's deadline passed.
    #[error("not done after {}; hint: give the call more time", seconds(*.0))]
    Deadline(Duration),
    /// A delete came while it was starting.
    #[error("the sandbox was deleted while it was starting")]
    Deleted,
    /// No such instance, log or image.
    #[error("{0} is not known to this agent")]
    NotFound(String),
    /// A defect or a broken machine.
    #[error("{0}")]
    Internal(String),
}

/// A result whose error is for the caller.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An input or output error of `what`.
    pub fn io(what: impl std::fmt::Display, error: &io::Error) -> Self {
        Self::Internal(format!("{what}: {error}"))
    }

    /// The rule it was refused by, where it is one.
    pub fn refusal(&self) -> Option<Refusal> {
        Some(match self {
            Self::Invalid(_) => Refusal::Invalid,
            Self::Full { .. } => Refusal::Full,
            Self::PortTaken { .. } => Refusal::PortTaken,
            Self::Cordoned => Refusal::Cordoned,
            Self::Stale { .. } => Refusal::Stale,
            Self::Conflict(_) => Refusal::Conflict,
            Self::Image { .. } => Refusal::Image,
            Self::Start(_) => Refusal::Start,
            Self::Unavailable(_) => Refusal::Unavailable,
            Self::DiskFull(_) => Refusal::DiskFull,
            Self::TooMany(_) | Self::Deadline(_) | Self::Deleted | Self::NotFound(_) | Self::Internal(_) => {
                return None;
            }
        })
    }

    /// The status with `message` that carries this error.
    pub fn status(&self, message: String) -> Status {
        match (self.refusal(), self) {
            (Some(refusal), _) => refusal.status(message),
            (None, Self::TooMany(_)) => Status::resource_exhausted(message),
            (None, Self::Deadline(_)) => Status::deadline_exceeded(message),
            (None, Self::Deleted) => Status::aborted(message),
            (None, Self::NotFound(_)) => Status::not_found(message),
            (None, _) => Status::new(Code::Internal, message),
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        error.status(error.to_string())
    }
}

/// A start that failed: where, why, and what its clean-up could not clean up.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
#[error("{cause} (while {stage}){}", .cleanup.as_ref().map_or(String::new(), |left| format!("; clean-up: {left}")))]
pub struct StartError {
    /// The step of the start path that failed.
    pub stage: Stage,
    /// Why.
    pub cause: Error,
    /// What the clean-up reported, if it did not succeed at once. The reaper goes on with it.
    pub cleanup: Option<String>,
}

impl StartError {
    /// `cause` at `stage`, with nothing left behind.
    pub fn new(stage: Stage, cause: Error) -> Self {
        Self { stage, cause, cleanup: None }
    }
}

impl From<StartError> for Status {
    fn from(error: StartError) -> Self {
        error.cause.status(error.to_string())
    }
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_error_names_the_stage_and_keeps_what_the_clean_up_reported() {
        let mut error = StartError::new(Stage::Exec, Error::Start("exec \"nope\": no such file".into()));
        assert_eq!(error.to_string(), "exec \"nope\": no such file (while executing the program)");
        error.cleanup = Some("rmdir: busy".into());
        assert!(error.to_string().ends_with("; clean-up: rmdir: busy"));
        let status = Status::from(error);
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!(Refusal::of(&status), Some(Refusal::Start));
    }

    #[test]
    fn what_left_its_fate_open_is_not_a_refusal() {
        for error in [Error::Deadline(Duration::from_secs(1)), Error::Deleted, Error::Internal("x".into())] {
            assert_eq!(Refusal::of(&Status::from(error)), None);
        }
    }
}
