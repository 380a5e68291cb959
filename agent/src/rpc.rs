//! The gRPC interface: requests in, calls on [`Agent`], answers out.

use crate::disk;
use crate::error::Error;
use crate::images::image_error;
use crate::order::{self, Order};
use crate::start::{self, DEFAULT_DEADLINE, LONGEST_DEADLINE};
use crate::{Agent, lock, logs, stop};
use fsb_image::{Image, Import};
use fsb_proto::agent::agent_service_server::AgentService;
use fsb_proto::agent::*;
use fsb_proto::bounds::Bounded;
use fsb_proto::domain::{FailurePolicy, PullPolicy};
use fsb_proto::fastpath::LogChunk;
use futures_util::stream::{BoxStream, StreamExt};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

/// Time for calls that must be over soon.
const QUICK: Duration = Duration::from_secs(30);
/// Time for an import.
const IMPORT: Duration = Duration::from_secs(3600);

/// Serves the calls of controllers, of fsb-ctl and of the bench.
#[derive(Clone)]
pub(crate) struct Service(pub(crate) Arc<Agent>);

type Answer<T> = Result<Response<T>, Status>;

/// How long the caller waits, or the default.
fn deadline(metadata: &MetadataMap) -> Duration {
    fsb_rpc::timeout_of(metadata.as_ref()).unwrap_or(DEFAULT_DEADLINE).min(LONGEST_DEADLINE)
}

/// Runs what changes something apart from its caller, so that a client that goes away leaves nothing half done.
async fn detached<T: Send + 'static>(
    agent: &Agent,
    within: Duration,
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Status> {
    let work = agent.tracker.spawn(tokio::time::timeout(within, work));
    match work.await {
        Ok(Ok(result)) => Ok(result?),
        Ok(Err(_)) => Err(Error::Deadline(within).into()),
        Err(error) => Err(Error::Internal(error.to_string()).into()),
    }
}

