//! Pulling from registries (OCI distribution specification).
//!
//! A pull belongs to nobody who waits for it: it runs in a task of its own, all callers watch it, and it goes on when
//! they go away, so the next start finds the image.

use crate::credentials::credentials;
use crate::digest::Digest;
use crate::error::{At, Error, Result};
use crate::image::Image;
use crate::import::{check_count, record};
use crate::layer::{Expected, Layer};
use crate::lock::{Mode, lock};
use crate::manifest::{
    Config, DOCKER_LIST, DOCKER_MANIFEST, Descriptor, Document, MAX_DOCUMENT, Manifest, OCI_INDEX, OCI_MANIFEST, choose,
};
use crate::reference::Reference;
use crate::store::{Store, blocking};
use fsb_proto::domain::PullPolicy;
use futures_util::{StreamExt, TryStreamExt, stream};
use oci_client::client::{Client, ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth;
use std::collections::HashMap;
use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;

/// A registry that does not answer is given up after this.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// So is one that stops in the middle.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// A manifest or configuration, which is small.
const DOCUMENT_TIMEOUT: Duration = Duration::from_secs(60);
/// A whole pull.
const PULL_TIMEOUT: Duration = Duration::from_secs(3600);
/// What may be over in a moment is tried so often, with a pause that doubles.
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(300);
/// Layers that are downloaded at once.
const CONCURRENCY: usize = 3;
const MAX_DEPTH: usize = 4;

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

struct Registry {
    client: Client,
    auth: RegistryAuth,
    reference: Reference,
}

impl Registry {
    fn new(reference: &Reference) -> Result<Self> {
        // Whoever installed a provider of cryptography has chosen; else it is ring.
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let insecure = std::env::var("FSB_INSECURE_REGISTRIES").unwrap_or_default();
        let protocol = if is_plain_http(reference, &insecure) { ClientProtocol::Http } else { ClientProtocol::Https };
        let config = ClientConfig {
            protocol,
            connect_timeout: Some(CONNECT_TIMEOUT),
            read_timeout: Some(IDLE_TIMEOUT),
            user_agent: concat!("fast-sandbox/", env!("CARGO_PKG_VERSION")),
            ..Default::default()
        };
        let client = Client::try_from(config).map_err(|error| failed(reference, error))?;
        Ok(Self { client, auth: credentials(reference.registry())?, reference: reference.clone() })
    }

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
        let done = AtomicU64::new(0);
        let report = |layer: &str, bytes: u64| {
            let done_bytes = done.fetch_add(bytes, Ordering::Relaxed) + bytes;
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
        let mut layers: Vec<Layer> = Vec::new();
        for (diff_id, descriptor) in config.diff_ids.iter().zip(&manifest.layers) {
            let file = downloads.try_next().await?.expect("one for each layer");
            let what = format!("layer {} of {name}", diff_id.short());
            let blob = Some((Digest::parse(&descriptor.digest)?, descriptor.size));
            let expected = Expected { diff_id: Some(diff_id.clone()), blob };
            let (layer, left) = {
                let (store, mut quota) = (store.clone(), quota.clone());
                let missing = failed(&self.reference, format!("{what} vanished meanwhile; hint: try again"));
                blocking(move || {
                    let layer = store.ensure_layer(&what, &expected, &mut quota, || file.ok_or(missing))?;
                    Ok((layer, quota))
                })
                .await?
            };
            quota = left;
            layers.push(layer);
        }
        let (store, digest) = (store.clone(), manifest.digest);
        blocking(move || store.commit(digest.as_str(), record(config, &layers), &[name])).await
    }

    /// The manifest for this platform.
    async fn manifest(&self) -> Result<Manifest> {
        let name = self.reference.to_string();
        let mut digest = self.reference.digest().map(str::to_owned);
        for _ in 0..MAX_DEPTH {
            let bytes = self.retried(|| self.fetch_manifest(digest.as_deref())).await?;
            let found = Digest::of(&bytes);
            if let Some(wanted) = digest.filter(|wanted| *wanted != found.as_str()) {
                return Err(Error::corrupt(name, format!("the registry sent {found} for the manifest {wanted}")));
            }
            let document = Document::parse(&format!("manifest of {name}"), &bytes)?;
            match document.manifests {
                Some(entries) => digest = Some(Digest::parse(&choose(&name, &entries, None)?.digest)?.to_string()),
                None => return document.into_manifest(found),
            }
        }
        Err(Error::corrupt(name, "its indexes lead to indexes without an end"))
    }

    async fn fetch_manifest(&self, digest: Option<&str>) -> Result<bytes::Bytes, OciDistributionError> {
        let accepted = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST];
        self.client.pull_manifest_raw(&self.target(digest), &self.auth, &accepted).await.map(|(bytes, _)| bytes)
    }

    /// A configuration.
    async fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        if descriptor.size > MAX_DOCUMENT {
            let why = format!("its configuration has {} bytes, {MAX_DOCUMENT} are possible", descriptor.size);
            return Err(Error::corrupt(self.reference.to_string(), why));
        }
        let bytes = self
            .retried(|| async {
                let mut blob = self.client.pull_blob_stream(&self.target(None), &described(descriptor)).await?;
                let mut bytes = Vec::new();
                while let Some(chunk) = blob.stream.try_next().await? {
                    bytes.extend_from_slice(&chunk);
                    if bytes.len() as u64 > descriptor.size {
                        break;
                    }
                }
                Ok(bytes)
            })
            .await?;
        let found = Digest::of(&bytes);
        if found.as_str() != descriptor.digest {
            let why = format!("the registry sent {found} for the configuration {}", descriptor.digest);
            return Err(Error::corrupt(self.reference.to_string(), why));
        }
        Ok(bytes)
    }

    /// Downloads a layer into a file without a name. Its digest is checked as it is unpacked.
    async fn blob(&self, store: &Store, layer: &Descriptor, report: &impl Fn(&str, u64)) -> Result<File> {
        let tmp = store.directory().join("tmp");
        let mut attempt = 0;
        loop {
            attempt += 1;
            let file = tempfile::tempfile_in(&tmp).at("make a file in", &tmp)?;
            let mut done = 0;
            match self.download(layer, file, &mut done, report).await {
                Ok(file) => return Ok(file),
                Err(Broken::Store(error)) => return Err(Error::io("write into", &tmp, error)),
                Err(Broken::Registry(why, lasting)) if lasting || attempt == ATTEMPTS => {
                    return Err(failed(&self.reference, format!("layer {}: {why}", layer.digest)));
                }
                Err(Broken::Registry(why, _)) => {
                    tracing::debug!(image = %self.reference, layer = layer.digest, why, "a download is tried again");
                    // What this attempt had is downloaded once more.
                    report(&layer.digest, done.wrapping_neg());
                    tokio::time::sleep(PAUSE * 2u32.pow(attempt - 1)).await;
                }
            }
        }
    }

    async fn download(
        &self,
        layer: &Descriptor,
        file: File,
        done: &mut u64,
        report: &impl Fn(&str, u64),
    ) -> Result<File, Broken> {
        let broken = |error: OciDistributionError| Broken::Registry(explain(&error), is_lasting(&error));
        let blob = self.client.pull_blob_stream(&self.target(None), &described(layer)).await.map_err(broken)?;
        let mut blob = blob.stream;
        let mut file = tokio::fs::File::from_std(file);
        while let Some(chunk) = blob.next().await {
            let chunk = chunk.map_err(|error| Broken::Registry(chain(&error), false))?;
            file.write_all(&chunk).await.map_err(Broken::Store)?;
            *done += chunk.len() as u64;
            report(&layer.digest, chunk.len() as u64);
            if *done > layer.size {
                return Err(Broken::Registry(format!("the registry sends more than its {} bytes", layer.size), true));
            }
        }
        if *done < layer.size {
            return Err(Broken::Registry(format!("the registry sent {done} of its {} bytes", layer.size), false));
        }
        file.flush().await.map_err(Broken::Store)?;
        let mut file = file.into_std().await;
        std::io::Seek::rewind(&mut file).map_err(Broken::Store)?;
        Ok(file)
    }

    /// Tries what fails in a way that may pass.
    async fn retried<T, F>(&self, ask: impl Fn() -> F) -> Result<T>
    where
        F: Future<Output = Result<T, OciDistributionError>>,
    {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let (why, lasting) = match tokio::time::timeout(DOCUMENT_TIMEOUT, ask()).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => (explain(&error), is_lasting(&error)),
                Err(_) => (format!("no answer within {} seconds", DOCUMENT_TIMEOUT.as_secs()), true),
            };
            if lasting || attempt == ATTEMPTS {
                return Err(failed(&self.reference, why));
            }
            tokio::time::sleep(PAUSE * 2u32.pow(attempt - 1)).await;
        }
    }

    fn target(&self, digest: Option<&str>) -> oci_client::Reference {
        let (registry, repository) = (self.reference.registry().to_owned(), self.reference.repository().to_owned());
        match (digest.or(self.reference.digest()), self.reference.tag()) {
            (Some(digest), _) => oci_client::Reference::with_digest(registry, repository, digest.to_owned()),
            (None, tag) => oci_client::Reference::with_tag(registry, repository, tag.unwrap_or("latest").to_owned()),
        }
    }
}

