//! Where the controller listens, and for whom.

use clap::Parser;
use fsb_controller::{Config, Controller, Error};
use fsb_proto::fastpath::ListRequest;
use fsb_proto::fastpath::fast_path_service_client::FastPathServiceClient;
use fsb_rpc::{Address, Channel};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::codegen::{Service, http};
use tonic::{Code, Request, Status};

const PAGES: [&str; 4] = ["heap", "threads", "tasks", "profile?seconds=1"];

/// A controller with these flags and no agent.
struct House {
    dir: tempfile::TempDir,
    controller: Controller,
}

impl House {
    async fn try_with(flags: &[&str]) -> Result<Self, Error> {
        let dir = tempfile::Builder::new().prefix("fsb").tempdir_in("/tmp").unwrap();
        let controller = Controller::start(&config(&dir, flags)).await?;
        Ok(Self { dir, controller })
    }

    async fn with(flags: &[&str]) -> Self {
        Self::try_with(flags).await.unwrap()
    }

    fn socket(&self) -> Address {
        Address::Unix(self.dir.path().join("c.sock"))
    }
}

fn config(dir: &tempfile::TempDir, flags: &[&str]) -> Config {
    let path = |name: &str| dir.path().join(name).display().to_string();
    let mut words = vec![
        "fsb-controller".to_owned(),
        format!("--fastpath-socket={}", path("c.sock")),
        format!("--claims={}", path("claims.redb")),
        "--metrics-bind-address=off".into(),
        "--health-probe-bind-address=off".into(),
        "--profiling-bind-address=localhost:0".into(),
    ];
    words.extend(flags.iter().map(|flag| flag.to_string()));
    Config::try_parse_from(words).unwrap()
}

/// A file with a token for everything and one for the namespace `red`.
fn tokens() -> (tempfile::NamedTempFile, String) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "root-token *\nred-token red\n").unwrap();
    let flag = format!("--auth-token-file={}", file.path().display());
    (file, flag)
}

async fn list(address: Address, token: Option<&str>) -> Result<(), Status> {
    let mut request = Request::new(ListRequest { namespace: "red".into(), ..Default::default() });
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    let channel = Channel::new(address, Duration::from_secs(5), None);
    FastPathServiceClient::new(channel).list_sandboxes(request).await.map(drop)
}

fn tcp(address: SocketAddr) -> Address {
    Address::Tcp(address.to_string().parse().unwrap())
}

/// What a page answers over HTTP/2, as `curl --http2-prior-knowledge` asks for it: whether it is shown, and not refused
/// in the Fast-Path's words.
async fn shown(address: Address, path: &str, token: Option<&str>) -> bool {
    let mut request = http::Request::get(format!("/debug/pprof/{path}"));
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let mut channel = Channel::new(address, Duration::from_secs(5), None);
    let answer = channel.call(request.body(tonic::body::Body::empty()).unwrap()).await.unwrap();
    answer.status() == 200 && !answer.headers().contains_key("grpc-status")
}

