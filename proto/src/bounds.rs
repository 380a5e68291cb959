//! How much one request may carry. Every field that repeats, is a map or has no length of its own has a bound here or
//! in [`crate::domain`], so that no claim, record or table grows without end, however many calls come.

use crate::domain::{MAX_STRINGS_BYTES, validate_label};
use crate::{Invalid, agent, fastpath};
use std::collections::BTreeMap;

/// Labels of one sandbox.
pub const MAX_LABELS: usize = 64;
/// Keys and values of one sandbox's labels together, in bytes.
pub const MAX_LABELS_BYTES: usize = 64 << 10;
/// Ports of one sandbox.
pub const MAX_PORTS: usize = 1024;
/// Instance ids in one call.
pub const MAX_INSTANCE_IDS: usize = 1024;
/// Images that an agent is told to keep paused containers for.
pub const MAX_WARM_IMAGES: usize = 256;
/// An image's reference, in bytes.
pub const MAX_IMAGE_BYTES: usize = 512;
/// The claim document that travels with a create, in bytes: an agent's record has to carry it in one message.
pub const MAX_DOCUMENT_BYTES: usize = 96 << 10;
/// Names, UIDs and aliases, in bytes: the longest name that Kubernetes gives.
pub const MAX_NAME_BYTES: usize = 253;
/// A request's id, in bytes.
pub const MAX_REQUEST_ID_BYTES: usize = 256;
/// An RFC 3339 time with more digits than anybody's clock has, in bytes.
pub const MAX_TIME_BYTES: usize = 64;
/// PATH_MAX without its NUL (path_resolution(7)).
pub const MAX_PATH_BYTES: usize = 4095;

/// A request of the wire that knows its bounds.
pub trait Bounded {
    /// Checks them. To be called before anything of the request is kept.
    ///
    /// # Errors
    /// The first field that is too large.
    fn check(&self) -> Result<(), Invalid>;
}

impl Bounded for fastpath::CreateRequest {
    /// All but what the [`crate::SandboxSpec`] checks.
    fn check(&self) -> Result<(), Invalid> {
        labels(&self.labels)?;
        short("request_id", &self.request_id, MAX_REQUEST_ID_BYTES)
    }
}

impl Bounded for fastpath::UpdateRequest {
    fn check(&self) -> Result<(), Invalid> {
        labels(&self.labels)?;
        match &self.update {
            Some(fastpath::update_request::Update::ResetRevision(revision)) => {
                short("reset_revision", revision, MAX_TIME_BYTES)
            }
            _ => Ok(()),
        }
    }
}

impl Bounded for fastpath::WatchRequest {
    fn check(&self) -> Result<(), Invalid> {
        short("sandbox_id", &self.sandbox_id, MAX_NAME_BYTES)
    }
}

impl Bounded for agent::CreateRequest {
    /// All but what the [`crate::SandboxSpec`] checks.
    fn check(&self) -> Result<(), Invalid> {
        claim(self.claim.as_ref())?;
        name("alias", &self.alias)?;
        short("request_id", &self.request_id, MAX_REQUEST_ID_BYTES)?;
        document(&self.claim_document)
    }
}

impl Bounded for agent::DeleteRequest {
    fn check(&self) -> Result<(), Invalid> {
        claim(self.claim.as_ref())?;
        name("instance_id", &self.instance_id)?;
        instance_ids("log_instance_ids", &self.log_instance_ids)
    }
}

impl Bounded for agent::UpdateRequest {
    fn check(&self) -> Result<(), Invalid> {
        claim(self.claim.as_ref())?;
        document(&self.claim_document)
    }
}

impl Bounded for agent::ForgetRequest {
    fn check(&self) -> Result<(), Invalid> {
        instance_ids("instance_ids", &self.instance_ids)
    }
}

impl Bounded for agent::RemoveLogsRequest {
    fn check(&self) -> Result<(), Invalid> {
        instance_ids("instance_ids", &self.instance_ids)
    }
}

impl Bounded for agent::WatchRequest {
    fn check(&self) -> Result<(), Invalid> {
        short("watcher", &self.watcher, MAX_NAME_BYTES)
    }
}

impl Bounded for agent::SetWarmImagesRequest {
    fn check(&self) -> Result<(), Invalid> {
        few("images", self.images.len(), MAX_WARM_IMAGES)?;
        self.images.iter().try_for_each(|image| short("images", image, MAX_IMAGE_BYTES))
    }
}

impl Bounded for agent::ImportImageRequest {
    fn check(&self) -> Result<(), Invalid> {
        short("path", &self.path, MAX_PATH_BYTES)?;
        short("reference", &self.reference, MAX_IMAGE_BYTES)?;
        short("working_dir", &self.working_dir, MAX_PATH_BYTES)?;
        short("user", &self.user, MAX_NAME_BYTES)?;
        // As for a sandbox's own: a program of the image could not be started with more.
        let strings = [("entrypoint", &self.entrypoint), ("cmd", &self.cmd), ("env", &self.env)];
        let mut bytes = 0;
        for (field, list) in strings {
            bytes += list.iter().map(|string| string.len() + 9).sum::<usize>();
            short_bytes(field, bytes, MAX_STRINGS_BYTES)?;
        }
        Ok(())
    }
}

impl Bounded for agent::PullImageRequest {
    fn check(&self) -> Result<(), Invalid> {
        short("reference", &self.reference, MAX_IMAGE_BYTES)
    }
}

impl Bounded for agent::RemoveImageRequest {
    fn check(&self) -> Result<(), Invalid> {
        short("reference", &self.reference, MAX_IMAGE_BYTES)
    }
}

/// Checks labels, those of a request or all that a sandbox would have.
pub fn labels(labels: &BTreeMap<String, String>) -> Result<(), Invalid> {
    few("labels", labels.len(), MAX_LABELS)?;
    short_bytes("labels", labels.iter().map(|(key, value)| key.len() + value.len()).sum(), MAX_LABELS_BYTES)?;
    labels.iter().try_for_each(|(key, value)| validate_label(key, value))
}

fn claim(claim: Option<&agent::Claim>) -> Result<(), Invalid> {
    let Some(claim) = claim else { return Ok(()) };
    name("claim.uid", &claim.uid)?;
    name("claim.name", &claim.name)?;
    name("claim.namespace", &claim.namespace)
}

fn name(field: &'static str, text: &str) -> Result<(), Invalid> {
    if text.len() > MAX_NAME_BYTES || text.chars().any(char::is_control) {
        return Err(Invalid::new(field, format!("must be at most {MAX_NAME_BYTES} bytes without control characters")));
    }
    Ok(())
}

fn document(document: &[u8]) -> Result<(), Invalid> {
    short_bytes("claim_document", document.len(), MAX_DOCUMENT_BYTES)
}

fn instance_ids(field: &'static str, ids: &[String]) -> Result<(), Invalid> {
    few(field, ids.len(), MAX_INSTANCE_IDS)?;
    ids.iter().try_for_each(|id| short(field, id, MAX_NAME_BYTES))
}

pub(crate) fn few(field: &'static str, count: usize, most: usize) -> Result<(), Invalid> {
    if count > most {
        return Err(Invalid::new(field, format!("must be at most {most}, are {count}")));
    }
    Ok(())
}

fn short(field: &'static str, text: &str, most: usize) -> Result<(), Invalid> {
    short_bytes(field, text.len(), most)
}

fn short_bytes(field: &'static str, bytes: usize, most: usize) -> Result<(), Invalid> {
    if bytes > most {
        return Err(Invalid::new(field, format!("must be at most {most} bytes long, is {bytes}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
