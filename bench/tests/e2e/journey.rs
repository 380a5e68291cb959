//! What the README's reader does.

use crate::node::{Calls, Node, block_on, program};
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

#[test]
fn a_user_runs_looks_reads_and_removes() {
    let node = Node::up(&[]);
    let made = node.ctl_ok(&["run", "hello", "--image", "busybox", "--", "echo", "hello from a sandbox"]);
    assert!(made.contains("hello"), "{made}");
    let log = node.ctl_ok(&["logs", "hello", "-f"]);
    assert_eq!(log, "hello from a sandbox\n");
    let list = node.ctl_ok(&["list"]);
    assert!(list.contains("hello") && list.contains("busybox"), "{list}");
    block_on(async { node.client().await.until("hello", "Succeeded").await });
    let json: serde_json::Value = serde_json::from_str(&node.ctl_ok(&["get", "hello", "-o", "json"])).unwrap();
    assert!(json.to_string().contains("Succeeded"), "{json}");
    node.ctl_ok(&["rm", "hello", "--wait"]);
    let gone = node.ctl(&["get", "hello"]);
    assert_eq!(gone.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&gone.stderr).contains("hello"));
    node.finish();
}

#[test]
fn run_wait_passes_output_and_exit_code_on() {
    let node = Node::up(&[]);
    let output = node.ctl(&["run", "--rm", "--image", "busybox", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "out\n");
    assert!(String::from_utf8_lossy(&output.stderr).contains("err\n"));
    let signalled = node.ctl(&["run", "--rm", "--image", "busybox", "--", "sh", "-c", "kill -9 $$ & sleep 5; exit 0"]);
    assert_eq!(signalled.status.code(), Some(0), "the first process of a namespace ignores it: {signalled:?}");
    assert_eq!(node.ctl_ok(&["list", "-o", "json"]).matches("sandbox_id").count(), 0);
    node.finish();
}

#[test]
fn an_image_comes_in_through_a_pipe_that_stalls() {
    let node = Node::up(&[]);
    let tar = std::fs::read(node.root().join("busybox.tar")).unwrap();
    let mut import = node.command(&["image", "import", "-", "--name", "slow", "--cmd", "sh"]);
    let mut child = import.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&tar[..1000]).unwrap();
    // Longer than an agent waits for the answer to its ping.
    std::thread::sleep(Duration::from_secs(9));
    stdin.write_all(&tar[1000..]).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(node.ctl_ok(&["run", "--rm", "--image", "slow", "--", "echo", "hello"]), "hello\n");
    node.finish();
}

#[test]
fn the_same_name_works_again_and_again() {
    let node = Node::up(&[]);
    for _ in 0..20 {
        node.ctl_ok(&["run", "again", "--image", "busybox", "--", "sleep", "100"]);
        node.ctl_ok(&["rm", "again", "--force"]);
    }
    node.finish();
}

#[test]
fn a_reset_starts_a_new_instance_and_keeps_the_log_before() {
    let node = Node::up(&[]);
    block_on(async {
        let mut client = node.client().await;
        client.create("r", "echo $HOSTNAME; sleep 100").await.unwrap();
        let first = client.until("r", "Running").await;
        node.ctl_ok(&["reset", "r"]);
        let second = loop {
            let info = client.info("r").await.unwrap();
            if info.phase == "Running" && info.instance_id != first.instance_id {
                break info;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert!(second.instance_generation > first.instance_generation);
        let line = |id: &str| format!("{}\n", &id[..12]);
        assert_eq!(node.ctl_ok(&["logs", "r", "--previous"]), line(&first.instance_id));
        node.until_logged("r", &line(&second.instance_id));
    });
    node.finish();
}

#[test]
fn down_keeps_images_claims_and_logs_and_up_finds_them() {
    let node = Node::up(&[]);
    node.ctl_ok(&["run", "kept", "--image", "busybox", "--", "echo", "kept"]);
    block_on(async { node.client().await.until("kept", "Succeeded").await });
    let asked = "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.1; done";
    node.ctl_ok(&["run", "asked", "--image", "busybox", "--", "sh", "-c", asked]);
    node.until_logged("asked", "ready\n");
    node.ctl_ok(&["local", "down"]);
    node.start(&[]);
    assert_eq!(
        node.ctl_ok(&["logs", "asked"]),
        "ready\nbye\n",
        "what runs is asked to end, and its last words are kept"
    );
    assert!(node.ctl_ok(&["image", "ls"]).contains("busybox"));
    assert_eq!(node.ctl_ok(&["logs", "kept"]), "kept\n");
    assert!(node.ctl_ok(&["get", "kept"]).contains("Succeeded"));
    node.finish();
}

#[test]
fn two_nodes_live_side_by_side() {
    let (one, two) = (Node::up(&[]), Node::up(&["--agents", "2"]));
    one.ctl_ok(&["run", "same", "--image", "busybox", "--", "sleep", "100"]);
    two.ctl_ok(&["run", "same", "--image", "busybox", "--", "sleep", "100"]);
    one.finish();
    assert!(two.ctl_ok(&["get", "same"]).contains("Running"));
    two.finish();
}

#[test]
fn a_near_miss_is_answered_with_the_right_command() {
    let output = Command::new(program("fsb-ctl")).args(["run", "busybox", "echo", "hi"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("hint: fsb-ctl run --image busybox -- echo hi"), "{text}");
}
