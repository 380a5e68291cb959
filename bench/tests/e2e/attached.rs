//! Whoever creates a sandbox and follows its output misses nothing of it, and holds nobody up who goes away.

use crate::node::{Calls, Node, PATIENCE, block_on, shell};
use fsb_proto::fastpath::{UpdateRequest, update_request::Update};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};
use tonic::{Code, Status};

/// Files that are small beside what the sandboxes here write, in bytes.
const FILE: u64 = 1 << 20;
const FILES: u64 = 2;
const ROTATION: &[(&str, &str)] = &[("LOG_MAX_SIZE", "1Mi"), ("LOG_MAX_FILES", "2")];
/// Lines of what they write: 4 MB of text, 25 MB of log.
const LINES: &str = "600000";

fn lines() -> Vec<u8> {
    let mut text = Vec::new();
    for n in 1..=600_000 {
        writeln!(text, "{n}").unwrap();
    }
    text
}

fn following(node: &Node, name: &str, script: &str) -> Command {
    let mut command =
        node.command(&["run", name, "--image", "busybox", "--rm", "--grace", "1s", "--", "sh", "-c", script]);
    command.stdout(Stdio::piped());
    command
}

/// Bytes of all logs of sandboxes.
fn logged(node: &Node) -> u64 {
    let files = std::fs::read_dir(node.root().join("log")).unwrap().flatten();
    let logs = files.filter(|file| file.file_name() != "node.log");
    logs.filter_map(|file| Some(file.metadata().ok()?.len())).sum()
}

/// As far as an attached sandbox may fill its files: one more than are kept, and a batch in each.
fn assert_bounded(node: &Node) {
    let bytes = logged(node);
    assert!(bytes <= (FILES + 1) * (FILE + (256 << 10)), "{bytes} bytes are logged");
}

/// Waits until nothing is written any more: everybody waits for a reader.
fn until_full(node: &Node) {
    let end = Instant::now() + PATIENCE;
    let mut before = 0;
    loop {
        std::thread::sleep(Duration::from_millis(300));
        let now = logged(node);
        if now == before && now > FILE {
            return;
        }
        assert!(Instant::now() < end, "the sandbox does not wait: {now} bytes{}", node.node_log());
        before = now;
    }
}

