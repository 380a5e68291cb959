//! Records outlive the agent, at whatever moment it dies.

use crate::node::{Node, eventually, hand_off};
use fsb_host::wire::{FromKeeper, Record, Stage, ToKeeper};
use fsb_host::{cgroup, pidfd};
use nix::sys::signal::Signal;
use std::fs::File;
use std::os::fd::AsRawFd;

#[test]
fn a_new_agent_finds_stock_running_and_ended_ones_with_their_exit_codes() {
    let node = Node::start(&[]);
    let (agent, known, incarnation) = node.agent();
    assert!(known.is_empty());
    let stock = node.paused(&agent);
    let running = node.start_shell(&agent, "sleep 1000");
    let ended = node.start_shell(&agent, "sleep 1000");
    agent.started(&running.id);
    agent.started(&ended.id);
    let in_flight = node.id();
    agent.make(&in_flight, "plain");
    agent.kill();
    let agent = node.silent_agent();
    pidfd::kill(&ended.pidfd, Signal::SIGUSR1).unwrap();
    eventually("the end in the record's file", || {
        matches!(node.record_file(&ended.id).unwrap().stage, Stage::Ended(_))
    });
    agent.kill();
    let (agent, mut known, same) = node.agent();
    assert_eq!(same, incarnation, "the keeper is the same");
    if known.len() == 3 {
        // The container in flight was finished after the hello.
        agent.take_made(&in_flight);
    } else {
        known.retain(|(record, _)| record.made.id != in_flight);
    }
    assert_eq!(known.len(), 3);
    for (record, fds) in &known {
        match record.stage {
            Stage::Paused => assert_eq!((&record.made.id, fds.len()), (&stock.id, 2)),
            Stage::Started { .. } => assert_eq!((&record.made.id, fds.len()), (&running.id, 1)),
            Stage::Ended(end) => {
                assert_eq!((&record.made.id, fds.len()), (&ended.id, 1));
                assert_eq!((end.code, end.signal), (None, Some(Signal::SIGUSR1 as i32)));
            }
            Stage::Bound => panic!("{record:?}"),
        }
        assert_eq!(record.binding.is_some(), record.made.id != stock.id);
    }
    assert!(running.is_alive(), "nothing happens to a sandbox when the agent dies");
    let (record, fds) = known.iter().find(|(record, _)| record.stage == Stage::Paused).unwrap();
    agent.bind(&record.made.id, "second");
    hand_off(&fds[1], &["sh", "-c", "exit 3"]);
    assert_eq!(agent.ended(&record.made.id).code, Some(3), "stock can be used by the new agent");
}

#[test]
fn a_bind_and_hand_off_right_before_the_agents_death_is_known_to_the_next_one() {
    let node = Node::start(&[]);
    for round in 0..10 {
        let (agent, _, _) = node.agent();
        let paused = node.paused(&agent);
        agent.bind(&paused.id, &format!("claim{round}"));
        paused.hand_off(&["sh", "-c", if round % 2 == 0 { "exit 5" } else { "sleep 1000" }]);
        agent.kill();
        let (agent, known, _) = node.agent();
        let (record, _) = known.iter().find(|(record, _)| record.made.id == paused.id).unwrap();
        assert_eq!(record.binding.as_ref().unwrap().claim, format!("claim{round}"));
        if round % 2 == 0 && !matches!(record.stage, Stage::Ended(_)) {
            assert_eq!(agent.ended(&paused.id).code, Some(5));
        } else if record.stage == Stage::Bound {
            agent.started(&paused.id);
        }
        agent.kill();
    }
}

