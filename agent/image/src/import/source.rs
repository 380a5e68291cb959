//! The files of an image archive, in a folder or in a tar.

use crate::error::{At, Error, Result};
use crate::manifest::MAX_DOCUMENT;
use crate::path::clean;
use crate::store::Store;
use crate::stream::{Compression, Limited, Slice, decompress, sniff};
use crate::tar::{Kind, Members};
use crate::unpack::{Quota, unreadable, unreadable_stream};
use fsb_host::openat::openat2;
use nix::errno::Errno;
use nix::fcntl::{OFlag, ResolveFlag};
use nix::sys::stat::Mode;
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// An archive of images has a few files per layer; what has more is a root file system.
const MAX_MEMBERS: usize = 20_000;
/// Links that lead to links.
const MAX_LINKS: usize = 8;

pub(super) struct Source {
    /// The path that was given, for messages.
    name: String,
    files: Files,
}

enum Files {
    Folder(File),
    Archive { file: Rc<File>, length: u64, members: HashMap<PathBuf, Place>, root_filesystem: bool },
}

enum Place {
    At(u64, u64),
    Link(PathBuf),
}

impl Source {
    /// Opens a folder or an archive, which is decompressed if need be into a file without a name in the store.
    pub(super) fn open(store: &Store, path: &Path, quota: &Quota) -> Result<Self> {
        let name = path.display().to_string();
        // A fifo in its place must not make this wait.
        let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path).at("open", path)?;
        let metadata = file.metadata().at("look at", path)?;
        if metadata.is_dir() {
            return Ok(Self { name, files: Files::Folder(file) });
        }
        let unknown = |why: &str| Error::UnknownFormat { path: path.into(), why: why.into() };
        if !metadata.is_file() {
            return Err(unknown("it is neither a file nor a folder"));
        }
        let mut head = [0; 6];
        let read = file.read_at(&mut head, 0).at("read", path)?;
        let file = match sniff(&head[..read]) {
            Compression::None if read == 0 => return Err(unknown("it is empty")),
            Compression::None => file,
            Compression::Other(compression) => return Err(unknown(&format!("it is compressed with {compression}"))),
            Compression::Gzip | Compression::Zstd => {
                let tmp = store.directory().join("tmp");
                let mut plain = tempfile::tempfile_in(&tmp).at("make a file in", &tmp)?;
                let failed = |error| unreadable_stream(&name, error, quota);
                let (_, reader) = decompress(file).map_err(failed)?;
                let mut reader = Limited::new(reader, quota.archive_bytes());
                copy(&mut reader, &mut plain, &name, &tmp, quota)?;
                plain
            }
        };
        let length = file.metadata().at("look at", path)?.len();
        let file = Rc::new(file);
        let mut members = Members::new(Slice::new(file.clone(), 0, length));
        let mut places = HashMap::new();
        let mut root_filesystem = false;
        let mut any = false;
        loop {
            let member = match members.next() {
                Ok(Some(member)) => member,
                Ok(None) => break,
                Err(error) if !any => return Err(unknown(&error.to_string())),
                Err(error) => return Err(unreadable(&name, error, quota)),
            };
            any = true;
            // Names that are not clean are none of an image's; in a root file system, unpacking refuses them.
            let Ok(path) = clean(&member.name) else { continue };
            let top = path.components().next().map(|c| c.as_os_str().as_bytes().to_vec());
            root_filesystem |= top.is_some_and(|top| ROOT_DIRECTORIES.contains(&&top[..]));
            if let Some((position, size)) = member.span() {
                places.insert(path, Place::At(position, size));
            } else if member.kind == Kind::Symlink
                && let Some(target) = relative(&path, &member.target)
            {
                places.insert(path, Place::Link(target));
            }
            if places.len() > MAX_MEMBERS {
                root_filesystem = true;
                break;
            }
        }
        if !any {
            return Err(unknown("the archive is empty"));
        }
        Ok(Self { name, files: Files::Archive { file, length, members: places, root_filesystem } })
    }

    /// The path that was given, for messages.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn is_oci_layout(&self) -> Result<bool> {
        Ok(self.file("oci-layout")?.is_some() && self.file("index.json")?.is_some())
    }

    pub(super) fn is_docker_archive(&self) -> Result<bool> {
        if matches!(self.files, Files::Archive { root_filesystem: true, .. }) {
            return Ok(false);
        }
        Ok(self.file("manifest.json")?.is_some())
    }

    /// The whole archive; `None` for a folder.
    pub(super) fn root_filesystem(&self) -> Option<Slice> {
        match &self.files {
            Files::Archive { file, length, .. } => Some(Slice::new(file.clone(), 0, *length)),
            Files::Folder(_) => None,
        }
    }

    /// The file `name` and its size, if it is there.
    pub(super) fn file(&self, name: &str) -> Result<Option<(Slice, u64)>> {
        let Ok(mut path) = clean(name.as_bytes()) else { return Ok(None) };
        let (file, members) = match &self.files {
            Files::Folder(folder) => return self.in_folder(folder, &path),
            Files::Archive { file, members, .. } => (file, members),
        };
        for _ in 0..MAX_LINKS {
            match members.get(&path) {
                None => return Ok(None),
                Some(Place::At(position, size)) => {
                    return Ok(Some((Slice::new(file.clone(), *position, *size), *size)));
                }
                Some(Place::Link(target)) => path = target.clone(),
            }
        }
        Ok(None)
    }

    fn in_folder(&self, folder: &File, path: &Path) -> Result<Option<(Slice, u64)>> {
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK;
        // Links inside of the layout are fine, links out of it are not.
        match openat2(folder, path, flags, Mode::empty(), ResolveFlag::RESOLVE_BENEATH) {
            Ok(fd) => {
                let file = File::from(fd);
                let metadata = file.metadata().at("look at", path)?;
                let length = metadata.len();
                Ok(metadata.is_file().then(|| (Slice::new(Rc::new(file), 0, length), length)))
            }
            Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
            Err(errno) => Err(errno).at("open", Path::new(&self.name).join(path)),
        }
    }

    /// The file `name` and its size; it is an error if it is missing.
    pub(super) fn require(&self, name: &str) -> Result<(Slice, u64)> {
        let missing = || Error::corrupt(self.name.clone(), format!("its file {name:?} is missing"));
        self.file(name)?.ok_or_else(missing)
    }

    /// The JSON document `name`; it is an error if it is missing or too large.
    pub(super) fn document(&self, name: &str) -> Result<Vec<u8>> {
        let (mut read, size) = self.require(name)?;
        if size > MAX_DOCUMENT {
            let why = format!("its file {name:?} has {size} bytes, {MAX_DOCUMENT} are possible");
            return Err(Error::corrupt(self.name.clone(), why));
        }
        let mut bytes = Vec::new();
        read.read_to_end(&mut bytes).at("read", Path::new(&self.name).join(name))?;
        if bytes.len() as u64 != size {
            return Err(Error::corrupt(self.name.clone(), format!("its file {name:?} is cut off")));
        }
        Ok(bytes)
    }
}

