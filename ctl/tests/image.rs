//! `image`, with an agent of the test's own behind the local node's socket.

mod common;

use common::{SILENCE, ctl, server, stderr, stdout};
use fsb_proto::agent::agent_service_server::{AgentService, AgentServiceServer};
use fsb_proto::agent::*;
use fsb_proto::fastpath::{LogChunk, PullPolicy};
use std::io::Write;
use std::path::Path;
use std::pin::Pin;
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

#[derive(Default)]
struct State {
    imports: Vec<(ImportImageRequest, Vec<u8>)>,
    pulls: Vec<PullImageRequest>,
    images: Vec<ImageInfo>,
}

#[derive(Clone, Default)]
struct Agent(Arc<Mutex<State>>);

type Stream<T> = Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;

type Answer<'f, T> = Pin<Box<dyn Future<Output = Result<Response<T>, Status>> + Send + 'f>>;

macro_rules! not_asked {
    ($($name:ident($request:ty) -> $answer:ty;)*) => {
        // Written out as async_trait writes it: it does not look into macros.
        $(fn $name<'a, 'f>(&'a self, _: Request<$request>) -> Answer<'f, $answer>
        where
            'a: 'f,
            Self: 'f,
        {
            Box::pin(async { Err(Status::unimplemented(stringify!($name))) })
        })*
    };
}

#[tonic::async_trait]
impl AgentService for Agent {
    type WatchStream = Stream<Event>;
    type LogsStream = Stream<LogChunk>;
    type PullImageStream = Stream<PullProgress>;

    async fn import_image(&self, request: Request<ImportImageRequest>) -> Result<Response<ImageInfo>, Status> {
        let request = request.into_inner();
        let bytes = std::fs::read(&request.path).map_err(|error| Status::not_found(error.to_string()))?;
        let image = ImageInfo {
            digest: "sha256:0123456789abcdef".into(),
            references: vec![request.reference.clone()],
            size_bytes: bytes.len() as i64,
            created_ms: 1,
        };
        let mut state = self.0.lock().unwrap();
        state.imports.push((request, bytes));
        state.images.push(image.clone());
        Ok(Response::new(image))
    }

    async fn pull_image(&self, request: Request<PullImageRequest>) -> Result<Response<Self::PullImageStream>, Status> {
        let request = request.into_inner();
        let image = ImageInfo { references: vec![request.reference.clone()], ..ImageInfo::default() };
        let broken = request.reference == "broken";
        self.0.lock().unwrap().pulls.push(request);
        let layer = |done_bytes| PullProgress { layer: "a".into(), done_bytes, total_bytes: 10, image: None };
        let mut steps = vec![Ok(layer(3)), Ok(layer(10))];
        steps.push(if broken {
            Err(Status::unavailable("the registry went away; hint: try again"))
        } else {
            Ok(PullProgress { image: Some(image), ..PullProgress::default() })
        });
        Ok(Response::new(Box::pin(tokio_stream::iter(steps))))
    }

    async fn list_images(&self, _: Request<ListImagesRequest>) -> Result<Response<ListImagesResponse>, Status> {
        Ok(Response::new(ListImagesResponse { images: self.0.lock().unwrap().images.clone() }))
    }

    async fn remove_image(
        &self,
        request: Request<RemoveImageRequest>,
    ) -> Result<Response<RemoveImageResponse>, Status> {
        let reference = request.into_inner().reference;
        let mut state = self.0.lock().unwrap();
        let before = state.images.len();
        state.images.retain(|image| !image.references.contains(&reference));
        Ok(Response::new(RemoveImageResponse { existed: state.images.len() < before }))
    }

    not_asked! {
        create(CreateRequest) -> CreateResponse;
        delete(DeleteRequest) -> DeleteResponse;
        update(UpdateRequest) -> UpdateResponse;
        forget(ForgetRequest) -> ForgetResponse;
        watch(WatchRequest) -> Self::WatchStream;
        status(StatusRequest) -> Snapshot;
        logs(LogsRequest) -> Self::LogsStream;
        list_logs(ListLogsRequest) -> ListLogsResponse;
        remove_logs(RemoveLogsRequest) -> RemoveLogsResponse;
        set_warm_images(SetWarmImagesRequest) -> SetWarmImagesResponse;
        ping(PingRequest) -> PingResponse;
    }
}

/// A node's directory with one agent in it.
struct Node {
    directory: tempfile::TempDir,
    agent: Agent,
    _runtime: tokio::runtime::Runtime,
}

impl Node {
    fn start() -> Self {
        let directory = tempfile::Builder::new().prefix("fsb-t").tempdir().unwrap();
        std::fs::create_dir_all(directory.path().join("n/run")).unwrap();
        let agent = Agent::default();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let socket = directory.path().join("n/run/agent-1.sock");
        let listener = runtime.block_on(async { tokio::net::UnixListener::bind(socket) }).unwrap();
        runtime.spawn(
            server()
                .add_service(AgentServiceServer::new(agent.clone()))
                .serve_with_incoming(UnixListenerStream::new(listener)),
        );
        Self { directory, agent, _runtime: runtime }
    }

    fn home(&self) -> &Path {
        self.directory.path()
    }

    fn run(&self, words: &[&str]) -> Output {
        ctl(self.home(), words).args(["--root", "n"]).output().unwrap()
    }
}

#[test]
fn import_sends_the_real_path_and_what_a_root_file_system_cannot_say() {
    let node = Node::start();
    std::fs::write(node.home().join("real.tar"), "bytes").unwrap();
    std::os::unix::fs::symlink("real.tar", node.home().join("link.tar")).unwrap();
    let words = "image import link.tar --name busybox --entrypoint /bin/sh --entrypoint -e --cmd -c --cmd true -e A=b \
                 -w /w --user 1000";
    let output = node.run(&words.split_whitespace().collect::<Vec<_>>());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).contains("busybox") && stdout(&output).contains("0123456789ab"));
    let (request, bytes) = node.agent.0.lock().unwrap().imports.remove(0);
    assert_eq!(bytes, b"bytes");
    assert_eq!(Path::new(&request.path), node.home().canonicalize().unwrap().join("real.tar"));
    assert_eq!((request.entrypoint.join(" "), request.cmd.join(" ")), ("/bin/sh -e".into(), "-c true".into()));
    assert_eq!((request.env[0].as_str(), request.working_dir.as_str(), request.user.as_str()), ("A=b", "/w", "1000"));
}