#[test]
fn a_quiet_start_is_recorded_when_the_agent_says_so_when_it_ends_or_when_the_agent_is_gone() {
    let node = Node::start(&[]);
    let (agent, _, _) = node.agent();
    let started = |record: Option<Record>| record.is_some_and(|record| matches!(record.stage, Stage::Started { .. }));

    let said = node.paused(&agent);
    agent.bind_quietly(&said.id, "said");
    said.hand_off(&["sleep", "1000"]);
    agent.send(&ToKeeper::Launched { programs: vec![(said.id.clone(), 7), ("unknown".into(), 7)] });
    agent.started(&said.id);
    let told = Stage::Started { at_ms: 7 };
    eventually("its record", || node.record_file(&said.id).is_some_and(|record| record.stage == told));

    let short = node.paused(&agent);
    agent.bind_quietly(&short.id, "short");
    short.hand_off(&["sh", "-c", "exit 5"]);
    agent.started(&short.id);
    let end = agent.ended(&short.id);
    assert_eq!(end.code, Some(5));
    assert!(end.started_at_ms > 0 && end.started_at_ms <= end.finished_at_ms);

    let left = node.paused(&agent);
    agent.bind_quietly(&left.id, "left");
    left.hand_off(&["sleep", "1000"]);
    agent.kill();
    eventually("the keeper finds out by itself", || started(node.record_file(&left.id)));
    let (_, known, _) = node.agent();
    let (record, _) = known.iter().find(|(record, _)| record.made.id == left.id).unwrap();
    assert_eq!(record.binding.as_ref().unwrap().claim, "left");
}

#[test]
fn a_short_program_is_bound_then_started_then_ended() {
    let node = Node::start(&[]);
    let (agent, _, _) = node.agent();
    for _ in 0..20 {
        let paused = node.paused(&agent);
        agent.bind(&paused.id, "claim");
        paused.hand_off(&["true"]);
        assert_eq!(agent.next().0, FromKeeper::Bound { id: paused.id.clone() });
        assert!(matches!(agent.next().0, FromKeeper::Started { id, .. } if id == paused.id));
        assert!(matches!(agent.next().0, FromKeeper::Ended { id, end } if id == paused.id && end.code == Some(0)));
    }
}

#[test]
fn what_died_while_it_was_paused_cannot_be_bound() {
    let node = Node::start(&[]);
    let (agent, _, _) = node.agent();
    let paused = node.paused(&agent);
    pidfd::kill(&paused.pidfd, Signal::SIGKILL).unwrap();
    assert_eq!(agent.ended(&paused.id).signal, Some(Signal::SIGKILL as i32));
    agent.bind(&paused.id, "claim");
    assert_eq!(agent.next().0, FromKeeper::NoSuch { id: paused.id.clone() });
    agent.bind("unknown", "claim");
    assert_eq!(agent.next().0, FromKeeper::NoSuch { id: "unknown".into() });
    assert!(node.record_file(&paused.id).is_none());
}

#[test]
fn an_exec_that_fails_never_starts() {
    let node = Node::start(&[]);
    let (agent, _, _) = node.agent();
    let paused = node.paused(&agent);
    agent.bind(&paused.id, "claim");
    paused.hand_off(&["/no/such/program"]);
    assert_eq!(agent.next().0, FromKeeper::Bound { id: paused.id.clone() });
    let FromKeeper::Ended { end, .. } = agent.next().0 else { panic!("it has started") };
    assert_eq!((end.code, end.start_errno), (Some(127), Some(0)));
}

