//! The keeper's environment.

use crate::log::{Choice, Rotation};
use std::path::PathBuf;
use std::time::Duration;
use thiserror::Error;

/// What can be set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    /// `FSB_SPAWNER_PROGRAM`: program and arguments, separated by spaces. Default: `fsb-spawner` beside the keeper.
    pub(crate) spawner: Vec<String>,
    /// `FSB_AGENT_PROGRAM`, likewise. Default: `fsb-agent` beside the keeper.
    pub(crate) agent: Vec<String>,
    /// `FSB_CGROUP`: the agent's cgroup below the one that the keeper stands in. Default: that one itself.
    pub(crate) cgroup: String,
    /// `LOG_MAX_SIZE` (10 MiB) and `LOG_MAX_FILES` (5, the current one included).
    pub(crate) rotation: Rotation,
    /// `FSB_LOG_ENGINE`: `uring` or `epoll`. Default: the ring if the kernel gives one.
    pub(crate) engine: Choice,
    /// `FSB_STOP_TIMEOUT` (10 s): the most that SIGTERM leaves to the sandboxes and the agent.
    pub(crate) stop_timeout: Duration,
}

/// All variables that could not be understood.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{}", .0.join("; "))]
pub(crate) struct BadSettings(Vec<String>);

/// The smallest log file that makes sense.
const LEAST_LOG_BYTES: u64 = 1 << 10;

impl Settings {
    /// Reads the environment through `var`. Empty is the same as not set.
    pub(crate) fn from_env(var: impl Fn(&str) -> Option<String>) -> Result<Self, BadSettings> {
        let mut bad = Vec::new();
        let read = |key: &str| var(key).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
        let program = |value: Option<String>, name: &str| match value {
            Some(value) => value.split_whitespace().map(str::to_owned).collect(),
            None => vec![beside(name).to_string_lossy().into_owned()],
        };
        let spawner = program(read("FSB_SPAWNER_PROGRAM"), "fsb-spawner");
        let agent = program(read("FSB_AGENT_PROGRAM"), "fsb-agent");
        let cgroup = read("FSB_CGROUP").unwrap_or_default();
        let mut parsed = |key: &str, rule: &str, parse: fn(&str) -> Option<u64>, default: u64| match read(key) {
            None => default,
            Some(value) => parse(&value).unwrap_or_else(|| {
                bad.push(format!("{key}={value}: {rule}"));
                default
            }),
        };
        let max_bytes = parsed(
            "LOG_MAX_SIZE",
            "must be at least 1Ki, as bytes or with K, M, G, Ki, Mi, Gi",
            |value| bytes(value).filter(|bytes| *bytes >= LEAST_LOG_BYTES),
            10 << 20,
        );
        let count = |value: &str| value.parse::<u64>().ok().filter(|count| (1..=1000).contains(count));
        let files = parsed("LOG_MAX_FILES", "must be a number from 1 to 1000", count, 5);
        let stop = parsed(
            "FSB_STOP_TIMEOUT",
            "must be seconds (10 or 10s), milliseconds (500ms) or minutes (1m)",
            millis,
            10_000,
        );
        let engine = match read("FSB_LOG_ENGINE").as_deref() {
            None => Choice::Probe,
            Some("uring") => Choice::Uring,
            Some("epoll") => Choice::Epoll,
            Some(other) => {
                bad.push(format!("FSB_LOG_ENGINE={other}: must be uring or epoll"));
                Choice::Probe
            }
        };
        if !bad.is_empty() {
            return Err(BadSettings(bad));
        }
        let rotation = Rotation { max_bytes, files: files as usize };
        Ok(Self { spawner, agent, cgroup, rotation, engine, stop_timeout: Duration::from_millis(stop) })
    }
}

fn beside(name: &str) -> PathBuf {
    std::env::current_exe().map(|own| own.with_file_name(name)).unwrap_or_else(|_| name.into())
}

/// `10485760`, and as Kubernetes has it: `10Mi` = 10 × 2²⁰, `10M` = 10 × 10⁶; a `B` at the end is allowed.
fn bytes(text: &str) -> Option<u64> {
    let text = text.strip_suffix('B').unwrap_or(text);
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let factor: u64 = match &text[digits..] {
        "" => 1,
        "k" | "K" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        _ => return None,
    };
    text[..digits].parse::<u64>().ok()?.checked_mul(factor)
}

fn millis(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let factor = match &text[digits..] {
        "" | "s" => 1000,
        "ms" => 1,
        "m" => 60_000,
        _ => return None,
    };
    text[..digits].parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> Result<Settings, BadSettings> {
        Settings::from_env(|key| pairs.iter().find(|(k, _)| *k == key).map(|(_, value)| value.to_string()))
    }

    #[test]
    fn nothing_set_means_the_documented_defaults() {
        let settings = of(&[("LOG_MAX_SIZE", "")]).unwrap();
        assert_eq!(settings.rotation, Rotation { max_bytes: 10 << 20, files: 5 });
        assert_eq!(settings.stop_timeout, Duration::from_secs(10));
        assert_eq!(settings.engine, Choice::Probe);
        assert!(settings.agent[0].ends_with("/fsb-agent") && settings.spawner[0].ends_with("/fsb-spawner"));
    }

    #[test]
    fn programs_may_have_arguments() {
        assert_eq!(of(&[("FSB_AGENT_PROGRAM", "/x/bench  serve -v")]).unwrap().agent, ["/x/bench", "serve", "-v"]);
    }

    #[test]
    fn sizes_are_read_as_kubernetes_reads_them() {
        let cases =
            [("10485760", 10 << 20), ("10Mi", 10 << 20), ("10MiB", 10 << 20), ("10M", 10_000_000), ("1Gi", 1 << 30)];
        for (text, expected) in cases {
            assert_eq!(bytes(text), Some(expected), "{text}");
        }
        for text in ["", "Mi", "10X", "-1", "1.5M", "99999999999999999999", "99999999999Gi"] {
            assert_eq!(bytes(text), None, "{text}");
        }
    }

    #[test]
    fn all_bad_variables_are_named_at_once() {
        let error = of(&[
            ("LOG_MAX_SIZE", "many"),
            ("LOG_MAX_FILES", "0"),
            ("FSB_LOG_ENGINE", "tape"),
            ("FSB_STOP_TIMEOUT", "soon"),
        ])
        .unwrap_err()
        .to_string();
        for key in ["LOG_MAX_SIZE=many", "LOG_MAX_FILES=0", "FSB_LOG_ENGINE=tape", "FSB_STOP_TIMEOUT=soon"] {
            assert!(error.contains(key), "{error}");
        }
    }
}
