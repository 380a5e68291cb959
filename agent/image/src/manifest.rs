//! The JSON documents of images, and which manifest of several is ours. Pure.

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::image::{ImageConfig, Import, platform};
use crate::reference::Reference;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// The most that one of these documents may have, in bytes.
pub(crate) const MAX_DOCUMENT: u64 = 4 << 20;
/// overlayfs takes 500 lower directories (OVL_MAX_STACK).
const MAX_LAYERS: usize = 500;

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Descriptor {
    pub(crate) media_type: String,
    pub(crate) digest: String,
    pub(crate) size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) annotations: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<Platform>,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct Platform {
    pub(crate) architecture: String,
    pub(crate) os: String,
}

/// An index or a manifest: registries and layouts serve both in one place.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Document {
    pub(crate) manifests: Option<Vec<Descriptor>>,
    pub(crate) config: Option<Descriptor>,
    pub(crate) layers: Option<Vec<Descriptor>>,
}

/// A manifest that says which blobs make an image.
#[derive(Debug, Clone)]
pub(crate) struct Manifest {
    pub(crate) digest: Digest,
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

impl Document {
    pub(crate) fn parse(what: &str, bytes: &[u8]) -> Result<Self> {
        serde_json::from_slice(bytes).map_err(|error| Error::corrupt(what, error))
    }

    /// The manifest that it is, checked for what this store can take.
    pub(crate) fn into_manifest(self, digest: Digest) -> Result<Manifest> {
        let what = format!("manifest {}", digest.short());
        let (Some(config), Some(layers)) = (self.config, self.layers) else {
            return Err(Error::corrupt(what, "it has no config or no layers"));
        };
        if !matches!(config.media_type.as_str(), "" | OCI_CONFIG | DOCKER_CONFIG) {
            let kind: String = config.media_type.chars().take(100).collect();
            return Err(Error::Invalid(format!("{what} is not a container image but {kind:?}")));
        }
        if layers.is_empty() || layers.len() > MAX_LAYERS {
            return Err(Error::corrupt(
                what,
                format!("it has {} layers, 1 to {MAX_LAYERS} are possible", layers.len()),
            ));
        }
        Digest::parse(&config.digest)?;
        for layer in &layers {
            Digest::parse(&layer.digest)?;
        }
        Ok(Manifest { digest, config, layers })
    }
}

/// The name that a layout's entry carries, if it is more than a tag.
pub(crate) fn name_of(descriptor: &Descriptor) -> Option<Reference> {
    let annotations = descriptor.annotations.as_ref()?;
    let text =
        annotations.get("io.containerd.image.name").or_else(|| annotations.get("org.opencontainers.image.ref.name"))?;
    // Tools write either a whole reference there or the bare tag.
    let bare_tag = !text.contains(['/', ':', '@'])
        && (text == "latest" || text.trim_start_matches('v').starts_with(|c: char| c.is_ascii_digit()));
    if bare_tag { None } else { Reference::parse(text).ok() }
}

/// Picks the one image out of `entries`: that of the wanted name if one carries it, and that of this platform.
pub(crate) fn choose<'e>(what: &str, entries: &'e [Descriptor], wanted: Option<&Reference>) -> Result<&'e Descriptor> {
    let mut images: Vec<&Descriptor> = entries
        .iter()
        .filter(|e| !e.platform.as_ref().is_some_and(|p| p.os == "unknown" || p.architecture == "unknown"))
        .collect();
    if images.is_empty() {
        return Err(Error::corrupt(what, "it lists no image"));
    }
    if let Some(wanted) = wanted {
        let named: Vec<_> = images.iter().copied().filter(|e| name_of(e).as_ref() == Some(wanted)).collect();
        if !named.is_empty() {
            images = named;
        }
    }
    let distinct: BTreeSet<&str> = images.iter().map(|e| e.digest.as_str()).collect();
    let names: BTreeSet<String> = images.iter().filter_map(|e| name_of(e)).map(|n| n.familiar()).collect();
    if names.len() > 1 && distinct.len() > 1 {
        return Err(several(what, names));
    }
    let (os, architecture) = platform();
    let fits = |e: &&Descriptor| e.platform.as_ref().is_some_and(|p| p.os == os && p.architecture == architecture);
    if let Some(image) = images.iter().copied().find(fits) {
        return Ok(image);
    }
    if let Some(image) = images.iter().copied().find(|e| e.platform.is_none()) {
        return Ok(image);
    }
    let found: BTreeSet<String> =
        images.iter().filter_map(|e| e.platform.as_ref()).map(|p| format!("{}/{}", p.os, p.architecture)).collect();
    Err(wrong_platform(what, &found.into_iter().collect::<Vec<_>>().join(", ")))
}

