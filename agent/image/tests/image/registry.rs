//! A small registry on loopback that can misbehave.

use crate::archive::digest;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// What it does to a blob or manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Sends other bytes.
    Wrong(Vec<u8>),
    /// Closes the connection in the middle of what is asked for, so many times.
    Dropped(usize),
    /// Sends all of it, whatever part is asked for.
    Whole,
    /// Answers with this status, so many times.
    Status(u16, usize),
    /// Takes so long before it answers.
    Slow(Duration),
}

#[derive(Debug, Default)]
struct State {
    /// By `repository:tag` and by digest.
    manifests: HashMap<String, Vec<u8>>,
    blobs: HashMap<String, Vec<u8>>,
    faults: HashMap<String, Fault>,
    /// Requests by the last component of their path.
    requests: BTreeMap<String, usize>,
    /// Bytes of bodies that were sent, likewise.
    sent: BTreeMap<String, usize>,
    /// `user:password` in base64 that a token costs; the token itself is `secret`.
    credentials: Option<String>,
}

/// Runs until it is dropped.
pub(crate) struct Registry {
    pub(crate) address: SocketAddr,
    state: Arc<Mutex<State>>,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Registry {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let serving = state.clone();
        let server = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(stream, address, serving.clone()));
            }
        });
        Self { address, state, server }
    }

    /// The reference of `name` here.
    pub(crate) fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    pub(crate) fn add_manifest(&self, name: &str, manifest: &[u8]) {
        let mut state = self.state.lock().unwrap();
        state.manifests.insert(name.into(), manifest.to_vec());
        state.manifests.insert(digest(manifest), manifest.to_vec());
    }

    pub(crate) fn add_image(&self, name: &str, image: &crate::archive::Image) {
        let (manifest, blobs) = image.manifest();
        self.add_manifest(name, &manifest);
        let mut state = self.state.lock().unwrap();
        state.blobs.extend(blobs.into_iter().map(|blob| (digest(&blob), blob)));
    }

    /// `what` is a digest, or a tag.
    pub(crate) fn fault(&self, what: &str, fault: Fault) {
        self.state.lock().unwrap().faults.insert(what.into(), fault);
    }

    pub(crate) fn require(&self, credentials: &str) {
        self.state.lock().unwrap().credentials = Some(credentials.into());
    }

    /// How often `what` (a digest, or a tag) was asked for.
    pub(crate) fn requests(&self, what: &str) -> usize {
        self.state.lock().unwrap().requests.get(what).copied().unwrap_or_default()
    }

    /// How many bytes of `what` were sent.
    pub(crate) fn sent(&self, what: &str) -> usize {
        self.state.lock().unwrap().sent.get(what).copied().unwrap_or_default()
    }
}

struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// So many bytes of the body are sent before the connection is closed.
    cut: Option<usize>,
    delay: Duration,
}

impl Answer {
    fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), cut: None, delay: Duration::ZERO }
    }
}

async fn serve(stream: TcpStream, address: SocketAddr, state: Arc<Mutex<State>>) {
    let mut stream = BufReader::new(stream);
    loop {
        let mut request = String::new();
        if stream.read_line(&mut request).await.unwrap_or(0) == 0 {
            return;
        }
        let mut authorization = String::new();
        let mut from = 0;
        let mut length = 0;
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
                return;
            }
            let Some((key, value)) = line.trim().split_once(": ") else { break };
            match key.to_ascii_lowercase().as_str() {
                "authorization" => authorization = value.into(),
                "range" => from = value.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap(),
                "content-length" => length = value.parse().unwrap(),
                _ => {}
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.unwrap();
        let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
        let answer = answer(&path, &authorization, from, address, &mut state.lock().unwrap());
        tokio::time::sleep(answer.delay).await;
        let mut head = format!("HTTP/1.1 {} X\r\nContent-Length: {}\r\n", answer.status, answer.body.len());
        for (key, value) in &answer.headers {
            head += &format!("{key}: {value}\r\n");
        }
        let sent = &answer.body[..answer.cut.unwrap_or(answer.body.len())];
        let whole = [head.as_bytes(), b"\r\n", sent].concat();
        if stream.get_mut().write_all(&whole).await.is_err() || answer.cut.is_some() {
            return;
        }
    }
}

fn answer(path: &str, authorization: &str, from: usize, address: SocketAddr, state: &mut State) -> Answer {
    if let Some(query) = path.strip_prefix("/token?") {
        let right = state.credentials.as_ref().is_some_and(|c| authorization == format!("Basic {c}"));
        assert!(query.contains("scope="), "{query}");
        return if right { Answer::new(200, r#"{"token":"secret"}"#) } else { Answer::new(401, "{}") };
    }
    if state.credentials.is_some() && authorization != "Bearer secret" {
        let mut answer = Answer::new(401, r#"{"errors":[{"code":"UNAUTHORIZED","message":"no","detail":null}]}"#);
        let challenge = format!(r#"Bearer realm="http://{address}/token",service="test""#);
        answer.headers.push(("WWW-Authenticate", challenge));
        return answer;
    }
    if path == "/v2/" {
        return Answer::new(200, "{}");
    }
    let mut parts: Vec<&str> = path.trim_start_matches("/v2/").split('/').collect();
    let (Some(what), Some(kind)) = (parts.pop(), parts.pop()) else { return Answer::new(404, "{}") };
    *state.requests.entry(what.to_owned()).or_default() += 1;
    let found = match kind {
        "manifests" if what.starts_with("sha256:") => state.manifests.get(what),
        "manifests" => state.manifests.get(&format!("{}:{what}", parts.join("/"))),
        _ => state.blobs.get(what),
    };
    let Some(found) = found else {
        let code = if kind == "manifests" { "MANIFEST_UNKNOWN" } else { "BLOB_UNKNOWN" };
        return Answer::new(404, format!(r#"{{"errors":[{{"code":"{code}","message":"unknown","detail":null}}]}}"#));
    };
    let mut answer = Answer::new(200, found.clone());
    if kind == "manifests" {
        answer.headers.push(("Content-Type", "application/vnd.oci.image.manifest.v1+json".into()));
    }
    match state.faults.get_mut(what) {
        None => {}
        Some(Fault::Wrong(bytes)) => answer.body = bytes.clone(),
        Some(Fault::Slow(delay)) => answer.delay = *delay,
        Some(Fault::Status(_, 0)) => {}
        Some(Fault::Dropped(_) | Fault::Whole) => {}
        Some(Fault::Status(status, times)) => {
            *times -= 1;
            answer = Answer::new(*status, "busy");
        }
    }
    if answer.status == 200 && from > 0 && from <= answer.body.len() && state.faults.get(what) != Some(&Fault::Whole) {
        answer.status = 206;
        answer.headers.push(("Content-Range", format!("bytes {from}-{}/{}", answer.body.len() - 1, answer.body.len())));
        answer.body.drain(..from);
    }
    if let Some(Fault::Dropped(times @ 1..)) = state.faults.get_mut(what) {
        *times -= 1;
        answer.cut = Some(answer.body.len() / 2);
    }
    *state.sent.entry(what.to_owned()).or_default() += answer.cut.unwrap_or(answer.body.len());
    answer
}
