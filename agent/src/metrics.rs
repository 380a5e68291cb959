//! What is counted and measured, in the text format of Prometheus.

use crate::instance::source_word;
use crate::lock;
use crate::pool::Shelf;
use crate::stage::Stage;
use fsb_host::usage::Usage;
use fsb_proto::agent;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// Upper bounds of the buckets, in seconds: from 5 µs to 10 s.
const BUCKETS: [f64; 20] = [
    5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 3e-4, 5e-4, 7.5e-4, 1e-3, 1.5e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.5, 2.0,
    10.0,
];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StartLabels {
    source: &'static str,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StageLabels {
    stage: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ImageLabels {
    image: String,
}

pub(crate) struct Metrics {
    registry: Mutex<Registry>,
    starts: Family<StartLabels, Counter>,
    stages: Family<StageLabels, Histogram>,
    start: Histogram,
    stock: Family<ImageLabels, Gauge>,
    refill_failures: Family<ImageLabels, Counter>,
    slots: Gauge,
    used: Gauge,
    memory: Gauge,
    processes: Gauge,
    log_lines_dropped: Counter,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let metrics = Self {
            registry: Mutex::new(Registry::with_prefix("fsb_agent")),
            starts: Family::default(),
            stages: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            start: Histogram::new(BUCKETS),
            stock: Family::default(),
            refill_failures: Family::default(),
            slots: Gauge::default(),
            used: Gauge::default(),
            memory: Gauge::default(),
            processes: Gauge::default(),
            log_lines_dropped: Counter::default(),
        };
        {
            let mut registry = lock(&metrics.registry);
            registry.register("starts", "Creates by source of the container and result", metrics.starts.clone());
            registry.register("start_stage_seconds", "Time of each step of a start", metrics.stages.clone());
            registry.register("start_seconds", "Time from request to running process", metrics.start.clone());
            registry.register("stock", "Paused containers per image", metrics.stock.clone());
            registry.register("refill_failures", "Paused containers not made", metrics.refill_failures.clone());
            registry.register("slots", "Sandboxes that may run at a time, 0 = no limit", metrics.slots.clone());
            registry.register("slots_used", "Slots in use", metrics.used.clone());
            registry.register("sandboxes_memory_bytes", "Memory of all sandboxes", metrics.memory.clone());
            registry.register(
                "sandboxes_processes",
                "Processes and threads of all sandboxes",
                metrics.processes.clone(),
            );
            registry.register(
                "log_lines_dropped",
                "Lines of this program's own log that could not be written",
                metrics.log_lines_dropped.clone(),
            );
        }
        metrics
    }

    /// A create is over.
    pub(crate) fn started(&self, source: agent::Source, failed: bool, timing: &Timing) {
        let labels = StartLabels { source: source_word(source), result: if failed { "failed" } else { "started" } };
        self.starts.get_or_create(&labels).inc();
        if !failed {
            for stage in Stage::ALL {
                if let Some(seconds) = timing.seconds[stage as usize] {
                    self.stages.get_or_create(&StageLabels { stage: stage.as_str() }).observe(seconds);
                }
            }
            self.start.observe(timing.total());
        }
    }

    /// Paused containers per image.
    pub(crate) fn stock(&self, stock: &[agent::Stock]) {
        self.stock.clear();
        for entry in stock {
            self.stock.get_or_create(&ImageLabels { image: entry.image.clone() }).set(entry.paused.into());
        }
    }

    /// A refill failed.
    pub(crate) fn refill_failed(&self, image: &str) {
        self.refill_failures.get_or_create(&ImageLabels { image: image.to_owned() }).inc();
    }

    /// Everything, with slots and usage as they are now.
    pub(crate) fn render(&self, capacity: u32, used: u32, usage: Usage) -> String {
        self.memory.set(usage.memory_bytes as i64);
        self.processes.set(usage.processes as i64);
        self.slots.set(capacity.into());
        self.used.set(used.into());
        self.log_lines_dropped.inner().store(fsb_log::dropped(), Ordering::Relaxed);
        let mut out = String::new();
        // Writing to a string does not fail.
        let _ = text::encode(&mut out, &lock(&self.registry));
        out
    }
}

/// The times of one start. A few clock readings; what is made of them comes after the answer.
pub(crate) struct Timing {
    begun: Instant,
    entered: Instant,
    ended: Instant,
    current: Stage,
    seconds: [Option<f64>; Stage::ALL.len()],
    /// Where its container came from, for the refill.
    pub(crate) shelf: Option<Arc<Shelf>>,
}

impl Timing {
    /// A start begins, with its admission.
    pub(crate) fn begin() -> Self {
        let now = Instant::now();
        Self {
            begun: now,
            entered: now,
            ended: now,
            current: Stage::Admission,
            seconds: [None; Stage::ALL.len()],
            shelf: None,
        }
    }

    /// A stage begins.
    pub(crate) fn enter(&mut self, stage: Stage) {
        self.current = stage;
        self.entered = Instant::now();
    }

    /// A stage is done. Repeated (another container), it counts with all of its tries.
    pub(crate) fn done(&mut self, stage: Stage) {
        self.ended = Instant::now();
        *self.seconds[stage as usize].get_or_insert(0.0) += (self.ended - self.entered).as_secs_f64();
    }

    /// The stage that a failure is to be named after.
    pub(crate) fn current(&self) -> Stage {
        self.current
    }

    fn total(&self) -> f64 {
        (self.ended - self.begun).as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_are_counted_by_source_and_result() {
        let metrics = Metrics::new();
        let mut timing = Timing::begin();
        timing.enter(Stage::Take);
        timing.done(Stage::Take);
        metrics.started(agent::Source::Stock, false, &timing);
        metrics.started(agent::Source::Unknown, true, &timing);
        metrics.refill_failed("busybox");
        metrics.stock(&[agent::Stock { image: "busybox".into(), paused: 3 }]);
        let text = metrics.render(5, 1, Usage { memory_bytes: 7, processes: 2 });
        for line in [
            "fsb_agent_starts_total{source=\"stock\",result=\"started\"} 1",
            "fsb_agent_starts_total{source=\"none\",result=\"failed\"} 1",
            "fsb_agent_start_stage_seconds_count{stage=\"take\"} 1",
            "fsb_agent_refill_failures_total{image=\"busybox\"} 1",
            "fsb_agent_stock{image=\"busybox\"} 3",
            "fsb_agent_slots 5",
            "fsb_agent_slots_used 1",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }
}
