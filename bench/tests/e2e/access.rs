//! Who comes in, and where: without authentication nobody over TCP.

use crate::go_era::{self, Named};
use crate::isolation::listening;
use crate::node::{Node, PATIENCE, block_on, kill, program};
use fsb_proto::fastpath::fast_path_service_client::FastPathServiceClient;
use fsb_proto::fastpath::{CreateRequest, ListAgentsRequest, ListRequest};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

const NOBODY: u32 = 65534;
/// What a tenant has said. None of it is told on a port that is open to all.
const SAID: [&str; 4] = ["access-sandbox", "access-label", "access-secret", "busybox"];

#[test]
fn a_local_user_comes_in_by_no_port_and_no_socket_of_a_node() {
    let node = Node::up(&["--controller-arg=--profiling"]);
    // As open as the machine's own node is, whose place is not below a private directory.
    std::fs::set_permissions(node.root(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let sandbox = ["run", SAID[0], "--image", SAID[3], "--label", "is=access-label", "-e", "K=access-secret"];
    node.ctl_ok(&[&sandbox[..], &["--", "sleep", "1000"]].concat());
    let ports: Vec<String> = listening(&node.root().display().to_string()).iter().map(u16::to_string).collect();
    // Its own path may lead through directories that the user may not enter.
    let output = Command::new("/proc/self/exe")
        .args(["access::what_a_local_user_tries", "--exact", "--ignored", "--nocapture"])
        .env("FSB_E2E_PORTS", ports.join(","))
        .env("FSB_E2E_RUN_DIR", node.run_dir())
        .current_dir("/")
        .uid(NOBODY)
        .gid(NOBODY)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("metrics were looked at") && said.contains("1 passed"), "{said}");
    node.finish();
}

#[test]
#[ignore = "run as uid 65534 by a_local_user_comes_in_by_no_port_and_no_socket_of_a_node"]
fn what_a_local_user_tries() {
    let Ok(ports) = std::env::var("FSB_E2E_PORTS") else { return };
    assert_eq!(nix::unistd::geteuid().as_raw(), NOBODY);
    for port in ports.split(',').map(|port| port.parse().unwrap()) {
        for ip in [[127, 0, 0, 1].into(), std::net::Ipv6Addr::LOCALHOST.into()] {
            let address = SocketAddr::new(ip, port);
            if TcpStream::connect_timeout(&address, PATIENCE).is_err() {
                continue;
            }
            let calls = block_on(every_call(&format!("http://{address}"), None));
            assert!(calls.iter().all(is_no_answer), "{address} answers: {calls:?}");
            for path in ["heap", "threads", "tasks", "profile?seconds=1"] {
                let answer = get(address, &format!("/debug/pprof/{path}"));
                assert!(!answer.starts_with("HTTP/1.1 200"), "{address} shows {path}: {answer}");
            }
            for path in ["/metrics", "/healthz", "/readyz", "/"] {
                let answer = get(address, path);
                let told: Vec<&str> = SAID.into_iter().filter(|word| answer.contains(word)).collect();
                assert!(told.is_empty(), "{address}{path} tells {told:?}: {answer}");
                if answer.contains("fsb_controller_pool_used{namespace=\"default\",pool=\"default-pool\"} 1") {
                    println!("metrics were looked at");
                }
            }
        }
    }
    let run = std::env::var("FSB_E2E_RUN_DIR").unwrap();
    sockets(Path::new(&run), &mut |path| match UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {}
        other => panic!("{}: {other:?}", path.display()),
    });
}

/// What a plain HTTP GET answers.
fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    // One that speaks something else may break the connection.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// Every socket below a directory that shows.
fn sockets(directory: &Path, look: &mut impl FnMut(&Path)) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_socket() => look(&entry.path()),
            Ok(kind) if kind.is_dir() => sockets(&entry.path(), look),
            _ => {}
        }
    }
}

async fn every_call(endpoint: &str, token: Option<&str>) -> Vec<Result<(), Status>> {
    fn with<T>(token: Option<&str>, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(Duration::from_secs(10));
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        request
    }
    let endpoint = Endpoint::from_shared(endpoint.to_owned()).unwrap().connect_timeout(PATIENCE);
    let channel: Channel = match endpoint.connect().await {
        Ok(channel) => channel,
        Err(error) => return vec![Err(Status::unavailable(error.to_string()))],
    };
    let mut client = FastPathServiceClient::new(channel);
    let create = CreateRequest { image: "busybox".into(), command: vec!["id".into()], ..Default::default() };
    let list = ListRequest { all_namespaces: true, ..Default::default() };
    vec![
        client.create_sandbox(with(token, create)).await.map(drop),
        client.list_sandboxes(with(token, list)).await.map(drop),
        client.list_agents(with(token, ListAgentsRequest {})).await.map(drop),
    ]
}

