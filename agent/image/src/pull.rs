//! Pulling from registries (OCI distribution specification).
//!
//! A pull belongs to nobody who waits for it: it runs in a task of its own, all callers watch it, and it goes on when
//! they go away, so the next start finds the image.

use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::image::Image;
use crate::import::{check_count, record};
use crate::layer::{Expected, Layer};
use crate::lock::{Mode, lock};
use crate::manifest::{Config, Descriptor, Manifest};
use crate::reference::Reference;
use crate::registry::{Registry, failed};
use crate::store::{Store, blocking};
use fsb_proto::domain::PullPolicy;
use futures_util::{StreamExt, TryStreamExt, stream};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;

/// A whole pull.
const PULL_TIMEOUT: Duration = Duration::from_secs(3600);
/// Layers that are downloaded at once.
const CONCURRENCY: usize = 3;

/// How far a pull is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Digest of the layer that moved last; empty at the beginning.
    pub layer: String,
    /// Bytes of all layers downloaded so far.
    pub done_bytes: u64,
    /// Bytes of all layers that have to be downloaded; 0 = not known yet.
    pub total_bytes: u64,
}

/// The pulls of this process, by full reference.
#[derive(Debug, Default)]
pub(crate) struct Pulls(Mutex<HashMap<String, watch::Receiver<State>>>);

#[derive(Debug, Clone)]
enum State {
    Running(Progress),
    Done(Result<Box<Image>, Arc<Error>>),
}

pub(crate) async fn pull(
    store: &Store,
    reference: &str,
    policy: PullPolicy,
    progress: impl Fn(Progress),
) -> Result<Image> {
    if policy != PullPolicy::Always
        && let Some(image) = store.resolve(reference)?
    {
        return Ok(image);
    }
    if policy == PullPolicy::Never {
        return Err(Error::NotFound { reference: reference.to_owned() });
    }
    let mut state = watch(store, Reference::parse(reference)?, policy);
    loop {
        let now = state.borrow_and_update().clone();
        match now {
            State::Running(now) => progress(now),
            State::Done(result) => return result.map(|image| *image).map_err(Error::Shared),
        }
        if state.changed().await.is_err() {
            return Err(Error::Registry { reference: reference.to_owned(), why: "the pull was broken off".into() });
        }
    }
}

/// The running pull of `reference`, or a new one.
fn watch(store: &Store, reference: Reference, policy: PullPolicy) -> watch::Receiver<State> {
    let key = reference.to_string();
    let mut pulls = store.pulls().0.lock().unwrap_or_else(|e| e.into_inner());
    if let Some(running) = pulls.get(&key).filter(|running| running.has_changed().is_ok()) {
        return running.clone();
    }
    let (state, watching) = watch::channel(State::Running(Progress::default()));
    pulls.insert(key.clone(), watching.clone());
    let store = store.clone();
    tokio::spawn(async move {
        let pulled = match tokio::time::timeout(PULL_TIMEOUT, run(&store, &reference, policy, &state)).await {
            Ok(pulled) => pulled,
            Err(_) => Err(failed(&reference, format!("it took more than {} minutes", PULL_TIMEOUT.as_secs() / 60))),
        };
        if let Err(error) = &pulled {
            tracing::warn!(image = %reference, %error, "a pull failed");
        }
        store.pulls().0.lock().unwrap_or_else(|e| e.into_inner()).remove(&key);
        state.send_replace(State::Done(pulled.map(Box::new).map_err(Arc::new)));
    });
    watching
}