#[test]
fn a_records_file_follows_its_stages_and_goes_when_it_is_forgotten() {
    let node = Node::start(&[]);
    let (agent, _, _) = node.agent();
    let paused = node.paused(&agent);
    assert!(node.record_file(&paused.id).is_none(), "stock has no file");
    agent.bind(&paused.id, "claim");
    agent.wait_for("bound", |message| matches!(message, FromKeeper::Bound { .. }));
    let record = node.record_file(&paused.id).expect("the file is there before the answer");
    assert_eq!((record.stage, record.binding.as_ref().unwrap().claim.as_str()), (Stage::Bound, "claim"));
    let mut binding = record.binding.unwrap();
    binding.document = vec![7; 100_000];
    agent.send(&ToKeeper::Rebind { id: paused.id.clone(), binding });
    paused.hand_off(&["sh", "-c", "exit 9"]);
    agent.started(&paused.id);
    assert_eq!(agent.ended(&paused.id).code, Some(9));
    let record = node.record_file(&paused.id).unwrap();
    assert!(matches!(record.stage, Stage::Ended(end) if end.code == Some(9)));
    assert_eq!(record.binding.unwrap().document.len(), 100_000);
    agent.forget(&paused.id);
    eventually("the file is gone", || node.record_file(&paused.id).is_none());
    let stock = node.paused(&agent);
    agent.forget(&stock.id);
    eventually("forgotten stock is killed", || !stock.is_alive());
    agent.kill();
    assert!(node.agent().1.is_empty());
}

#[test]
fn the_kernels_oom_killer_is_told_apart_from_other_signals() {
    let node = Node::start(&[]);
    let (agent, _, _) = node.agent();
    let hungry = node.paused(&agent);
    let limits = cgroup::Limits { memory_bytes: 32 << 20, pids: 100, cpu_millis: None };
    cgroup::set_limits(&node.tree.sandbox(&hungry.id), &limits, None).unwrap();
    agent.bind(&hungry.id, "claim");
    hungry.hand_off(&["sh", "-c", "x=aaaaaaaa; while :; do x=$x$x; done"]);
    let end = agent.ended(&hungry.id);
    assert_eq!((end.signal, end.oom_killed), (Some(Signal::SIGKILL as i32), true));
    let killed = node.start_shell(&agent, "sleep 1000");
    pidfd::kill(&killed.pidfd, Signal::SIGKILL).unwrap();
    let end = agent.ended(&killed.id);
    assert_eq!((end.signal, end.oom_killed), (Some(Signal::SIGKILL as i32), false));
}

#[test]
fn an_agent_that_is_not_read_by_holds_nobody_up() {
    let node = Node::start(&[]);
    let (agent, _, _) = node.agent();
    // Many more answers than the socket holds; none is read before all are asked for.
    let paused = node.paused(&agent);
    let asked = 5000;
    for _ in 0..asked {
        agent.bind(&paused.id, "claim");
    }
    let other = node.paused(&agent);
    for _ in 0..asked {
        agent.wait_for("an answer", |message| matches!(message, FromKeeper::Bound { id } if *id == paused.id));
    }
    assert!(other.is_alive());
}

#[test]
fn a_second_keeper_on_the_same_directories_is_refused() {
    let node = Node::start(&[]);
    let (agent, _, _) = node.agent();
    let paused = node.paused(&agent);
    let second = node.second_keeper();
    assert!(!second.status.success());
    assert!(String::from_utf8_lossy(&second.stderr).contains("another keeper"));
    assert!(paused.is_alive());
}

#[test]
fn an_images_pin_is_held_while_its_container_lives_also_without_an_agent() {
    let node = Node::start(&[]);
    let (agent, _, _) = node.agent();
    let path = node.dir().join("pin");
    let pin = File::create(&path).unwrap();
    pin.lock_shared().unwrap();
    let free = || File::open(&path).unwrap().try_lock().is_ok();
    let (first, second) = (node.id(), node.id());
    agent.make_with(&first, "plain", &[pin.as_raw_fd()]);
    agent.make_with(&second, "plain", &[pin.as_raw_fd()]);
    drop(pin);
    agent.take_made(&first);
    let second = agent.take_made(&second);
    agent.kill();
    assert!(!free(), "held though the agent is dead");
    let (agent, known, _) = node.agent();
    assert_eq!(known.len(), 2);
    agent.forget(&first);
    assert!(!free(), "the second one holds it");
    pidfd::kill(&second.pidfd, Signal::SIGKILL).unwrap();
    agent.ended(&second.id);
    eventually("the pin is free", free);
}
