//! A claim: what somebody asked for, and how far it has come. One row of the store, one custom resource.

use crate::clock::{self, Clock};
use crate::registry::PoolKey;
use fsb_proto::bounds::MAX_DOCUMENT_BYTES;
use fsb_proto::domain::{DEFAULT_GRACE_SECONDS, FailurePolicy, PullPolicy};
use fsb_proto::{SandboxSpec, agent, fastpath};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

/// A claim's name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Key {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name, unique in its namespace among the claims that are not gone.
    pub name: Arc<str>,
}

impl Key {
    /// `namespace/name`.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Where a sandbox is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Phase {
    /// Accepted, no agent yet.
    Pending,
    /// An agent was chosen and asked.
    Bound,
    /// The process runs.
    Running,
    /// The process ended with 0.
    Succeeded,
    /// The process ended otherwise, or could not be started.
    Failed,
    /// Its agent is gone and the policy is Manual.
    Lost,
    /// Its time is over; the container is removed, the claim is history.
    Expired,
    /// Deletion was asked for and is not confirmed yet.
    Terminating,
}

impl Phase {
    /// All phases, in the order of a life.
    pub const ALL: [Phase; 8] = [
        Phase::Pending,
        Phase::Bound,
        Phase::Running,
        Phase::Succeeded,
        Phase::Failed,
        Phase::Lost,
        Phase::Expired,
        Phase::Terminating,
    ];

    /// The word that clients see.
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Pending => "Pending",
            Phase::Bound => "Bound",
            Phase::Running => "Running",
            Phase::Succeeded => "Succeeded",
            Phase::Failed => "Failed",
            Phase::Lost => "Lost",
            Phase::Expired => "Expired",
            Phase::Terminating => "Terminating",
        }
    }

    /// Pending, Bound or Running: creating the name again means this sandbox.
    pub fn alive(self) -> bool {
        matches!(self, Phase::Pending | Phase::Bound | Phase::Running)
    }

    /// Succeeded, Failed or Expired: nothing more comes of it by itself.
    pub fn finished(self) -> bool {
        matches!(self, Phase::Succeeded | Phase::Failed | Phase::Expired)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What may change while a sandbox lives, and what is no part of its identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expire_at_seconds: Option<i64>,
    /// What to do when the agent is lost.
    pub failure: FailurePolicy,
    /// How long AutoRecreate waits.
    pub recovery_seconds: u32,
    /// Between SIGTERM and SIGKILL.
    pub grace_seconds: u32,
    /// When to ask a registry.
    pub pull: PullPolicy,
    /// The claim was written before the answer.
    pub strong: bool,
    /// It is removed so many seconds after its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_after_finished_seconds: Option<u32>,
    /// Whoever created it follows its output.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub attached: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            expire_at_seconds: None,
            failure: FailurePolicy::Manual,
            recovery_seconds: fsb_proto::domain::DEFAULT_RECOVERY_SECONDS,
            grace_seconds: DEFAULT_GRACE_SECONDS,
            pull: PullPolicy::Missing,
            strong: false,
            ttl_after_finished_seconds: None,
            attached: false,
        }
    }
}

impl Policy {
    /// When it expires, by the wall clock as it stands now.
    pub fn expires(&self, clock: &Clock) -> Option<Instant> {
        self.expire_at_seconds.map(|seconds| clock.due(seconds.saturating_mul(1000)))
    }
}

/// An agent in one of its lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentRef {
    /// Its name.
    pub name: Arc<str>,
    /// Its incarnation: another one has none of the sandboxes of the one before.
    pub uid: Arc<str>,
    /// The node it stands on.
    pub node: Arc<str>,
    /// The address under which ports of its sandboxes are reached.
    pub ip: Arc<str>,
}

/// An instance of this claim that is not the current one and may still be there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leftover {
    /// Where.
    pub agent: Arc<AgentRef>,
    /// Empty where the create's answer never came.
    pub instance_id: String,
    /// Its generation.
    pub generation: i64,
}

/// The instance before, for its log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Previous {
    /// Where it ran.
    pub agent: Arc<AgentRef>,
    /// Its id.
    pub instance_id: String,
}

/// Somebody asked for the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deletion {
    /// Unix milliseconds.
    pub requested_at_ms: i64,
    /// Overrides the sandbox's own grace period.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_seconds: Option<u32>,
}

