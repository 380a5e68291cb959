//! The steps of the start path, by name.

use std::fmt;

/// A step of the start path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    Admission,
    Image,
    Take,
    Bind,
    Limits,
    Late,
    HandOff,
    Exec,
    Acknowledge,
}

impl Stage {
    pub(crate) const ALL: [Stage; 9] = [
        Stage::Admission,
        Stage::Image,
        Stage::Take,
        Stage::Bind,
        Stage::Limits,
        Stage::Late,
        Stage::HandOff,
        Stage::Exec,
        Stage::Acknowledge,
    ];

    /// Its name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Admission => "admission",
            Self::Image => "image",
            Self::Take => "take",
            Self::Bind => "bind",
            Self::Limits => "limits",
            Self::Late => "late",
            Self::HandOff => "hand-off",
            Self::Exec => "exec",
            Self::Acknowledge => "acknowledge",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Admission => "admitting it",
            Self::Image => "looking for its image",
            Self::Take => "taking a container",
            Self::Bind => "recording it",
            Self::Limits => "setting its limits",
            Self::Late => "making its working directory",
            Self::HandOff => "handing over the command",
            Self::Exec => "executing the program",
            Self::Acknowledge => "waiting for its record",
        })
    }
}