pub(crate) fn several(what: &str, names: impl IntoIterator<Item = String>) -> Error {
    let names = names.into_iter().collect::<Vec<_>>().join(", ");
    Error::Invalid(format!("{what} holds several images: {names}; hint: give one of these names as the reference"))
}

fn wrong_platform(reference: &str, found: &str) -> Error {
    let (os, architecture) = platform();
    let found = if found.is_empty() { "an unknown platform" } else { found };
    Error::Platform { reference: reference.into(), found: found.into(), wanted: format!("{os}/{architecture}") }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ConfigFile {
    architecture: Option<String>,
    os: Option<String>,
    config: Option<RunConfig>,
    rootfs: Option<RootFs>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RootFs {
    diff_ids: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RunConfig {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
    exposed_ports: Option<BTreeMap<String, Value>>,
}

/// A configuration that was read and found right for this machine.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) run: ImageConfig,
    /// Digests of the unpacked layers, the bottommost first.
    pub(crate) diff_ids: Vec<Digest>,
}

impl Config {
    /// Reads a configuration and refuses that of another platform.
    pub(crate) fn parse(reference: &str, bytes: &[u8]) -> Result<Self> {
        let what = || format!("configuration of {reference}");
        let file: ConfigFile = serde_json::from_slice(bytes).map_err(|error| Error::corrupt(what(), error))?;
        let (os, architecture) = platform();
        // Hand-made archives leave them out; then it is taken to be for this machine.
        let or = |given: Option<String>, ours: &str| given.filter(|g| !g.is_empty()).unwrap_or_else(|| ours.to_owned());
        let (file_os, file_architecture) = (or(file.os, os), or(file.architecture, architecture));
        if (file_os.as_str(), file_architecture.as_str()) != (os, architecture) {
            return Err(wrong_platform(reference, &format!("{file_os}/{file_architecture}")));
        }
        let diff_ids = file.rootfs.and_then(|rootfs| rootfs.diff_ids).unwrap_or_default();
        if diff_ids.is_empty() || diff_ids.len() > MAX_LAYERS {
            return Err(Error::corrupt(
                what(),
                format!("it has {} layers, 1 to {MAX_LAYERS} are possible", diff_ids.len()),
            ));
        }
        let diff_ids = diff_ids.iter().map(|id| Digest::parse(id)).collect::<Result<_>>()?;
        let run = file.config.unwrap_or_default();
        let mut ports: Vec<u16> = run
            .exposed_ports
            .unwrap_or_default()
            .keys()
            .filter_map(|port| port.strip_suffix("/tcp").unwrap_or(port).parse().ok())
            .collect();
        ports.sort_unstable();
        let run = ImageConfig {
            entrypoint: run.entrypoint.unwrap_or_default(),
            cmd: run.cmd.unwrap_or_default(),
            env: merge_env(run.env.unwrap_or_default()),
            working_dir: run.working_dir.unwrap_or_default(),
            user: run.user.unwrap_or_default(),
            architecture: file_architecture,
            os: file_os,
            exposed_ports: ports,
        };
        let words = run.entrypoint.iter().chain(&run.cmd).chain([&run.working_dir, &run.user]);
        if words.into_iter().any(|s| s.contains('\0'))
            || run.env.iter().any(|(k, v)| k.contains('\0') || v.contains('\0'))
        {
            return Err(Error::corrupt(what(), "a string has a NUL byte"));
        }
        Ok(Self { run, diff_ids })
    }
}

/// Each key once, at the place of its first, with the value of its last. A string without `=` is no variable.
fn merge_env(strings: Vec<String>) -> Vec<(String, String)> {
    let mut merged: Vec<(String, String)> = Vec::new();
    for string in strings {
        let Some((key, value)) = string.split_once('=').filter(|(key, _)| !key.is_empty()) else { continue };
        match merged.iter_mut().find(|(k, _)| k == key) {
            Some(entry) => entry.1 = value.to_owned(),
            None => merged.push((key.to_owned(), value.to_owned())),
        }
    }
    merged
}

/// The configuration document `bytes` with the changes of `import`.
pub(crate) fn change_config(reference: &str, bytes: &[u8], import: &Import) -> Result<Vec<u8>> {
    let what = || format!("configuration of {reference}");
    let mut file: Map<String, Value> = serde_json::from_slice(bytes).map_err(|error| Error::corrupt(what(), error))?;
    let run = file.entry("config").or_insert(Value::Null);
    if run.is_null() {
        *run = json!({});
    }
    let Some(run) = run.as_object_mut() else { return Err(Error::corrupt(what(), "config is not an object")) };
    if !import.entrypoint.is_empty() {
        run.insert("Entrypoint".into(), json!(import.entrypoint));
        run.remove("Cmd");
    }
    if !import.cmd.is_empty() {
        run.insert("Cmd".into(), json!(import.cmd));
    }
    if !import.env.is_empty() {
        let own: Vec<String> = match run.get("Env") {
            Some(Value::Array(own)) => own.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect(),
            _ => Vec::new(),
        };
        let merged = merge_env(own.into_iter().chain(import.env.iter().cloned()).collect());
        run.insert("Env".into(), merged.iter().map(|(k, v)| format!("{k}={v}")).collect());
    }
    if !import.working_dir.is_empty() {
        run.insert("WorkingDir".into(), json!(import.working_dir));
    }
    if !import.user.is_empty() {
        run.insert("User".into(), json!(import.user));
    }
    serde_json::to_vec(&file).map_err(|error| Error::corrupt(what(), error))
}

/// A configuration for the tar of a root file system.
pub(crate) fn make_config(diff_id: &Digest) -> Vec<u8> {
    let (os, architecture) = platform();
    let file = json!({
        "architecture": architecture, "os": os, "config": {},
        "rootfs": {"type": "layers", "diff_ids": [diff_id.as_str()]},
    });
    file.to_string().into_bytes()
}

/// The manifest of an image that came without one, or whose configuration was changed. Equal images get equal digests.
pub(crate) fn make_manifest(config: &[u8], layers: Vec<Descriptor>) -> Manifest {
    let config = Descriptor {
        media_type: OCI_CONFIG.into(),
        digest: Digest::of(config).to_string(),
        size: config.len() as u64,
        ..Default::default()
    };
    let document = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers});
    Manifest { digest: Digest::of(document.to_string().as_bytes()), config, layers }
}