/// The status of a page over HTTP/1.
async fn status(address: SocketAddr, path: &str, token: Option<&str>) -> u16 {
    let token = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    let request = format!("GET /debug/pprof/{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{token}\r\n");
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_authentication_there_is_no_fast_path_over_tcp_unless_that_is_said() {
    let house = House::with(&["--fastpath-bind-address=127.0.0.1:0"]).await;
    assert_eq!(house.controller.addresses().fast_path, None);
    list(house.socket(), None).await.expect("over the socket nobody needs a token");

    let house = House::with(&["--fastpath-bind-address=127.0.0.1:0", "--auth=none"]).await;
    let address = house.controller.addresses().fast_path.unwrap();
    list(tcp(address), None).await.unwrap();

    let (_file, flag) = tokens();
    let house = House::with(&["--fastpath-bind-address=:0", "--auth=tokens", &flag]).await;
    let address = SocketAddr::from(([127, 0, 0, 1], house.controller.addresses().fast_path.unwrap().port()));
    for (token, code) in [(None, Code::Unauthenticated), (Some("other"), Code::Unauthenticated)] {
        assert_eq!(list(tcp(address), token).await.unwrap_err().code(), code);
    }
    list(tcp(address), Some("red-token")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_authentication_it_listens_beyond_loopback_only_if_that_is_meant() {
    for address in [":0", "0.0.0.0:0"] {
        let flag = format!("--fastpath-bind-address={address}");
        let refused = House::try_with(&[&flag, "--auth=none"]).await.err().expect("it is refused");
        assert!(matches!(refused, Error::OpenToAll { .. }), "{refused}");
        assert!(refused.to_string().contains("hint: ") && refused.to_string().contains("--insecure-bind"), "{refused}");
        let house = House::with(&[&flag, "--auth=none", "--insecure-bind"]).await;
        assert!(house.controller.addresses().fast_path.is_some());
    }
}

#[test]
fn flags_that_contradict_each_other_are_refused_with_exit_code_2() {
    let (_file, flag) = tokens();
    for words in [vec!["--auth=none", &flag], vec!["--auth=tokens"], vec!["--auth=password"]] {
        let dir = tempfile::tempdir().unwrap();
        let output = std::process::Command::new(PathBuf::from(env!("CARGO_BIN_EXE_fsb-controller")))
            .args(&words)
            .args(["--metrics-bind-address=off", "--health-probe-bind-address=off", "--fastpath-bind-address=off"])
            .arg("--fastpath-socket=off")
            .arg(format!("--claims={}", dir.path().join("claims.redb").display()))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{words:?}: {said}");
        assert!(said.contains("--auth"), "{words:?}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_process_does_is_shown_beyond_the_socket_only_to_tokens_for_everything() {
    // Without tokens: on the socket alone.
    let house = House::with(&["--profiling", "--fastpath-bind-address=127.0.0.1:0", "--auth=none"]).await;
    let addresses = house.controller.addresses();
    assert_eq!(addresses.profiling, None);
    for path in PAGES {
        assert!(shown(house.socket(), path, None).await, "{path}");
        assert!(!shown(tcp(addresses.fast_path.unwrap()), path, None).await, "{path}");
    }

    // With tokens: there and on an address of its own, for those that are for every namespace.
    let (_file, flag) = tokens();
    let house = House::with(&["--profiling", "--fastpath-bind-address=127.0.0.1:0", &flag]).await;
    let addresses = house.controller.addresses();
    let profiling = addresses.profiling.unwrap();
    assert!(profiling.ip().is_loopback());
    let tokens = [(None, 401), (Some("other"), 401), (Some("red-token"), 403), (Some("root-token"), 200)];
    for (path, (token, code)) in PAGES.into_iter().flat_map(|path| tokens.map(|token| (path, token))) {
        assert_eq!(status(profiling, path, token).await, code, "{path}, {token:?}");
        assert_eq!(shown(house.socket(), path, token).await, code == 200, "{path}, {token:?}");
        assert!(!shown(tcp(addresses.fast_path.unwrap()), path, token).await, "{path}, {token:?}");
    }

    // Not asked for: nowhere.
    let house = House::with(&[&flag, "--fastpath-bind-address=off"]).await;
    assert_eq!(house.controller.addresses().profiling, None);
    assert!(!shown(house.socket(), "heap", Some("root-token")).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn eleven_hundred_silent_slow_and_tokenless_peers_keep_no_client_out() {
    fsb_rpc::raise_open_files();
    let (_file, flag) = tokens();
    let house = House::with(&["--fastpath-bind-address=127.0.0.1:0", &flag]).await;
    let address = house.controller.addresses().fast_path.unwrap();
    // Their connections answer every ping as long as the client is there.
    let mut tokenless = Vec::new();
    for _ in 0..600 {
        let client = FastPathServiceClient::new(Channel::new(tcp(address), Duration::from_secs(5), None));
        client.clone().list_sandboxes(ListRequest::default()).await.unwrap_err();
        tokenless.push(client);
    }
    let mut others = Vec::new();
    for n in 0..500 {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        if n % 2 == 0 {
            stream.write_all(b"PRI * HTTP/2.0").await.unwrap();
        }
        others.push(stream);
    }
    let mut fastest = Duration::MAX;
    for _ in 0..3 {
        let since = Instant::now();
        list(tcp(address), Some("root-token")).await.unwrap();
        fastest = fastest.min(since.elapsed());
        if fastest <= Duration::from_secs(1) {
            break;
        }
    }
    assert!(fastest <= Duration::from_secs(1), "a client came in after {fastest:?}");
    for mut stream in others {
        let closed = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut Vec::new())).await;
        assert!(closed.is_ok(), "a peer that shows nothing is still connected");
    }
}
