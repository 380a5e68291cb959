//! Mounts as descriptors: made without a place in the tree, and attached by whoever needs them (fsopen(2),
//! open_tree(2), mount_setattr(2), move_mount(2); Linux 5.12 and later).

use nix::errno::Errno;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

const FSOPEN_CLOEXEC: libc::c_uint = 1;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;
const SET_FLAG: libc::c_uint = 0;
const SET_STRING: libc::c_uint = 1;
const CMD_CREATE: libc::c_uint = 6;
const OPEN_TREE_CLONE: libc::c_uint = 1;
const AT_RECURSIVE: libc::c_uint = 0x8000;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;

const ATTR_RDONLY: u64 = 0x1;
const ATTR_NOSUID: u64 = 0x2;
/// `MOUNT_ATTR_NODEV`: device nodes of this mount cannot be opened.
pub const ATTR_NODEV: u64 = 0x4;

/// The longest value that fsconfig(2) takes, in bytes, with its NUL.
const FSCONFIG_MAX: usize = 256;

struct Context(OwnedFd);

impl Context {
    fn open(kind: &CStr) -> io::Result<Self> {
        // SAFETY: a NUL-terminated string; returns a new descriptor or -1.
        let fd = Errno::result(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) })?;
        // SAFETY: just made, owned by nobody else.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
    }

    fn configure(&self, command: libc::c_uint, key: Option<&CStr>, value: Option<&CStr>) -> nix::Result<()> {
        let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
        let fd = self.0.as_raw_fd();
        // SAFETY: NUL-terminated strings or null, as each command wants them.
        Errno::result(unsafe { libc::syscall(libc::SYS_fsconfig, fd, command, pointer(key), pointer(value), 0) })?;
        Ok(())
    }

    fn set(&self, key: &CStr, value: &CStr) -> nix::Result<()> {
        if value.count_bytes() >= FSCONFIG_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        self.configure(SET_STRING, Some(key), Some(value))
    }

    fn mount(self, attributes: u64) -> io::Result<OwnedFd> {
        self.configure(CMD_CREATE, None, None)?;
        // SAFETY: integers only; returns a new descriptor or -1.
        let fd = Errno::result(unsafe {
            libc::syscall(libc::SYS_fsmount, self.0.as_raw_fd(), FSMOUNT_CLOEXEC, attributes as libc::c_uint)
        })?;
        // SAFETY: just made, owned by nobody else.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
    }
}

/// An overlay of `lowers` (the topmost first) with a writable layer, as a detached mount. `volatile`: the writable
/// layer is thrown away in the end, so nothing of it is synced. No `index`, which some kernels have by default: it ties a
/// work directory to one upper directory for good.
pub fn overlay(lowers: &[&Path], upper: &Path, work: &Path, attributes: u64) -> io::Result<OwnedFd> {
    /// Before Linux 6.7 overlayfs knew no `lowerdir+`, and each try is a line in the kernel's log.
    static BY_PARTS: AtomicBool = AtomicBool::new(true);
    let by_parts = BY_PARTS.load(Ordering::Relaxed).then(|| overlay_by_parts(lowers, upper, work, attributes));
    let in_one_string = || overlay_in_one_string(lowers, upper, work, attributes);
    match by_parts {
        Some(Err(error)) if error.raw_os_error() == Some(libc::EINVAL) => {
            let made = in_one_string();
            BY_PARTS.store(made.is_err(), Ordering::Relaxed);
            made
        }
        // Of a path, for fsconfig(2).
        Some(Err(error)) if error.raw_os_error() == Some(libc::ENAMETOOLONG) => in_one_string(),
        Some(made) => made,
        None => in_one_string(),
    }
    .map_err(|error| {
        io::Error::new(error.kind(), format!("overlay of {} layers on {}: {error}", lowers.len(), upper.display()))
    })
}

fn overlay_by_parts(lowers: &[&Path], upper: &Path, work: &Path, attributes: u64) -> io::Result<OwnedFd> {
    let context = Context::open(c"overlay")?;
    context.set(c"source", c"overlay")?;
    for lower in lowers {
        context.set(c"lowerdir+", &path(lower)?)?;
    }
    context.set(c"upperdir", &path(upper)?)?;
    context.set(c"workdir", &path(work)?)?;
    context.configure(SET_FLAG, Some(c"volatile"), None)?;
    context.set(c"index", c"off")?;
    context.mount(attributes)
}

/// For older kernels: mount(2) takes a page of options. Needs a place for a moment, the work directory's parent.
fn overlay_in_one_string(lowers: &[&Path], upper: &Path, work: &Path, attributes: u64) -> io::Result<OwnedFd> {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    let escaped = |path: &Path| path.to_string_lossy().replace('\\', "\\\\").replace(':', "\\:").replace(',', "\\,");
    let lower: Vec<String> = lowers.iter().map(|lower| escaped(lower)).collect();
    let data = format!(
        "lowerdir={},upperdir={},workdir={},volatile,index=off",
        lower.join(":"),
        escaped(upper),
        escaped(work)
    );
    let place = upper.with_file_name("merged");
    std::fs::create_dir_all(&place)?;
    let flags = if attributes & ATTR_NODEV != 0 { MsFlags::MS_NODEV } else { MsFlags::empty() };
    mount(Some("overlay"), &place, Some("overlay"), flags, Some(data.as_str()))?;
    let tree = clone_tree(&place);
    umount2(&place, MntFlags::MNT_DETACH)?;
    std::fs::remove_dir(&place)?;
    tree
}

/// A tmpfs of at most `bytes` and so many `inodes`, as a detached mount. Each name takes an inode, a file's second one
/// too (tmpfs(5)).
pub fn tmpfs(bytes: u64, inodes: u64) -> io::Result<OwnedFd> {
    let context = Context::open(c"tmpfs")?;
    let number = |value: &str| CString::new(value).map_err(io::Error::other);
    context.set(c"source", c"tmpfs")?;
    context.set(c"size", &number(&bytes.to_string())?)?;
    context.set(c"nr_inodes", &number(&inodes.to_string())?)?;
    context.set(c"mode", c"0700")?;
    context.mount(0)
}

/// A copy of the file or directory at `source`, `ro,nosuid,nodev`, as a detached mount.
pub fn plugin(source: &Path) -> io::Result<OwnedFd> {
    let tree = clone_tree(source)?;
    #[repr(C)]
    struct MountAttr {
        set: u64,
        clear: u64,
        propagation: u64,
        userns: u64,
    }
    let attr = MountAttr { set: ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV, clear: 0, propagation: 0, userns: 0 };
    // SAFETY: struct mount_attr of the size given, an empty path with AT_EMPTY_PATH.
    Errno::result(unsafe {
        let flags = libc::AT_EMPTY_PATH as libc::c_uint | AT_RECURSIVE;
        let size = size_of::<MountAttr>();
        libc::syscall(libc::SYS_mount_setattr, tree.as_raw_fd(), c"".as_ptr(), flags, &attr, size)
    })?;
    Ok(tree)
}

/// Attaches a detached mount at `target`.
pub fn attach(mount: BorrowedFd<'_>, target: &Path) -> io::Result<()> {
    let target = path(target)?;
    // SAFETY: NUL-terminated strings.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    })?;
    Ok(())
}

fn clone_tree(source: &Path) -> io::Result<OwnedFd> {
    let source = path(source)?;
    // SAFETY: a NUL-terminated path; returns a new descriptor or -1.
    let fd = Errno::result(unsafe {
        let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC as libc::c_uint;
        libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, source.as_ptr(), flags)
    })?;
    // SAFETY: just made, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}
