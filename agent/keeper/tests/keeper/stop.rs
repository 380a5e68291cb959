//! SIGTERM: grace for sandboxes, then nothing is left.

use crate::node::{Node, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[test]
fn a_stop_gives_sandboxes_their_grace_and_leaves_nothing() {
    let mut node = Node::start(&[("FSB_STOP_TIMEOUT", "5s")]);
    let (agent, _, _) = node.agent();
    let polite = node.start_shell(&agent, "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.01; done");
    let stubborn = node.start_shell(&agent, "trap '' TERM; echo ready; while :; do sleep 0.01; done");
    let stock = node.paused(&agent);
    for one in [&polite, &stubborn] {
        eventually("traps", || node.texts(&one.id, "stdout") == "ready\n");
    }
    let spawner = node.spawner_pid();
    kill(Pid::from_raw(node.keeper_pid()), Signal::SIGTERM).unwrap();
    assert!(node.wait().success());
    assert_eq!(node.texts(&polite.id, "stdout"), "ready\nbye\n");
    for pid in [polite.pid, stubborn.pid, stock.pid, spawner, agent.pid] {
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }
    assert!(node.tree.list().is_empty(), "cgroups are left");
    for dir in [node.paths.records(), node.paths.layers()] {
        assert_eq!(std::fs::read_dir(dir).unwrap().count(), 0);
    }
}