/// Why a download broke off.
enum Broken {
    Registry(String, bool),
    Store(std::io::Error),
}

fn described(descriptor: &Descriptor) -> OciDescriptor {
    // Without its urls: they would let an image send us anywhere.
    OciDescriptor {
        media_type: descriptor.media_type.clone(),
        digest: descriptor.digest.clone(),
        size: i64::try_from(descriptor.size).unwrap_or(i64::MAX),
        ..Default::default()
    }
}

/// Loopback, and what the administrator named (hosts, with a port if need be, separated by commas).
fn is_plain_http(reference: &Reference, insecure: &str) -> bool {
    let host = reference.host();
    let loopback = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    loopback || insecure.split(',').map(str::trim).any(|named| named == reference.registry() || named == host)
}

/// Whether asking again is of no use.
fn is_lasting(error: &OciDistributionError) -> bool {
    match error {
        OciDistributionError::RequestError(_) | OciDistributionError::IoError(_) => false,
        OciDistributionError::ServerError { code, .. } => *code < 500 && *code != 429,
        _ => true,
    }
}

/// In the user's words.
fn explain(error: &OciDistributionError) -> String {
    match error {
        OciDistributionError::ImageManifestNotFoundError(_) => {
            "the registry has no such image; hint: check the name, and whether it needs credentials".into()
        }
        OciDistributionError::ServerError { code: 404, .. } => {
            "the registry has no such image; hint: check the name, and whether it needs credentials".into()
        }
        OciDistributionError::UnauthorizedError { .. }
        | OciDistributionError::AuthenticationFailure(_)
        | OciDistributionError::ServerError { code: 401 | 403, .. } => {
            "the registry refuses; hint: check the name, and put credentials into ~/.docker/config.json or the file \
             that FSB_REGISTRY_AUTH names"
                .into()
        }
        OciDistributionError::RegistryError { envelope, .. } => {
            let codes: Vec<String> = envelope.errors.iter().map(|e| format!("{:?} {}", e.code, e.message)).collect();
            format!("the registry says: {}; hint: check the name and the credentials", codes.join(", "))
        }
        OciDistributionError::DigestError(error) => format!("the registry sent something else: {error}"),
        other => chain(other),
    }
}

/// An error of a library with its causes: there the reason is mostly at the bottom.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

fn failed(reference: &Reference, why: impl ToString) -> Error {
    Error::Registry { reference: reference.to_string(), why: why.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_and_named_registries_are_spoken_to_without_tls() {
        let plain = |reference: &str, insecure: &str| is_plain_http(&Reference::parse(reference).unwrap(), insecure);
        for loopback in ["127.0.0.1:5000/a", "127.9.9.9/a", "localhost/a", "localhost:5000/a", "[::1]:5000/a"] {
            assert!(plain(loopback, ""), "{loopback}");
        }
        for other in ["a", "example.com/a", "10.0.0.1:5000/a", "localhost.example.com/a"] {
            assert!(!plain(other, ""), "{other}");
        }
        assert!(plain("reg.lan:5000/a", "x, reg.lan:5000"));
        assert!(plain("reg.lan:5000/a", "reg.lan"));
        assert!(!plain("reg.lan:5001/a", "reg.lan:5000"));
    }
}
