//! What a start is asked for, checked, in the terms of this agent.

use crate::admission::Ask;
use crate::now_ms;
use fsb_host::cgroup::Limits;
use fsb_host::wire::{Binding, Overlay};
use fsb_proto::domain::{
    DEFAULT_GRACE_SECONDS, DEFAULT_NAMESPACE, DEFAULT_RECOVERY_SECONDS, FailurePolicy, PullPolicy,
};
use fsb_proto::{Invalid, SandboxSpec, agent};
use std::hash::{Hash, Hasher};

/// A create that is known to be right in itself.
pub(crate) struct Order {
    pub(crate) spec: SandboxSpec,
    pub(crate) pull: PullPolicy,
    /// `None` = the caller knows no generations.
    pub(crate) generation: Option<i64>,
    pub(crate) binding: Binding,
    pub(crate) request_id: String,
}

impl Order {
    /// Checks a request of the wire.
    pub(crate) fn from_wire(wire: &agent::CreateRequest) -> Result<Self, Invalid> {
        let spec = SandboxSpec::from_agent(wire)?;
        let claim = wire.claim.clone().unwrap_or_default();
        if claim.uid.is_empty() {
            return Err(Invalid::new("claim.uid", "must not be empty"));
        }
        if claim.generation < 0 {
            return Err(Invalid::new("claim.generation", "must not be negative"));
        }
        for (field, text) in [("claim.uid", &claim.uid), ("claim.name", &claim.name), ("alias", &wire.alias)] {
            if text.len() > 253 || text.chars().any(char::is_control) {
                return Err(Invalid::new(field, "must be at most 253 bytes without control characters"));
            }
        }
        let grace = u32::try_from(wire.grace_period_seconds.unwrap_or(DEFAULT_GRACE_SECONDS as i32))
            .map_err(|_| Invalid::new("grace_period_seconds", "must not be negative"))?;
        let recovery = u32::try_from(wire.recovery_timeout_seconds)
            .map_err(|_| Invalid::new("recovery_timeout_seconds", "must not be negative"))?;
        let binding = Binding {
            namespace: if claim.namespace.is_empty() { DEFAULT_NAMESPACE.to_owned() } else { claim.namespace },
            claim: claim.name,
            claim_uid: claim.uid,
            generation: claim.generation,
            alias: wire.alias.clone(),
            image: wire.image.clone(),
            ports: spec.ports.iter().copied().collect(),
            grace_seconds: grace,
            recreate_after_seconds: recreate_after(FailurePolicy::from_wire(wire.failure_policy)?, recovery),
            created_at_ms: now_ms(),
            spec_hash: spec_hash(&spec),
            document: wire.claim_document.clone(),
            ..Default::default()
        };
        Ok(Self {
            spec,
            pull: PullPolicy::from_wire(wire.pull_policy)?,
            generation: Some(claim.generation),
            binding,
            request_id: wire.request_id.clone(),
        })
    }

    pub(crate) fn ask(&self) -> Ask<'_> {
        Ask {
            uid: &self.binding.claim_uid,
            generation: self.generation,
            spec_hash: self.binding.spec_hash,
            alias: &self.binding.alias,
            ports: &self.spec.ports,
        }
    }

    pub(crate) fn overlay(&self) -> Overlay {
        self.spec.resources.disk_bytes.map_or(Overlay::Disk, |bytes| Overlay::Tmpfs { bytes })
    }

    pub(crate) fn limits(&self) -> Limits {
        let resources = &self.spec.resources;
        Limits { memory_bytes: resources.memory(), pids: resources.max_pids(), cpu_millis: resources.cpu_millis }
    }
}

/// After how many seconds without a controller the agent stops the sandbox itself; 0 = never.
pub(crate) fn recreate_after(policy: FailurePolicy, seconds: u32) -> u32 {
    match policy {
        FailurePolicy::Manual => 0,
        FailurePolicy::AutoRecreate if seconds == 0 => DEFAULT_RECOVERY_SECONDS,
        FailurePolicy::AutoRecreate => seconds,
    }
}

/// FNV-1a: the same for every build, since it is kept in records.
fn spec_hash(spec: &SandboxSpec) -> u64 {
    struct Fnv(u64);
    impl Hasher for Fnv {
        fn finish(&self) -> u64 {
            self.0
        }
        fn write(&mut self, bytes: &[u8]) {
            for byte in bytes {
                self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
            }
        }
    }
    let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
    spec.hash(&mut hasher);
    hasher.finish()
}
