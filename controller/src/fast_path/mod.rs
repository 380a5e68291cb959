//! The Fast-Path service: takes a call apart, checks who calls, and hands it on.
//!
//! Whatever changes something runs in a task of its own and to its end, also when the client is gone: a hang-up never
//! leaves half a sandbox.

mod auth;
mod change;
mod create;
mod deadline;
mod logs;
mod retry;
mod watch;

pub use auth::Tokens;

use crate::claims::Key;
use crate::core::Core;
use fsb_proto::bounds::Bounded;
use fsb_proto::domain::{DEFAULT_NAMESPACE, validate_dns_name};
use fsb_proto::fastpath::fast_path_service_server::FastPathService;
use fsb_proto::fastpath::*;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use std::sync::{Arc, PoisonError};
use std::time::Instant;
use tokio::sync::oneshot;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};
use tracing::Instrument;

/// The service.
#[derive(Clone)]
pub struct FastPath {
    core: Arc<Core>,
    tokens: Option<Arc<Tokens>>,
}

impl FastPath {
    /// With tokens, every call needs one.
    pub fn new(core: Arc<Core>, tokens: Option<Arc<Tokens>>) -> Self {
        Self { core, tokens }
    }

    /// The request's namespace, if the caller may use it.
    fn namespace(&self, metadata: &MetadataMap, namespace: String) -> Result<String, Status> {
        let namespace = if namespace.is_empty() { DEFAULT_NAMESPACE.to_owned() } else { namespace };
        validate_dns_name("namespace", &namespace)?;
        if let Some(tokens) = &self.tokens {
            tokens.allow(metadata, Some(&namespace))?;
        }
        Ok(namespace)
    }

    /// `None` = every namespace, if the caller may see them all.
    fn namespaces(&self, metadata: &MetadataMap, namespace: String, all: bool) -> Result<Option<String>, Status> {
        if !all {
            return self.namespace(metadata, namespace).map(Some);
        }
        if let Some(tokens) = &self.tokens {
            tokens.allow(metadata, None)?;
        }
        Ok(None)
    }

    fn key(&self, metadata: &MetadataMap, namespace: String, name: &str) -> Result<Key, Status> {
        let namespace = self.namespace(metadata, namespace)?;
        validate_dns_name("sandbox_id", name)?;
        Ok(Key::new(&namespace, name))
    }

    /// Runs a change to its end, whether the client waits for it or not.
    async fn detached<T: Send + 'static>(
        &self,
        change: impl Future<Output = Result<T, Status>> + Send + 'static,
    ) -> Result<T, Status> {
        self.core
            .tracker
            .spawn(change.in_current_span())
            .await
            .map_err(|_| Status::internal("the call ended in a panic"))?
    }
}

pub(crate) fn not_found(key: &Key) -> Status {
    Status::not_found(format!("there is no sandbox {:?} in namespace {:?}", key.name, key.namespace))
}

#[tonic::async_trait]
impl FastPathService for FastPath {
    async fn create_sandbox(&self, request: Request<CreateRequest>) -> Result<Response<CreateResponse>, Status> {
        let (metadata, _, mut message) = request.into_parts();
        let deadline = Instant::now() + deadline::of(&metadata, self.core.timing.create_deadline);
        let namespace = self.namespace(&metadata, std::mem::take(&mut message.namespace))?;
        let (answer, result) = oneshot::channel();
        let create = create::run(self.core.clone(), namespace, message, deadline, answer);
        self.core.tracker.spawn(create.in_current_span());
        let claim = result.await.map_err(|_| Status::internal("the create ended in a panic"))??;
        let name = claim.key.name.to_string();
        Ok(Response::new(CreateResponse {
            sandbox_id: name.clone(),
            agent_pod: claim.status.agent.as_ref().map(|agent| agent.name.to_string()).unwrap_or_default(),
            endpoints: claim.endpoints(),
            sandbox_name: name,
        }))
    }

