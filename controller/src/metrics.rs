//! What the controller counts.

use crate::claims::{Phase, Table};
use crate::registry::{Class, Registry};
use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry as Exposition;
use std::sync::atomic::AtomicU64;

/// Code of a finished call.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CodeLabel {
    code: &'static str,
}

/// A reason in a word.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabel {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolLabel {
    namespace: String,
    pool: String,
}

/// The counters. Counting is one atomic operation.
#[derive(Debug, Default)]
pub struct Metrics {
    creates: Family<CodeLabel, Counter>,
    create_seconds: Seconds,
    placements: Family<ReasonLabel, Counter>,
    /// Refusals of an agent that another agent was asked after.
    pub replacements: Counter,
    /// Operations that wait for the claim store.
    pub claims_waiting: Gauge,
    /// Writes that failed and are tried again.
    pub claim_write_errors: Counter,
    /// Claims that the store will never take.
    pub claims_refused: Family<ReasonLabel, Counter>,
    /// Claims that came back from an agent's report.
    pub adopted: Counter,
    /// Instances that an agent was told to remove because they belong to no claim.
    pub evicted: Family<ReasonLabel, Counter>,
    /// Calls to agents that failed and are tried again.
    pub agent_call_errors: Counter,
    /// Agents that were declared lost.
    pub agents_lost: Counter,
    /// The claim store was damaged at the start and moved aside.
    pub store_moved_aside: Counter,
    /// Watchers that lagged and were sent everything again.
    pub watches_dropped: Counter,
}

#[derive(Debug)]
struct Seconds(Histogram);

impl Default for Seconds {
    fn default() -> Self {
        Self(Histogram::new(exponential_buckets(0.000_25, 2.0, 18)))
    }
}

impl Metrics {
    /// A create has ended.
    pub fn created(&self, code: tonic::Code, seconds: f64) {
        self.creates.get_or_create(&CodeLabel { code: code_name(code) }).inc();
        self.create_seconds.0.observe(seconds);
    }

    /// An agent was chosen.
    pub fn placed(&self, class: Class) {
        let reason = match class {
            Class::Stock => "stock",
            Class::Image => "image",
            Class::Any => "any",
        };
        self.placements.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// The store refused a claim for good.
    pub fn claim_refused(&self, reason: &'static str) {
        self.claims_refused.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// An agent was told to remove an instance.
    pub fn evicting(&self, reason: &'static str) {
        self.evicted.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// Everything in the text format of OpenMetrics, with what tables and pools hold at this moment.
    pub fn render(&self, table: &Table, registry: &Registry, healthy_agents: usize) -> String {
        let mut all = Exposition::with_prefix("fsb_controller");
        all.register("creates", "Creates by their status code", self.creates.clone());
        all.register("create_seconds", "From the request to the answer of a create", self.create_seconds.0.clone());
        all.register("placements", "Agents chosen, by what they had for the image", self.placements.clone());
        all.register("replacements", "Refusals after which another agent was asked", self.replacements.clone());
        all.register("claims_waiting", "Operations that wait for the claim store", self.claims_waiting.clone());
        all.register(
            "claim_write_errors",
            "Failed operations of the claim store, each tried again",
            self.claim_write_errors.clone(),
        );
        all.register("claims_refused", "Claims that the store will never take", self.claims_refused.clone());
        all.register("adopted", "Claims that came back from an agent's report", self.adopted.clone());
        all.register("evicted", "Instances without a claim that an agent was told to remove", self.evicted.clone());
        all.register("agent_call_errors", "Failed calls to agents, each tried again", self.agent_call_errors.clone());
        all.register("agents_lost", "Agents that were declared lost", self.agents_lost.clone());
        all.register(
            "store_moved_aside",
            "Starts at which the claim store was damaged",
            self.store_moved_aside.clone(),
        );
        all.register("watches_dropped", "Watchers that did not read and were dropped", self.watches_dropped.clone());

        let phases = Family::<ReasonLabel, Gauge>::default();
        for phase in Phase::ALL {
            phases.get_or_create(&ReasonLabel { reason: phase.as_str() }).set(0);
        }
        table.for_each(|entry| {
            phases.get_or_create(&ReasonLabel { reason: entry.claim.status.phase.as_str() }).inc();
        });
        all.register("sandboxes", "Claims by phase", phases);
        let (agents, capacity, used) =
            (Family::<PoolLabel, Gauge>::default(), Family::<PoolLabel, Gauge>::default(), Family::default());
        for (key, totals) in registry.pools() {
            let label = PoolLabel { namespace: key.namespace, pool: key.pool };
            agents.get_or_create(&label).set(totals.healthy as i64);
            capacity.get_or_create(&label).set(totals.capacity as i64);
            let slots: &Family<PoolLabel, Gauge> = &used;
            slots.get_or_create(&label).set(totals.used as i64);
        }
        all.register("pool_healthy_agents", "Healthy agents of a pool", agents);
        all.register("pool_capacity", "Slots of the healthy agents of a pool", capacity);
        all.register("pool_used", "Slots in use on the healthy agents of a pool", used);
        let healthy: Gauge = Gauge::default();
        healthy.set(healthy_agents as i64);
        all.register("healthy_agents", "Agents whose stream is up", healthy);
        all.register(
            "log_lines_dropped",
            "Lines of this program's own log that could not be written",
            ConstCounter::new(fsb_log::dropped()),
        );
        if let Some(bytes) = resident_bytes() {
            let resident = Gauge::<u64, AtomicU64>::default();
            resident.set(bytes);
            all.register("resident_memory_bytes", "Resident memory of this process", resident);
        }
        let mut text = String::new();
        // Writing into a string does not fail.
        let _ = encode(&mut text, &all);
        text
    }
}

fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??;
    Some(pages * page as u64)
}

fn code_name(code: tonic::Code) -> &'static str {
    use tonic::Code::*;
    match code {
        Ok => "OK",
        Cancelled => "CANCELLED",
        InvalidArgument => "INVALID_ARGUMENT",
        DeadlineExceeded => "DEADLINE_EXCEEDED",
        NotFound => "NOT_FOUND",
        AlreadyExists => "ALREADY_EXISTS",
        PermissionDenied => "PERMISSION_DENIED",
        ResourceExhausted => "RESOURCE_EXHAUSTED",
        FailedPrecondition => "FAILED_PRECONDITION",
        Aborted => "ABORTED",
        Internal => "INTERNAL",
        Unavailable => "UNAVAILABLE",
        Unauthenticated => "UNAUTHENTICATED",
        _ => "OTHER",
    }
}