/// One pull, alone among all processes.
async fn run(store: &Store, reference: &Reference, policy: PullPolicy, state: &watch::Sender<State>) -> Result<Image> {
    let name = format!("pull-{}", Digest::of(reference.to_string().as_bytes()).hex());
    let locking = store.clone();
    let held = blocking(move || {
        let collector = locking.hold_collector()?;
        Ok((collector, lock(&locking.locks().join(name), Mode::Exclusive)?))
    })
    .await?;
    if policy == PullPolicy::Missing
        && let Some(image) = store.resolve(&reference.to_string())?
    {
        return Ok(image);
    }
    let registry = Registry::new(reference)?;
    let pulled = registry.pull(store, state).await;
    drop(held);
    let sweeping = store.clone();
    blocking(move || {
        sweeping.sweep_quietly();
        Ok(())
    })
    .await?;
    pulled
}

impl Registry {
    /// Brings the image here. Layers of a pull that the registry broke off stay for a while, for the next one.
    async fn pull(&self, store: &Store, state: &watch::Sender<State>) -> Result<Image> {
        let name = self.reference.to_string();
        let manifest = self.manifest().await?;
        let config = self.document(&manifest.config).await?;
        let config = Config::parse(&name, &config)?;
        check_count(&name, config.diff_ids.len(), manifest.layers.len())?;
        let mut missing = Vec::new();
        for (diff_id, descriptor) in config.diff_ids.iter().zip(&manifest.layers) {
            missing.push(store.layer(diff_id)?.is_none().then(|| descriptor.clone()));
        }
        let total = missing.iter().flatten().fold(0u64, |sum, layer| sum.saturating_add(layer.size));
        if total > store.options().max_bytes {
            return Err(store.quota().too_many_bytes());
        }
        let mut layers = Vec::new();
        if let Err(error) = self.layers(store, &manifest, &config, missing, total, &mut layers, state).await {
            if error.kind() == ErrorKind::Unavailable {
                store.keep_layers(&layers);
            }
            return Err(error);
        }
        let (store, digest) = (store.clone(), manifest.digest);
        blocking(move || {
            let image = store.commit(digest.as_str(), record(config, &layers), &[name])?;
            store.release_layers(&layers);
            Ok(image)
        })
        .await
    }

    /// Downloads what is missing and unpacks it in order, into `layers`.
    #[allow(clippy::too_many_arguments, reason = "a step of one function")]
    async fn layers(
        &self,
        store: &Store,
        manifest: &Manifest,
        config: &Config,
        missing: Vec<Option<Descriptor>>,
        total: u64,
        layers: &mut Vec<Layer>,
        state: &watch::Sender<State>,
    ) -> Result<()> {
        let done = AtomicU64::new(0);
        let report = |layer: &str, bytes: u64| {
            let done_bytes = done.fetch_add(bytes, Ordering::Relaxed).wrapping_add(bytes);
            state.send_replace(State::Running(Progress { layer: layer.to_owned(), done_bytes, total_bytes: total }));
        };
        let mut downloads = stream::iter(missing)
            .map(|layer| async {
                match layer {
                    Some(layer) => self.blob(store, &layer, &report).await.map(Some),
                    None => Ok(None),
                }
            })
            .buffered(CONCURRENCY);
        let mut quota = store.quota();
        for (diff_id, descriptor) in config.diff_ids.iter().zip(&manifest.layers) {
            let file = downloads.try_next().await?.expect("one for each layer");
            let what = format!("layer {} of {}", diff_id.short(), self.reference);
            let digest = Digest::parse(&descriptor.digest)?;
            let expected = Expected { diff_id: Some(diff_id.clone()), blob: Some((digest.clone(), descriptor.size)) };
            let (layer, left) = {
                let (store, mut quota) = (store.clone(), quota.clone());
                let missing = failed(&self.reference, format!("{what} vanished meanwhile; hint: try again"));
                blocking(move || {
                    let layer = store.ensure_layer(&what, &expected, &mut quota, || file.ok_or(missing));
                    // Unpacked it is not needed, and damaged it is of no use.
                    store.drop_part(&digest);
                    Ok((layer?, quota))
                })
                .await?
            };
            quota = left;
            layers.push(layer);
        }
        Ok(())
    }
}
