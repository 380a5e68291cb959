//! Builds archives, honest and other ones.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::io::Write;
use std::path::Path;
use tar::{EntryType, Header};

/// `sha256:…` of `bytes`.
pub(crate) fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}

/// A tar in the making. Names are written as they are given, whatever they are.
pub(crate) struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    pub(crate) fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    pub(crate) fn header(kind: EntryType, name: &str, mode: u32) -> Header {
        let mut header = Header::new_gnu();
        header.as_mut_bytes()[..name.len().min(100)].copy_from_slice(&name.as_bytes()[..name.len().min(100)]);
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(0);
        header
    }

    pub(crate) fn raw(mut self, mut header: Header, data: &[u8]) -> Self {
        header.set_cksum();
        self.0.append(&header, data).unwrap();
        self
    }

    /// Attributes for the next entry.
    pub(crate) fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        self.0.append_pax_extensions(records.iter().copied()).unwrap();
        self
    }

    pub(crate) fn file(self, name: &str, data: &[u8]) -> Self {
        self.file_with(name, data, |_| {})
    }

    pub(crate) fn file_with(self, name: &str, data: &[u8], change: impl Fn(&mut Header)) -> Self {
        let mut header = Self::header(EntryType::Regular, name, 0o644);
        header.set_size(data.len() as u64);
        change(&mut header);
        self.raw(header, data)
    }

    pub(crate) fn dir(self, name: &str) -> Self {
        self.raw(Self::header(EntryType::Directory, name, 0o755), b"")
    }

    pub(crate) fn link(self, kind: EntryType, name: &str, target: &str) -> Self {
        let mut header = Self::header(kind, name, 0o777);
        header.as_mut_bytes()[157..157 + target.len()].copy_from_slice(target.as_bytes());
        self.raw(header, b"")
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Self {
        self.link(EntryType::Symlink, name, target)
    }

    pub(crate) fn hard_link(self, name: &str, target: &str) -> Self {
        self.link(EntryType::Link, name, target)
    }

    pub(crate) fn device(self, kind: EntryType, name: &str, major: u32, minor: u32) -> Self {
        let mut header = Self::header(kind, name, 0o600);
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        self.raw(header, b"")
    }

    pub(crate) fn long_name(mut self, name: &str, data: &[u8]) -> Self {
        let mut header = Self::header(EntryType::Regular, "", 0o644);
        header.set_size(data.len() as u64);
        self.0.append_data(&mut header, name, data).unwrap();
        self
    }

    pub(crate) fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// A root file system with a shell's worth of files.
pub(crate) fn rootfs() -> Vec<u8> {
    Tar::new()
        .dir("./")
        .dir("bin")
        .file_with("bin/sh", b"#!", |h| h.set_mode(0o755))
        .dir("etc")
        .file("etc/passwd", b"root:x:0:0::/root:/bin/sh\nme:x:1000:100::/:\n")
        .file("etc/group", b"root:x:0:\nusers:x:100:\nwheel:x:10:root,me\n")
        .bytes()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

/// An image in pieces: a configuration, and layers as they are unpacked and as they are stored.
pub(crate) struct Image {
    pub(crate) config: Value,
    pub(crate) layers: Vec<Vec<u8>>,
    pub(crate) stored: Vec<Vec<u8>>,
}

pub(crate) fn architecture() -> &'static str {
    fsb_image::platform().1
}

impl Image {
    /// Layers, the bottommost first; every second one is compressed.
    pub(crate) fn new(layers: Vec<Vec<u8>>) -> Self {
        let ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
        let config = json!({
            "architecture": architecture(), "os": "linux",
            "config": {
                "Entrypoint": ["/entry"], "Cmd": ["a", "b"], "Env": ["PATH=/bin", "X=1"], "WorkingDir": "/work",
                "User": "me", "ExposedPorts": {"8080/tcp": {}},
            },
            "rootfs": {"type": "layers", "diff_ids": ids},
        });
        let stored = layers.iter().enumerate().map(|(i, layer)| match i % 3 {
            0 => layer.clone(),
            1 => gzip(layer),
            _ => zstd(layer),
        });
        Self { config, stored: stored.collect(), layers }
    }

    pub(crate) fn config_bytes(&self) -> Vec<u8> {
        self.config.to_string().into_bytes()
    }

    /// Manifest, and all blobs by digest.
    pub(crate) fn manifest(&self) -> (Vec<u8>, Vec<Vec<u8>>) {
        let config = self.config_bytes();
        // Media types lie, as they do in the field.
        let layers: Vec<Value> = self.stored.iter().map(|blob| json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest(blob), "size": blob.len(),
        })).collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(&config), "size": config.len()},
            "layers": layers,
        });
        (manifest.to_string().into_bytes(), std::iter::once(config).chain(self.stored.iter().cloned()).collect())
    }

    /// The files of an OCI layout.
    pub(crate) fn oci_files(&self, name: Option<&str>) -> Vec<(String, Vec<u8>)> {
        let (manifest, blobs) = self.manifest();
        let annotations = name.map_or(json!({}), |name| json!({"org.opencontainers.image.ref.name": name}));
        let index = json!({"schemaVersion": 2, "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest(&manifest),
            "size": manifest.len(), "annotations": annotations,
        }]});
        let mut files = vec![
            ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
            ("index.json".to_owned(), index.to_string().into_bytes()),
        ];
        for blob in blobs.into_iter().chain([manifest]) {
            files.push((format!("blobs/sha256/{}", &digest(&blob)[7..]), blob));
        }
        files
    }

    /// What `docker save` wrote up to version 24.
    pub(crate) fn docker_files(&self, names: &[&str]) -> Vec<(String, Vec<u8>)> {
        let config = self.config_bytes();
        let config_name = format!("{}.json", &digest(&config)[7..]);
        let layers: Vec<String> = (0..self.layers.len()).map(|i| format!("{i}/layer.tar")).collect();
        let manifest = json!([{"Config": config_name, "RepoTags": names, "Layers": layers}]);
        let mut files: Vec<(String, Vec<u8>)> = layers.into_iter().zip(self.layers.iter().cloned()).collect();
        files.push((config_name, config));
        files.push(("manifest.json".into(), manifest.to_string().into_bytes()));
        files
    }
}

pub(crate) fn tar_of(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    files.iter().fold(Tar::new(), |tar, (name, data)| tar.file(name, data)).bytes()
}

pub(crate) fn write_folder(folder: &Path, files: &[(String, Vec<u8>)]) {
    for (name, data) in files {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, data).unwrap();
    }
}
