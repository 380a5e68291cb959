//! Another user of the machine: this program, started again as uid 65534 and in no group, who tries everything that he
//! is told of.

use crate::doors::Door;
use crate::node::block_on;
use fsb_proto::agent::StatusRequest;
use fsb_proto::agent::agent_service_client::AgentServiceClient;
use fsb_proto::fastpath::fast_path_service_client::FastPathServiceClient;
use fsb_proto::fastpath::{GetRequest, ListAgentsRequest, ListRequest, LogsRequest};
use nix::unistd::{geteuid, getgroups};
use serde::{Deserialize, Serialize};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use tonic::transport::Endpoint;

const NOBODY: u32 = 65534;
/// How long he listens to who says nothing more.
const SILENCE: Duration = Duration::from_millis(300);
const CALL: Duration = Duration::from_secs(2);
/// The most that he reads of one thing.
const MAX_BYTES: u64 = 64 << 20;
const FOUND: &str = "FOUND ";
const DONE: &str = "LOOKED AT EVERYTHING";
/// What a browser asks for, and what our programs have.
const PAGES: [&str; 11] = [
    "/",
    "/metrics",
    "/healthz",
    "/readyz",
    "/debug/pprof/",
    "/debug/pprof/threads",
    "/debug/pprof/tasks",
    "/debug/pprof/heap",
    "/api/v1/agent/status",
    "/api/v1/agent/logs",
    "/api/v1/sandboxes",
];
/// HTTP/2's preface and empty settings (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// What he looks for, and where.
#[derive(Debug, Serialize, Deserialize)]
pub struct Search {
    pub secret: String,
    /// Files, and directories with all that he gets to see in them.
    pub paths: Vec<PathBuf>,
    /// Whose `/proc` he looks into.
    pub pids: Vec<i32>,
    pub doors: Vec<Door>,
    /// Names of sandboxes that he asks for.
    pub sandboxes: Vec<String>,
}

/// Where he found it.
pub fn finds(search: &Search) -> Vec<String> {
    // By the kernel's own link to it: he need not be able to reach where it was built.
    let mut child = Command::new("/proc/self/exe")
        .args(["--exact", "stranger::looks", "--ignored", "--nocapture"])
        .uid(NOBODY)
        .gid(NOBODY)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&serde_json::to_vec(search).unwrap()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && said.contains(DONE), "{said}");
    said.lines().filter_map(|line| line.strip_prefix(FOUND)).map(str::to_owned).collect()
}

#[test]
#[ignore = "is started by the tests that need another user"]
fn looks() {
    assert_eq!((geteuid().as_raw(), getgroups().unwrap()), (NOBODY, vec![]), "not another user");
    let search: Search = serde_json::from_reader(std::io::stdin()).unwrap();
    let told = |place: &str, bytes: &[u8]| {
        if bytes.windows(search.secret.len()).any(|window| window == search.secret.as_bytes()) {
            println!("\n{FOUND}{place}");
        }
    };
    search.paths.iter().for_each(|path| walk(path, &told));
    for pid in &search.pids {
        for name in ["environ", "cmdline", "stack", "status", "mountinfo"] {
            walk(&PathBuf::from(format!("/proc/{pid}/{name}")), &told);
        }
        for name in ["fd", "root/tmp", "cwd"] {
            walk(&PathBuf::from(format!("/proc/{pid}/{name}/")), &told);
        }
    }
    for door in &search.doors {
        for page in PAGES {
            let request = format!("GET {page} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
            told(&format!("{door:?} {page}"), &knock(door, request.as_bytes()));
        }
        told(&format!("{door:?} says it"), &knock(door, b""));
        told(&format!("{door:?} over HTTP/2"), &knock(door, PREFACE));
        told(&format!("{door:?} by its calls"), block_on(calls(door, &search.sandboxes)).as_bytes());
    }
    println!("\n{DONE}");
}

fn walk(path: &Path, told: &impl Fn(&str, &[u8])) {
    told(&path.display().to_string(), path.as_os_str().as_encoded_bytes());
    if path.is_dir() {
        for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
            // What a link leads to is looked at where it is.
            if !entry.file_type().is_ok_and(|kind| kind.is_symlink()) {
                walk(&entry.path(), told);
            }
        }
    } else if path.is_file() {
        let mut bytes = Vec::new();
        let read = std::fs::File::open(path).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut bytes));
        told(&path.display().to_string(), if read.is_ok() { &bytes } else { &[] });
    }
}

/// What is said to whoever comes in and says `words`.
fn knock(door: &Door, words: &[u8]) -> Vec<u8> {
    let answer = match door {
        Door::Tcp(address) => TcpStream::connect_timeout(address, CALL).and_then(|stream| {
            stream.set_read_timeout(Some(SILENCE))?;
            hear(stream, words)
        }),
        Door::Path(_) | Door::Abstract(_) => unix(door).and_then(|stream| {
            stream.set_read_timeout(Some(SILENCE))?;
            hear(stream, words)
        }),
    };
    answer.unwrap_or_default()
}

fn unix(door: &Door) -> std::io::Result<UnixStream> {
    match door {
        Door::Abstract(name) => UnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?),
        Door::Path(path) => UnixStream::connect(path),
        Door::Tcp(_) => unreachable!("no unix socket"),
    }
}

fn hear(mut stream: impl Read + Write, words: &[u8]) -> std::io::Result<Vec<u8>> {
    stream.write_all(words)?;
    let mut heard = Vec::new();
    // Silence is an error, before which something was heard.
    let _ = stream.take(MAX_BYTES).read_to_end(&mut heard);
    Ok(heard)
}

/// All that the calls of controller and agent answer to somebody without a token.
async fn calls(door: &Door, sandboxes: &[String]) -> String {
    let address = match door {
        Door::Tcp(address) => format!("http://{address}"),
        Door::Path(path) => format!("unix:{}", path.display()),
        Door::Abstract(_) => return String::new(),
    };
    let endpoint = Endpoint::from_shared(address).unwrap().connect_timeout(CALL).timeout(CALL);
    let Ok(channel) = endpoint.connect().await else { return String::new() };
    let mut controller = FastPathServiceClient::new(channel.clone());
    let list = ListRequest { namespace: String::new(), all_namespaces: true };
    let mut heard = format!("{:?}", controller.list_sandboxes(list).await);
    heard.push_str(&format!("{:?}", controller.list_agents(ListAgentsRequest {}).await));
    for name in sandboxes {
        let get = GetRequest { sandbox_id: name.clone(), namespace: String::new() };
        heard.push_str(&format!("{:?}", controller.get_sandbox(get).await));
        let logs = LogsRequest { sandbox_id: name.clone(), ..Default::default() };
        if let Ok(chunks) = controller.logs(logs).await {
            let mut chunks = chunks.into_inner();
            while let Ok(Some(chunk)) = chunks.message().await {
                chunk.lines.iter().for_each(|line| heard.push_str(&String::from_utf8_lossy(&line.text)));
            }
        }
    }
    let mut agent = AgentServiceClient::new(channel);
    heard.push_str(&format!("{:?}", agent.status(StatusRequest {}).await));
    heard
}
