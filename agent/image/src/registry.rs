//! A registry: who it is, how it is asked, and what its answers mean (OCI distribution specification).

use crate::credentials::credentials;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::manifest::{
    DOCKER_LIST, DOCKER_MANIFEST, Descriptor, Document, MAX_DOCUMENT, Manifest, OCI_INDEX, OCI_MANIFEST, choose,
};
use crate::reference::Reference;
use futures_util::TryStreamExt;
use oci_client::RegistryOperation;
use oci_client::client::{Client, ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth;
use reqwest::header::{ACCEPT, CONTENT_LENGTH};
use std::time::Duration;

/// A registry that does not answer is given up after this.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// So is one that stops in the middle.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// A manifest or configuration, which is small.
const DOCUMENT_TIMEOUT: Duration = Duration::from_secs(60);
/// What may be over in a moment is tried so often, with a pause that doubles.
pub(crate) const ATTEMPTS: u32 = 3;
pub(crate) const PAUSE: Duration = Duration::from_millis(300);
const MAX_DEPTH: usize = 4;
const USER_AGENT: &str = concat!("fast-sandbox/", env!("CARGO_PKG_VERSION"));

/// The registry of one image.
pub(crate) struct Registry {
    pub(crate) client: Client,
    /// For manifests, which the client would read to whatever end they have.
    http: reqwest::Client,
    scheme: &'static str,
    auth: RegistryAuth,
    pub(crate) reference: Reference,
}

impl Registry {
    pub(crate) fn new(reference: &Reference) -> Result<Self> {
        // Whoever installed a provider of cryptography has chosen; else it is ring.
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let insecure = std::env::var("FSB_INSECURE_REGISTRIES").unwrap_or_default();
        let plain = is_plain_http(reference, &insecure);
        let config = ClientConfig {
            protocol: if plain { ClientProtocol::Http } else { ClientProtocol::Https },
            connect_timeout: Some(CONNECT_TIMEOUT),
            read_timeout: Some(IDLE_TIMEOUT),
            user_agent: USER_AGENT,
            ..Default::default()
        };
        let client = Client::try_from(config).map_err(|error| failed(reference, error))?;
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(IDLE_TIMEOUT)
            .user_agent(USER_AGENT)
            .build()
            .map_err(|error| failed(reference, error))?;
        let scheme = if plain { "http" } else { "https" };
        Ok(Self { client, http, scheme, auth: credentials(reference.registry())?, reference: reference.clone() })
    }

    /// The manifest for this platform.
    pub(crate) async fn manifest(&self) -> Result<Manifest> {
        let name = self.reference.to_string();
        let mut digest = self.reference.digest().map(str::to_owned);
        for _ in 0..MAX_DEPTH {
            let bytes = self.retried(|| self.fetch_manifest(digest.as_deref())).await?;
            let found = Digest::of(&bytes);
            if let Some(wanted) = digest.filter(|wanted| *wanted != found.as_str()) {
                return Err(Error::corrupt(
                    name,
                    format!("the registry sent something else: {found} for the manifest {wanted}"),
                ));
            }
            let document = Document::parse(&format!("manifest of {name}"), &bytes)?;
            match document.manifests {
                Some(entries) => digest = Some(Digest::parse(&choose(&name, &entries, None)?.digest)?.to_string()),
                None => return document.into_manifest(found),
            }
        }
        Err(Error::corrupt(name, "its indexes lead to indexes without an end"))
    }

    /// A manifest as it is stored, of at most [`MAX_DOCUMENT`] bytes.
    async fn fetch_manifest(&self, digest: Option<&str>) -> Result<Vec<u8>, OciDistributionError> {
        let target = self.target(digest);
        // The client keeps what it learns here for the blobs.
        let token = self.client.auth(&target, &self.auth, RegistryOperation::Pull).await?;
        let which = target.digest().or(target.tag()).unwrap_or_default();
        let host = target.resolve_registry();
        let url = format!("{}://{host}/v2/{}/manifests/{which}", self.scheme, target.repository());
        let request =
            self.http.get(&url).header(ACCEPT, [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST].join(", "));
        let request = match (&token, &self.auth) {
            (Some(token), _) => request.bearer_auth(token),
            (None, RegistryAuth::Basic(user, password)) => request.basic_auth(user, Some(password)),
            (None, _) => request,
        };
        let response = request.send().await?;
        if !response.status().is_success() {
            let (code, message) = (response.status().as_u16(), response.status().to_string());
            return Err(OciDistributionError::ServerError { code, url, message });
        }
        let too_long =
            || OciDistributionError::SpecViolationError(format!("its manifest has more than {MAX_DOCUMENT} bytes"));
        let said = response.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if said.is_some_and(|length| length > MAX_DOCUMENT) {
            return Err(too_long());
        }
        let mut bytes = Vec::new();
        let mut body = response.bytes_stream();
        while let Some(chunk) = body.try_next().await? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() as u64 > MAX_DOCUMENT {
                return Err(too_long());
            }
        }
        Ok(bytes)
    }

    /// A configuration.
    pub(crate) async fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
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

    pub(crate) fn target(&self, digest: Option<&str>) -> oci_client::Reference {
        let (registry, repository) = (self.reference.registry().to_owned(), self.reference.repository().to_owned());
        match (digest.or(self.reference.digest()), self.reference.tag()) {
            (Some(digest), _) => oci_client::Reference::with_digest(registry, repository, digest.to_owned()),
            (None, tag) => oci_client::Reference::with_tag(registry, repository, tag.unwrap_or("latest").to_owned()),
        }
    }
}

pub(crate) fn described(descriptor: &Descriptor) -> OciDescriptor {
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
pub(crate) fn is_lasting(error: &OciDistributionError) -> bool {
    match error {
        OciDistributionError::RequestError(_) | OciDistributionError::IoError(_) => false,
        OciDistributionError::ServerError { code, .. } => *code < 500 && *code != 429,
        _ => true,
    }
}

/// In the user's words.
pub(crate) fn explain(error: &OciDistributionError) -> String {
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
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
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

pub(crate) fn failed(reference: &Reference, why: impl ToString) -> Error {
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