/// Directories that are at the root of file systems and not of image archives.
const ROOT_DIRECTORIES: &[&[u8]] =
    &[b"bin", b"boot", b"dev", b"etc", b"home", b"lib", b"lib64", b"opt", b"proc", b"root", b"sbin", b"usr", b"var"];

/// Where the link `path` leads inside the archive.
fn relative(path: &Path, target: &[u8]) -> Option<PathBuf> {
    let mut real: Vec<&[u8]> = path.parent()?.components().map(|c| c.as_os_str().as_bytes()).collect();
    for component in target.split(|b| *b == b'/') {
        match component {
            b"" | b"." => {}
            b".." => drop(real.pop()?),
            name => real.push(name),
        }
    }
    clean(&real.join(&b'/')).ok()
}

/// Copies what is decompressed, telling a broken archive from a full disk.
fn copy(reader: &mut impl Read, file: &mut File, name: &str, tmp: &Path, quota: &Quota) -> Result<()> {
    let mut buffer = vec![0; 128 << 10];
    loop {
        let count = match reader.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(unreadable_stream(name, error, quota)),
        };
        io::Write::write_all(file, &buffer[..count]).at("write into", tmp)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_only_inside_the_archive() {
        let lead = |path: &str, target: &str| relative(Path::new(path), target.as_bytes());
        assert_eq!(lead("a/layer.tar", "../b/layer.tar"), Some("b/layer.tar".into()));
        assert_eq!(lead("a/layer.tar", "../../etc/passwd"), None);
    }
}
