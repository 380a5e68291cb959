//! Looking into an image as a sandbox will see it, without mounting it and without running anything of it.
//!
//! Symlinks are resolved inside the image: an absolute one begins at the image's root, `..` at the root stays there.
//! No layer is ever left, whatever its links say.

use crate::error::{At, Error, Result};
use crate::image::Image;
use crate::unpack::is_whiteout;
use fsb_host::openat::{openat2, xattr};
use nix::errno::Errno;
use nix::fcntl::{OFlag, ResolveFlag};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

/// The kernel's own limit (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// What a path means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathKind {
    /// A regular file.
    File {
        /// Whether anybody may execute it.
        executable: bool,
    },
    /// A directory.
    Directory,
    /// A device, fifo or socket.
    Other,
}

/// The layers of an image, as overlayfs will merge them.
#[derive(Debug)]
pub struct Merged {
    /// The topmost first.
    layers: Vec<(PathBuf, File)>,
}

struct Found {
    layer: usize,
    path: PathBuf,
    stat: FileStat,
}

impl Merged {
    /// Opens the image's layers.
    pub fn open(image: &Image) -> Result<Self> {
        let open = |path: &PathBuf| Ok((path.clone(), File::open(path).at("open", path)?));
        Ok(Self { layers: image.lowers.iter().map(open).collect::<Result<_>>()? })
    }

    /// What `path` means, symlinks followed; `None` if it is not there.
    pub fn kind(&self, path: impl AsRef<Path>) -> Result<Option<PathKind>> {
        Ok(self.find(path.as_ref())?.map(|found| match file_type(&found.stat) {
            SFlag::S_IFREG => PathKind::File { executable: found.stat.st_mode & 0o111 != 0 },
            SFlag::S_IFDIR => PathKind::Directory,
            _ => PathKind::Other,
        }))
    }

    /// The content of the regular file `path`, symlinks followed; `None` if there is no such file. More than
    /// `max_bytes` is an error.
    pub fn read(&self, path: impl AsRef<Path>, max_bytes: u64) -> Result<Option<Vec<u8>>> {
        let path = path.as_ref();
        let Some(found) = self.find(path)?.filter(|found| file_type(&found.stat) == SFlag::S_IFREG) else {
            return Ok(None);
        };
        let fd = self.open_in(found.layer, &found.path, OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK);
        let fd = fd.at("open", self.layers[found.layer].0.join(&found.path))?;
        let mut bytes = Vec::new();
        File::from(fd).take(max_bytes.saturating_add(1)).read_to_end(&mut bytes).at("read", path)?;
        if bytes.len() as u64 > max_bytes {
            return Err(Error::corrupt(path.display().to_string(), format!("it has more than {max_bytes} bytes")));
        }
        Ok(Some(bytes))
    }

    fn find(&self, path: &Path) -> Result<Option<Found>> {
        let mut todo: VecDeque<OsString> = components(path);
        let mut links = 0;
        // Where we are, and in which layers this directory is to be seen: one set for each of its parents.
        let mut here = PathBuf::new();
        let mut seen: Vec<Vec<usize>> = vec![(0..self.layers.len()).collect()];
        while let Some(component) = todo.pop_front() {
            if component == ".." {
                if here.pop() {
                    seen.pop();
                }
                continue;
            }
            let path = here.join(&component);
            let layers = seen.last().expect("the root's is never popped");
            let (directories, other) = self.look(layers, &path)?;
            if !directories.is_empty() {
                here = path;
                seen.push(directories);
                continue;
            }
            let Some(found) = other else { return Ok(None) };
            if file_type(&found.stat) != SFlag::S_IFLNK {
                return Ok(todo.is_empty().then_some(found));
            }
            links += 1;
            if links > MAX_LINKS {
                return Ok(None);
            }
            let target = self.read_link(&found)?;
            if target.is_absolute() {
                here = PathBuf::new();
                seen.truncate(1);
            }
            for component in components(&target).into_iter().rev() {
                todo.push_front(component);
            }
        }
        let layer = seen.last().and_then(|layers| layers.first().copied());
        let Some(layer) = layer else { return Ok(None) };
        let stat = self.stat(layer, &here)?;
        Ok(stat.map(|stat| Found { layer, path: here, stat }))
    }

    /// The layers in which `path` is a directory that is to be seen, or the one thing that hides all below it.
    fn look(&self, layers: &[usize], path: &Path) -> Result<(Vec<usize>, Option<Found>)> {
        let mut directories = Vec::new();
        for &layer in layers {
            let Some(stat) = self.stat(layer, path)? else { continue };
            if is_whiteout(&stat) {
                break;
            }
            if file_type(&stat) != SFlag::S_IFDIR {
                let found = directories.is_empty().then(|| Found { layer, path: path.into(), stat });
                return Ok((directories, found));
            }
            directories.push(layer);
            if self.is_opaque(layer, path)? {
                break;
            }
        }
        Ok((directories, None))
    }

    fn stat(&self, layer: usize, path: &Path) -> Result<Option<FileStat>> {
        match self.open_in(layer, path, OFlag::O_PATH | OFlag::O_NOFOLLOW) {
            Ok(fd) => Ok(Some(fstat(fd.as_raw_fd()).at("look at", self.layers[layer].0.join(path))?)),
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ENAMETOOLONG) => Ok(None),
            Err(errno) => Err(errno).at("look at", self.layers[layer].0.join(path)),
        }
    }

    fn is_opaque(&self, layer: usize, path: &Path) -> Result<bool> {
        let value = self
            .open_in(layer, path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)
            .and_then(|fd| xattr(&fd, c"trusted.overlay.opaque"))
            .at("look at", self.layers[layer].0.join(path))?;
        Ok(value.as_deref() == Some(b"y"))
    }

    fn read_link(&self, found: &Found) -> Result<PathBuf> {
        self.open_in(found.layer, &found.path, OFlag::O_PATH | OFlag::O_NOFOLLOW)
            // An empty path reads the link that the descriptor is (readlinkat(2)).
            .and_then(|fd| nix::fcntl::readlinkat(Some(fd.as_raw_fd()), ""))
            .map(PathBuf::from)
            .at("read the link", self.layers[found.layer].0.join(&found.path))
    }

    fn open_in(&self, layer: usize, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let beneath = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
        openat2(&self.layers[layer].1, path, flags, Mode::empty(), beneath)
    }
}

fn components(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_os_string()),
            Component::ParentDir => Some("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}

fn file_type(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}
