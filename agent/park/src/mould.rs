//! A mould: made by libcontainer with all that paused containers of one kind share, it clones them on request.
//!
//! The order of steps in [`cast`] is libcontainer's, so that what a process sees is the same (proved by the equality
//! table of fsb-spawner's tests). Image paths are hostile: nothing of the image is opened but with openat2, beneath its
//! root and without following links.

use crate::{park, sys};
use core::ffi::CStr;
use core::ptr::null;
use fsb_park::cast::{FDS, FIXED_FDS, MOST, Request, step};
use fsb_park::plan::{GROUPS, Plan};
use fsb_park::{CTL_FD, END_FD, READY, STARTED_FD};

const NOSUID: u64 = libc::MS_NOSUID as u64;
const NODEV: u64 = libc::MS_NODEV as u64;
const NOEXEC: u64 = libc::MS_NOEXEC as u64;

/// Character devices of every container: path below the new root, major, minor.
const DEVICES: [(&CStr, u32, u32); 6] = [
    (c"dev/null", 1, 3),
    (c"dev/zero", 1, 5),
    (c"dev/full", 1, 7),
    (c"dev/tty", 5, 0),
    (c"dev/urandom", 1, 9),
    (c"dev/random", 1, 8),
];
const LINKS: [(&CStr, &CStr); 5] = [
    (c"/proc/self/fd", c"dev/fd"),
    (c"/proc/self/fd/0", c"dev/stdin"),
    (c"/proc/self/fd/1", c"dev/stdout"),
    (c"/proc/self/fd/2", c"dev/stderr"),
    (c"pts/ptmx", c"dev/ptmx"),
];

/// Casts on request until the spawner is gone.
pub(crate) fn serve(plan: &Plan<'_>) -> ! {
    // SAFETY: no memory involved. Casts inherit it until their execve: nobody may trace them meanwhile.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
    // Each cast copies this mount tree only to make its own: the less there is, the faster.
    for path in [c"/proc", c"/dev"] {
        // SAFETY: a NUL-terminated path.
        unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
    }
    // A bit of the bounding set that is not there need not be dropped: each drop costs 1.5 µs.
    let mut present = 0u64;
    for capability in 0..64 {
        // SAFETY: no memory involved.
        if unsafe { libc::prctl(libc::PR_CAPBSET_READ, capability, 0, 0, 0) } == 1 {
            present |= 1 << capability;
        }
    }
    sys::send(CTL_FD, READY);
    loop {
        // All that came with the request before, and its pidfd: a mould has nothing else below its control socket.
        // SAFETY: no memory involved; nobody uses these descriptors any more.
        unsafe { libc::syscall(libc::SYS_close_range, 3u32, CTL_FD as u32 - 1, 0u32) };
        let mut message = [0u8; MOST];
        let mut fds = [-1; FDS];
        let Some((n, count)) = sys::recv(CTL_FD, &mut message, &mut fds) else {
            answer(-libc::EMSGSIZE, -1);
            continue;
        };
        if n == 0 {
            sys::exit(0)
        }
        match Request::read(&message[..n], count) {
            None => answer(-libc::EINVAL, -1),
            Some(request) => {
                let mut pidfd = -1;
                match clone(&request, &fds, &mut pidfd) {
                    0 => cast(plan, present, &request, &fds),
                    pid => answer(pid, pidfd),
                }
            }
        }
    }
}

/// Returns 0 in the child, its process id or a negative errno here.
fn clone(request: &Request<'_>, fds: &[i32; FDS], pidfd: &mut i32) -> i32 {
    let flags = libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC;
    let mut args = sys::CloneArgs {
        // CLONE_PARENT: it becomes the keeper's child, as this mould is.
        flags: (flags | libc::CLONE_PARENT | libc::CLONE_PIDFD) as u64,
        pidfd: (&raw mut *pidfd) as u64,
        ..Default::default()
    };
    if request.v2 {
        args.flags |= sys::CLONE_INTO_CGROUP;
        args.cgroup = fds[FIXED_FDS + request.plugins] as u64;
    }
    // SAFETY: a fork-like clone without a new stack; the child goes on in a copy of this memory.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &mut args, size_of::<sys::CloneArgs>()) };
    if pid < 0 { -sys::errno() } else { pid as i32 }
}