    async fn delete_sandbox(&self, request: Request<DeleteRequest>) -> Result<Response<DeleteResponse>, Status> {
        let (metadata, _, message) = request.into_parts();
        let key = self.key(&metadata, message.namespace, &message.sandbox_id)?;
        self.detached(change::delete(self.core.clone(), key, message.force)).await?;
        Ok(Response::new(DeleteResponse { success: true }))
    }

    async fn update_sandbox(&self, request: Request<UpdateRequest>) -> Result<Response<UpdateResponse>, Status> {
        let (metadata, _, mut message) = request.into_parts();
        let key = self.key(&metadata, std::mem::take(&mut message.namespace), &message.sandbox_id)?;
        let (sandbox, message) = self.detached(change::update(self.core.clone(), key, message)).await?;
        Ok(Response::new(UpdateResponse { success: true, message, sandbox: Some(sandbox) }))
    }

    async fn list_sandboxes(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let (metadata, _, message) = request.into_parts();
        let namespace = self.namespaces(&metadata, message.namespace, message.all_namespaces)?;
        let pass = |claim: &crate::claims::Claim| {
            namespace.as_ref().is_none_or(|namespace| **namespace == *claim.key.namespace)
        };
        let items = self.core.table.list(pass).into_iter().map(|(claim, persisted)| claim.to_info(persisted)).collect();
        Ok(Response::new(ListResponse { items }))
    }

    async fn get_sandbox(&self, request: Request<GetRequest>) -> Result<Response<SandboxInfo>, Status> {
        let (metadata, _, message) = request.into_parts();
        let key = self.key(&metadata, message.namespace, &message.sandbox_id)?;
        let (claim, persisted) = self.core.table.get(&key).ok_or_else(|| not_found(&key))?;
        Ok(Response::new(claim.to_info(persisted)))
    }

    type LogsStream = BoxStream<'static, Result<LogChunk, Status>>;

    async fn logs(&self, request: Request<LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        let (metadata, _, mut message) = request.into_parts();
        let key = self.key(&metadata, std::mem::take(&mut message.namespace), &message.sandbox_id)?;
        Ok(Response::new(logs::open(&self.core, &key, &message).await?.boxed()))
    }

    type WatchStream = ReceiverStream<Result<WatchEvent, Status>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let (metadata, _, message) = request.into_parts();
        message.check()?;
        let namespace = self.namespaces(&metadata, message.namespace, message.all_namespaces)?;
        let name = (!message.sandbox_id.is_empty()).then_some(message.sandbox_id);
        let place = self.core.watchers.admit(namespace.as_deref().unwrap_or_default())?;
        let events = watch::watch(self.core.clone(), watch::Filter { namespace, name }, place);
        Ok(Response::new(ReceiverStream::new(events)))
    }

    async fn list_agents(&self, request: Request<ListAgentsRequest>) -> Result<Response<ListAgentsResponse>, Status> {
        let mut items = Vec::new();
        for agent in self.core.agents.list() {
            let used = self.core.registry.used(&agent.name);
            let healthy = agent.healthy();
            let view = agent.view();
            if let Some(tokens) = &self.tokens
                && !tokens.sees(request.metadata(), &view.info.namespace)?
            {
                continue;
            }
            items.push(AgentSummary {
                name: agent.name.to_string(),
                namespace: view.info.namespace.clone(),
                pool: view.info.pool.clone(),
                node: view.info.node.clone(),
                capacity: view.info.capacity,
                used: used as i32,
                healthy,
                cordoned: view.info.cordoned,
                address: agent.target.to_string(),
                ip: view.info.ip.clone(),
                images: view.images.clone(),
                paused: view.stock.iter().map(|(_, paused)| *paused as i32).sum(),
                version: view.info.version.clone(),
                no_room: view.no_room.clone(),
            });
        }
        let mut unreadable_claims = Vec::new();
        for key in self.core.unreadable.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            if let Some(tokens) = &self.tokens
                && !tokens.sees(request.metadata(), &key.namespace)?
            {
                continue;
            }
            unreadable_claims.push(key.to_string());
        }
        Ok(Response::new(ListAgentsResponse { items, unreadable_claims }))
    }
}
