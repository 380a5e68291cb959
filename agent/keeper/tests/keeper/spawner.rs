//! A spawner that dies leaves nothing half-made, and loses nothing that was finished.

use crate::node::{Node, eventually};
use fsb_host::cgroup;
use fsb_host::wire::FromKeeper;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[test]
fn what_a_killed_spawner_left_half_made_is_swept_and_answered() {
    let node = Node::start(&[]);
    let (agent, _, _) = node.agent();
    let stock = node.paused(&agent);
    let running = node.start_shell(&agent, "sleep 1000");
    let half = node.id();
    agent.make(&half, "half");
    eventually("half a container", || node.dir().join("half-made").exists());
    let cgroups = node.tree.sandbox(&half);
    let pid = cgroup::processes(&cgroups)[0];
    let spawner = node.spawner_pid();
    kill(Pid::from_raw(spawner), Signal::SIGKILL).unwrap();
    assert_eq!(agent.make_failed(&half).stage, "spawner");
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "its process is killed and reaped");
    assert!(cgroups.iter().all(|dir| !dir.exists()), "its cgroups are gone");
    assert!(!node.paths.layer(&half).exists(), "its layer is gone");
    agent.wait_for("a new spawner", |message| *message == FromKeeper::SpawnerRestarted);
    assert!(stock.is_alive() && running.is_alive());
    let next = node.paused(&agent);
    assert!(next.is_alive());
    assert_ne!(node.spawner_pid(), spawner);
    agent.bind(&stock.id, "claim");
    stock.hand_off(&["sh", "-c", "exit 4"]);
    assert_eq!(agent.ended(&stock.id).code, Some(4));
}

#[test]
fn requests_wait_while_there_is_no_spawner() {
    let node = Node::start(&[]);
    let (agent, _, _) = node.agent();
    node.paused(&agent);
    let broken = node.dir().join("spawner.broken");
    std::fs::write(&broken, "").unwrap();
    kill(Pid::from_raw(node.spawner_pid()), Signal::SIGKILL).unwrap();
    eventually("a spawner that dies at its start", || node.stderr().matches("the spawner is gone").count() > 2);
    // One that is sent to a spawner in its last moments may be answered with a failure instead.
    let ids: Vec<String> = (0..5).map(|_| node.id()).collect();
    ids.iter().for_each(|id| agent.make(id, "plain"));
    std::fs::remove_file(&broken).unwrap();
    let mut made = 0;
    for id in &ids {
        let about = |message: &FromKeeper| match message {
            FromKeeper::Made(made) => made.id == *id,
            FromKeeper::MakeFailed(failed) => failed.id == *id && failed.stage == "spawner",
            _ => false,
        };
        made += usize::from(matches!(agent.wait_for("an answer", about).0, FromKeeper::Made(_)));
    }
    assert!(made == 5 || made == 0, "{made}: all were asked for in one moment");
    node.paused(&agent);
}

#[test]
fn what_a_request_waits_for_goes_before_refills() {
    let node = Node::start(&[]);
    let (agent, _, _) = node.agent();
    node.paused(&agent);
    let broken = node.dir().join("spawner.broken");
    std::fs::write(&broken, "").unwrap();
    kill(Pid::from_raw(node.spawner_pid()), Signal::SIGKILL).unwrap();
    eventually("a spawner that dies at its start", || node.stderr().matches("the spawner is gone").count() > 3);
    // What is sent to a spawner in its last moments is answered with a failure, and asked for again.
    loop {
        let refills: Vec<String> = (0..4).map(|_| node.id()).collect();
        refills.iter().for_each(|id| agent.refill(id));
        let urgent = [node.id(), node.id()];
        urgent.iter().for_each(|id| agent.make(id, "plain"));
        let _ = std::fs::remove_file(&broken);
        let ids: Vec<&String> = urgent.iter().chain(&refills).collect();
        let mut made = Vec::new();
        for _ in &ids {
            let about = |message: &FromKeeper| match message {
                FromKeeper::Made(made) => ids.contains(&&made.id),
                FromKeeper::MakeFailed(failed) => ids.contains(&&failed.id),
                _ => false,
            };
            if let (FromKeeper::Made(one), _) = agent.wait_for("an answer", about) {
                made.push(one.id);
            }
        }
        if made.len() == ids.len() {
            assert!(made.iter().eq(ids), "urgent ones first, each kind in its order: {made:?}");
            return;
        }
        std::fs::write(&broken, "").unwrap();
        if let Ok(text) = std::fs::read_to_string(node.dir().join("spawner.pid")) {
            let _ = kill(Pid::from_raw(text.parse().unwrap()), Signal::SIGKILL);
        }
        let deaths = node.stderr().matches("the spawner is gone").count();
        eventually("no spawner", || node.stderr().matches("the spawner is gone").count() > deaths);
    }
}

#[test]
fn a_container_that_died_before_it_was_handed_over_is_a_failure_that_leaves_nothing() {
    let node = Node::start(&[]);
    let (agent, _, _) = node.agent();
    let id = node.id();
    agent.make(&id, "dead");
    assert_eq!(agent.make_failed(&id).stage, "adopt");
    assert!(node.tree.sandbox(&id).iter().all(|dir| !dir.exists()));
    assert!(!node.paths.layer(&id).exists());
}

#[test]
fn failures_and_bad_requests_are_answered() {
    let node = Node::start(&[]);
    let (agent, _, _) = node.agent();
    let id = node.id();
    agent.make(&id, "unheard-of");
    assert_eq!(agent.make_failed(&id).stage, "image");
    agent.make("../../etc", "plain");
    assert_eq!(agent.make_failed("../../etc").stage, "request");
    let paused = node.paused(&agent);
    agent.make(&paused.id, "plain");
    assert_eq!(agent.make_failed(&paused.id).stage, "request");
}

#[test]
fn a_moulds_cgroup_goes_with_it_or_with_its_spawner() {
    let node = Node::start(&[]);
    let (agent, _, _) = node.agent();
    let mould = |_| {
        let id = node.id();
        agent.make(&id, "mould");
        let pid: i32 = agent.make_failed(&id).error.parse().unwrap();
        let cgroups = node.tree.mould(&id);
        assert_eq!(cgroup::processes(&cgroups), [pid]);
        (pid, cgroups)
    };
    let [first, second] = [0, 1].map(mould);
    let gone = |cgroups: &[std::path::PathBuf]| cgroups.iter().all(|dir| !dir.exists());
    kill(Pid::from_raw(first.0), Signal::SIGKILL).unwrap();
    eventually("the cgroup of a mould that has ended is gone", || gone(&first.1));
    assert_eq!(cgroup::processes(&second.1), [second.0]);
    kill(Pid::from_raw(node.spawner_pid()), Signal::SIGKILL).unwrap();
    eventually("those of a spawner that has ended are gone", || gone(&second.1));
    assert!(node.tree.moulds().is_empty());
}

#[test]
fn a_spawner_that_hangs_is_replaced() {
    let node = Node::start(&[]);
    let (agent, _, _) = node.agent();
    let half = node.id();
    agent.make(&half, "half");
    assert_eq!(agent.make_failed(&half).stage, "spawner");
    assert!(node.stderr().contains("the spawner has not answered"));
    node.paused(&agent);
}
