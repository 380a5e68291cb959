//! What a request means once it is known to be right.

use crate::bounds::{MAX_IMAGE_BYTES, MAX_PATH_BYTES, MAX_PORTS, few};
use crate::{agent, fastpath};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use thiserror::Error;

/// The pool of a request that names none.
pub const DEFAULT_POOL: &str = "default-pool";
/// The namespace of a request that names none.
pub const DEFAULT_NAMESPACE: &str = "default";
/// Memory limit of a sandbox that asks for none, in bytes.
pub const DEFAULT_MEMORY_BYTES: u64 = 512 << 20;
/// Process limit of a sandbox that asks for none.
pub const DEFAULT_PIDS: u64 = 512;
/// Files that the writable layer of a sandbox may have that asks for no limit.
pub const DEFAULT_INODES: u64 = 1_000_000;
/// The most that may be asked for: what ext4 can have at all.
pub const MAX_INODES: i64 = u32::MAX as i64;
/// Time between SIGTERM and SIGKILL of a sandbox that asks for none, in seconds.
pub const DEFAULT_GRACE_SECONDS: u32 = 30;
/// How long an AutoRecreate sandbox waits for its agent, in seconds.
pub const DEFAULT_RECOVERY_SECONDS: u32 = 60;
/// The longest argument or environment string that Linux takes: MAX_ARG_STRLEN, 32 pages (execve(2)).
pub const MAX_STRING_BYTES: usize = 128 << 10;
/// The most that arguments and environment may take together. Linux takes a quarter of the stack limit (execve(2)),
/// 2 MiB at the usual 8 MiB; pointers and the file name count too, which the margin is for.
pub const MAX_STRINGS_BYTES: usize = (2 << 20) - (64 << 10);

/// The most thousandths of a core that a sandbox may ask for: the kernel's largest machine (NR_CPUS of x86-64).
pub const MAX_CPU_MILLIS: i64 = 8192 * 1000;
/// The most memory that a sandbox may ask for, and the largest writable layer, in bytes: what four levels of page tables
/// reach (64 TiB).
pub const MAX_MEMORY_BYTES: i64 = 1 << 46;
/// The most processes and threads: PID_MAX_LIMIT of the kernel, more than which `pids.max` does not take (proc(5)).
pub const MAX_PIDS: i64 = 4 << 20;

/// A field of a request and the rule it broke.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
#[error("{field}: {rule}")]
pub struct Invalid {
    /// The field's name on the wire.
    pub field: &'static str,
    /// The rule, in words, with the value where it helps.
    pub rule: String,
}

impl Invalid {
    /// `field` broke `rule`.
    pub fn new(field: &'static str, rule: impl Into<String>) -> Self {
        Self { field, rule: rule.into() }
    }
}

impl From<Invalid> for tonic::Status {
    fn from(invalid: Invalid) -> Self {
        crate::Refusal::Invalid.status(invalid.to_string())
    }
}

/// Limits of a sandbox. `None` = the default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Thousandths of a core; `None` = no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<u64>,
    /// Bytes; `None` = [`DEFAULT_MEMORY_BYTES`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Processes and threads; `None` = [`DEFAULT_PIDS`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
    /// Size of the writable layer in bytes; `None` = no limit of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
    /// Files, directories and links in the writable layer; `None` = [`DEFAULT_INODES`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inodes: Option<u64>,
}

impl Resources {
    /// The memory limit in bytes.
    pub fn memory(&self) -> u64 {
        self.memory_bytes.unwrap_or(DEFAULT_MEMORY_BYTES)
    }

    /// The limit of processes and threads.
    pub fn max_pids(&self) -> u64 {
        self.pids.unwrap_or(DEFAULT_PIDS)
    }

    /// The limit of files in the writable layer.
    pub fn max_inodes(&self) -> u64 {
        self.inodes.unwrap_or(DEFAULT_INODES)
    }

