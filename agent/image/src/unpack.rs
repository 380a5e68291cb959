//! One layer's archive becomes a directory that overlayfs can stack.
//!
//! The archive is hostile. Every name is cleaned (`path.rs`), every parent is opened by descriptor without leaving the
//! layer, and a file is only ever made, never followed or overwritten. A parent that is a symlink *inside the layer*
//! is resolved as if the layer were the root directory, as real images need it (`lib -> usr/lib`, then `lib/x`).
//! The caller unpacks into a directory of its own and throws it away when this fails.

use crate::error::{At, Error, Result};
use crate::path::{self, MAX_DEPTH, Name};
use crate::stream::{LimitReached, Skip};
use crate::tar::{self, Kind, Member, Members};
use fsb_host::openat::{openat2, set_xattr};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, ResolveFlag};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags};
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// What is left of an image's limits.
#[derive(Debug, Clone)]
pub(crate) struct Quota {
    bytes: u64,
    entries: u64,
    max_bytes: u64,
    max_entries: u64,
}

impl Quota {
    pub(crate) fn new(max_bytes: u64, max_entries: u64) -> Self {
        Self { bytes: max_bytes, entries: max_entries, max_bytes, max_entries }
    }

    /// Bytes that an archive may still have: the files, and headers, names and padding of the entries.
    pub(crate) fn archive_bytes(&self) -> u64 {
        self.bytes.saturating_add(self.entries.saturating_mul(2048))
    }

    pub(crate) fn too_many_bytes(&self) -> Error {
        Error::TooLarge { what: "bytes", limit: self.max_bytes }
    }

    fn take(&mut self, bytes: u64) -> Result<()> {
        self.entries =
            self.entries.checked_sub(1).ok_or(Error::TooLarge { what: "entries", limit: self.max_entries })?;
        self.bytes = self.bytes.checked_sub(bytes).ok_or_else(|| self.too_many_bytes())?;
        Ok(())
    }
}

/// Says in the user's words why an archive called `what` cannot be read.
pub(crate) fn unreadable(what: &str, error: tar::Error, quota: &Quota) -> Error {
    match error {
        tar::Error::Read(error) => unreadable_stream(what, error, quota),
        malformed => Error::corrupt(what, malformed),
    }
}

/// The same for the stream below it.
pub(crate) fn unreadable_stream(what: &str, error: io::Error, quota: &Quota) -> Error {
    if error.get_ref().is_some_and(|inner| inner.is::<LimitReached>()) {
        quota.too_many_bytes()
    } else if error.raw_os_error().is_some() {
        Error::io("read", what, error)
    } else if error.kind() == io::ErrorKind::UnexpectedEof {
        Error::corrupt(what, "it is cut off")
    } else {
        Error::corrupt(what, error)
    }
}

/// Unpacks the archive `reader` into the empty directory `into`. `what` is its name in messages. Returns the size of
/// the files in bytes, and the stream behind the archive's end.
pub(crate) fn unpack<R: Skip>(what: &str, reader: R, into: &Path, quota: &mut Quota) -> Result<(u64, R)> {
    let root = File::open(into).at("open", into)?;
    let mut unpacker =
        Unpacker { what, into, root: Rc::new(root.into()), parent: None, directories: Vec::new(), bytes: 0 };
    let mut members = Members::new(reader);
    while let Some(member) = members.next().map_err(|e| unreadable(what, e, quota))? {
        if member.kind == Kind::Meta {
            quota.take(0)?;
            continue;
        }
        quota.take(member.size)?;
        unpacker.entry(&mut members, &member, quota)?;
    }
    unpacker.finish()?;
    Ok((unpacker.bytes, members.into_inner()))
}

struct Unpacker<'w> {
    what: &'w str,
    into: &'w Path,
    root: Rc<OwnedFd>,
    /// The parent of the entry before, which mostly is the parent of this one.
    parent: Option<(PathBuf, Rc<OwnedFd>)>,
    /// Directories' times are set at the end: every file made in them changes them.
    directories: Vec<(PathBuf, TimeSpec)>,
    bytes: u64,
}