/// How far the sandbox has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Where it is in its life.
    pub phase: Phase,
    /// Grows by one with every new instance.
    pub generation: i64,
    /// The agent that was chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<Arc<AgentRef>>,
    /// Empty until the agent has answered.
    #[serde(default)]
    pub instance_id: String,
    /// The current instance holds nothing on its agent any more: no container, no slot, no port.
    #[serde(default)]
    pub released: bool,
    /// 0-255, or 128 + signal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// A word: Exited, Signaled, OOMKilled, StartError, AgentLost, AgentRestarted, …
    #[serde(default)]
    pub reason: String,
    /// The word in a sentence.
    #[serde(default)]
    pub message: String,
    /// Unix milliseconds, 0 = not yet.
    #[serde(default)]
    pub started_at_ms: i64,
    /// Unix milliseconds, 0 = not yet.
    #[serde(default)]
    pub finished_at_ms: i64,
    /// Since when the agent is lost, Unix milliseconds, for people and for the next controller; set = condition
    /// AgentReachable is False.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_lost_at_ms: Option<i64>,
    /// The last reset that was carried out, as it was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepted_reset_revision: Option<String>,
    /// Older instances that have to go.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leftovers: Vec<Leftover>,
    /// The instance before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Previous>,
}

/// The whole claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Its name.
    pub key: Key,
    /// Tells it apart from an earlier claim of this name.
    pub uid: Arc<str>,
    /// Unix milliseconds.
    pub created_at_ms: i64,
    /// What is started.
    pub spec: Arc<SandboxSpec>,
    /// What may change.
    pub policy: Policy,
    /// Labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The request that made it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub request_id: String,
    /// The reset that is asked for, RFC 3339 as it was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reset_revision: Option<String>,
    /// The end, once it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion: Option<Deletion>,
    /// How far it has come.
    pub status: Status,
    /// Command, arguments and environment were left out of this document because it would not have fitted into an
    /// agent's record: it cannot be started again from here.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub abridged: bool,
}

impl Claim {
    /// A new claim in phase Pending, generation 1.
    pub fn new(key: Key, uid: Arc<str>, spec: Arc<SandboxSpec>, policy: Policy, now_ms: i64) -> Self {
        Self {
            key,
            uid,
            created_at_ms: now_ms,
            spec,
            policy,
            labels: BTreeMap::new(),
            request_id: String::new(),
            reset_revision: None,
            deletion: None,
            status: Status {
                phase: Phase::Pending,
                generation: 1,
                agent: None,
                instance_id: String::new(),
                released: false,
                exit_code: None,
                reason: String::new(),
                message: String::new(),
                started_at_ms: 0,
                finished_at_ms: 0,
                agent_lost_at_ms: None,
                accepted_reset_revision: None,
                leftovers: Vec::new(),
                previous: None,
            },
            abridged: false,
        }
    }

    /// The pool that it runs in: always of its own namespace.
    pub fn pool_key(&self) -> PoolKey {
        PoolKey { namespace: self.key.namespace.to_string(), pool: self.spec.pool.clone() }
    }

    /// Whether it has ended and holds nothing any more.
    pub fn finished(&self) -> bool {
        self.status.phase.finished() && self.status.released
    }

    /// Whether a slot has to stay reserved for this generation: it is current and not known to be gone, or left over.
    pub fn holds(&self, generation: i64) -> bool {
        let status = &self.status;
        (generation == status.generation && status.agent.is_some() && !status.released)
            || status.leftovers.iter().any(|leftover| leftover.generation == generation)
    }

    /// Whether a reset is asked for that was not carried out.
    pub fn reset_due(&self) -> bool {
        let Some(wanted) = self.reset_revision.as_deref().and_then(clock::parse_rfc3339) else { return false };
        match self.status.accepted_reset_revision.as_deref().and_then(clock::parse_rfc3339) {
            Some(accepted) => wanted > accepted,
            None => true,
        }
    }

    /// `IP:port` for each port, once an agent was chosen.
    pub fn endpoints(&self) -> Vec<String> {
        let Some(agent) = &self.status.agent else { return Vec::new() };
        self.spec
            .ports
            .iter()
            .map(
                |port| {
                    if agent.ip.contains(':') {
                        format!("[{}]:{port}", agent.ip)
                    } else {
                        format!("{}:{port}", agent.ip)
                    }
                },
            )
            .collect()
    }

    /// The claim as agents know it.
    pub fn to_agent(&self, generation: i64) -> agent::Claim {
        agent::Claim {
            namespace: self.key.namespace.to_string(),
            name: self.key.name.to_string(),
            uid: self.uid.to_string(),
            generation,
        }
    }

    /// How many bytes of memory it takes, about.
    pub fn weight(&self) -> usize {
        let spec = &self.spec;
        let words = spec.command.iter().chain(&spec.args).map(|word| word.len() + 24);
        let pairs = spec.envs.iter().chain(&self.labels).map(|(key, value)| key.len() + value.len() + 64);
        1024 + self.status.message.len() + words.chain(pairs).sum::<usize>()
    }

