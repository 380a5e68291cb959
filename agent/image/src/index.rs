//! The index file: which images and names there are. Replaced as a whole, under a lock; read without one.

use crate::digest::is_hex;
use crate::error::{At, Error, Result};
use crate::image::{Image, ImageConfig};
use crate::reference::{Reference, digest_prefix};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const VERSION: u32 = 1;

/// What is in the file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Index {
    version: u32,
    /// By manifest digest. One without a name waits for its users to end.
    pub(crate) images: BTreeMap<String, Record>,
    /// Full reference → manifest digest.
    pub(crate) references: BTreeMap<String, String>,
}

/// One image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) config: ImageConfig,
    /// Hexadecimal digits of the layers' digests, the bottommost first.
    pub(crate) layers: Vec<String>,
    pub(crate) size_bytes: u64,
    pub(crate) created_ms: i64,
}

/// Tells one version of the file from another. Every version is a file of its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Stamp {
    inode: u64,
    changed: (i64, i64),
    bytes: u64,
}

impl Stamp {
    /// Of the file at `path`; the default one if there is none.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        match std::fs::metadata(path) {
            Ok(metadata) => Ok(Self::of(&metadata)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).at("look at", path),
        }
    }

    fn of(metadata: &std::fs::Metadata) -> Self {
        Self { inode: metadata.ino(), changed: (metadata.ctime(), metadata.ctime_nsec()), bytes: metadata.len() }
    }
}

impl Index {
    /// The index at `path`, empty if there is no file.
    pub(crate) fn load(path: &Path) -> Result<(Self, Stamp)> {
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Default::default()),
            Err(error) => return Err(error).at("open", path),
        };
        let stamp = Stamp::of(&file.metadata().at("look at", path)?);
        let mut text = Vec::new();
        file.read_to_end(&mut text).at("read", path)?;
        let index: Self =
            serde_json::from_slice(&text).map_err(|error| Error::corrupt(path.display().to_string(), error))?;
        if index.version != VERSION {
            let why = format!("it has version {}, this program knows {VERSION}", index.version);
            return Err(Error::corrupt(path.display().to_string(), why));
        }
        let wrong = index.images.values().flat_map(|r| &r.layers).find(|l| l.len() != 64 || !is_hex(l));
        if let Some(wrong) = wrong {
            return Err(Error::corrupt(path.display().to_string(), format!("{wrong:?} is not a digest")));
        }
        Ok((index, stamp))
    }

    /// Replaces the file at once. `durable` = it is on the disk when this returns.
    pub(crate) fn save(&mut self, path: &Path, durable: bool) -> Result<()> {
        self.version = VERSION;
        let text = serde_json::to_vec_pretty(self).map_err(|error| Error::corrupt("image index", error))?;
        let parent = path.parent().expect("the index lies in the store");
        let mut file = tempfile::NamedTempFile::new_in(parent).at("make a file in", parent)?;
        file.write_all(&text).at("write", path)?;
        if durable {
            file.as_file().sync_all().at("sync", path)?;
        }
        file.persist(path).map_err(|error| error.error).at("replace", path)?;
        if durable {
            File::open(parent).and_then(|parent| parent.sync_all()).at("sync", parent)?;
        }
        Ok(())
    }

    /// Removes the name, or all names of the image with that digest or short digest. Returns how many were removed.
    pub(crate) fn untag(&mut self, reference: &str) -> Result<usize> {
        let full = Reference::parse(reference).map(|r| r.to_string());
        if let Ok(full) = &full
            && self.references.remove(full).is_some()
        {
            return Ok(1);
        }
        let digest = match &full {
            Ok(full) if full.contains('@') => full.split_once('@').map(|(_, digest)| digest.to_owned()),
            _ => None,
        };
        let prefix = digest.as_deref().or(Some(reference)).and_then(digest_prefix);
        let Some(prefix) = prefix else { return full.map(|_| 0) };
        let named = self.references.values().map(String::as_str);
        let Some(digest) = unambiguous(reference, prefix, named)? else { return Ok(0) };
        let digest = digest.to_owned();
        let before = self.references.len();
        self.references.retain(|_, d| *d != digest);
        Ok(before - self.references.len())
    }

    /// Digests of the images that have no name.
    pub(crate) fn nameless(&self) -> Vec<String> {
        let named: HashSet<&String> = self.references.values().collect();
        self.images.keys().filter(|digest| !named.contains(digest)).cloned().collect()
    }
}

/// The one of `digests` (`sha256:…`) that begins with the hexadecimal digits `prefix`.
fn unambiguous<'d>(reference: &str, prefix: &str, digests: impl Iterator<Item = &'d str>) -> Result<Option<&'d str>> {
    let found: BTreeSet<&str> =
        digests.filter(|digest| digest.strip_prefix("sha256:").is_some_and(|hex| hex.starts_with(prefix))).collect();
    match found.len() {
        0 | 1 => Ok(found.into_iter().next()),
        _ => Err(Error::Ambiguous {
            reference: reference.to_owned(),
            candidates: found.into_iter().collect::<Vec<_>>().join(", "),
        }),
    }
}

/// One version of the index, made for quick look-ups.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) stamp: Stamp,
    /// Every spelling of every name.
    spellings: HashMap<String, String>,
    images: HashMap<String, Image>,
    /// Images without a name, which only pins still find.
    nameless: Vec<String>,
    /// Hexadecimal digits of every image's layers.
    layers: HashSet<String>,
}

