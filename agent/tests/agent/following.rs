//! Logs, read and followed.

use crate::node::{Node, request};
use fsb_agent::Error;
use fsb_proto::agent::LogsRequest;
use fsb_proto::fastpath::LogStream;
use futures_util::StreamExt;
use std::io::Write;

fn of(id: &str, follow: bool) -> LogsRequest {
    LogsRequest { instance_id: id.into(), follow, ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn following_shows_every_line_once_over_rotations_until_the_end() {
    let node = Node::new(&[("FSB_MAKE", "cast")]).await;
    let id = node.agent.start(request("run")).await.unwrap().instance_id;
    let mut stream = Box::pin(node.agent.logs(&of(&id, true)).await.unwrap());
    let first = stream.next().await.unwrap().unwrap();
    assert_eq!(first.lines[0].text.as_ref(), b"hello");
    assert_eq!(
        first.lines.iter().map(|line| line.stream()).collect::<Vec<_>>(),
        [LogStream::Stdout, LogStream::Stderr],
        "told apart, in order"
    );
    let (agent, ended, logs) = (node.agent.clone(), id.clone(), node.keeper.logs.clone());
    let writer = tokio::task::spawn_blocking(move || {
        let path = logs.join(format!("{ended}.log"));
        for n in 0..3000 {
            if n % 100 == 99 {
                for k in (1..40).rev() {
                    let _ = std::fs::rename(format!("{}.{k}", path.display()), format!("{}.{}", path.display(), k + 1));
                }
                std::fs::rename(&path, format!("{}.1", path.display())).unwrap();
                if n % 200 == 99 {
                    std::thread::sleep(std::time::Duration::from_millis(2));
                }
            }
            let mut file = std::fs::File::options().append(true).create(true).open(&path).unwrap();
            writeln!(file, "2026-01-01T00:00:03Z stdout F {n}").unwrap();
            if n % 500 == 0 {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        }
    });
    let reader = async {
        let mut lines = Vec::new();
        while let Some(chunk) = stream.next().await {
            lines.extend(chunk.unwrap().lines.into_iter().map(|line| String::from_utf8(line.text.to_vec()).unwrap()));
        }
        lines
    };
    let end = async {
        writer.await.unwrap();
        node.keeper.kill(&id);
        agent.wait_ended(&id).await.unwrap();
    };
    let (lines, ()) = tokio::join!(reader, end);
    let wanted: Vec<String> = (0..3000).map(|n| n.to_string()).collect();
    assert_eq!(lines, wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_of_an_ended_sandbox_is_there_and_one_that_never_was_is_not_found() {
    let node = Node::new(&[("FSB_MAKE", "cast")]).await;
    let id = node.agent.start(request("exit 0")).await.unwrap().instance_id;
    node.agent.wait_ended(&id).await.unwrap();
    let last = LogsRequest { tail_lines: Some(1), ..of(&id, true) };
    let chunks: Vec<_> = node.agent.logs(&last).await.unwrap().collect().await;
    assert_eq!(chunks.len(), 1);
    assert_eq!(chunks[0].as_ref().unwrap().lines[0].text.as_ref(), b"oops");
    for wrong in ["nobody", "../../etc/passwd", &"0".repeat(32), ""] {
        assert!(matches!(node.agent.logs(&of(wrong, false)).await.err(), Some(Error::NotFound(_))), "{wrong}");
    }
}
