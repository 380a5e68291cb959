//! The connection to a controller.

use crate::config::{Endpoint, Settings};
use crate::error::{Context, Failure, Result};
use crate::{output, tokens};
use fsb_proto::fastpath::fast_path_service_client::FastPathServiceClient;
use fsb_rpc::{Address, Channel};
use std::time::Duration;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::{Code, Request, Status};

/// How long any call may take that only looks or asks.
pub(crate) const CALL: Duration = Duration::from_secs(30);
/// How long a create may take: an image may have to be pulled.
pub(crate) const CREATE: Duration = Duration::from_secs(600);
const CONNECT: Duration = Duration::from_secs(5);
/// A list of ten thousand sandboxes with their environment.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// The Fast-Path with the bearer token, if there is one.
pub(crate) type FastPath = FastPathServiceClient<InterceptedService<Channel, Bearer>>;

/// Adds the token to every call.
#[derive(Clone)]
pub(crate) struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> std::result::Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

/// Connects to a server.
pub(crate) async fn channel(endpoint: &Endpoint) -> std::result::Result<Channel, String> {
    let to = match endpoint {
        Endpoint::Unix(path) => Address::Unix(path.clone()),
        Endpoint::Tcp(address) => Address::Tcp(address.parse().map_err(|error| root_cause(&error))?),
    };
    let channel = Channel::new(to, CONNECT, None);
    channel.connect().await.map_err(|error| root_cause(&error))?;
    Ok(channel)
}

/// Connects to the controller of the settings.
pub(crate) async fn connect(settings: &Settings) -> Result<FastPath> {
    let token = settings.token.clone().or_else(|| tokens::read(settings.token_file.as_deref()?));
    let token = match token {
        Some(token) => Some(
            MetadataValue::try_from(format!("Bearer {token}"))
                .map_err(|_| Failure::usage("the token holds characters that no token has"))?,
        ),
        None => None,
    };
    if settings.verbose {
        output::talk(&format!("controller: {}", settings.endpoint));
    }
    let channel = channel(&settings.endpoint).await.map_err(|why| unreachable(settings, &why))?;
    let client = FastPathServiceClient::with_interceptor(channel, Bearer(token));
    Ok(client.max_decoding_message_size(MAX_ANSWER_BYTES))
}

fn unreachable(settings: &Settings, why: &str) -> Failure {
    let root = settings.root.as_ref().map(|root| format!(" --root {}", root.display())).unwrap_or_default();
    let failure = Failure::new(format!("cannot reach the controller at {}: {why}", settings.endpoint));
    if matches!(settings.endpoint, Endpoint::Unix(_)) && why.starts_with("Permission denied") {
        return failure.hint("run fsb-ctl with sudo, or be in the group fsb");
    }
    failure.hint(format!(
        "`fsb-ctl local up{root}` starts a node on this machine, --endpoint or FSB_ENDPOINT names another controller"
    ))
}

/// A runtime of one thread: nothing here needs more.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context(|| "cannot start the event loop".into())
}

/// Runs a command that talks to a server. Connections are driven by another thread: while the command waits for its stdin,
/// for the reader of its stdout or for an editor, they answer the server's pings.
pub(crate) fn online(command: impl Future<Output = Result<u8>>) -> Result<u8> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.context(|| "cannot start the event loop".into())?.block_on(command)
}

/// A request with a deadline.
pub(crate) fn request<T>(message: T, deadline: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    request
}

