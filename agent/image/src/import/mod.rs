//! Import of image archives: which format it is, what it holds, and into the store with it.

mod docker;
mod oci;
mod source;

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::image::{Image, Import};
use crate::index::Record;
use crate::layer::{Expected, Layer};
use crate::manifest::{Config, Descriptor, change_config, make_config, make_manifest, plain_layer};
use crate::reference::Reference;
use crate::store::{Store, now_ms};
use crate::unpack::Quota;
use source::Source;
use std::path::Path;

/// What an archive says about the one image that was chosen from it.
struct Found {
    /// Digest of its manifest, if it has one.
    digest: Option<Digest>,
    /// The configuration document, its digest checked.
    config: Vec<u8>,
    /// The bottommost first.
    layers: Vec<FoundLayer>,
    /// Full references.
    names: Vec<String>,
}

struct FoundLayer {
    descriptor: Descriptor,
    /// Name of its archive in the source.
    file: String,
    /// Whether the descriptor's digest and size are those of that file.
    checked: bool,
}

/// Imports what lies at `path`.
pub(crate) fn import(store: &Store, path: &Path, import: &Import) -> Result<Image> {
    import.validate()?;
    let wanted = match import.reference.as_str() {
        "" => None,
        reference => Some(Reference::parse(reference)?),
    };
    if wanted.as_ref().is_some_and(|reference| reference.digest().is_some()) {
        return Err(Error::Invalid(format!("{} cannot be given as a name: it has a digest", import.reference)));
    }
    let _held = store.hold_collector()?;
    let mut quota = store.quota();
    let source = Source::open(store, path, &quota)?;
    let found = if source.is_oci_layout()? {
        oci::read(&source, wanted.as_ref())?
    } else if source.is_docker_archive()? {
        docker::read(&source, wanted.as_ref())?
    } else {
        let Some(archive) = source.root_filesystem() else {
            return Err(Error::UnknownFormat { path: path.into(), why: "the folder is not an OCI layout".into() });
        };
        let Some(name) = wanted else { return Err(nameless(&source)) };
        let layer = store.ensure_layer(source.name(), &Expected::default(), &mut quota, || Ok(archive))?;
        let descriptor = plain_layer(&layer.diff_id, layer.archive_bytes);
        return commit(
            store,
            import,
            &make_config(&layer.diff_id),
            None,
            vec![descriptor],
            &[layer],
            &[name.to_string()],
        );
    };
    let names = wanted.map_or(found.names.clone(), |wanted| vec![wanted.to_string()]);
    if names.is_empty() {
        return Err(nameless(&source));
    }
    let layers = layers(store, &source, &found, &names[0], &mut quota)?;
    let descriptors = found.layers.into_iter().map(|layer| layer.descriptor).collect();
    commit(store, import, &found.config, found.digest, descriptors, &layers, &names)
}

fn nameless(source: &Source) -> Error {
    Error::Invalid(format!("{} has no name for the image; hint: give it one as the reference", source.name()))
}

fn layers(store: &Store, source: &Source, found: &Found, name: &str, quota: &mut Quota) -> Result<Vec<Layer>> {
    let config = Config::parse(name, &found.config)?;
    check_count(name, config.diff_ids.len(), found.layers.len())?;
    let mut layers = Vec::new();
    for (diff_id, layer) in config.diff_ids.iter().zip(&found.layers) {
        let blob = match layer.checked {
            true => Some((Digest::parse(&layer.descriptor.digest)?, layer.descriptor.size)),
            false => None,
        };
        let what = format!("layer {} of {}", diff_id.short(), source.name());
        let expected = Expected { diff_id: Some(diff_id.clone()), blob };
        layers.push(store.ensure_layer(&what, &expected, quota, || source.require(&layer.file).map(|(read, _)| read))?);
    }
    Ok(layers)
}

/// Configuration and manifest must speak of the same layers.
pub(crate) fn check_count(name: &str, in_config: usize, in_manifest: usize) -> Result<()> {
    if in_config == in_manifest {
        return Ok(());
    }
    Err(Error::corrupt(name, format!("its configuration has {in_config} layers, its manifest {in_manifest}")))
}

/// Writes the image into the index. Without a manifest of its own, or with a changed configuration, it gets one.
fn commit(
    store: &Store,
    import: &Import,
    config: &[u8],
    digest: Option<Digest>,
    descriptors: Vec<Descriptor>,
    layers: &[Layer],
    names: &[String],
) -> Result<Image> {
    let (config, digest) = match digest {
        Some(digest) if !import.changes_config() => (config.to_vec(), digest),
        _ => {
            let config = match import.changes_config() {
                true => change_config(&names[0], config, import)?,
                false => config.to_vec(),
            };
            let manifest = make_manifest(&config, descriptors);
            (config, manifest.digest)
        }
    };
    let config = Config::parse(&names[0], &config)?;
    store.commit(digest.as_str(), record(config, layers), names)
}

pub(crate) fn record(config: Config, layers: &[Layer]) -> Record {
    Record {
        config: config.run,
        layers: layers.iter().map(|layer| layer.diff_id.hex().to_owned()).collect(),
        size_bytes: layers.iter().map(|layer| layer.size_bytes).sum(),
        created_ms: now_ms(),
    }
}