#[test]
fn import_of_stdin_leaves_no_file_behind() {
    let node = Node::start();
    let mut command = ctl(node.home(), &["image", "import", "-", "--name", "x", "--root", "n"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&[7; 100_000]).unwrap();
    assert!(child.wait().unwrap().success());
    let (request, bytes) = node.agent.0.lock().unwrap().imports.remove(0);
    assert_eq!(bytes, vec![7; 100_000]);
    assert!(!Path::new(&request.path).exists());
}

#[test]
fn import_waits_for_a_stdin_that_stalls_however_long() {
    let node = Node::start();
    let mut command = ctl(node.home(), &["image", "import", "-", "--name", "x", "--root", "n"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"one").unwrap();
    std::thread::sleep(2 * SILENCE);
    stdin.write_all(b"two").unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(node.agent.0.lock().unwrap().imports.remove(0).1, b"onetwo");
}

#[test]
fn pull_ends_with_the_image_or_with_the_agents_reason() {
    let node = Node::start();
    let output = node.run(&["image", "pull", "alpine", "--always", "-o", "json"]);
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["items"][0]["references"][0], "alpine");
    assert_eq!(stderr(&output), "", "progress is for terminals");
    let output = node.run(&["image", "pull", "broken"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stderr(&output), "error: the registry went away\nhint: try again\n");
    let pulls = &node.agent.0.lock().unwrap().pulls;
    assert_eq!([pulls[0].policy, pulls[1].policy], [PullPolicy::Always as i32, PullPolicy::Missing as i32]);
}

#[test]
fn rm_removes_what_is_there_and_names_what_is_not() {
    let node = Node::start();
    std::fs::write(node.home().join("t"), "").unwrap();
    assert_eq!(node.run(&["image", "import", "t", "--name", "a"]).status.code(), Some(0));
    let output = node.run(&["image", "rm", "x", "a"]);
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(1), "a\n"));
    assert_eq!(stderr(&output), "error: there is no image x\nhint: fsb-ctl image ls\n");
    assert!(!stdout(&node.run(&["image", "ls"])).contains("0123456789ab"));
}

#[test]
fn without_a_node_the_hint_says_how_to_start_one() {
    let home = tempfile::tempdir().unwrap();
    let output = ctl(home.path(), &["image", "ls", "--root", "n"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("hint: ") && stderr(&output).contains("local up"), "{}", stderr(&output));
    let node = Node::start();
    assert_eq!(node.run(&["image", "import", "not-there.tar"]).status.code(), Some(1));
}