fn answer(pid: i32, pidfd: i32) {
    let bytes = pid.to_le_bytes();
    let mut io = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut control = [0u64; 3];
    // SAFETY: msghdr is plain data; the control buffer holds one header and one descriptor, CMSG_SPACE(4) = 24 bytes.
    unsafe {
        let mut message: libc::msghdr = core::mem::zeroed();
        message.msg_iov = &mut io;
        message.msg_iovlen = 1;
        if pidfd >= 0 {
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = libc::CMSG_SPACE(4) as _;
            let header = libc::CMSG_FIRSTHDR(&message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(4) as _;
            libc::CMSG_DATA(header).cast::<i32>().write_unaligned(pidfd);
        }
        libc::sendmsg(CTL_FD, &message, libc::MSG_NOSIGNAL);
    }
}

/// The child: from a copy of the mould to a parked container.
fn cast(plan: &Plan<'_>, present: u64, request: &Request<'_>, fds: &[i32; FDS]) -> ! {
    let (root, ctl, stdout, stderr, started) = (fds[0], fds[1], fds[2], fds[3], fds[4]);
    let plugins = &fds[FIXED_FDS..FIXED_FDS + request.plugins];
    let cgroups = &fds[FIXED_FDS + request.plugins..][..request.cgroups];
    let must = |ok: bool, name: u32| {
        if !ok {
            sys::fail(ctl, name)
        }
    };
    // SAFETY (all blocks below): descriptors and constant or borrowed NUL-terminated strings; no memory is handed out.
    if !request.v2 {
        for procs in cgroups {
            must(unsafe { libc::write(*procs, c"0".as_ptr().cast(), 1) } == 1, const { step("join cgroup") });
        }
    }
    unsafe {
        libc::setsid();
        libc::sethostname(request.host.as_ptr(), request.host.count_bytes());
        libc::dup2(stdout, 1);
        libc::dup2(stderr, 2);
        // MOVE_MOUNT_F_EMPTY_PATH = 4
        let attached = libc::syscall(libc::SYS_move_mount, root, c"".as_ptr(), libc::AT_FDCWD, c"/".as_ptr(), 4u32);
        must(attached == 0, const { step("attach root file system") });
        must(libc::fchdir(root) == 0, const { step("enter root file system") });
    }
    for dir in [c"proc", c"dev", c"sys"] {
        let open = || sys::open_beneath(root, dir, libc::O_PATH | libc::O_DIRECTORY);
        let mut fd = open();
        if fd < 0 && sys::errno() == libc::ENOENT {
            // SAFETY: mkdirat does not follow a link in the last place.
            unsafe { libc::mkdirat(root, dir.as_ptr(), 0o755) };
            fd = open();
        }
        must(fd >= 0, const { step("find /proc, /dev, /sys in the image") });
        sys::close(fd);
    }
    let none = Some(c"");
    must(sys::mount(Some(c"/sys"), c"sys", none, libc::MS_MOVE as u64, None), const { step("move /sys") });
    must(
        sys::mount(Some(c"proc"), c"proc", Some(c"proc"), NOSUID | NODEV | NOEXEC, None),
        const { step("mount /proc") },
    );
    devices(&must);
    for (fd, target) in plugins.iter().zip(request.targets()) {
        let path = target.to_bytes_with_nul();
        let relative = CStr::from_bytes_with_nul(&path[usize::from(path[0] == b'/')..]).unwrap_or(c"");
        let place = sys::open_beneath(root, relative, libc::O_PATH);
        // MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
        let moved =
            unsafe { libc::syscall(libc::SYS_move_mount, *fd, c"".as_ptr(), place, c"".as_ptr(), 0x4u32 | 0x40u32) };
        must(place >= 0 && moved == 0, const { step("mount plugin") });
        sys::close(place);
    }
    unsafe {
        let pivoted = libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr());
        must(pivoted == 0, const { step("pivot root") });
        must(libc::umount2(c".".as_ptr(), libc::MNT_DETACH) == 0, const { step("detach old root") });
        libc::chdir(c"/".as_ptr());
        let input = libc::open(c"/dev/null".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        libc::dup2(input, 0);
    }
    protect(plan, &must);
    // With SYS_ADMIN still: all sandboxes share what the kernel has for compiled filters (net.core.bpf_jit_limit), and
    // one of them may have taken it. Who has SYS_ADMIN gets more (bpf_jit_charge_modmem in kernel/bpf/core.c). All that
    // follows is allowed by the filter, as programs do it too.
    must(sys::load_seccomp(plan.seccomp), const { step("seccomp") });
    privileges(plan, present, &must);
    unsafe {
        libc::dup3(ctl, CTL_FD, libc::O_CLOEXEC);
        libc::dup3(started, STARTED_FD, libc::O_CLOEXEC);
        libc::syscall(libc::SYS_close_range, 3u32, CTL_FD as u32 - 1, 0u32);
        libc::syscall(libc::SYS_close_range, END_FD - 1, u32::MAX, 0u32);
    }
    sys::send(CTL_FD, READY);
    park::park()
}

fn devices(must: &impl Fn(bool, u32)) {
    let mount = |source, target, kind, flags, data| sys::mount(Some(source), target, Some(kind), flags, data);
    let strict = libc::MS_STRICTATIME as u64;
    must(mount(c"dev", c"dev", c"tmpfs", NOSUID | strict, Some(c"mode=755,size=65536k")), const { step("mount /dev") });
    // SAFETY: constant NUL-terminated paths below the file system just mounted.
    unsafe {
        let mask = libc::umask(0);
        for (path, major, minor) in DEVICES {
            let made = libc::mknod(path.as_ptr(), libc::S_IFCHR | 0o666, libc::makedev(major, minor));
            must(made == 0, const { step("make device nodes") });
        }
        libc::umask(mask);
        for (target, path) in LINKS {
            libc::symlink(target.as_ptr(), path.as_ptr());
        }
        // Where the kernel has it, libcontainer links to it; it is masked.
        if libc::access(c"proc/kcore".as_ptr(), libc::F_OK) == 0 {
            libc::symlink(c"/proc/kcore".as_ptr(), c"dev/kcore".as_ptr());
        }
        for path in [c"dev/pts", c"dev/shm", c"dev/mqueue"] {
            libc::mkdir(path.as_ptr(), 0o755);
        }
    }
    let pts = Some(c"newinstance,ptmxmode=0666,mode=0620,gid=5,max=256");
    must(mount(c"devpts", c"dev/pts", c"devpts", NOSUID | NOEXEC, pts), const { step("mount /dev/pts") });
    let flags = NOSUID | NODEV | NOEXEC;
    must(mount(c"shm", c"dev/shm", c"tmpfs", flags, Some(c"mode=1777,size=65536k")), const { step("mount /dev/shm") });
    must(mount(c"mqueue", c"dev/mqueue", c"mqueue", flags, None), const { step("mount /dev/mqueue") });
}

/// Read-only and masked paths below /proc; those below /sys came with the mould's /sys. A path that this kernel lacks is passed over.
fn protect(plan: &Plan<'_>, must: &impl Fn(bool, u32)) {
    for path in plan.readonly() {
        let bind = (libc::MS_BIND | libc::MS_REC) as u64;
        if !sys::mount(Some(path), path, None, bind, None) {
            must(sys::errno() == libc::ENOENT, const { step("protect path") });
            continue;
        }
        let read_only = bind | (libc::MS_REMOUNT | libc::MS_RDONLY) as u64 | NOSUID | NODEV | NOEXEC;
        must(sys::mount(None, path, None, read_only, None), const { step("protect path") });
    }
    for path in plan.masked() {
        let hidden = sys::mount(Some(c"/dev/null"), path, None, libc::MS_BIND as u64, None)
            || match sys::errno() {
                libc::ENOENT => true,
                // A file does not go onto a directory.
                libc::ENOTDIR => sys::mount(Some(c"tmpfs"), path, Some(c"tmpfs"), libc::MS_RDONLY as u64, Some(c"")),
                _ => false,
            };
        must(hidden, const { step("mask path") });
    }
}

/// Bounding set, ids, capability sets, no_new_privs: from the mould's privileges to the recipe's.
fn privileges(plan: &Plan<'_>, present: u64, must: &impl Fn(bool, u32)) {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    let mut groups = [0u32; GROUPS];
    let mut count = 0;
    for (slot, group) in groups.iter_mut().zip(plan.groups()) {
        *slot = group;
        count += 1;
    }
    // SAFETY: plain integers, and arrays of the lengths that the kernel expects (capset(2): version 3, two elements).
    unsafe {
        libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0);
        for capability in 0..64 {
            if (present & !plan.bounding) >> capability & 1 == 1 {
                libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0);
            }
        }
        let list = if count == 0 { null() } else { groups.as_ptr() };
        must(libc::setgroups(count, list) == 0, const { step("set groups") });
        // The raw calls: glibc's would look for other threads.
        let ids = libc::syscall(libc::SYS_setresgid, plan.gid, plan.gid, plan.gid) == 0
            && libc::syscall(libc::SYS_setresuid, plan.uid, plan.uid, plan.uid) == 0;
        must(ids, const { step("set user") });
        let header = Header { version: 0x2008_0522, pid: 0 };
        let (e, p, i) = (plan.effective, plan.permitted, plan.inheritable);
        let data = [e as u32, p as u32, i as u32, (e >> 32) as u32, (p >> 32) as u32, (i >> 32) as u32];
        let set = libc::syscall(libc::SYS_capset, &header, data.as_ptr());
        must(set == 0, const { step("set capabilities") });
        libc::prctl(libc::PR_SET_KEEPCAPS, 0, 0, 0, 0);
    }
    must(sys::no_new_privs(), const { step("no_new_privs") });
}