fn until_gone(node: &Node, within: Duration) {
    let end = Instant::now() + within;
    while !block_on(async { node.client().await.list().await }).is_empty() {
        assert!(Instant::now() < end, "it is not removed{}", node.node_log());
        std::thread::sleep(Duration::from_millis(20));
    }
    let end = Instant::now() + PATIENCE;
    while logged(node) > 0 {
        assert!(Instant::now() < end, "its log stays");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn read_on(mut reader: Child) -> (Option<i32>, Vec<u8>) {
    let mut text = Vec::new();
    reader.stdout.take().unwrap().read_to_end(&mut text).unwrap();
    (reader.wait().unwrap().code(), text)
}

fn signal(reader: &Child, signal: Signal) {
    nix::sys::signal::kill(Pid::from_raw(reader.id() as i32), signal).unwrap();
}

#[test]
fn who_follows_a_sandbox_that_it_created_gets_every_line_however_late_it_reads() {
    let node = Node::up_with(&[], ROTATION);
    let script = format!("seq {LINES}; exit 3");
    let late = following(&node, "late", &script).spawn().unwrap();
    until_full(&node);
    std::thread::sleep(Duration::from_secs(2));
    assert_bounded(&node);
    let (code, text) = read_on(late);
    assert!(text == lines(), "a line is missing, doubled or changed: {} bytes", text.len());
    assert_eq!(code, Some(3));
    // It has ended with its sandbox and the name: nothing is left to wait for.
    assert!(block_on(async { node.client().await.list().await }).is_empty());
    until_gone(&node, PATIENCE);

    let path = node.root().join("output");
    let status = following(&node, "file", &script).stdout(File::create(&path).unwrap()).status().unwrap();
    assert_eq!(status.code(), Some(3));
    assert!(std::fs::read(&path).unwrap() == lines(), "a line is missing, doubled or changed");
    node.finish();
}

#[test]
fn a_reader_that_goes_away_lets_its_sandbox_run_to_its_end_and_go() {
    let node = Node::up_with(&[], ROTATION);
    // It tells of its end by its exit code, which the node's log has.
    let script = format!("seq {LINES}; exit 3");
    let mut head = following(&node, "head", &script).spawn().unwrap();
    let mut first = [0; 2];
    let mut stdout = head.stdout.take().unwrap();
    stdout.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"1\n");
    drop(stdout);
    assert_eq!(head.wait().unwrap().code(), Some(141), "as for any program whose reader has gone");
    // Ten seconds each for the reader to come back, while it runs and when it has ended.
    until_gone(&node, PATIENCE * 2);
    let log = std::fs::read_to_string(node.root().join("log/node.log")).unwrap();
    assert!(log.contains("from=Running to=Failed"), "it was not ended by its closed pipe{}", node.node_log());

    // Killed when its sandbox could not go on: that waits no longer than eleven seconds. Once in three tries.
    let mut took = Vec::new();
    while took.last().is_none_or(|took| *took > Duration::from_secs(11)) {
        assert!(took.len() < 3, "it goes on after {took:?}");
        let mut killed = following(&node, &format!("killed{}", took.len()), &script).spawn().unwrap();
        until_full(&node);
        assert_bounded(&node);
        let held = logged(&node);
        let begin = Instant::now();
        killed.kill().unwrap();
        killed.wait().unwrap();
        while logged(&node) == held {
            assert!(begin.elapsed() < PATIENCE, "it does not go on{}", node.node_log());
            std::thread::sleep(Duration::from_millis(20));
        }
        took.push(begin.elapsed());
        until_gone(&node, PATIENCE);
    }
    node.finish();
}

#[test]
fn a_reader_that_stands_still_holds_its_sandbox_up_and_misses_nothing() {
    let node = Node::up_with(&[], ROTATION);
    let stopped = following(&node, "stopped", &format!("seq {LINES}")).spawn().unwrap();
    until_full(&node);
    signal(&stopped, Signal::SIGSTOP);
    let written = logged(&node);
    std::thread::sleep(Duration::from_secs(30));
    assert_eq!(logged(&node), written, "it waits as long as its reader is there");
    signal(&stopped, Signal::SIGCONT);
    let (code, text) = read_on(stopped);
    assert!(text == lines(), "a line is missing, doubled or changed: {} bytes", text.len());
    assert_eq!(code, Some(0));
    node.finish();
}

#[test]
fn killed_agents_and_a_killed_controller_cost_an_attached_reader_nothing() {
    let node = Node::up_with(&[], ROTATION);
    let mut reader = following(&node, "kills", &format!("seq {LINES}; exit 3")).spawn().unwrap();
    let mut stdout = reader.stdout.take().unwrap();
    let mut text = Vec::new();
    let mut block = vec![0; lines().len() / 6];
    for victim in ["fsb-agent", "fsb-agent", "fsb-agent", "fsb-controller"] {
        stdout.read_exact(&mut block).unwrap();
        text.extend_from_slice(&block);
        let before = node.kill(victim);
        let end = Instant::now() + PATIENCE;
        while !node.pids(victim).iter().any(|pid| *pid != before) {
            assert!(Instant::now() < end, "{victim} is not restarted{}", node.node_log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    stdout.read_to_end(&mut text).unwrap();
    assert!(text == lines(), "a line is missing, doubled or changed: {} bytes{}", text.len(), node.node_log());
    assert_eq!(reader.wait().unwrap().code(), Some(3));
    until_gone(&node, PATIENCE);
    node.finish();
}

#[test]
fn nobody_waits_for_a_follower_and_what_it_misses_is_said() {
    let node = Node::up_with(&[], ROTATION);
    let script = format!("echo begin; sleep 3; seq {LINES}");
    node.ctl_ok(&["run", "talk", "--image", "busybox", "--", "sh", "-c", &script]);
    let mut command = node.command(&["logs", "-f", "--strict", "talk"]);
    let mut follower = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 6];
    follower.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    assert_eq!(&first, b"begin\n");
    block_on(async { node.client().await.until("talk", "Succeeded").await });
    let output = follower.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "with --strict");
    let said = String::from_utf8(output.stderr).unwrap();
    let number =
        |line: &str| line.split(" bytes of the log are missing").next()?.rsplit(' ').next()?.parse::<u64>().ok();
    let missing: u64 = said.lines().filter_map(number).sum();
    assert!(missing > 0, "{said}");
    // Each line of the log is its text, with its end, and 40 bytes.
    let bytes = |text: &[u8]| text.len() as u64 + 40 * text.iter().filter(|byte| **byte == b'\n').count() as u64;
    assert_eq!(bytes(&output.stdout) + missing, bytes(&lines()), "{said}");
    assert!(output.stdout.ends_with(b"599999\n600000\n"));
    // Whoever comes now is shown what is there, and misses nothing that was his.
    assert_eq!(node.ctl(&["logs", "--strict", "talk"]).status.code(), Some(0));
    node.finish();
}

#[test]
fn a_sandbox_goes_so_long_after_its_end_whoever_is_killed_and_a_reset_keeps_it() {
    let node = Node::up(&[]);
    block_on(async {
        let mut client = node.client().await;
        let with_ttl = |name: &str, script: &str, seconds| {
            let mut request = shell(name, script);
            request.ttl_seconds_after_finished = Some(seconds);
            request
        };
        client.create_as(with_ttl("kept", "exit 0", 60)).await.unwrap();
        client.create_as(with_ttl("now", "exit 3", 0)).await.unwrap();
        client.create_as(with_ttl("goes", "sleep 3; exit 3", 6)).await.unwrap();
        client.create_as(with_ttl("reset", "sleep 3; exit 3", 6)).await.unwrap();
        let log = node.root().join("log").join(format!("{}.log", client.info("goes").await.unwrap().instance_id));
        client.until("goes", "Failed").await;
        client.until("reset", "Failed").await;
        let ended = Instant::now();
        let revision = humantime::format_rfc3339_nanos(SystemTime::now()).to_string();
        let update = Some(Update::ResetRevision(revision));
        let reset = UpdateRequest { sandbox_id: "reset".into(), update, ..Default::default() };
        client.update_sandbox(reset).await.unwrap();
        client.until("reset", "Running").await;
        for word in ["fsb-agent", "fsb-controller"] {
            node.kill(word);
        }
        let mut client = node.client().await;
        let gone = |info: Result<_, Status>| info.is_err_and(|status| status.code() == Code::NotFound);
        while !gone(client.info("goes").await) {
            assert!(ended.elapsed() < PATIENCE, "it stays{}", node.node_log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(ended.elapsed() > Duration::from_secs(5), "it went after {:?}", ended.elapsed());
        assert!(!log.exists(), "its log stays");
        assert!(gone(client.info("now").await));
        assert_eq!(client.info("kept").await.unwrap().phase, "Succeeded");
        assert_eq!(client.info("reset").await.unwrap().phase, "Failed", "it ended later, and goes later");
        while !gone(client.info("reset").await) {
            assert!(ended.elapsed() < PATIENCE, "it stays{}", node.node_log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    node.finish();
}
