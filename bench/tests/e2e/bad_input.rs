//! Everything that can be asked wrongly: each with its clear error, and nothing left of it.

use crate::node::{Calls, Node, PATIENCE, block_on, shell};
use fsb_proto::fastpath::{CreateRequest, ListAgentsRequest, Resources};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use tonic::Code;

type Change = Box<dyn Fn(&mut CreateRequest)>;

fn cases() -> Vec<(&'static str, Code, &'static str, Change)> {
    let case = |what, code, says, change: Change| (what, code, says, change);
    use Code::{FailedPrecondition, InvalidArgument, NotFound};
    vec![
        case("no image", InvalidArgument, "image", Box::new(|r| r.image.clear())),
        case(
            "missing image",
            NotFound,
            "nowhere",
            Box::new(|r| {
                r.image = "nowhere".into();
                r.pull_policy = 1;
            }),
        ),
        case(
            "unknown program",
            FailedPrecondition,
            "/no/program",
            Box::new(|r| r.command = vec!["/no/program".into()]),
        ),
        case("not executable", FailedPrecondition, "/etc/passwd", Box::new(|r| r.command = vec!["/etc/passwd".into()])),
        case("unknown user", FailedPrecondition, "nobody-here", Box::new(|r| r.user = "nobody-here".into())),
        case("port 0", InvalidArgument, "exposed_ports", Box::new(|r| r.exposed_ports = vec![0])),
        case("port 65536", InvalidArgument, "65535", Box::new(|r| r.exposed_ports = vec![65536])),
        case("a port twice", InvalidArgument, "twice", Box::new(|r| r.exposed_ports = vec![80, 80])),
        case("a long name", InvalidArgument, "name", Box::new(|r| r.name = "x".repeat(300))),
        case("a name with a path", InvalidArgument, "name", Box::new(|r| r.name = "../../etc/passwd".into())),
        case("a name with a NUL", InvalidArgument, "name", Box::new(|r| r.name = "a\0b".into())),
        case(
            "an environment key",
            InvalidArgument,
            "envs",
            Box::new(|r| {
                r.envs.insert("A=B".into(), "c".into());
            }),
        ),
        case(
            "an empty environment key",
            InvalidArgument,
            "envs",
            Box::new(|r| {
                r.envs.insert(String::new(), "c".into());
            }),
        ),
        case("too many arguments", InvalidArgument, "args", Box::new(|r| r.args = vec!["x".repeat(60_000); 40])),
        case("one long argument", InvalidArgument, "args", Box::new(|r| r.args = vec!["x".repeat(200_000)])),
        case("a relative directory", InvalidArgument, "working_dir", Box::new(|r| r.working_dir = "tmp".into())),
        case(
            "negative memory",
            InvalidArgument,
            "memory",
            Box::new(|r| {
                r.resources = Some(Resources { memory_bytes: -1, ..Default::default() });
            }),
        ),
        case("an unknown pool", NotFound, "default-pool", Box::new(|r| r.pool_ref = "no-such-pool".into())),
        case(
            "a bad label",
            InvalidArgument,
            "labels",
            Box::new(|r| {
                r.labels.insert("!".into(), "x".into());
            }),
        ),
    ]
}

#[test]
fn every_bad_request_gets_its_error_and_leaves_nothing() {
    let node = Node::up(&[]);
    block_on(async {
        let mut client = node.client().await;
        for (what, code, says, change) in cases() {
            let mut request = shell("bad", "sleep 100");
            change(&mut request);
            let name = request.name.clone();
            let error = client.create_as(request).await.expect_err(what);
            assert_eq!(error.code(), code, "{what}: {error:?}");
            assert!(error.message().contains(says), "{what}: {}", error.message());
            assert!(client.list().await.is_empty(), "{what} left {name}");
        }
        // A million environment variables are over the size that a message may have, or over the kernel's limit.
        let mut huge = shell("huge", "true");
        huge.envs = (0..1_000_000).map(|i| (format!("K{i}"), "v".to_owned())).collect::<BTreeMap<_, _>>();
        let error = client.create_as(huge).await.unwrap_err();
        assert!(
            [Code::InvalidArgument, Code::OutOfRange, Code::ResourceExhausted].contains(&error.code()),
            "{error:?}"
        );
        // And everything still works.
        client.create("good", "exit 0").await.unwrap();
        client.until("good", "Succeeded").await;
        client.remove("good").await;
    });
    node.finish();
}

