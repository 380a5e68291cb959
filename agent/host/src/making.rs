//! What a spawner has found out about itself, in a file for people and for `fsb-ctl`.

use serde::{Deserialize, Serialize};

/// What makes the containers of an agent that are asked for in no particular way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "lowercase")]
pub enum Making {
    /// Moulds cast them.
    Cast,
    /// libcontainer makes each of them, which takes several times as long.
    Libcontainer {
        /// Why no mould does.
        why: String,
    },
    /// None can be made.
    Nothing {
        /// Why neither can.
        why: String,
    },
}

impl Making {
    /// For the file [`crate::paths::Paths::making`].
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("words are always JSON")
    }

    /// What [`Making::to_json`] wrote; `None` of anything else.
    pub fn from_json(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_spawner_says_of_itself_is_read_as_it_was_written() {
        let why = || "spawner: \"no\"".to_owned();
        for making in [Making::Cast, Making::Libcontainer { why: why() }, Making::Nothing { why: why() }] {
            assert_eq!(Making::from_json(&making.to_json()), Some(making));
        }
        assert_eq!(Making::from_json(""), None);
    }
}
