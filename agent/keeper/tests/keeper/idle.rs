//! A keeper with nothing to do does nothing.

use crate::node::Node;
use std::time::Duration;

fn switches(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let counts = status.lines().filter_map(|line| line.split_once("ctxt_switches:"));
    counts.map(|(_, count)| count.trim().parse::<u64>().unwrap()).sum()
}

fn resident_kib(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn a_hundred_quiet_instances_cause_no_wake_ups_and_little_memory() {
    for engine in ["uring", "epoll"] {
        let node = Node::start(&[("FSB_LOG_ENGINE", engine)]);
        let (agent, _, _) = node.agent();
        let stock: Vec<_> = (0..80).map(|_| node.paused(&agent)).collect();
        let running: Vec<_> = (0..20).map(|_| node.start_shell(&agent, "echo up; sleep 1000")).collect();
        running.iter().for_each(|one| agent.started(&one.id));
        // At first, what they wrote is written and the last timers fire.
        let is_idle = |_| {
            std::thread::sleep(Duration::from_millis(500));
            let before = switches(node.keeper_pid());
            std::thread::sleep(Duration::from_secs(2));
            switches(node.keeper_pid()) - before <= 2
        };
        assert!((0..5).any(is_idle), "{engine}: always more than two wake-ups in two idle seconds");
        assert!(resident_kib(node.keeper_pid()) < 16 << 10, "{engine}: {} KiB", resident_kib(node.keeper_pid()));
        assert!(stock.iter().chain(&running).all(|one| one.is_alive()));
    }
}
