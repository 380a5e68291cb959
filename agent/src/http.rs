//! The HTTP/JSON interface, beside gRPC on the same port and socket.

use crate::Agent;
use crate::error::{Error, StartError};
use crate::order::Order;
use crate::stage::Stage;
use crate::start::{self, DEFAULT_DEADLINE};
use crate::{now_ms, quantity};
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use fsb_proto::agent::{self, CreateRequest, DeleteRequest, Instance, InstancePhase, LogsRequest};
use fsb_proto::{Invalid, fastpath};
use futures_util::stream::StreamExt;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The longest body: above the kernel's limit for arguments and environment.
const LONGEST_BODY: usize = 4 << 20;

/// The routes.
pub(crate) fn router(agent: Arc<Agent>) -> Router {
    Router::new()
        .route("/api/v1/agent/create", post(create))
        .route("/api/v1/agent/delete", post(delete))
        .route("/api/v1/agent/status", get(status))
        .route("/api/v1/agent/logs", get(logs))
        .route("/metrics", get(metrics))
        .layer(DefaultBodyLimit::max(LONGEST_BODY))
        .with_state(agent)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CreateBody {
    sandbox: SandboxBody,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SandboxBody {
    sandbox_id: String,
    claim_uid: String,
    claim_name: String,
    image: String,
    cpu: Option<Amount>,
    memory: Option<Amount>,
    #[serde(deserialize_with = "or_default")]
    command: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    args: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    env: BTreeMap<String, String>,
    working_dir: String,
}

/// `"512Mi"` or `536870912`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Amount {
    Text(String),
    Number(serde_json::Number),
}

/// Go writes an empty list as null.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(value: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(value)?.unwrap_or_default())
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CreateAnswer {
    success: bool,
    message: String,
    /// As it was sent.
    sandbox_id: String,
    instance_id: String,
    /// Unix seconds.
    created_at: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DeleteBody {
    sandbox_id: String,
}

#[derive(Serialize)]
struct Outcome {
    success: bool,
    message: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct StatusAnswer {
    agent_id: String,
    node_name: String,
    capacity: i32,
    allocated: i32,
    images: Vec<String>,
    sandbox_statuses: Vec<SandboxStatus>,
}

#[derive(Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
struct SandboxStatus {
    /// The name that was sent over this interface, else the instance id.
    sandbox_id: String,
    claim_uid: String,
    phase: &'static str,
    message: String,
    created_at: i64,
    instance_id: String,
}

/// An error as JSON, with the status that fits.
struct Failed(StatusCode, String);

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        (self.0, Json(Outcome { success: false, message: self.1 })).into_response()
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self(status_of(&error), error.to_string())
    }
}

impl From<StartError> for Failed {
    fn from(error: StartError) -> Self {
        Self(status_of(&error.cause), error.to_string())
    }
}

fn status_of(error: &Error) -> StatusCode {
    match error {
        Error::Invalid(_) => StatusCode::BAD_REQUEST,
        Error::Full { .. } | Error::TooMany(_) | Error::DiskFull(_) => StatusCode::TOO_MANY_REQUESTS,
        Error::PortTaken { .. } | Error::Stale { .. } | Error::Conflict(_) | Error::Deleted => StatusCode::CONFLICT,
        Error::NotFound(_) | Error::Image { .. } => StatusCode::NOT_FOUND,
        Error::Start(_) => StatusCode::UNPROCESSABLE_ENTITY,
        Error::Cordoned | Error::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        Error::Deadline(_) => StatusCode::GATEWAY_TIMEOUT,
        Error::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn body<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Failed> {
    serde_json::from_slice(bytes).map_err(|error| Failed(StatusCode::BAD_REQUEST, format!("the body: {error}")))
}

fn amount(field: &'static str, value: Option<Amount>, read: fn(&str) -> Option<u64>) -> Result<i64, Invalid> {
    let text = match value {
        None => return Ok(0),
        Some(Amount::Text(text)) if text.is_empty() => return Ok(0),
        Some(Amount::Text(text)) => text,
        Some(Amount::Number(number)) => number.to_string(),
    };
    let read = read(&text).and_then(|value| i64::try_from(value).ok());
    read.ok_or_else(|| Invalid::new(field, format!("must be an amount such as 500m or 512Mi, is {text:?}")))
}

impl SandboxBody {
    fn order(self) -> Result<Order, Invalid> {
        if self.sandbox_id.is_empty() {
            return Err(Invalid::new("sandbox.sandboxId", "must not be empty"));
        }
        let resources = fastpath::Resources {
            cpu_millis: amount("sandbox.cpu", self.cpu, quantity::cpu_millis)?,
            memory_bytes: amount("sandbox.memory", self.memory, quantity::bytes)?,
            ..Default::default()
        };
        let request = CreateRequest {
            claim: Some(agent::Claim {
                name: if self.claim_name.is_empty() { self.sandbox_id.clone() } else { self.claim_name },
                uid: if self.claim_uid.is_empty() { self.sandbox_id.clone() } else { self.claim_uid },
                ..Default::default()
            }),
            image: self.image,
            command: self.command,
            args: self.args,
            envs: self.env,
            working_dir: self.working_dir,
            resources: Some(resources),
            alias: self.sandbox_id,
            ..Default::default()
        };
        // This interface knows no generations.
        Ok(Order { generation: None, ..Order::from_wire(&request)? })
    }
}

async fn create(State(agent): State<Arc<Agent>>, bytes: Bytes) -> Result<Json<CreateAnswer>, Failed> {
    let sandbox = body::<CreateBody>(&bytes)?.sandbox;
    let sandbox_id = sandbox.sandbox_id.clone();
    let order = sandbox.order().map_err(|error| StartError::new(Stage::Admission, error.into()))?;
    let started = start::create(&agent, order, DEFAULT_DEADLINE).await?;
    let message = if started.existed { "it was there already" } else { "started" };
    Ok(Json(CreateAnswer {
        success: true,
        message: format!("{message} as instance {}", started.instance_id),
        sandbox_id,
        instance_id: started.instance_id,
        created_at: if started.started_at_ms == 0 { now_ms() } else { started.started_at_ms } / 1000,
    }))
}

async fn delete(State(agent): State<Arc<Agent>>, bytes: Bytes) -> Result<Json<Outcome>, Failed> {
    let instance_id = body::<DeleteBody>(&bytes)?.sandbox_id;
    let request = DeleteRequest { instance_id, remove_logs: true, ..Default::default() };
    let tracker = agent.tracker.clone();
    let deleted = tracker.spawn(async move { agent.delete(request).await }).await;
    let gone = deleted.map_err(|error| Error::Internal(error.to_string()))??;
    let message = if gone { "nothing of it is left" } else { "its stop has begun" };
    Ok(Json(Outcome { success: true, message: message.to_owned() }))
}

async fn status(State(agent): State<Arc<Agent>>) -> Json<StatusAnswer> {
    let snapshot = agent.snapshot();
    let info = snapshot.agent.unwrap_or_default();
    Json(StatusAnswer {
        agent_id: info.name,
        node_name: info.node,
        capacity: info.capacity,
        allocated: snapshot.used_slots,
        images: snapshot.images,
        sandbox_statuses: snapshot.instances.into_iter().map(sandbox_status).collect(),
    })
}

fn sandbox_status(instance: Instance) -> SandboxStatus {
    let phase = match (instance.phase(), instance.reason.as_str(), instance.exit_code) {
        (InstancePhase::Creating, ..) => "creating",
        (InstancePhase::Running, ..) => "running",
        // Asked for, and as good as over for whoever asked.
        (InstancePhase::Stopping, ..) => "terminated",
        (_, "Exited", Some(0)) => "stopped",
        (_, "Signaled", Some(143 | 137)) => "terminated",
        _ => "failed",
    };
    let message = match instance.phase() {
        InstancePhase::Stopping => "stopping".to_owned(),
        _ if instance.reason.is_empty() || instance.message.is_empty() => instance.reason + &instance.message,
        _ => format!("{}: {}", instance.reason, instance.message),
    };
    SandboxStatus {
        sandbox_id: if instance.alias.is_empty() { instance.instance_id.clone() } else { instance.alias },
        claim_uid: instance.claim.unwrap_or_default().uid,
        phase,
        message,
        created_at: instance.created_at_ms / 1000,
        instance_id: instance.instance_id,
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LogsQuery {
    #[serde(default)]
    sandbox_id: String,
    #[serde(default)]
    follow: bool,
    tail: Option<i64>,
}

async fn logs(State(agent): State<Arc<Agent>>, Query(query): Query<LogsQuery>) -> Result<Response, Failed> {
    if query.sandbox_id.is_empty() {
        return Err(Error::from(Invalid::new("sandboxId", "must not be empty")).into());
    }
    let request = LogsRequest {
        instance_id: query.sandbox_id,
        follow: query.follow,
        tail_lines: query.tail,
        ..Default::default()
    };
    let text = agent.logs(&request).await?.map(|chunk| {
        let chunk = chunk.map_err(|status| std::io::Error::other(status.message().to_owned()))?;
        let mut text = Vec::new();
        for line in chunk.lines {
            text.extend_from_slice(&line.text);
            if !line.partial {
                text.push(b'\n');
            }
        }
        Ok::<_, std::io::Error>(Bytes::from(text))
    });
    let kind = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
    Ok((kind, Body::from_stream(text)).into_response())
}

async fn metrics(State(agent): State<Arc<Agent>>) -> Response {
    let kind = [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")];
    (kind, agent.metrics_text()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(phase: InstancePhase, reason: &str, exit_code: Option<i32>) -> Instance {
        Instance { phase: phase.into(), reason: reason.into(), exit_code, ..Default::default() }
    }

    #[test]
    fn phases_have_the_words_of_the_interface() {
        let word = |phase, reason, code| sandbox_status(instance(phase, reason, code)).phase;
        assert_eq!(word(InstancePhase::Creating, "PullingImage", None), "creating");
        assert_eq!(word(InstancePhase::Running, "", None), "running");
        assert_eq!(word(InstancePhase::Stopping, "", None), "terminated");
        assert_eq!(word(InstancePhase::Ended, "Exited", Some(0)), "stopped");
        assert_eq!(word(InstancePhase::Ended, "Exited", Some(1)), "failed");
        assert_eq!(word(InstancePhase::Ended, "OOMKilled", Some(137)), "failed");
        assert_eq!(word(InstancePhase::Ended, "Signaled", Some(143)), "terminated");
    }

    #[test]
    fn a_body_of_the_go_client_is_understood() {
        let text = br#"{"sandbox":{"sandboxId":"s","claimUid":"","image":"busybox","cpu":"500m","memory":"256Mi",
            "command":null,"args":["a"],"env":{"A":"1"},"workingDir":""}}"#;
        let order = body::<CreateBody>(text).ok().unwrap().sandbox.order().unwrap();
        assert_eq!(order.spec.resources.cpu_millis, Some(500));
        assert_eq!(order.spec.resources.memory_bytes, Some(256 << 20));
        assert_eq!((order.binding.claim_uid.as_str(), order.generation), ("s", None));
        assert_eq!(order.binding.recreate_after_seconds, 0);
    }

    #[test]
    fn a_malformed_body_is_refused_with_the_reason() {
        for text in ["", "{", "[]", r#"{"sandbox":5}"#, r#"{"sandbox":{"memory":{}}}"#] {
            assert!(body::<CreateBody>(text.as_bytes()).is_err(), "{text}");
        }
        let text = br#"{"sandbox":{"sandboxId":"s","image":"i","memory":"lots"}}"#;
        let refused = body::<CreateBody>(text).ok().unwrap().sandbox.order();
        assert_eq!(refused.err().unwrap().field, "sandbox.memory");
    }
}
