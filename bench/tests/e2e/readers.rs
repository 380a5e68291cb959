//! Readers of logs: thousands of them, or without inotify. Nobody else notices, and nothing is lost without a word.

use crate::node::{Calls, Node, PATIENCE, block_on, shell};
use fsb_proto::agent as wire;
use fsb_proto::fastpath::{CreateRequest, LogChunk, LogsRequest};
use nix::sys::inotify::{InitFlags, Inotify};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tonic::{Code, Status, Streaming};

/// Memory that is a process's own, in bytes.
fn memory(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// Opens `n` streams side by side and reads none; those that were let in, and that all others were refused for the
/// right reason.
async fn unread<T: Send + 'static, F>(n: usize, open: impl Fn(usize) -> F) -> Vec<Streaming<T>>
where
    F: Future<Output = Result<Streaming<T>, Status>> + Send + 'static,
{
    let opening: JoinSet<_> = (0..n).map(open).collect();
    let opened = tokio::time::timeout(PATIENCE, opening.join_all()).await.expect("all are answered");
    let (open, refused): (Vec<_>, Vec<_>) = opened.into_iter().partition(Result::is_ok);
    for status in refused.into_iter().filter_map(Result::err) {
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    }
    open.into_iter().flatten().collect()
}

/// Waits until the node's logs have so many bytes.
async fn logged(node: &Node, bytes: u64) {
    let end = Instant::now() + PATIENCE;
    let size = |dir: &str| -> u64 {
        let files = std::fs::read_dir(node.root().join(dir)).into_iter().flatten().flatten();
        files.filter_map(|file| Some(file.metadata().ok()?.len())).sum()
    };
    while size("log") < bytes {
        assert!(Instant::now() < end, "{} bytes are logged", size("log"));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A create answers within 100 ms, once in three tries.
async fn creates_are_quick(node: &Node, word: &str) {
    let mut client = node.client().await;
    for n in 0..5 {
        let mut took = Vec::new();
        while took.last().is_none_or(|took| *took > Duration::from_millis(100)) {
            assert!(took.len() < 3, "creates {word} take {took:?}");
            let name = format!("{word}{n}{}", took.len());
            let begin = Instant::now();
            client.create(&name, "sleep 1000").await.unwrap();
            took.push(begin.elapsed());
            client.remove(&name).await;
        }
    }
}

#[test]
fn followers_that_go_away_or_do_not_read_on_cost_nobody_the_connection() {
    let node =
        Node::up(&["--agent", "name=agent-1,namespace=default", "--agent", "name=blue,namespace=blue,capacity=3"]);
    block_on(async {
        let mut client = node.client().await;
        let much = "yes 0123456789012345678901234567890123456789 | head -n 60000; sleep 1000";
        for namespace in ["default", "blue"] {
            let request = CreateRequest { namespace: namespace.into(), ..shell("much", much) };
            client.create_as(request).await.unwrap();
        }
        client.create("clock", "while :; do date; sleep 0.1; done").await.unwrap();
        logged(&node, 8 << 20).await;
        creates_are_quick(&node, "before").await;
        let of_clock = LogsRequest { sandbox_id: "clock".into(), follow: true, ..Default::default() };
        let mut stays = client.logs(of_clock).await.unwrap().into_inner();
        let [agent] = node.pids("fsb-agent")[..1] else { panic!("no agent runs") };
        let agents = node.pids("fsb-agent");
        let before: Vec<u64> = agents.iter().map(|pid| memory(*pid)).collect();

        let mut open: Vec<Streaming<LogChunk>> = Vec::new();
        for namespace in ["default", "blue"] {
            let client = node.client().await;
            let opened = unread(2500, |_| {
                let mut client = client.clone();
                let request = LogsRequest {
                    sandbox_id: "much".into(),
                    namespace: namespace.into(),
                    follow: true,
                    ..Default::default()
                };
                async move { client.logs(request).await.map(tonic::Response::into_inner) }
            });
            open.extend(opened.await);
        }
        assert_eq!(open.len(), 255 + 256, "one of the namespace's places is the clock's reader's");
        creates_are_quick(&node, "beside").await;
        let grown = |limit: u64| {
            let now: Vec<u64> = agents.iter().map(|pid| memory(*pid)).collect();
            now.iter().zip(&before).find(|(now, before)| **now > **before + limit).map(|_| now.clone())
        };
        assert_eq!(grown(64 << 20), None, "bytes; before: {before:?}");

        drop(open);
        creates_are_quick(&node, "after").await;
        // What came meanwhile and what comes now: its stream was not broken by the others' end.
        for _ in 0..20 {
            let chunk = tokio::time::timeout(PATIENCE, stays.message()).await.expect("the clock ticks");
            assert!(!chunk.unwrap().expect("the clock runs").lines.is_empty());
        }
        let end = Instant::now() + PATIENCE;
        while let Some(now) = grown(16 << 20) {
            assert!(Instant::now() < end, "memory does not go back: {before:?}, {now:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let log = std::fs::read_to_string(node.root().join("log/node.log")).unwrap();
        assert!(!log.contains("stream ended"), "an agent's watch broke{}", node.node_log());
        assert!(std::fs::exists(format!("/proc/{agent}")).unwrap());
    });
    node.finish();
}

#[test]
fn an_agent_bounds_its_readers_whoever_they_are() {
    let node = Node::up(&[]);
    block_on(async {
        let mut client = node.client().await;
        client.create("much", "yes | head -n 100000; sleep 1000").await.unwrap();
        logged(&node, 4 << 20).await;
        let mut agent = node.agent("agent-1").await;
        let known = agent.status(wire::StatusRequest {}).await.unwrap().into_inner();
        let id = known.instances.into_iter().next().unwrap().instance_id;
        // Logs that are there still, of instances that this agent does not know.
        let old = "0".repeat(32);
        std::fs::copy(
            node.root().join("log").join(format!("{id}.log")),
            node.root().join("log").join(format!("{old}.log")),
        )
        .unwrap();
        let [pid] = node.pids("fsb-agent")[..] else { panic!("one agent runs") };
        let before = memory(pid);
        let logs = |id: &str, namespace: String| {
            let request = wire::LogsRequest { instance_id: id.into(), follow: true, namespace, ..Default::default() };
            let mut agent = agent.clone();
            async move { agent.logs(request).await.map(tonic::Response::into_inner) }
        };
        let first = unread(300, |_| logs(&id, String::new())).await;
        assert_eq!(first.len(), 256);
        let mut http = UnixStream::connect(node.run_dir().join("agent-1.sock")).unwrap();
        write!(http, "GET /api/v1/agent/logs?sandboxId={id}&follow=true HTTP/1.1\r\nHost: agent\r\n\r\n").unwrap();
        let mut answer = [0; 12];
        let answer = tokio::task::spawn_blocking(move || http.read_exact(&mut answer).map(|()| answer)).await.unwrap();
        assert_eq!(&answer.unwrap(), b"HTTP/1.1 429");
        let others = unread(1100, |n| logs(&old, format!("n{}", n % 9))).await;
        assert_eq!(first.len() + others.len(), 1024);
        tokio::time::sleep(Duration::from_millis(500)).await;
        let grown = memory(pid).saturating_sub(before);
        assert!(grown < 64 << 20, "the agent has grown by {grown} bytes");
        drop((first, others));
        let end = Instant::now() + PATIENCE;
        while memory(pid) > before + (16 << 20) || logs(&id, String::new()).await.is_err() {
            assert!(Instant::now() < end, "memory or places do not come back: {before}, {}", memory(pid));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    node.finish();
}

/// Every inotify instance that root may still have. Root in a sandbox is the same user and could take them too.
fn every_instance() -> Vec<Inotify> {
    let taken: Vec<Inotify> = std::iter::from_fn(|| Inotify::init(InitFlags::IN_CLOEXEC).ok()).collect();
    assert!(!taken.is_empty());
    taken
}

#[test]
fn who_takes_every_inotify_instance_cuts_off_nobodys_output() {
    let node = Node::up(&[]);
    let hello = || {
        let output = node.ctl(&["run", "--rm", "--image", "busybox", "--", "echo", "hello"]);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!((output.status.code(), out.as_ref()), (Some(0), "hello\n"), "{err}");
    };
    let taken = every_instance();
    hello();
    node.ctl_ok(&["run", "talk", "--image", "busybox", "--", "sh", "-c", "echo begin; sleep 4; echo end"]);
    let mut command = node.command(&["logs", "-f", "talk"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let followers: Vec<_> = (0..140).map(|_| command.spawn().unwrap()).collect();
    for follower in followers {
        let output = follower.wait_with_output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!((output.status.code(), out.as_ref()), (Some(0), "begin\nend\n"), "{err}");
    }
    // The next agent gets none at all, and looks: whoever waits for the dead one's is quicker.
    let next = std::thread::spawn(|| {
        let end = Instant::now() + PATIENCE;
        std::iter::from_fn(|| (Instant::now() < end).then(|| Inotify::init(InitFlags::IN_CLOEXEC))).find_map(Result::ok)
    });
    let before = node.kill("fsb-agent");
    let end = Instant::now() + PATIENCE;
    let up = || node.pids("fsb-agent").iter().any(|pid| *pid != before) && node.ctl(&["logs", "talk"]).status.success();
    while !up() {
        assert!(Instant::now() < end, "the agent does not come back{}", node.node_log());
        std::thread::sleep(Duration::from_millis(20));
    }
    let log = std::fs::read_to_string(node.root().join("log/node.log")).unwrap();
    assert!(log.contains("no inotify instance is left"), "{}", node.node_log());
    hello();
    drop((taken, next.join().unwrap().expect("the dead agent had one")));
    node.finish();
}