impl Snapshot {
    pub(crate) fn new(index: &Index, stamp: Stamp, layers: &Path) -> Self {
        let mut spellings = HashMap::new();
        let mut names: HashMap<&str, Vec<String>> = HashMap::new();
        for (reference, digest) in &index.references {
            names.entry(digest).or_default().push(reference.clone());
            if let Ok(parsed) = Reference::parse(reference) {
                spellings.extend(parsed.spellings().into_iter().map(|spelling| (spelling, digest.clone())));
            }
        }
        let images = index
            .images
            .iter()
            .map(|(digest, record)| {
                let references = names.remove(digest.as_str()).unwrap_or_default();
                (digest.clone(), record.image(digest, references, layers))
            })
            .collect();
        let all = index.images.values().flat_map(|record| record.layers.iter().cloned()).collect();
        Self { stamp, spellings, images, nameless: index.nameless(), layers: all }
    }

    /// The image that `reference` means.
    pub(crate) fn resolve(&self, reference: &str) -> Result<Option<&Image>> {
        if let Some(digest) = self.spellings.get(reference) {
            return Ok(self.images.get(digest));
        }
        let parsed = Reference::parse(reference);
        if let Ok(parsed) = &parsed {
            if let Some(digest) = self.spellings.get(&parsed.to_string()) {
                return Ok(self.images.get(digest));
            }
            if let Some(digest) = parsed.digest() {
                return Ok(self.named(digest));
            }
        }
        match digest_prefix(reference) {
            Some(prefix) => {
                let named = self.spellings.values().map(String::as_str);
                Ok(unambiguous(reference, prefix, named)?.and_then(|digest| self.named(digest)))
            }
            None => parsed.map(|_| None),
        }
    }

    fn named(&self, digest: &str) -> Option<&Image> {
        self.images.get(digest).filter(|image| !image.references.is_empty())
    }

    /// Whether the image is there, with or without a name.
    pub(crate) fn holds(&self, digest: &str) -> bool {
        self.images.contains_key(digest)
    }

    /// Hexadecimal digits of the layers that images have.
    pub(crate) fn layers(&self) -> impl Iterator<Item = &str> {
        self.layers.iter().map(String::as_str)
    }

    /// Whether some image has lost its names.
    pub(crate) fn has_nameless(&self) -> bool {
        !self.nameless.is_empty()
    }

    /// The images that have a name, by their first.
    pub(crate) fn list(&self) -> Vec<Image> {
        let mut all: Vec<Image> = self.images.values().filter(|i| !i.references.is_empty()).cloned().collect();
        all.sort_by(|a, b| a.references.cmp(&b.references));
        all
    }
}

impl Record {
    fn image(&self, digest: &str, references: Vec<String>, layers: &Path) -> Image {
        Image {
            digest: digest.to_owned(),
            references,
            config: self.config.clone(),
            lowers: self.layers.iter().rev().map(|layer| layer_files(layers, layer)).collect(),
            size_bytes: self.size_bytes,
            created_ms: self.created_ms,
        }
    }
}

/// The root of the unpacked layer with the hexadecimal digits `hex`.
pub(crate) fn layer_files(layers: &Path, hex: &str) -> PathBuf {
    layers.join(hex).join("fs")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index() -> Index {
        let mut index = Index::default();
        for (digit, name) in [("a", "docker.io/library/one:latest"), ("ab", "127.0.0.1:5000/two:x")] {
            let digest = format!("sha256:{digit}{}", "0".repeat(64 - digit.len()));
            let record =
                Record { config: ImageConfig::default(), layers: vec!["1".repeat(64)], size_bytes: 1, created_ms: 2 };
            index.images.insert(digest.clone(), record);
            index.references.insert(name.into(), digest);
        }
        index
    }

    #[test]
    fn an_image_is_found_by_every_spelling_digest_and_short_digest() {
        let snapshot = Snapshot::new(&index(), Stamp::default(), Path::new("/l"));
        let full = format!("sha256:ab{}", "0".repeat(62));
        for spelling in ["127.0.0.1:5000/two:x", &full, &full[7..], "ab000", "sha256:ab00", &format!("any@{full}")] {
            assert_eq!(snapshot.resolve(spelling).unwrap().unwrap().digest, full, "{spelling}");
        }
        assert!(snapshot.resolve("one").unwrap().is_some());
        assert!(snapshot.resolve("two").unwrap().is_none());
        assert!(snapshot.resolve("N O").is_err());
    }

    #[test]
    fn a_short_digest_of_two_images_is_refused() {
        let mut index = index();
        let digest = format!("sha256:a0001{}", "0".repeat(59));
        let record = index.images.values().next().unwrap().clone();
        index.images.insert(digest.clone(), record);
        index.references.insert("docker.io/library/three:latest".into(), digest);
        let snapshot = Snapshot::new(&index, Stamp::default(), Path::new("/l"));
        assert!(matches!(snapshot.resolve("a000"), Err(Error::Ambiguous { .. })));
        assert!(index.untag("a000").is_err());
        assert_eq!(index.untag("a0001").unwrap(), 1);
        assert_eq!(index.nameless().len(), 1);
        assert_eq!(index.untag("one").unwrap(), 1);
        assert_eq!(index.untag("one").unwrap(), 0);
    }
}