    fn from_wire(wire: Option<&fastpath::Resources>) -> Result<Self, Invalid> {
        let Some(wire) = wire else { return Ok(Self::default()) };
        let limit = |field: &'static str, value: i64, least: i64, most: i64| match value {
            0 => Ok(None),
            value if value < 0 => Err(Invalid::new(field, format!("must not be negative, is {value}"))),
            value if value < least => Err(Invalid::new(field, format!("must be at least {least}, is {value}"))),
            value if value > most => Err(Invalid::new(field, format!("must be at most {most}, is {value}"))),
            value => Ok(Some(value as u64)),
        };
        Ok(Self {
            // 1 ms of each 100 ms period is the least that the kernel's CFS bandwidth takes.
            cpu_millis: limit("resources.cpu_millis", wire.cpu_millis, 10, MAX_CPU_MILLIS)?,
            memory_bytes: limit("resources.memory_bytes", wire.memory_bytes, 1 << 20, MAX_MEMORY_BYTES)?,
            pids: limit("resources.pids", wire.pids, 1, MAX_PIDS)?,
            disk_bytes: limit("resources.disk_bytes", wire.disk_bytes, 64 << 10, MAX_MEMORY_BYTES)?,
            inodes: limit("resources.inodes", wire.inodes, 1, MAX_INODES)?,
        })
    }

    /// As it goes over the wire.
    pub fn to_wire(&self) -> fastpath::Resources {
        let wire = |value: Option<u64>| value.unwrap_or(0) as i64;
        fastpath::Resources {
            cpu_millis: wire(self.cpu_millis),
            memory_bytes: wire(self.memory_bytes),
            pids: wire(self.pids),
            disk_bytes: wire(self.disk_bytes),
            inodes: wire(self.inodes),
        }
    }
}

/// What to do when an agent is lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FailurePolicy {
    /// The sandbox is Lost until somebody acts.
    #[default]
    Manual,
    /// A new instance is started after the recovery timeout.
    AutoRecreate,
}

impl FailurePolicy {
    /// From the wire's number; an unknown one is an error.
    pub fn from_wire(value: i32) -> Result<Self, Invalid> {
        match fastpath::FailurePolicy::try_from(value) {
            Ok(fastpath::FailurePolicy::Manual) => Ok(Self::Manual),
            Ok(fastpath::FailurePolicy::AutoRecreate) => Ok(Self::AutoRecreate),
            Err(_) => {
                Err(Invalid::new("failure_policy", format!("must be MANUAL (0) or AUTO_RECREATE (1), is {value}")))
            }
        }
    }

    /// As it goes over the wire.
    pub fn to_wire(self) -> i32 {
        match self {
            Self::Manual => fastpath::FailurePolicy::Manual as i32,
            Self::AutoRecreate => fastpath::FailurePolicy::AutoRecreate as i32,
        }
    }
}

/// When to ask a registry for an image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PullPolicy {
    /// If it is not on the node.
    #[default]
    Missing,
    /// Not at all.
    Never,
    /// Every time.
    Always,
}

impl PullPolicy {
    /// From the wire's number; an unknown one is an error.
    pub fn from_wire(value: i32) -> Result<Self, Invalid> {
        match fastpath::PullPolicy::try_from(value) {
            Ok(fastpath::PullPolicy::Missing) => Ok(Self::Missing),
            Ok(fastpath::PullPolicy::Never) => Ok(Self::Never),
            Ok(fastpath::PullPolicy::Always) => Ok(Self::Always),
            Err(_) => {
                Err(Invalid::new("pull_policy", format!("must be MISSING (0), NEVER (1) or ALWAYS (2), is {value}")))
            }
        }
    }

    /// As it goes over the wire.
    pub fn to_wire(self) -> i32 {
        match self {
            Self::Missing => fastpath::PullPolicy::Missing as i32,
            Self::Never => fastpath::PullPolicy::Never as i32,
            Self::Always => fastpath::PullPolicy::Always as i32,
        }
    }
}

/// What a sandbox is started with: the part of a request that makes two creates of one name the same or not.
///
/// Equality is the rule of the specification's idempotency: image reference, pool, command, args, envs, working
/// directory, ports as a set, resources, user. Records keep a hash of its JSON: a new field is left out of that where it
/// was not asked for, so that the hashes of what runs stay true.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// The image's reference, as it was asked for.
    pub image: String,
    /// The pool's name.
    pub pool: String,
    /// Replaces ENTRYPOINT and drops CMD; empty = the image's.
    pub command: Vec<String>,
    /// Replaces CMD; empty = the image's.
    pub args: Vec<String>,
    /// Added to the image's environment.
    pub envs: BTreeMap<String, String>,
    /// Absolute; empty = the image's.
    pub working_dir: String,
    /// TCP ports that are the sandbox's alone on its agent.
    pub ports: BTreeSet<u16>,
    /// Limits.
    pub resources: Resources,
    /// `user`, `user:group`, ids; empty = the image's.
    pub user: String,
}