impl Unpacker<'_> {
    fn entry<R: Skip>(&mut self, members: &mut Members<R>, member: &Member, quota: &Quota) -> Result<()> {
        let refuse = |rule: String| refused(&member.name, rule);
        let path = path::clean(&member.name).map_err(refuse)?;
        if path.as_os_str().is_empty() {
            if member.kind != Kind::Directory {
                return Err(refuse("the root must be a directory".into()));
            }
            return self.attributes(&self.root.clone(), OsStr::new("."), &path, member);
        }
        let meaning = path::name(&path).map_err(refuse)?;
        let parent = self.parent(&path, member)?;
        match meaning {
            Name::Bookkeeping => return Ok(()),
            Name::Opaque => return self.opaque(&parent, OsStr::new("."), member),
            Name::Whiteout(name) => return self.whiteout(&parent, name, member),
            Name::Plain(_) => {}
        }
        let name = path.file_name().expect("not the root");
        let fd = parent.as_raw_fd();
        match member.kind {
            Kind::Directory => {
                let covers = self.make(&parent, name, member, || nix::sys::stat::mkdirat(Some(fd), name, rwx()))?;
                if covers {
                    self.opaque(&parent, name, member)?;
                }
            }
            Kind::File => self.file(members, &parent, name, member, quota)?,
            Kind::Symlink => {
                let target = OsStr::from_bytes(&member.target);
                if target.is_empty() || member.target.len() > 4095 || member.target.contains(&0) {
                    return Err(refuse("its target is not a path".into()));
                }
                self.make(&parent, name, member, || nix::unistd::symlinkat(target, Some(fd), name))?;
            }
            // Shares everything with the file it links to, so it has no attributes of its own.
            Kind::HardLink => return self.hard_link(&parent, name, member),
            Kind::Fifo | Kind::CharDevice | Kind::BlockDevice => {
                let kind = match member.kind {
                    Kind::Fifo => SFlag::S_IFIFO,
                    Kind::CharDevice => SFlag::S_IFCHR,
                    _ => SFlag::S_IFBLK,
                };
                let (major, minor) = member.device;
                if kind == SFlag::S_IFCHR && (major, minor) == (0, 0) {
                    return Err(refuse("device 0:0 is overlayfs's own mark".into()));
                }
                // Linux has 12 bits of major and 20 of minor device number.
                if major >= 1 << 12 || minor >= 1 << 20 {
                    return Err(refuse("its device number is impossible".into()));
                }
                let device = nix::sys::stat::makedev(major, minor);
                self.make(&parent, name, member, || nix::sys::stat::mknodat(Some(fd), name, kind, rwx(), device))?;
            }
            Kind::Unknown(kind) => return Err(refuse(format!("it has the unknown type {:?}", char::from(kind)))),
            Kind::Meta => unreachable!("skipped before"),
        }
        self.attributes(&parent, name, &path, member)
    }

    /// Opens the directory that `path` lies in, making what is missing of it.
    fn parent(&mut self, path: &Path, member: &Member) -> Result<Rc<OwnedFd>> {
        let parent = path.parent().expect("not the root");
        if parent.as_os_str().is_empty() {
            return Ok(self.root.clone());
        }
        if let Some((_, fd)) = self.parent.as_ref().filter(|(cached, _)| cached == parent) {
            return Ok(fd.clone());
        }
        let fd = match self.open_directory(parent, ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS) {
            Ok(fd) => fd,
            Err(Errno::ENOENT | Errno::ELOOP) => self.make_parents(parent, member)?,
            Err(errno) => return Err(self.failed("open the parent of", member, errno)),
        };
        let fd = Rc::new(fd);
        self.parent = Some((parent.to_path_buf(), fd.clone()));
        Ok(fd)
    }

    /// Walks down `parent` with symlinks resolved inside the layer, and makes the directories that are not there.
    fn make_parents(&self, parent: &Path, member: &Member) -> Result<OwnedFd> {
        let in_root = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        let mut prefix = PathBuf::new();
        let mut above = self.root.clone();
        for component in parent.components() {
            prefix.push(component);
            let fd = match self.open_directory(&prefix, in_root) {
                Ok(fd) => fd,
                Err(Errno::ENOENT) => {
                    let made = nix::sys::stat::mkdirat(Some(above.as_raw_fd()), component.as_os_str(), rwx());
                    match made {
                        Ok(()) => {}
                        Err(Errno::EEXIST) => {
                            return Err(refused(&member.name, "it lies below a symlink that leads nowhere".into()));
                        }
                        Err(errno) => return Err(self.failed("make the parent of", member, errno)),
                    }
                    self.chmod(&above, component.as_os_str(), 0o755, member)?;
                    self.open_directory(&prefix, in_root)
                        .map_err(|errno| self.failed("open the parent of", member, errno))?
                }
                Err(errno) => return Err(self.failed("open the parent of", member, errno)),
            };
            above = Rc::new(fd);
        }
        self.check_depth(&above, member)?;
        Ok(Rc::into_inner(above).expect("made here and not shared"))
    }

    /// Symlinked parents could pile up to any depth, which nobody could remove again.
    fn check_depth(&self, directory: &OwnedFd, member: &Member) -> Result<()> {
        let link = format!("/proc/self/fd/{}", directory.as_raw_fd());
        let depth = std::fs::read_link(&link).map(|real| real.components().count());
        let own = std::fs::canonicalize(self.into).at("look at", self.into)?.components().count();
        match depth {
            Ok(depth) if depth <= own + MAX_DEPTH => Ok(()),
            _ => Err(refused(&member.name, format!("it lies more than {MAX_DEPTH} directories deep"))),
        }
    }

    fn open_directory(&self, path: &Path, resolve: ResolveFlag) -> nix::Result<OwnedFd> {
        openat2(&*self.root, path, OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty(), resolve)
    }

    /// Runs `make`, which makes `name` and must not replace anything. A whiteout of the same name gives way: lower
    /// layers' `name` is gone, and here is a new one. Returns whether there was one.
    fn make(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        member: &Member,
        make: impl Fn() -> nix::Result<()>,
    ) -> Result<bool> {
        match make() {
            Ok(()) => return Ok(false),
            Err(Errno::EEXIST) => {}
            Err(errno) => return Err(self.failed("make", member, errno)),
        }
        let there = self.look(parent, name, member)?.expect("it exists");
        if is_whiteout(&there) {
            nix::unistd::unlinkat(Some(parent.as_raw_fd()), name, UnlinkatFlags::NoRemoveDir)
                .map_err(|errno| self.failed("replace the whiteout of", member, errno))?;
            make().map_err(|errno| self.failed("make", member, errno))?;
            return Ok(true);
        }
        // Directories may come again, or before their entry: because of a file in them.
        if member.kind == Kind::Directory && file_type(&there) == SFlag::S_IFDIR {
            return Ok(false);
        }
        Err(refused(&member.name, "the archive has it twice".into()))
    }

    fn file<R: Skip>(
        &mut self,
        members: &mut Members<R>,
        parent: &OwnedFd,
        name: &OsStr,
        member: &Member,
        quota: &Quota,
    ) -> Result<()> {
        let made = std::cell::Cell::new(None);
        self.make(parent, name, member, || {
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW;
            let mode = Mode::S_IRUSR | Mode::S_IWUSR;
            made.set(Some(openat2(parent, Path::new(name), flags, mode, ResolveFlag::RESOLVE_BENEATH)?));
            Ok(())
        })?;
        let file = File::from(made.into_inner().expect("made"));
        let written = members.data(member, |offset, bytes| {
            // Zeros stay holes.
            if bytes.iter().all(|b| *b == 0) { Ok(()) } else { file.write_all_at(bytes, offset) }
        });
        let written = written.map_err(|error| unreadable(self.what, error, quota))?;
        written.and_then(|()| file.set_len(member.size)).map_err(|error| self.failed_io("write", member, error))?;
        self.bytes += member.size;
        Ok(())
    }

    fn hard_link(&mut self, parent: &OwnedFd, name: &OsStr, member: &Member) -> Result<()> {
        let refuse =
            |rule: &str| refused(&member.name, format!("it is a hard link to {:?}: {rule}", lossy(&member.target)));
        let target = path::clean(&member.target).map_err(|rule| refuse(&rule.replacen("its name", "that", 1)))?;
        let (Some(above), Some(last)) = (target.parent(), target.file_name()) else {
            return Err(refuse("that is the root"));
        };
        let beneath = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
        let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
        let above = self.open_directory(above, beneath).map_err(|errno| match errno {
            Errno::ELOOP => refuse("that leads through a symlink"),
            Errno::ENOENT | Errno::ENOTDIR => refuse("that is not in this layer"),
            errno => self.failed("find the target of", member, errno),
        })?;
        match self.look(&above, last, member)? {
            None => return Err(refuse("that is not in this layer")),
            Some(there) if file_type(&there) == SFlag::S_IFDIR => return Err(refuse("that is a directory")),
            Some(there) if is_whiteout(&there) => return Err(refuse("that is a whiteout")),
            Some(_) => {}
        }
        let (from, to) = (Some(above.as_raw_fd()), Some(parent.as_raw_fd()));
        self.make(parent, name, member, || nix::unistd::linkat(from, last, to, name, AtFlags::empty()))?;
        Ok(())
    }

    /// Hides lower layers' `name`. What this layer itself has of that name stays.
    fn whiteout(&mut self, parent: &OwnedFd, name: &OsStr, member: &Member) -> Result<()> {
        let fd = Some(parent.as_raw_fd());
        match nix::sys::stat::mknodat(fd, name, SFlag::S_IFCHR, Mode::empty(), nix::sys::stat::makedev(0, 0)) {
            Ok(()) => Ok(()),
            Err(Errno::EEXIST) => match self.look(parent, name, member)? {
                Some(there) if file_type(&there) == SFlag::S_IFDIR => self.opaque(parent, name, member),
                _ => Ok(()),
            },
            Err(errno) => Err(self.failed("make", member, errno)),
        }
    }

    /// Lets nothing of lower layers be seen in the directory (Documentation/filesystems/overlayfs.rst).
    fn opaque(&self, parent: &OwnedFd, name: &OsStr, member: &Member) -> Result<()> {
        let directory = self.open_for_xattrs(parent, name, member)?;
        set_xattr(&directory, c"trusted.overlay.opaque", b"y")
            .map_err(|e| self.failed("set an attribute of", member, e))
    }

    /// Owner, mode, extended attributes and time: in this order, because a new owner clears set-user-id bits and
    /// capabilities (chown(2), capabilities(7)).
    fn attributes(&mut self, parent: &OwnedFd, name: &OsStr, path: &Path, member: &Member) -> Result<()> {
        let id = |id: u64| {
            // The last one means "no change" (chown(2)).
            u32::try_from(id)
                .ok()
                .filter(|id| *id != u32::MAX)
                .ok_or_else(|| refused(&member.name, format!("its owner {id} is impossible")))
        };
        let (uid, gid) = (Some(Uid::from_raw(id(member.uid)?)), Some(Gid::from_raw(id(member.gid)?)));
        let fd = Some(parent.as_raw_fd());
        nix::unistd::fchownat(fd, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(|errno| self.failed("set the owner of", member, errno))?;
        if member.kind != Kind::Symlink {
            self.chmod(parent, name, member.mode, member)?;
        }
        if matches!(member.kind, Kind::File | Kind::Directory) && !member.xattrs.is_empty() {
            self.xattrs(parent, name, member)?;
        }
        let (seconds, nanoseconds) = member.modified;
        let time = TimeSpec::new(seconds, nanoseconds);
        if member.kind == Kind::Directory {
            self.directories.push((path.to_path_buf(), time));
            return Ok(());
        }
        nix::sys::stat::utimensat(fd, name, &time, &time, UtimensatFlags::NoFollowSymlink)
            .map_err(|errno| self.failed("set the time of", member, errno))
    }

    fn xattrs(&self, parent: &OwnedFd, name: &OsStr, member: &Member) -> Result<()> {
        let wanted = member.xattrs.iter().filter(|(name, _)| {
            // overlayfs's own attributes would let an image redirect look-ups.
            name == b"security.capability" || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
        });
        let mut file = None;
        for (key, value) in wanted {
            if file.is_none() {
                file = Some(self.open_for_xattrs(parent, name, member)?);
            }
            let file = file.as_ref().expect("opened");
            let key =
                CString::new(key.clone()).map_err(|_| refused(&member.name, "an attribute's name has a NUL".into()))?;
            match set_xattr(file, &key, value) {
                Ok(()) => {}
                // The store's file system has none; containerd passes over it too.
                Err(Errno::EOPNOTSUPP) => {}
                Err(Errno::EINVAL | Errno::ERANGE | Errno::E2BIG) => return Err(self.bad_xattr(member)),
                // ext4 says so when the inode's attribute block is full too, and that has at most 4 KiB.
                Err(Errno::ENOSPC) if value.len() > 3000 => return Err(self.bad_xattr(member)),
                Err(errno) => return Err(self.failed("set an attribute of", member, errno)),
            }
        }
        Ok(())
    }

    fn bad_xattr(&self, member: &Member) -> Error {
        refused(&member.name, "one of its extended attributes is malformed or too large".into())
    }

    fn open_for_xattrs(&self, parent: &OwnedFd, name: &OsStr, member: &Member) -> Result<OwnedFd> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        openat2(parent, Path::new(name), flags, Mode::empty(), ResolveFlag::RESOLVE_BENEATH)
            .map_err(|errno| self.failed("open", member, errno))
    }

    fn chmod(&self, parent: &OwnedFd, name: &OsStr, mode: u32, member: &Member) -> Result<()> {
        // There is no fchmodat(2) that refuses symlinks before Linux 6.6. `name` was made right here and is none.
        let mode = Mode::from_bits_truncate(mode);
        nix::sys::stat::fchmodat(Some(parent.as_raw_fd()), name, mode, FchmodatFlags::FollowSymlink)
            .map_err(|errno| self.failed("set the mode of", member, errno))
    }

    fn look(&self, parent: &OwnedFd, name: &OsStr, member: &Member) -> Result<Option<FileStat>> {
        match nix::sys::stat::fstatat(Some(parent.as_raw_fd()), name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(self.failed("look at", member, errno)),
        }
    }

    /// Sets the directories' times, now that nothing is made in them any more.
    fn finish(&mut self) -> Result<()> {
        let in_root = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        for (path, time) in self.directories.drain(..).rev() {
            let path = if path.as_os_str().is_empty() { Path::new(".") } else { &path };
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
            openat2(&*self.root, path, flags, Mode::empty(), in_root)
                .and_then(|fd| nix::sys::stat::futimens(fd.as_raw_fd(), &time, &time))
                .at("set the time of", self.into.join(path))?;
        }
        Ok(())
    }

    fn failed(&self, action: &'static str, member: &Member, errno: Errno) -> Error {
        self.failed_io(action, member, errno.into())
    }

    fn failed_io(&self, action: &'static str, member: &Member, error: io::Error) -> Error {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOTDIR) => refused(&member.name, "it lies below something that is not a directory".into()),
            Some(Errno::ELOOP) => refused(&member.name, "it lies below symlinks that lead to each other".into()),
            Some(Errno::EXDEV) => refused(&member.name, "it leads out of the layer".into()),
            Some(Errno::ENAMETOOLONG) => refused(&member.name, "its name is too long".into()),
            Some(Errno::EFBIG) => refused(&member.name, "it is larger than the file system takes".into()),
            _ => Error::io(action, self.into.join(OsStr::from_bytes(&member.name)), error),
        }
    }
}

fn refused(name: &[u8], rule: String) -> Error {
    Error::Refused { entry: lossy(name), rule }
}

fn lossy(name: &[u8]) -> String {
    String::from_utf8_lossy(&name[..name.len().min(200)]).into_owned()
}

fn rwx() -> Mode {
    Mode::S_IRWXU
}

fn file_type(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

/// overlayfs's mark for "not here, and not below" (Documentation/filesystems/overlayfs.rst).
pub(crate) fn is_whiteout(stat: &FileStat) -> bool {
    file_type(stat) == SFlag::S_IFCHR && stat.st_rdev == 0
}