/// Nobody who speaks the Fast-Path: an HTTP server that knows no such page, or none at all.
fn is_no_answer(call: &Result<(), Status>) -> bool {
    call.as_ref().is_err_and(|status| {
        let from_transport = std::error::Error::source(status).is_some() || status.message().contains("transport");
        status.code() == Code::Unimplemented || from_transport
    })
}

/// Where a node serves the Fast-Path over TCP.
fn over_tcp(node: &Node) -> String {
    let record = std::fs::read(node.run_dir().join("node.json")).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    record["addresses"]["fastpath"].as_str().unwrap().to_owned()
}

/// Another controller than this one answers.
fn after(node: &Node, controller: i32) {
    let end = Instant::now() + PATIENCE;
    while node.pids("fsb-controller").iter().all(|pid| *pid == controller)
        || TcpStream::connect(over_tcp(node)).is_err()
    {
        assert!(Instant::now() < end, "no controller comes back{}", node.node_log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn over_tcp_a_token_opens_the_node_until_it_is_down() {
    let node = Node::up(&["--tcp"]);
    let file = node.run_dir().join("tokens");
    let status = file.metadata().unwrap();
    // Where the machine has no such group, it is root's alone.
    let (mode, group) = match nix::unistd::Group::from_name("fsb").unwrap() {
        Some(group) => (0o640, group.gid.as_raw()),
        None => (0o600, 0),
    };
    assert_eq!((status.mode() & 0o7777, status.uid(), status.gid()), (mode, 0, group));
    let token = || {
        let text = std::fs::read_to_string(&file).unwrap();
        let line = text.lines().find(|line| !line.starts_with('#')).unwrap().to_owned();
        line.strip_suffix(" *").expect("a token for every namespace").to_owned()
    };
    let first = token();
    let look = |why: &str| {
        let address = over_tcp(&node);
        assert!(address.starts_with("127.0.0.1:"), "{address}");
        let endpoint = format!("http://{address}");
        for wrong in [None, Some("other"), Some("")] {
            for call in block_on(every_call(&endpoint, wrong)) {
                assert_eq!(call.unwrap_err().code(), Code::Unauthenticated, "{why}, {wrong:?}");
            }
        }
        for call in block_on(every_call(&endpoint, Some(&first))) {
            call.unwrap_or_else(|status| panic!("{why}: {status}{}", node.node_log()));
        }
        // fsb-ctl finds it by itself, over the socket, and takes a given one.
        node.ctl_ok(&["list"]);
        let far = ["list", "--endpoint", &address];
        let refused = node.command(&[]).args(far).output().unwrap();
        assert_eq!(refused.status.code(), Some(1), "no token goes to an address that was only named: {refused:?}");
        node.ctl_ok(&[&far[..], &["--token", &first]].concat());
    };
    look("a new node");
    let controller = node.kill("fsb-controller");
    after(&node, controller);
    look("a new controller");
    let shown = node.ctl_ok(&["local", "status"]);
    assert!(shown.contains(&format!("{}, open to the tokens in", over_tcp(&node))), "{shown}");
    let killed = supervisor(&node);
    kill(killed);
    let end = Instant::now() + PATIENCE;
    // Until then `up` would take the node for supervised.
    while std::fs::read_to_string(format!("/proc/{killed}/stat")).is_ok_and(|stat| !stat.contains(") Z ")) {
        assert!(Instant::now() < end, "the supervisor does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
    node.start(&[]);
    look("a new supervisor");
    let controller = node.kill("fsb-controller");
    after(&node, controller);
    look("a new controller of a new supervisor");
    node.ctl_ok(&["local", "down"]);
    assert!(!file.exists());
    node.start(&["--tcp"]);
    assert_ne!(token(), first, "a token is good for as long as the node is up");
    node.finish();
}

fn supervisor(node: &Node) -> i32 {
    let record = std::fs::read(node.root().join("lib/node.lock")).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    record["pid"].as_i64().unwrap() as i32
}

#[test]
fn a_client_of_the_go_era_works_over_tcp_without_authentication_and_each_start_warns() {
    let node = Node::up(&[]);
    node.ctl_ok(&["local", "down"]);
    let up = node.ctl(&["local", "up", "--no-egress", "--tcp", "127.0.0.1:0", "--auth", "none"]);
    let warned = String::from_utf8_lossy(&up.stderr).into_owned();
    assert!(up.status.success() && warned.contains("--auth none: whoever reaches 127.0.0.1:"), "{warned}");
    assert!(!node.run_dir().join("tokens").exists());
    let warnings = || {
        let log = std::fs::read_to_string(node.root().join("log/node.log")).unwrap();
        log.lines().filter(|line| line.contains("WARN") && line.contains("--auth none")).count()
    };
    assert_eq!(warnings(), 1, "{}", node.node_log());
    let controller = node.kill("fsb-controller");
    after(&node, controller);
    assert_eq!(warnings(), 2, "{}", node.node_log());
    block_on(async {
        let mut client = go_era::Client::dial(&over_tcp(&node)).await;
        let sandbox = || Named { sandbox_id: "go".into(), namespace: String::new() };
        let strings = |words: &[&str]| words.iter().map(|word| word.to_string()).collect::<Vec<_>>();
        let expiry = std::time::SystemTime::now() + Duration::from_secs(3600);
        let expiry = expiry.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
        let request = go_era::CreateRequest {
            image: "busybox".into(),
            pool_ref: "default-pool".into(),
            exposed_ports: vec![8080, 8081],
            command: strings(&["sh", "-c"]),
            args: strings(&["trap exit TERM; echo $K; pwd; sleep 1000 & wait"]),
            namespace: "default".into(),
            consistency_mode: 1,
            name: "go".into(),
            envs: [("K".to_owned(), "value".to_owned())].into(),
            working_dir: "/tmp".into(),
            expire_time_seconds: expiry,
            failure_policy: 1,
            recovery_timeout_seconds: 77,
            labels: [("is".to_owned(), "old".to_owned())].into(),
        };
        let made = client.create(request).await.unwrap();
        assert_eq!((made.sandbox_id.as_str(), made.sandbox_name.as_str()), ("go", "go"));
        assert_eq!(made.agent_pod, "agent-1");
        let ports: Vec<&str> = made.endpoints.iter().filter_map(|at| Some(at.rsplit_once(':')?.1)).collect();
        assert_eq!(ports, ["8080", "8081"]);

        let info = client.get(sandbox()).await.unwrap();
        assert_eq!(
            (info.sandbox_id.as_str(), info.phase.as_str(), info.agent_pod.as_str()),
            ("go", "Running", "agent-1")
        );
        assert_eq!((info.image.as_str(), info.pool_ref.as_str()), ("busybox", "default-pool"));
        assert_eq!((info.endpoints.clone(), info.sandbox_name.as_str()), (made.endpoints, "go"));
        assert!((expiry - 3700..expiry).contains(&info.created_at), "Unix seconds: {}", info.created_at);
        assert_eq!(client.list(go_era::ListRequest::default()).await.unwrap().items, [info]);
        node.until_logged("go", "value\n/tmp\n");

        for change in [
            go_era::UpdateRequest { expire_time_seconds: Some(expiry + 60), ..Default::default() },
            go_era::UpdateRequest { failure_policy: Some(0), ..Default::default() },
            go_era::UpdateRequest { recovery_timeout_seconds: Some(78), ..Default::default() },
        ] {
            let change = go_era::UpdateRequest { sandbox_id: "go".into(), ..change };
            let answer = client.update(change.clone()).await.unwrap();
            assert!(answer.success && answer.sandbox.unwrap().sandbox_id == "go", "{change:?}");
        }
        let now: serde_json::Value = serde_json::from_str(&node.ctl_ok(&["get", "go", "-o", "json"])).unwrap();
        assert_eq!(now["labels"]["is"], "old", "{now}");
        for (field, value) in [("recovery_timeout_seconds", 78), ("expire_time_seconds", expiry + 60)] {
            assert_eq!(now[field], value, "{now}");
        }
        let reset = go_era::UpdateRequest {
            sandbox_id: "go".into(),
            reset_revision: Some("2030-01-01T00:00:00Z".into()),
            ..Default::default()
        };
        assert!(client.update(reset).await.unwrap().success);

        assert!(client.delete(sandbox()).await.unwrap().success);
        let end = Instant::now() + PATIENCE;
        while client.get(sandbox()).await.map_err(|status| status.code()) != Err(Code::NotFound) {
            assert!(Instant::now() < end, "it does not go");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    node.finish();
}

#[test]
fn a_node_without_authentication_is_refused_beyond_this_machine() {
    let node = Node::down();
    for address in ["0.0.0.0:0", ":0", "[::]:0"] {
        let output = node.ctl(&["local", "up", "--no-egress", "--tcp", address, "--auth", "none"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("--auth none") && said.contains("hint: ") && said.contains("--insecure-bind"), "{said}");
        assert!(!node.root().join("lib").exists(), "nothing was started");
    }
    let output = Command::new(program("fsb-controller"))
        .args(["--auth=none", "--fastpath-bind-address=:0", "--metrics-bind-address=off", "--fastpath-socket=off"])
        .arg("--health-probe-bind-address=off")
        .arg(format!("--claims={}", node.root().join("claims.redb").display()))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("--auth none") && said.contains("--insecure-bind"), "{said}");
}