#[tonic::async_trait]
impl AgentService for Service {
    async fn create(&self, request: Request<CreateRequest>) -> Answer<CreateResponse> {
        let within = deadline(request.metadata());
        let order = Order::from_wire(request.get_ref())?;
        let started = start::create(&self.0, order, within).await?;
        Ok(Response::new(CreateResponse {
            instance_id: started.instance_id,
            started_at_ms: started.started_at_ms,
            source: started.source.into(),
            existed: started.existed,
        }))
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Answer<DeleteResponse> {
        let (agent, request) = (self.0.clone(), request.into_inner());
        request.check()?;
        let gone = detached(&self.0, QUICK, async move { agent.delete(request).await }).await?;
        Ok(Response::new(DeleteResponse { gone }))
    }

    async fn update(&self, request: Request<UpdateRequest>) -> Answer<UpdateResponse> {
        let request = request.into_inner();
        request.check()?;
        let claim = request.claim.clone().unwrap_or_default();
        let instance = lock(&self.0.ledger)
            .find(&claim.uid, claim.generation)?
            .ok_or_else(|| Error::NotFound(format!("claim {:?} with UID {:?}", claim.name, claim.uid)))?;
        let policy = FailurePolicy::from_wire(request.failure_policy)?;
        let recovery = u32::try_from(request.recovery_timeout_seconds)
            .map_err(|_| fsb_proto::Invalid::new("recovery_timeout_seconds", "must not be negative"))?;
        {
            let mut state = instance.state();
            state.binding.recreate_after_seconds = order::recreate_after(policy, recovery);
            if !request.claim_document.is_empty() {
                state.binding.document = request.claim_document;
            }
        }
        let agent = self.0.clone();
        detached(&self.0, QUICK, async move {
            // Before it is bound the start path sends what it finds then.
            if instance.state().in_keeper {
                stop::keep_binding(agent, instance).await;
            }
            Ok(())
        })
        .await?;
        Ok(Response::new(UpdateResponse {}))
    }

    async fn forget(&self, request: Request<ForgetRequest>) -> Answer<ForgetResponse> {
        request.get_ref().check()?;
        let (agent, ids) = (self.0.clone(), request.into_inner().instance_ids);
        detached(&self.0, QUICK, async move {
            agent.forget(&ids).await;
            Ok(())
        })
        .await?;
        Ok(Response::new(ForgetResponse {}))
    }

    type WatchStream = BoxStream<'static, Result<Event, Status>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Answer<Self::WatchStream> {
        request.get_ref().check()?;
        let WatchRequest { watcher, controller } = request.into_inner();
        tracing::info!(watcher, controller, "watched");
        Ok(Response::new(self.0.watch(controller).boxed()))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Answer<Snapshot> {
        Ok(Response::new(self.0.snapshot()))
    }

    type LogsStream = BoxStream<'static, Result<LogChunk, Status>>;

    async fn logs(&self, request: Request<LogsRequest>) -> Answer<Self::LogsStream> {
        Ok(Response::new(self.0.logs(request.get_ref()).await?.boxed()))
    }

    async fn list_logs(&self, _: Request<ListLogsRequest>) -> Answer<ListLogsResponse> {
        let paths = self.0.config.paths.clone();
        Ok(Response::new(ListLogsResponse { logs: disk::work(move || logs::list(&paths)).await? }))
    }

    async fn remove_logs(&self, request: Request<RemoveLogsRequest>) -> Answer<RemoveLogsResponse> {
        request.get_ref().check()?;
        self.0.remove_logs(request.into_inner().instance_ids).await;
        Ok(Response::new(RemoveLogsResponse {}))
    }

    async fn set_warm_images(&self, request: Request<SetWarmImagesRequest>) -> Answer<SetWarmImagesResponse> {
        request.get_ref().check()?;
        self.0.pool.set_warm(request.into_inner().images);
        Ok(Response::new(SetWarmImagesResponse {}))
    }

    async fn import_image(&self, request: Request<ImportImageRequest>) -> Answer<ImageInfo> {
        let (agent, wire) = (self.0.clone(), request.into_inner());
        wire.check()?;
        if !wire.path.starts_with('/') {
            return Err(fsb_proto::Invalid::new("path", format!("must be absolute, is {:?}", wire.path)).into());
        }
        let import = Import {
            reference: wire.reference,
            entrypoint: wire.entrypoint,
            cmd: wire.cmd,
            env: wire.env,
            working_dir: wire.working_dir,
            user: wire.user,
        };
        let image = detached(&self.0, IMPORT, async move {
            let imported = agent.images.store.import(&wire.path, import).await;
            imported.map_err(|error| image_error(&wire.path, error))
        });
        Ok(Response::new(info(image.await?)))
    }

    type PullImageStream = BoxStream<'static, Result<PullProgress, Status>>;

    async fn pull_image(&self, request: Request<PullImageRequest>) -> Answer<Self::PullImageStream> {
        let (agent, wire) = (self.0.clone(), request.into_inner());
        wire.check()?;
        let policy = PullPolicy::from_wire(wire.policy)?;
        let (sender, receiver) = mpsc::channel(64);
        self.0.tracker.spawn(async move {
            let report = sender.clone();
            let progress = move |progress: fsb_image::Progress| {
                // A reader that is behind gets the next one: progress is for the eye.
                let _ = report.try_send(Ok(PullProgress {
                    layer: progress.layer,
                    done_bytes: progress.done_bytes as i64,
                    total_bytes: progress.total_bytes as i64,
                    image: None,
                }));
            };
            let pulled = tokio::select! {
                pulled = agent.images.store.pull(&wire.reference, policy, progress) => pulled,
                () = agent.shutdown.cancelled() => return,
            };
            let last = match pulled {
                Ok(image) => Ok(PullProgress { image: Some(info(image)), ..Default::default() }),
                Err(error) => Err(image_error(&wire.reference, error).into()),
            };
            let _ = sender.send(last).await;
        });
        Ok(Response::new(ReceiverStream::new(receiver).boxed()))
    }

    async fn list_images(&self, _: Request<ListImagesRequest>) -> Answer<ListImagesResponse> {
        let agent = self.0.clone();
        let images = disk::work(move || agent.images.store.list()).await?.map_err(|error| image_error("", error))?;
        Ok(Response::new(ListImagesResponse { images: images.into_iter().map(info).collect() }))
    }

    async fn remove_image(&self, request: Request<RemoveImageRequest>) -> Answer<RemoveImageResponse> {
        request.get_ref().check()?;
        let (agent, reference) = (self.0.clone(), request.into_inner().reference);
        let existed = detached(&self.0, QUICK, async move { agent.remove_image(&reference).await }).await?;
        Ok(Response::new(RemoveImageResponse { existed }))
    }

    async fn ping(&self, _: Request<PingRequest>) -> Answer<PingResponse> {
        Ok(Response::new(PingResponse {}))
    }
}

impl Agent {
    /// Takes a name from an image, and its paused containers, so that nothing of ours keeps it on the disk. Running
    /// sandboxes do, until they end: then `collect` finishes what this began.
    async fn remove_image(self: &Arc<Self>, reference: &str) -> Result<bool, Error> {
        let (agent, wanted) = (self.clone(), reference.to_owned());
        let image = disk::work(move || agent.images.store.resolve(&wanted)).await?;
        if let Some(image) = image.map_err(|error| image_error(reference, error))? {
            self.drop_stock(&image.digest);
        }
        self.images.store.remove(reference).await.map_err(|error| image_error(reference, error))
    }
}

fn info(image: Image) -> ImageInfo {
    ImageInfo {
        digest: image.digest,
        references: image.references,
        size_bytes: image.size_bytes as i64,
        created_ms: image.created_ms,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_callers_deadline_is_read_from_its_header() {
        let with = |value: &'static str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", value.parse().unwrap());
            deadline(&metadata)
        };
        assert_eq!(with("100m"), Duration::from_millis(100));
        assert_eq!(with("5S"), Duration::from_secs(5));
        assert_eq!(with("99999999H"), LONGEST_DEADLINE);
        for bad in ["", "S", "5", "x5S", "123456789S", "5Y"] {
            assert_eq!(with(bad), DEFAULT_DEADLINE, "{bad}");
        }
        assert_eq!(deadline(&MetadataMap::new()), DEFAULT_DEADLINE);
    }
}
