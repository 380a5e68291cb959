//! `docker save` archives as Docker wrote them up to 24, and as other tools still do. Newer ones are OCI layouts too.

use super::source::Source;
use super::{Found, FoundLayer};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::manifest::{Config, plain_layer, several};
use crate::reference::Reference;
use serde::Deserialize;

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

impl Entry {
    fn names(&self) -> Vec<Reference> {
        self.repo_tags.iter().flatten().filter_map(|tag| Reference::parse(tag).ok()).collect()
    }
}

pub(super) fn read(source: &Source, wanted: Option<&Reference>) -> Result<Found> {
    let entry = choose(source, entries(source)?, wanted)?;
    let names: Vec<String> = entry.names().iter().map(Reference::to_string).collect();
    let config = source.document(&entry.config)?;
    check_config_name(source, &entry.config, &config)?;
    let parsed = Config::parse(names.first().map_or(source.name(), String::as_str), &config)?;
    let files = entry.layers.unwrap_or_default();
    super::check_count(source.name(), parsed.diff_ids.len(), files.len())?;
    let layers = parsed
        .diff_ids
        .iter()
        .zip(files)
        .map(|(diff_id, file)| {
            let (_, size) = source.require(&file)?;
            Ok(FoundLayer { descriptor: plain_layer(diff_id, size), file, checked: false })
        })
        .collect::<Result<_>>()?;
    Ok(Found { digest: None, config, layers, names })
}

/// The names in the archive's manifest, if it holds one image.
pub(super) fn names(source: &Source) -> Result<Vec<String>> {
    match &entries(source)?[..] {
        [entry] => Ok(entry.names().iter().map(Reference::to_string).collect()),
        _ => Ok(Vec::new()),
    }
}

fn entries(source: &Source) -> Result<Vec<Entry>> {
    serde_json::from_slice(&source.document("manifest.json")?)
        .map_err(|error| Error::corrupt(format!("manifest.json of {}", source.name()), error))
}

fn choose(source: &Source, mut entries: Vec<Entry>, wanted: Option<&Reference>) -> Result<Entry> {
    if entries.len() > 1 {
        let named = |e: &Entry| wanted.is_some_and(|wanted| e.names().contains(wanted));
        match entries.iter().position(named) {
            Some(at) => return Ok(entries.swap_remove(at)),
            None => {
                let names = entries.iter().map(|e| e.names().first().map_or("<none>".into(), Reference::familiar));
                return Err(several(source.name(), names));
            }
        }
    }
    entries.pop().ok_or_else(|| Error::corrupt(source.name(), "it lists no image"))
}

/// The configuration's file is named by its digest: `<hex>.json` or `blobs/sha256/<hex>`.
fn check_config_name(source: &Source, file: &str, config: &[u8]) -> Result<()> {
    let last = file.rsplit('/').next().unwrap_or(file);
    let hex = last.strip_suffix(".json").unwrap_or(last);
    let digest = Digest::of(config);
    match Digest::parse(&format!("sha256:{hex}")) {
        Ok(named) if named != digest => {
            Err(Error::corrupt(source.name(), format!("its configuration {file} has the digest {digest}")))
        }
        _ => Ok(()),
    }
}