    /// The claim as it is written.
    pub fn to_document(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// The document that travels with a create. Where the whole one is too large it is abridged; the caller then has
    /// to write the claim before it starts the sandbox.
    pub fn to_travel_document(&self) -> Vec<u8> {
        let document = self.to_document();
        if document.len() <= MAX_DOCUMENT_BYTES {
            return document;
        }
        let mut short = self.clone();
        short.abridged = true;
        let mut spec = (*self.spec).clone();
        (spec.command, spec.args, spec.envs) = Default::default();
        short.spec = Arc::new(spec);
        let document = short.to_document();
        if document.len() <= MAX_DOCUMENT_BYTES {
            return document;
        }
        // Nor what a controller can do without that takes the sandbox over: older generations go by their number.
        short.labels.clear();
        short.status.leftovers.clear();
        short.status.message.clear();
        short.to_document()
    }

    /// Reads a document.
    pub fn from_document(document: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(document)
    }

    /// What clients see.
    pub fn to_info(&self, persisted: bool) -> fastpath::SandboxInfo {
        let status = &self.status;
        let name = self.key.name.to_string();
        fastpath::SandboxInfo {
            sandbox_id: name.clone(),
            phase: status.phase.as_str().into(),
            agent_pod: status.agent.as_ref().map(|agent| agent.name.to_string()).unwrap_or_default(),
            endpoints: self.endpoints(),
            created_at: self.created_at_ms / 1000,
            image: self.spec.image.clone(),
            pool_ref: self.spec.pool.clone(),
            sandbox_name: name,
            exit_code: status.exit_code,
            reason: status.reason.clone(),
            node: status.agent.as_ref().map(|agent| agent.node.to_string()).unwrap_or_default(),
            instance_id: status.instance_id.clone(),
            started_at_ms: status.started_at_ms,
            finished_at_ms: status.finished_at_ms,
            namespace: self.key.namespace.to_string(),
            labels: self.labels.clone(),
            expire_time_seconds: self.policy.expire_at_seconds.unwrap_or(0),
            failure_policy: self.policy.failure.to_wire(),
            recovery_timeout_seconds: self.policy.recovery_seconds as i32,
            instance_generation: status.generation,
            message: status.message.clone(),
            command: self.spec.command.clone(),
            args: self.spec.args.clone(),
            envs: self.spec.envs.clone(),
            working_dir: self.spec.working_dir.clone(),
            exposed_ports: self.spec.ports.iter().map(|port| i32::from(*port)).collect(),
            resources: Some(self.spec.resources.to_wire()),
            user: self.spec.user.clone(),
            persisted,
        }
    }
}

/// A new UID, in the form of a random UUID.
pub fn new_uid() -> Arc<str> {
    let mut bytes: [u8; 16] = rand::random();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = |range: std::ops::Range<usize>| bytes[range].iter().map(|b| format!("{b:02x}")).collect::<String>();
    format!("{}-{}-{}-{}-{}", hex(0..4), hex(4..6), hex(6..8), hex(8..10), hex(10..16)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim() -> Claim {
        let spec = SandboxSpec { image: "busybox".into(), pool: "default-pool".into(), ..Default::default() };
        Claim::new(Key::new("default", "a"), new_uid(), Arc::new(spec), Policy::default(), 1)
    }

    #[test]
    fn a_document_is_read_again_as_it_was_written() {
        let mut claim = claim();
        claim.labels.insert("a".into(), "b".into());
        claim.reset_revision = Some("2024-01-01T00:00:00.5Z".into());
        assert_eq!(Claim::from_document(&claim.to_document()).unwrap(), claim);
    }

    #[test]
    fn a_document_that_an_agent_cannot_carry_is_abridged() {
        let mut claim = claim();
        let mut spec = (*claim.spec).clone();
        spec.args = vec!["x".repeat(100_000); 2];
        claim.spec = Arc::new(spec);
        let document = claim.to_travel_document();
        assert!(document.len() <= MAX_DOCUMENT_BYTES);
        assert!(Claim::from_document(&document).unwrap().abridged);
    }

    #[test]
    fn a_reset_is_due_once_per_revision() {
        let mut claim = claim();
        assert!(!claim.reset_due());
        claim.reset_revision = Some("2024-01-01T00:00:00.000000002Z".into());
        assert!(claim.reset_due());
        claim.status.accepted_reset_revision = claim.reset_revision.clone();
        assert!(!claim.reset_due());
        claim.reset_revision = Some("2024-01-01T00:00:00.000000001Z".into());
        assert!(!claim.reset_due(), "an older one is not later");
        claim.reset_revision = Some("2024-01-01T00:00:00.000000003Z".into());
        assert!(claim.reset_due());
    }
}
