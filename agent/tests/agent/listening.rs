//! The interfaces: gRPC and HTTP/JSON on one unix socket, and on TCP behind a token.

use crate::node::{IMAGE, Node, eventually, request};
use fsb_agent::{Listeners, serve};
use fsb_proto::agent::agent_service_client::AgentServiceClient;
use fsb_proto::agent::*;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request};

struct Served {
    node: Node,
    port: Option<u16>,
    stop: CancellationToken,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn served(token: Option<&str>) -> Served {
    let node = Node::new(&[("FSB_MAKE", "cast")]).await;
    let file = token.map(|token| {
        let file = node.dir.path().join("token");
        std::fs::write(&file, token).unwrap();
        file
    });
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let listeners = Listeners::bind(&node.config.socket, free, file.as_deref()).await.unwrap();
    let (port, stop) = (listeners.port(), CancellationToken::new());
    tokio::spawn(serve(node.agent.clone(), listeners, stop.clone()));
    Served { node, port, stop }
}

impl Served {
    async fn http(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let stream = UnixStream::connect(&self.node.config.socket).await.unwrap();
        exchange(stream, method, path, "", body).await
    }
}

async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
) -> (u16, String) {
    let head = format!("{method} {path} HTTP/1.1\r\nhost: agent\r\nconnection: close\r\n{headers}");
    let request = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let code = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (code, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_and_json_are_served_on_one_socket() {
    let served = served(None).await;
    let mode = std::fs::metadata(&served.node.config.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(served.port, None, "no TCP without a token");
    let address = format!("unix:{}", served.node.config.socket.display());
    let mut client = AgentServiceClient::connect(address).await.unwrap();
    client.ping(PingRequest {}).await.unwrap();
    let images = client.list_images(ListImagesRequest {}).await.unwrap().into_inner().images;
    assert!(images[0].references[0].contains(IMAGE));
    let created = client.create(request("run")).await.unwrap().into_inner();
    let status = client.status(StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.instances[0].instance_id, created.instance_id);
    let mut hurried = Request::new(request("run"));
    hurried.set_timeout(Duration::from_millis(50));
    served.node.keeper.set(|mood| mood.ignores_makes = true);
    let late = client.create(hurried).await.unwrap_err();
    assert!(matches!(late.code(), Code::DeadlineExceeded | Code::Cancelled), "{late}");
    let (code, text) = served.http("GET", "/metrics", "").await;
    assert_eq!(code, 200);
    assert!(text.contains("fsb_agent_starts_total{source=\"cast\",result=\"started\"} 1"), "{text}");
    let gone = DeleteRequest { instance_id: created.instance_id, ..Default::default() };
    assert!(!client.delete(gone).await.unwrap().into_inner().gone);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_json_interface_creates_shows_and_deletes() {
    let served = served(None).await;
    let body = r#"{"sandbox":{"sandboxId":"s1","claimUid":"","claimName":"c1","image":"tools","cpu":"500m",
        "memory":"64Mi","command":["run"],"args":["x"],"env":{"A":"1"},"workingDir":""}}"#;
    let (code, text) = served.http("POST", "/api/v1/agent/create", body).await;
    assert_eq!(code, 200, "{text}");
    assert!(text.contains(r#""success":true"#) && text.contains(r#""sandboxId":"s1""#), "{text}");
    let (_, again) = served.http("POST", "/api/v1/agent/create", body).await;
    assert!(again.contains("was there already"), "{again}");
    let (_, status) = served.http("GET", "/api/v1/agent/status", "").await;
    let instance_id = |text: &str| text.split(r#""instanceId":""#).nth(1).map(|rest| rest[..32].to_owned());
    assert!(instance_id(&text).is_some() && instance_id(&text) == instance_id(&status), "{text} {status}");
    assert!(
        status.contains(r#""allocated":1"#) && status.contains(r#""sandboxId":"s1","claimUid":"s1","phase":"running""#)
    );
    let (_, log) = served.http("GET", "/api/v1/agent/logs?sandboxId=s1", "").await;
    assert!(log.contains("hello\noops\n"), "{log}");
    let (code, text) = served.http("POST", "/api/v1/agent/delete", r#"{"sandboxId":"s1"}"#).await;
    assert!(code == 200 && text.contains(r#""success":true"#));
    eventually("it is gone", || served.node.used() == 0).await;
    served.node.empty().await;
    let (code, text) = served.http("POST", "/api/v1/agent/create", body).await;
    assert_eq!(code, 200, "the same id again works once it is gone: {text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_requests_get_a_clear_answer() {
    let served = served(None).await;
    for (path, body, want) in [
        ("/api/v1/agent/create", "{", 400),
        ("/api/v1/agent/create", r#"{"sandbox":{"sandboxId":"x"}}"#, 400),
        ("/api/v1/agent/create", r#"{"sandbox":{"sandboxId":"x","image":"127.0.0.1:1/none"}}"#, 404),
        ("/api/v1/agent/create", r#"{"sandbox":{"sandboxId":"x","image":"tools","command":["fail","2"]}}"#, 422),
        ("/api/v1/agent/delete", "nonsense", 400),
        ("/nowhere", "", 404),
    ] {
        let (code, text) = served.http("POST", path, body).await;
        assert_eq!(code, want, "{path} {body}: {text}");
    }
    let (code, _) = served.http("GET", "/api/v1/agent/logs?sandboxId=nobody", "").await;
    assert_eq!(code, 404);
    assert_eq!(served.node.used(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_beyond_its_bounds_is_refused_over_either_interface_and_leaves_nothing() {
    let served = served(None).await;
    let address = format!("unix:{}", served.node.config.socket.display());
    let client = AgentServiceClient::connect(address).await.unwrap();
    let (ids, long) = (vec!["0".repeat(32); 1025], "x".repeat(1 << 20));
    let claim = || Some(Claim { uid: long.clone(), generation: 1, ..Default::default() });
    let codes = [
        client.clone().create(CreateRequest { claim_document: vec![0; 100 << 10], ..request("run") }).await.err(),
        client.clone().create(CreateRequest { request_id: long.clone(), ..request("run") }).await.err(),
        client.clone().create(CreateRequest { exposed_ports: (1..=1025).collect(), ..request("run") }).await.err(),
        client.clone().create(CreateRequest { claim: claim(), ..request("run") }).await.err(),
        client.clone().delete(DeleteRequest { claim: claim(), ..Default::default() }).await.err(),
        client.clone().delete(DeleteRequest { log_instance_ids: ids.clone(), ..Default::default() }).await.err(),
        client.clone().update(UpdateRequest { claim: claim(), ..Default::default() }).await.err(),
        client.clone().forget(ForgetRequest { instance_ids: ids.clone() }).await.err(),
        client.clone().remove_logs(RemoveLogsRequest { instance_ids: ids }).await.err(),
        client.clone().watch(WatchRequest { watcher: long.clone(), controller: false }).await.err(),
        client.clone().set_warm_images(SetWarmImagesRequest { images: vec![String::new(); 257] }).await.err(),
        client.clone().pull_image(PullImageRequest { reference: long.clone(), policy: 0 }).await.err(),
        client.clone().remove_image(RemoveImageRequest { reference: long.clone() }).await.err(),
        client.clone().import_image(ImportImageRequest { path: format!("/{long}"), ..Default::default() }).await.err(),
    ];
    for (nth, refused) in codes.into_iter().enumerate() {
        assert_eq!(refused.map(|status| status.code()), Some(Code::InvalidArgument), "call {nth}");
    }
    let env: Vec<String> = (0..60_000).map(|n| format!(r#""KEY_OF_AN_ENVIRONMENT_{n}":"""#)).collect();
    let sandbox = |field: String| format!(r#"{{"sandbox":{{"sandboxId":"x","image":"tools",{field}}}}}"#);
    for body in [
        sandbox(format!(r#""env":{{{}}}"#, env.join(","))),
        sandbox(format!(r#""claimUid":"{long}""#)),
        sandbox(r#""memory":"1000000Gi""#.to_owned()),
        sandbox(r#""cpu":"9223372036854775807m""#.to_owned()),
    ] {
        let (code, text) = served.http("POST", "/api/v1/agent/create", &body).await;
        assert_eq!(code, 400, "{text}");
    }
    assert_eq!((served.node.used(), served.node.keeper.makes()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn tcp_needs_the_token() {
    let served = served(Some("secret\n")).await;
    let port = served.port.unwrap();
    let ask = async |headers: &str| {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        exchange(stream, "GET", "/api/v1/agent/status", headers, "").await.0
    };
    assert_eq!(ask("").await, 401);
    assert_eq!(ask("authorization: Bearer wrong\r\n").await, 401);
    assert_eq!(ask("authorization: Bearer secret\r\n").await, 200);
    let mut client = AgentServiceClient::connect(format!("http://127.0.0.1:{port}")).await.unwrap();
    assert_eq!(client.ping(PingRequest {}).await.unwrap_err().code(), Code::Unauthenticated);
    let mut with_token = Request::new(PingRequest {});
    with_token.metadata_mut().insert("authorization", "Bearer secret".parse().unwrap());
    client.ping(with_token).await.unwrap();
}

/// Connections to a TCP port of ours that the agent has open (proc_pid_net(5)).
fn open_connections(port: u16) -> usize {
    let local = format!(":{port:04X}");
    let count = |table: &str| {
        let text = std::fs::read_to_string(format!("/proc/self/net/{table}")).unwrap_or_default();
        let lines = text.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
        lines.filter(|fields| fields[1].ends_with(&local) && fields[3] == "01").count()
    };
    count("tcp") + count("tcp6")
}

/// A controller's first call, and how long it took from the connection on.
async fn reconnect(address: &str) -> (AgentServiceClient<tonic::transport::Channel>, Duration) {
    let since = Instant::now();
    let mut client = AgentServiceClient::connect(address.to_owned()).await.unwrap();
    client.ping(with_token()).await.unwrap();
    (client, since.elapsed())
}

fn with_token() -> Request<PingRequest> {
    let mut request = Request::new(PingRequest {});
    request.metadata_mut().insert("authorization", "Bearer secret".parse().unwrap());
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn eleven_hundred_silent_slow_and_tokenless_peers_keep_no_controller_out() {
    fsb_rpc::raise_open_files();
    let served = served(Some("secret\n")).await;
    let port = served.port.unwrap();
    let address = format!("http://127.0.0.1:{port}");
    let (mut before, _) = reconnect(&address).await;
    let mut tokenless = Vec::new();
    for _ in 0..400 {
        // Speaks HTTP/2 as it should, and answers every ping.
        let mut client = AgentServiceClient::connect(address.clone()).await.unwrap();
        // Refused, or closed already to make room.
        client.ping(PingRequest {}).await.unwrap_err();
        tokenless.push(client);
    }
    let (mut silent, mut slow) = (Vec::new(), Vec::new());
    for n in 0..700 {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        if n % 2 == 0 {
            silent.push(stream);
            continue;
        }
        let head: &[u8] = match n % 4 {
            1 => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            _ => b"GET /metrics HTTP/1.1\r\nhost: agent\r\naccept: text/plain, and much more\r\n",
        };
        slow.push(tokio::spawn(async move {
            for byte in head.iter().cycle() {
                if stream.write_all(&[*byte]).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }));
    }
    let mut fastest = Duration::MAX;
    let mut controllers = Vec::new();
    while controllers.len() < 3 && fastest > Duration::from_secs(1) {
        let (client, took) = reconnect(&address).await;
        controllers.push(client);
        fastest = fastest.min(took);
    }
    assert!(fastest <= Duration::from_secs(1), "a controller came in after {fastest:?}");
    before.ping(with_token()).await.unwrap();
    // Who has shown a token stays; of the others nobody does.
    eventually("the strangers are gone", || open_connections(port) == 1 + controllers.len()).await;
    for client in &mut controllers {
        client.ping(with_token()).await.unwrap();
    }
    slow.iter().for_each(tokio::task::JoinHandle::abort);
}
