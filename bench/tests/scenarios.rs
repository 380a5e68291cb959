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
    let report =
        run(&["churn", "--rates", "5", "--seconds", "1", "--confirm", "1", "--cycles", "15", "--bound-ms", "60000"]);
    cell(&report, "rate-5", &["p99_us", "failed", "done_per_s", "cycle_p99_us"]);
    let sustained = cell(&report, "sustained", &["rate_per_s", "p99_us", "cycles", "leaked"]);
    assert_eq!((&sustained["cycles"], &sustained["leaked"]), (&15.into(), &0.into()), "{report}");
    assert_eq!(cell(&report, "soak", &["p99_us"])["n"], 5);
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

#[test]
fn start_writes_ratios_with_intervals_sources_and_what_peers_leave_out() {
    let report = run(&["start", "--n", "3", "--payload", "tiny", "--cells", "floor-spawn,agent-stock,path"]);
    let ours = cell(&report, "agent-stock", &["p50_us", "p99_us", "p50_low_us", "p50_high_us", "failed", "retried"]);
    assert_eq!((&ours["n"], &ours["payload"]), (&3.into(), &"tiny".into()));
    let ratios = ["spawn_p50_ratio", "spawn_p50_ratio_low", "spawn_p50_ratio_high", "spawn_p99_ratio", "refill_cpu_us"];
    for name in ["agent-stock", "path"] {
        let ours = cell(&report, name, &ratios);
        let containers: u64 = ["stock", "cast", "libcontainer"].map(|key| ours[key].as_u64().unwrap()).iter().sum();
        assert_eq!(containers, 3);
    }
    assert!(cell(&report, "floor-spawn", &["p50_us"])["leaves_out"].is_string());
}

#[test]
fn every_peer_is_measured_or_named_as_missing() {
    let peers = ["bwrap", "crun", "runc", "youki", "containerd"];
    let report =
        run(&["start", "--n", "2", "--payload", "tiny", "--cells", &format!("floor-spawn,{}", peers.join(","))]);
    for peer in peers {
        let missing = report["machine"]["warnings"].to_string().contains(&format!("{peer} is left out"));
        if !missing {
            assert_eq!(cell(&report, peer, &["p50_us", "failed"])["failed"], 0, "{report}");
        }
    }
}

#[test]
fn staggered_counts_from_the_intended_moment_and_says_how_late_it_called() {
    let report = run(&["staggered", "--n", "3", "--cells", "floor-spawn,agent-stock"]);
    for name in ["floor-spawn", "agent-stock"] {
        assert_eq!(cell(&report, name, &["p50_us", "late_p50_us", "late_max_us"])["n"], 3);
    }
}

#[test]
fn burst_writes_the_last_stamp_and_what_failed_and_takes_all_from_the_stock() {
    let report = run(&["burst", "--sizes", "4", "--rounds", "2"]);
    for name in ["ours-4", "spawn-4", "path-4"] {
        let cell = cell(&report, name, &["last_us", "last_low_us", "failed", "success_percent"]);
        assert_eq!((&cell["failed"], &cell["n"], &cell["rounds"]), (&0.into(), &8.into(), &2.into()));
    }
    let ours = cell(&report, "ours-4", &["spawn_last_ratio", "spawn_last_ratio_high"]);
    assert_eq!(ours["stock"], 8);
}

#[test]
fn contention_writes_starts_beside_busy_loops_which_end_with_it() {
    let report = run(&["contention", "--n", "3", "--loops", "2"]);
    for name in ["stock-2", "spawn-2", "path-2"] {
        assert_eq!(cell(&report, name, &["p99_us"])["n"], 3);
    }
    cell(&report, "stock-2", &["spawn_p99_ratio"]);
}

#[test]
fn a_result_is_a_page_too_and_can_be_compared_with_itself() {
    let dir = tempfile::tempdir().unwrap();
    let (json, html) = (dir.path().join("rpc.json"), dir.path().join("rpc.html"));
    let bench = || Command::new(env!("CARGO_BIN_EXE_fsb-bench"));
    let output = bench().args(["rpc", "--n", "20", "--json"]).arg(&json).arg("--html").arg(&html).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(std::fs::read_to_string(html).unwrap().contains("<svg"));
    let output = bench().arg("compare").arg(dir.path()).arg(&json).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.contains("no difference") && !text.contains("worse"), "{text}");
}