/// What a user is told about a call that failed. A hint that the server gives goes before one of ours.
pub(crate) fn failure(settings: &Settings, status: &Status) -> Failure {
    let (what, theirs) = split_hint(status.message());
    let from_transport = std::error::Error::source(status).is_some();
    let failure = match status.code() {
        Code::Unavailable | Code::Unknown if from_transport => {
            return unreachable(settings, &root_cause(status));
        }
        Code::DeadlineExceeded => Failure::new(format!("it took too long: {what}")),
        Code::Unimplemented => Failure::new(format!("the controller at {} cannot do this", settings.endpoint))
            .hint("it is older than this fsb-ctl, or another program"),
        Code::NotFound if what.starts_with("image ") => Failure::new(what)
            .hint("`fsb-ctl image ls` shows what is here, `fsb-ctl image import FILE --name NAME` brings an image"),
        Code::NotFound => Failure::new(what).hint(format!("fsb-ctl list -n {}", settings.namespace)),
        Code::Unauthenticated => Failure::new(what).hint("give a token with --token or FSB_TOKEN"),
        Code::PermissionDenied => Failure::new(what).hint("this token is for other namespaces; choose one with -n"),
        Code::ResourceExhausted => Failure::new(what).hint("`fsb-ctl list -A` shows who uses the pool"),
        Code::Unavailable => Failure::new(what).hint("`fsb-ctl local status` shows the agents of the local node"),
        code if what.is_empty() => Failure::new(format!("the controller refused: {code:?}")),
        _ => Failure::new(what),
    };
    match theirs {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// Whether it was the connection that failed, or who was asked is on its way back: asking again may help.
pub(crate) fn is_passing(status: &Status) -> bool {
    let from_transport = std::error::Error::source(status).is_some();
    status.code() == Code::Unavailable || from_transport && matches!(status.code(), Code::Unknown | Code::Internal)
}

/// What an agent of the local node refused: it knows images, not sandboxes.
pub(crate) fn image_failure(settings: &Settings, status: &Status) -> Failure {
    let failure = failure(settings, status);
    if status.code() == Code::NotFound && split_hint(status.message()).1.is_none() {
        return failure.hint("fsb-ctl image ls");
    }
    failure
}

/// Takes a message with a hint in it apart. What stands in parentheses after the hint says where it happened, for logs.
pub(crate) fn split_hint(message: &str) -> (&str, Option<&str>) {
    match message.trim().split_once("hint: ") {
        Some((what, hint)) => {
            let hint = hint.split_once(" (while ").map_or(hint, |(hint, _)| hint);
            (what.trim_end_matches([' ', '\n', ';', '(', ',']), Some(hint.trim_end_matches([')', '.'])))
        }
        None => (message.trim(), None),
    }
}

/// The innermost reason: the outer ones only say "transport error".
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            endpoint: Endpoint::Tcp("localhost:1".into()),
            namespace: "default".into(),
            token: None,
            token_file: None,
            editor: None,
            root: None,
            verbose: false,
        }
    }

    #[test]
    fn the_servers_hint_goes_before_ours() {
        let told = failure(&settings(), &Status::not_found("no sandbox x; hint: look elsewhere"));
        assert_eq!((told.what.as_str(), told.hint.as_deref()), ("no sandbox x", Some("look elsewhere")));
        let told = failure(&settings(), &Status::not_found("no sandbox x"));
        assert_eq!(told.hint.as_deref(), Some("fsb-ctl list -n default"));
        let told = failure(&settings(), &Status::not_found("image x: cannot pull it"));
        assert!(told.hint.unwrap().contains("fsb-ctl image import"));
        let told = failure(&settings(), &Status::unknown("x is y; hint: do z (while looking for it)"));
        assert_eq!((told.what.as_str(), told.hint.as_deref()), ("x is y", Some("do z")));
        assert_eq!(image_failure(&settings(), &Status::not_found("x")).hint.as_deref(), Some("fsb-ctl image ls"));
    }

    #[test]
    fn who_may_not_use_the_nodes_socket_is_told_who_may() {
        let local = Settings { endpoint: Endpoint::Unix("/x".into()), ..settings() };
        let denied = std::io::Error::from_raw_os_error(nix::libc::EACCES).to_string();
        assert!(unreachable(&local, &denied).hint.unwrap().contains("group fsb"));
        assert!(unreachable(&settings(), &denied).hint.unwrap().contains("local up"));
    }

    #[test]
    fn a_refusal_without_words_still_says_something() {
        assert!(failure(&settings(), &Status::internal("")).what.contains("Internal"));
    }
}
