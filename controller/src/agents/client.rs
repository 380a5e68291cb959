//! One agent's interface, narrowed to what the controller calls, each call with its deadline.

use crate::error::Error;
use fsb_proto::agent::agent_service_client::AgentServiceClient;
use fsb_proto::{agent, fastpath};
use fsb_rpc::{Address, Channel};
use futures_util::future::{BoxFuture, FutureExt, TryFutureExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tonic::codegen::http::Uri;
use tonic::codegen::http::uri::Authority;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Request, Status, Streaming};

/// Where an agent is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A unix socket: who may open it may use it.
    Unix(PathBuf),
    /// A TCP port, with the agents' token.
    Http(Authority),
}

impl Target {
    /// From `http://host[:port]`.
    pub fn http(address: &str, default_port: u16) -> Result<Self, Error> {
        let wrong = |why: &str| Error::AgentAddress { address: address.to_owned(), why: why.to_owned() };
        let uri: Uri = address.parse().map_err(|_| wrong("must be http://host[:port]"))?;
        let host =
            uri.host().filter(|_| uri.scheme_str() == Some("http")).ok_or(wrong("must be http://host[:port]"))?;
        let authority = format!("{host}:{}", uri.port_u16().unwrap_or(default_port)).parse();
        Ok(Target::Http(authority.map_err(|_| wrong("must be http://host[:port]"))?))
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::Unix(path) => write!(f, "{}", path.display()),
            Target::Http(authority) => write!(f, "http://{authority}"),
        }
    }
}

/// Reads the agents' bearer token.
pub fn read_token(path: &Path) -> Result<String, Error> {
    let wrong = |why: String| Error::TokenFile { path: path.to_owned(), why };
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    let token = text.trim();
    if token.is_empty() || token.contains(char::is_whitespace) {
        return Err(wrong("must hold one token and nothing else".into()));
    }
    Ok(token.to_owned())
}

/// The longest message of an agent, in bytes: a snapshot carries the claim documents of all its sandboxes.
const LONGEST_MESSAGE: usize = 1 << 30;

/// A handle on the connections to an agent, one for calls and reports, one for logs. They connect when they are used and
/// again when they broke.
#[derive(Debug, Clone)]
pub struct Client {
    inner: AgentServiceClient<Channel>,
    bulk: AgentServiceClient<Channel>,
    bearer: Option<MetadataValue<Ascii>>,
    deadline: Duration,
}

impl Client {
    /// A client that has not connected yet. `lost_after` bounds how long a dead connection goes unnoticed, `deadline`
    /// is that of every call but create.
    pub fn new(target: &Target, token: Option<&str>, lost_after: Duration, deadline: Duration) -> Result<Self, Error> {
        let to = match target {
            Target::Unix(path) => Address::Unix(path.clone()),
            Target::Http(authority) => Address::Tcp(authority.clone()),
        };
        // A unix socket asks for no token: who may open it may use it.
        let token = token.filter(|_| matches!(target, Target::Http(_)));
        let bearer = token.map(|token| format!("Bearer {token}").parse()).transpose();
        let bearer = bearer.map_err(|_| Error::AgentAddress {
            address: target.to_string(),
            why: "the agents' token has characters that cannot be sent".into(),
        })?;
        let (patience, ping) = (lost_after.min(Duration::from_secs(2)), Some(lost_after / 3));
        let bulk = AgentServiceClient::new(Channel::bulk(to.clone(), patience, ping));
        let channel = Channel::new(to, patience, ping);
        let inner = AgentServiceClient::new(channel).max_decoding_message_size(LONGEST_MESSAGE);
        Ok(Self { inner, bulk, bearer, deadline })
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(bearer) = &self.bearer {
            request.metadata_mut().insert("authorization", bearer.clone());
        }
        fsb_telemetry::inject(request.metadata_mut());
        request
    }

    /// A request that tells the agent its deadline, and ends here a little later.
    fn timed<T>(&self, message: T, deadline: Duration) -> Request<T> {
        let mut request = self.request(message);
        request.set_timeout(deadline);
        request
    }

    /// Starts an instance.
    pub async fn create(
        &self,
        message: agent::CreateRequest,
        deadline: Duration,
    ) -> Result<agent::CreateResponse, Status> {
        let request = self.timed(message, deadline);
        within(deadline, self.inner.clone().create(request)).await
    }

    /// Stops and removes an instance. True = nothing is left.
    pub async fn delete(&self, message: agent::DeleteRequest) -> Result<bool, Status> {
        let request = self.timed(message, self.deadline);
        Ok(within(self.deadline, self.inner.clone().delete(request)).await?.gone)
    }

    /// Changes a running instance's policies.
    pub async fn update(&self, message: agent::UpdateRequest) -> Result<(), Status> {
        let request = self.timed(message, self.deadline);
        within(self.deadline, self.inner.clone().update(request)).await.map(|_| ())
    }

    /// Ended instances that the agent may forget.
    pub async fn forget(&self, instance_ids: Vec<String>) -> Result<(), Status> {
        let request = self.timed(agent::ForgetRequest { instance_ids }, self.deadline);
        within(self.deadline, self.inner.clone().forget(request)).await.map(|_| ())
    }

    /// Opens the stream of reports.
    pub async fn watch(&self, watcher: String) -> Result<Streaming<agent::Event>, Status> {
        let request = self.request(agent::WatchRequest { watcher, controller: true });
        within(self.deadline, self.inner.clone().watch(request)).await
    }

    /// Opens a stream of log lines.
    pub async fn logs(&self, message: agent::LogsRequest) -> Result<Streaming<fastpath::LogChunk>, Status> {
        let request = self.request(message);
        within(self.deadline, self.bulk.clone().logs(request)).await
    }

    /// The log files of the agent's node.
    pub async fn list_logs(&self) -> Result<Vec<agent::LogFile>, Status> {
        let request = self.timed(agent::ListLogsRequest {}, self.deadline);
        Ok(within(self.deadline, self.inner.clone().list_logs(request)).await?.logs)
    }

    /// Removes log files.
    pub async fn remove_logs(&self, instance_ids: Vec<String>) -> Result<(), Status> {
        let request = self.timed(agent::RemoveLogsRequest { instance_ids }, self.deadline);
        within(self.deadline, self.inner.clone().remove_logs(request)).await.map(|_| ())
    }
}

/// On the heap: a call takes two kilobytes, and the tasks that may make one are begun for every event of every sandbox.
fn within<'a, T: 'a>(
    deadline: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, Status>> + Send + 'a,
) -> BoxFuture<'a, Result<T, Status>> {
    let late = move |_| Status::deadline_exceeded(format!("the agent did not answer within {deadline:?}"));
    let answer = tokio::time::timeout(deadline, call).map(move |answer| answer.map_err(late).flatten());
    answer.map_ok(tonic::Response::into_inner).boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_without_a_port_gets_the_agents_port() {
        assert_eq!(Target::http("http://10.0.0.1", 5758).unwrap().to_string(), "http://10.0.0.1:5758");
        assert_eq!(Target::http("http://10.0.0.1:1", 5758).unwrap().to_string(), "http://10.0.0.1:1");
        assert_eq!(Target::http("http://[::1]", 5758).unwrap().to_string(), "http://[::1]:5758");
        for bad in ["10.0.0.1", "https://10.0.0.1", "http://", "unix:/x"] {
            assert!(Target::http(bad, 5758).is_err(), "{bad}");
        }
    }
}
