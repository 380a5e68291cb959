//! What a start is asked for, checked, in the terms of this agent.

use crate::admission::Ask;
use crate::now_ms;
use fsb_host::cgroup::Limits;
use fsb_host::wire::{Binding, Overlay};
use fsb_proto::bounds::Bounded;
use fsb_proto::domain::{
    DEFAULT_GRACE_SECONDS, DEFAULT_NAMESPACE, DEFAULT_RECOVERY_SECONDS, FailurePolicy, PullPolicy,
};
use fsb_proto::{Invalid, SandboxSpec, agent};
use std::io;

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
        wire.check()?;
        let spec = SandboxSpec::from_agent(wire)?;
        let claim = wire.claim.clone().unwrap_or_default();
        if claim.uid.is_empty() {
            return Err(Invalid::new("claim.uid", "must not be empty"));
        }
        if claim.generation < 0 {
            return Err(Invalid::new("claim.generation", "must not be negative"));
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
            attached: wire.attached,
            // On a disk that is everybody's they are counted.
            inodes: if spec.resources.disk_bytes.is_none() { spec.resources.max_inodes() } else { 0 },
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
        let resources = &self.spec.resources;
        let inodes = resources.max_inodes();
        resources.disk_bytes.map_or(Overlay::Disk, |bytes| Overlay::Tmpfs { bytes, inodes })
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

/// Says which hash is in the lower 48 bits of a record's: 1 = FNV-1a of canonical JSON.
const HASH_VERSION: u64 = 1;

/// The hash by which creates of one claim are the same: of the spec's JSON, whose fields and keys have an order and which
/// leaves out what was not asked for. The same for every build and compiler, since it is kept in records.
fn spec_hash(spec: &SandboxSpec) -> u64 {
    struct Fnv(u64);
    impl io::Write for Fnv {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            for byte in bytes {
                self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
            }
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut hash = Fnv(0xcbf2_9ce4_8422_2325);
    serde_json::to_writer(&mut hash, spec).expect("a spec of strings and numbers is always JSON");
    (HASH_VERSION << 48) | ((hash.0 ^ (hash.0 >> 48)) & ((1 << 48) - 1))
}

/// The hash of a record, if it can be compared: those of an earlier version were of another kind.
pub(crate) fn known_hash(hash: u64) -> Option<u64> {
    (hash >> 48 == HASH_VERSION).then_some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fsb_proto::Resources;

    #[test]
    fn a_specs_hash_is_the_same_for_every_build_and_differs_with_every_field() {
        let spec = SandboxSpec {
            image: "busybox".into(),
            args: vec!["echo".into(), "ä\"".into()],
            envs: [("B".into(), "2".into()), ("A".into(), "1".into())].into(),
            ports: [80, 443].into(),
            resources: Resources { memory_bytes: Some(1 << 30), ..Default::default() },
            ..Default::default()
        };
        let json = r#"{"image":"busybox","pool":"","command":[],"args":["echo","ä\""],"envs":{"A":"1","B":"2"},"#
            .to_owned()
            + r#""working_dir":"","ports":[80,443],"resources":{"memory_bytes":1073741824},"user":""}"#;
        assert_eq!(serde_json::to_string(&spec).unwrap(), json, "a record's hash is of this text");
        assert_eq!(spec_hash(&spec), 0x1_a805_4816_3149, "and is this number");
        let changes: [fn(&mut SandboxSpec); 8] = [
            |spec| spec.image.push('x'),
            |spec| spec.command.push("x".into()),
            |spec| spec.args.push(String::new()),
            |spec| drop(spec.envs.remove("A")),
            |spec| spec.working_dir.push('/'),
            |spec| spec.ports.extend([1]),
            |spec| spec.resources.pids = Some(1),
            |spec| spec.user.push('x'),
        ];
        for change in changes {
            let mut other = spec.clone();
            change(&mut other);
            assert_ne!(spec_hash(&other), spec_hash(&spec), "{other:?}");
        }
        assert_eq!(known_hash(spec_hash(&spec)), Some(spec_hash(&spec)));
        assert_eq!(known_hash(0xdead_beef_dead_beef), None, "of an earlier version");
    }
}