impl SandboxSpec {
    /// The validated spec of a Fast-Path create.
    pub fn from_fastpath(wire: &fastpath::CreateRequest) -> Result<Self, Invalid> {
        let pool = if wire.pool_ref.is_empty() { DEFAULT_POOL } else { &wire.pool_ref };
        validate_dns_name("pool_ref", pool)?;
        let spec = Self {
            image: wire.image.clone(),
            pool: pool.to_owned(),
            command: wire.command.clone(),
            args: wire.args.clone(),
            envs: wire.envs.clone(),
            working_dir: wire.working_dir.clone(),
            ports: ports("exposed_ports", &wire.exposed_ports)?,
            resources: Resources::from_wire(wire.resources.as_ref())?,
            user: wire.user.clone(),
        };
        spec.validate()?;
        Ok(spec)
    }

    /// The validated spec of a call to an agent. An agent's pool is its own.
    pub fn from_agent(wire: &agent::CreateRequest) -> Result<Self, Invalid> {
        let spec = Self {
            image: wire.image.clone(),
            pool: String::new(),
            command: wire.command.clone(),
            args: wire.args.clone(),
            envs: wire.envs.clone(),
            working_dir: wire.working_dir.clone(),
            ports: ports("exposed_ports", &wire.exposed_ports)?,
            resources: Resources::from_wire(wire.resources.as_ref())?,
            user: wire.user.clone(),
        };
        spec.validate()?;
        Ok(spec)
    }

    /// Checks every rule that needs nothing but the spec itself.
    pub fn validate(&self) -> Result<(), Invalid> {
        if self.image.is_empty() {
            return Err(Invalid::new("image", "must not be empty"));
        }
        if self.image.len() > MAX_IMAGE_BYTES || self.image.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(Invalid::new("image", "must be an image reference of at most 512 bytes without white space"));
        }
        let mut total = 0;
        for (field, strings) in [("command", &self.command), ("args", &self.args)] {
            for string in strings {
                total += checked_string(field, string)?;
            }
        }
        if self.command.first().is_some_and(String::is_empty) {
            return Err(Invalid::new("command", "its first word must not be empty"));
        }
        for (key, value) in &self.envs {
            if key.is_empty() || key.contains('=') {
                return Err(Invalid::new("envs", format!("a key must not be empty or contain '=': {key:?}")));
            }
            total += checked_string("envs", key)? + checked_string("envs", value)?;
            if key.len() + value.len() + 2 > MAX_STRING_BYTES {
                return Err(Invalid::new(
                    "envs",
                    format!("{key:?} is longer than the kernel takes ({MAX_STRING_BYTES} bytes)"),
                ));
            }
        }
        // The kernel counts a pointer for each string as well (execve(2), since Linux 2.6.23).
        let strings = self.command.len() + self.args.len() + self.envs.len();
        if total + strings * 9 > MAX_STRINGS_BYTES {
            return Err(Invalid::new(
                "args",
                format!(
                    "command, args and envs take {} bytes together, the kernel takes {MAX_STRINGS_BYTES}",
                    total + strings * 9
                ),
            ));
        }
        if !self.working_dir.is_empty() {
            checked_string("working_dir", &self.working_dir)?;
            if !self.working_dir.starts_with('/') {
                return Err(Invalid::new("working_dir", format!("must be absolute, is {:?}", self.working_dir)));
            }
            if self.working_dir.len() > MAX_PATH_BYTES {
                return Err(Invalid::new("working_dir", format!("must be at most {MAX_PATH_BYTES} bytes long")));
            }
        }
        if self.user.len() > 256 || self.user.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(Invalid::new("user", "must be user, user:group, uid or uid:gid"));
        }
        Ok(())
    }
}

fn checked_string(field: &'static str, string: &str) -> Result<usize, Invalid> {
    if string.contains('\0') {
        return Err(Invalid::new(field, "must not contain a NUL byte"));
    }
    if string.len() >= MAX_STRING_BYTES {
        return Err(Invalid::new(
            field,
            format!("a string of {} bytes is longer than the kernel takes ({MAX_STRING_BYTES} bytes)", string.len()),
        ));
    }
    Ok(string.len() + 1)
}

/// The ports of a request as a set: 1–65535, unique, at most [`MAX_PORTS`].
pub fn ports(field: &'static str, wire: &[i32]) -> Result<BTreeSet<u16>, Invalid> {
    few(field, wire.len(), MAX_PORTS)?;
    let mut set = BTreeSet::new();
    for &port in wire {
        let Some(valid) = u16::try_from(port).ok().filter(|port| *port != 0) else {
            return Err(Invalid::new(field, format!("a port must be between 1 and 65535, is {port}")));
        };
        if !set.insert(valid) {
            return Err(Invalid::new(field, format!("port {port} is given twice")));
        }
    }
    Ok(set)
}