/// The descriptor of an unpacked layer whose archive nobody named.
pub(crate) fn plain_layer(diff_id: &Digest, size: u64) -> Descriptor {
    Descriptor { media_type: OCI_LAYER.into(), digest: diff_id.to_string(), size, ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(digest: &str, platform: Option<(&str, &str)>, name: Option<&str>) -> Descriptor {
        Descriptor {
            digest: digest.into(),
            platform: platform.map(|(os, architecture)| Platform { os: os.into(), architecture: architecture.into() }),
            annotations: name.map(|n| BTreeMap::from([("org.opencontainers.image.ref.name".into(), n.into())])),
            ..Default::default()
        }
    }

    #[test]
    fn the_manifest_of_this_platform_is_chosen() {
        let ours = platform();
        let entries = [
            entry("a", Some(("linux", "s390x")), None),
            entry("b", Some(ours), None),
            entry("c", Some(("unknown", "unknown")), None),
        ];
        assert_eq!(choose("x", &entries, None).unwrap().digest, "b");
        let error = choose("x", &entries[..1], None).unwrap_err().to_string();
        assert!(error.contains("linux/s390x") && error.contains(ours.1), "{error}");
    }

    #[test]
    fn one_of_several_images_is_chosen_by_its_name() {
        let entries = [entry("a", None, Some("one:1")), entry("b", None, Some("two:1"))];
        let wanted = Reference::parse("two:1").unwrap();
        assert_eq!(choose("x", &entries, Some(&wanted)).unwrap().digest, "b");
        assert!(choose("x", &entries, None).unwrap_err().to_string().contains("one:1, two:1"));
    }

    #[test]
    fn changes_of_an_import_go_over_the_images_own_configuration() {
        let id = Digest::of(b"layer");
        let import = Import {
            entrypoint: vec!["/e".into()],
            env: vec!["A=2".into(), "B=3".into()],
            user: "me".into(),
            ..Default::default()
        };
        let own = json!({"config": {"Env": ["A=1", "C=4"], "Cmd": ["x"]}, "rootfs": {"diff_ids": [id.as_str()]}});
        let changed = change_config("x", own.to_string().as_bytes(), &import).unwrap();
        let config = Config::parse("x", &changed).unwrap().run;
        let env: Vec<_> = config.env.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(env, ["A=2", "C=4", "B=3"]);
        assert_eq!((config.entrypoint, config.cmd, config.user), (vec!["/e".into()], vec![], "me".into()));
    }

    #[test]
    fn a_configuration_may_hold_null_everywhere() {
        let id = Digest::of(b"layer");
        let text = json!({"config": {"Env": null, "Cmd": null, "ExposedPorts": {"80/tcp": {}, "53/udp": {}}},
            "rootfs": {"diff_ids": [id.as_str()]}, "os": null});
        assert_eq!(Config::parse("x", text.to_string().as_bytes()).unwrap().run.exposed_ports, [80]);
    }
}
