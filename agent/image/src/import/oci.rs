//! OCI image layouts (OCI image specification, "Image layout").

use super::source::Source;
use super::{Found, FoundLayer};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::manifest::{Descriptor, Document, Manifest, choose, name_of};
use crate::reference::Reference;

/// An index may lead to an index, but not for ever.
const MAX_DEPTH: usize = 4;

pub(super) fn read(source: &Source, wanted: Option<&Reference>) -> Result<Found> {
    let what = source.name();
    let index = Document::parse(&format!("index.json of {what}"), &source.document("index.json")?)?;
    let entries = index.manifests.unwrap_or_default();
    let chosen = choose(what, &entries, wanted)?.clone();
    let mut names: Vec<String> =
        entries.iter().filter(|e| e.digest == chosen.digest).filter_map(name_of).map(|n| n.to_string()).collect();
    if names.is_empty() && source.file("manifest.json")?.is_some() {
        names = super::docker::names(source)?;
    }
    let manifest = manifest(source, chosen)?;
    let config = checked(source, &manifest.config)?;
    let layers = manifest
        .layers
        .into_iter()
        .map(|descriptor| {
            let file = blob_name(&descriptor)?;
            Ok(FoundLayer { descriptor, file, checked: true })
        })
        .collect::<Result<_>>()?;
    Ok(Found { digest: Some(manifest.digest), config, layers, names })
}

/// Follows indexes down to the manifest for this platform.
fn manifest(source: &Source, mut descriptor: Descriptor) -> Result<Manifest> {
    for _ in 0..MAX_DEPTH {
        let bytes = checked(source, &descriptor)?;
        let document = Document::parse(&format!("{} of {}", descriptor.digest, source.name()), &bytes)?;
        match document.manifests {
            Some(entries) => descriptor = choose(source.name(), &entries, None)?.clone(),
            None => return document.into_manifest(Digest::of(&bytes)),
        }
    }
    Err(Error::corrupt(source.name(), "its indexes lead to indexes without an end"))
}

/// The document that `descriptor` names, if it is the one.
fn checked(source: &Source, descriptor: &Descriptor) -> Result<Vec<u8>> {
    let bytes = source.document(&blob_name(descriptor)?)?;
    let digest = Digest::of(&bytes);
    if digest.as_str() != descriptor.digest || bytes.len() as u64 != descriptor.size {
        let why = format!("its blob {} has the digest {digest}", descriptor.digest);
        return Err(Error::corrupt(source.name(), why));
    }
    Ok(bytes)
}

fn blob_name(descriptor: &Descriptor) -> Result<String> {
    Ok(format!("blobs/sha256/{}", Digest::parse(&descriptor.digest)?.hex()))
}