/// Checks a name by the rule of Kubernetes object names: an RFC 1123 label of at most 63 characters. Dots are
/// refused too: a name is part of host names and file names.
pub fn validate_dns_name(field: &'static str, name: &str) -> Result<(), Invalid> {
    let ok = !name.is_empty()
        && name.len() <= 63
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-');
    if ok {
        Ok(())
    } else {
        let shown: String = name.chars().take(80).collect();
        Err(Invalid::new(
            field,
            format!(
                "must be 1 to 63 lower-case letters, digits and '-', beginning and ending with a letter or digit, is {shown:?}"
            ),
        ))
    }
}

/// Checks a label by Kubernetes' rules, prefix included.
pub fn validate_label(key: &str, value: &str) -> Result<(), Invalid> {
    let word = |text: &str, most: usize| {
        !text.is_empty()
            && text.len() <= most
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.ends_with(|c: char| c.is_ascii_alphanumeric())
    };
    let key_ok = match key.split_once('/') {
        Some((prefix, name)) => word(name, 63) && word(prefix, 253),
        None => word(key, 63),
    };
    if !key_ok {
        return Err(Invalid::new("labels", format!("{key:?} is not a label key")));
    }
    if !value.is_empty() && !word(value, 63) {
        return Err(Invalid::new("labels", format!("{value:?} is not a label value (key {key})")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> SandboxSpec {
        SandboxSpec { image: "busybox".into(), ..Default::default() }
    }

    #[test]
    fn ports_are_between_1_and_65535_and_unique() {
        assert_eq!(ports("p", &[1, 65535]).unwrap(), BTreeSet::from([1, 65535]));
        for bad in [vec![0], vec![65536], vec![-1], vec![80, 80]] {
            assert!(ports("p", &bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn names_follow_the_rule_of_kubernetes() {
        for good in ["a", "a-b", "0", &"x".repeat(63)] {
            assert!(validate_dns_name("name", good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "../x", "a/b", "a b", "a\0", &"x".repeat(64)] {
            assert!(validate_dns_name("name", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_argument_list_over_the_kernels_limit_is_refused() {
        let mut big = spec();
        big.args = vec!["x".repeat(100_000); 30];
        assert_eq!(big.validate().unwrap_err().field, "args");
        big.args = vec!["x".repeat(MAX_STRING_BYTES)];
        assert_eq!(big.validate().unwrap_err().field, "args");
        big.args = vec![];
        big.envs = (0..1_000_000).map(|i| (format!("K{i}"), String::new())).collect();
        assert!(big.validate().is_err());
    }

    #[test]
    fn environment_keys_are_checked() {
        for key in ["", "a=b", "a\0b"] {
            let mut bad = spec();
            bad.envs.insert(key.into(), "v".into());
            assert_eq!(bad.validate().unwrap_err().field, "envs", "{key:?}");
        }
    }

    #[test]
    fn resources_are_between_what_the_kernel_needs_and_what_it_has() {
        type Set = fn(&mut fastpath::Resources, i64);
        let table: [(&str, Set, i64, i64); 5] = [
            ("resources.cpu_millis", |r, value| r.cpu_millis = value, 10, MAX_CPU_MILLIS),
            ("resources.memory_bytes", |r, value| r.memory_bytes = value, 1 << 20, MAX_MEMORY_BYTES),
            ("resources.pids", |r, value| r.pids = value, 1, MAX_PIDS),
            ("resources.disk_bytes", |r, value| r.disk_bytes = value, 64 << 10, MAX_MEMORY_BYTES),
            ("resources.inodes", |r, value| r.inodes = value, 1, MAX_INODES),
        ];
        for (field, set, least, most) in table {
            let with = |value| {
                let mut wire = fastpath::Resources::default();
                set(&mut wire, value);
                Resources::from_wire(Some(&wire)).map(|read| read.to_wire() == wire).map_err(|invalid| invalid.field)
            };
            for good in [0, least, most] {
                assert_eq!(with(good), Ok(true), "{field} {good}");
            }
            for bad in [i64::MIN, -1, least - 1, most + 1, i64::MAX] {
                assert!(bad == 0 || with(bad) == Err(field), "{field} {bad}");
            }
        }
    }

    #[test]
    fn the_working_directory_is_absolute() {
        let mut bad = spec();
        bad.working_dir = "tmp".into();
        assert_eq!(bad.validate().unwrap_err().field, "working_dir");
    }
}
