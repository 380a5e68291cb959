//! Scenarios with tiny sizes: what they write has the promised cells, and a node that was measured leaves nothing.

use serde_json::Value;
use std::process::Command;

/// Runs a scenario and returns its report.
fn run(words: &[&str]) -> Value {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("report.json");
    let output = Command::new(env!("CARGO_BIN_EXE_fsb-bench")).args(words).arg("--json").arg(&file).output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    assert_eq!(report["scenario"], words[0]);
    assert!(report["machine"]["cpus"].as_u64().unwrap() > 0);
    report
}

/// A cell, which has a number under each of these keys.
fn cell<'a>(report: &'a Value, name: &str, keys: &[&str]) -> &'a Value {
    let cells = report["cells"].as_array().unwrap();
    let cell = cells.iter().find(|cell| cell["name"] == name).unwrap_or_else(|| panic!("no {name} in {cells:?}"));
    for key in keys {
        assert!(cell[key].is_number(), "{name} has no {key}: {cell}");
    }
    cell
}

#[test]
fn schedule_writes_what_a_decision_costs_and_how_good_it_is() {
    let report = run(&["schedule", "--agents", "100,200", "--n", "2000", "--compared", "100"]);
    for name in ["agents-100", "agents-200"] {
        let cell = cell(&report, name, &["ns_per_op", "place_ns", "release_ns", "excess_load"]);
        assert_eq!(cell["best_class_percent"], 100.0);
    }
}

#[test]
fn churn_writes_the_sustained_rate_and_leaves_nothing_behind() {
    let report = run(&["churn", "--rates", "5", "--seconds", "1", "--cycles", "5", "--bound-ms", "60000"]);
    cell(&report, "rate-5", &["p99_us", "failed", "done_per_s", "cycle_p99_us"]);
    let sustained = cell(&report, "sustained", &["rate_per_s", "p99_us", "cycles", "leaked"]);
    assert_eq!((&sustained["cycles"], &sustained["leaked"]), (&10.into(), &0.into()), "{report}");
}

#[test]
fn rpc_writes_latency_and_processor_time_of_calls_that_do_nothing() {
    let report = run(&["rpc", "--n", "50"]);
    for name in ["noop", "controller-get", "controller-get-unknown"] {
        assert_eq!(cell(&report, name, &["p50_us", "p99_us", "cpu_us"])["n"], 50);
    }
}

#[test]
fn recover_writes_how_long_the_server_was_away_and_that_nothing_is_lost() {
    let report = run(&["recover", "--n", "2,4", "--rounds", "1"]);
    for name in ["sandboxes-2", "sandboxes-4"] {
        assert_eq!(cell(&report, name, &["serving_ms", "lost"])["lost"], 0);
    }
}

#[test]
fn density_writes_the_memory_of_paused_and_running_sandboxes() {
    let report = run(&["density", "--counts", "2,4", "--rounds", "1"]);
    for name in ["paused-slope", "running-slope", "paused-4", "running-4"] {
        cell(&report, name, &["kib", "pss_kib"]);
    }
}