#[test]
fn nonsense_on_the_sockets_hurts_nobody() {
    let node = Node::up(&[]);
    let mut open = Vec::new();
    for socket in ["controller.sock", "agent-1.sock"] {
        let path = node.run_dir().join(socket);
        for garbage in [
            &b"\0\0\0\0"[..],
            b"GET / HTTP/1.0\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        ] {
            let mut stream = UnixStream::connect(&path).unwrap();
            stream.write_all(garbage).unwrap();
            stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            let _ = stream.read(&mut [0; 1024]);
            // Half-open: kept until the end.
            open.push(stream);
        }
    }
    for body in ["{", "[]", "{\"sandbox\":{}}", "{\"sandbox\":{\"image\":7}}"] {
        let answer = http(
            &node,
            &format!(
                "POST /api/v1/agent/create HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            ),
        );
        assert!(answer.starts_with("HTTP/1.1 4"), "{body}: {answer}");
    }
    block_on(async {
        let mut client = node.client().await;
        client.create("good", "exit 0").await.unwrap();
        client.until("good", "Succeeded").await;
    });
    drop(open);
    node.finish();
}

fn http(node: &Node, request: &str) -> String {
    let mut stream = UnixStream::connect(node.run_dir().join("agent-1.sock")).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

#[test]
fn the_json_interface_creates_shows_and_deletes() {
    let node = Node::up(&[]);
    let post = |path: &str, body: &str| {
        http(
            &node,
            &format!(
                "POST /api/v1/agent/{path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            ),
        )
    };
    let get =
        |path: &str| http(&node, &format!("GET /api/v1/agent/{path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"));
    let made = post(
        "create",
        r#"{"sandbox":{"sandboxId":"my-id","claimUid":"u-1","claimName":"c-1","image":"busybox","command":["sh"],"args":["-c","echo $WHO; pwd; sleep 100"],"env":{"WHO":"json"},"workingDir":"/new/dir"}}"#,
    );
    assert!(made.contains("200 OK") && made.contains("\"success\":true"), "{made}{}", node.node_log());
    let status = get("status");
    assert!(status.contains("\"running\"") && status.contains("u-1"), "{status}");
    let mut logs = String::new();
    for _ in 0..100 {
        logs = get("logs?sandboxId=my-id");
        if logs.contains("/new/dir") {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(logs.contains("json") && logs.contains("/new/dir"), "{logs}");
    let deleted = post("delete", r#"{"sandboxId":"my-id"}"#);
    assert!(deleted.contains("\"success\":true"), "{deleted}");
    node.finish();
}

#[test]
fn a_client_that_vanishes_in_the_middle_leaves_a_whole_sandbox_or_none() {
    let node = Node::up(&[]);
    block_on(async {
        let mut tasks = Vec::new();
        for i in 0..30u64 {
            let mut client = node.client().await;
            let task = tokio::spawn(async move { client.create(&format!("v{i}"), "sleep 100").await });
            tokio::time::sleep(Duration::from_micros(i * 100)).await;
            task.abort();
            tasks.push(task);
        }
        // What was asked for last has had its time to come in.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let mut client = node.client().await;
        for info in client.list().await {
            client.until(&info.sandbox_id, "Running").await;
            client.remove(&info.sandbox_id).await;
        }
        let end = Instant::now() + PATIENCE;
        loop {
            let agents = client.list_agents(ListAgentsRequest {}).await.unwrap().into_inner().items;
            if agents[0].used == 0 {
                break;
            }
            assert!(Instant::now() < end, "slots are held: {agents:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    node.finish();
}
