//! A container from nothing, in straight-line code: what a cast does, and no more.
//!
//! In the parent: a cgroup with the default limits in each of memory, cpu and pids (one directory on v2), a
//! writable layer on the same file system as the agents' layers, a detached overlay, clone3. In the child: join the
//! cgroups, attach the overlay, /proc, /sys, /dev with its nodes, devpts, shm and mqueue, pivot, protect and mask
//! paths, drop capabilities, no_new_privs, the seccomp filter, close everything, execve.

use super::process::{Program, pipe};
use super::profile;
use super::sys;
use crate::clock;
use fsb_host::cgroup::{Tree, Version};
use fsb_proto::domain::{DEFAULT_MEMORY_BYTES, DEFAULT_PIDS};
use std::ffi::{CStr, CString, c_char};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What is the same for every container.
#[derive(Debug)]
pub struct Cold {
    tree: Tree,
    groups: Vec<Group>,
    layers: PathBuf,
    layers_dir: OwnedFd,
    lower: CString,
    masked: Vec<(CString, bool)>,
    read_only: Vec<CString>,
    /// Capabilities to drop from the bounding set: each drop costs, so only those that are there.
    drop: Vec<i32>,
    capabilities: u64,
    filter: Vec<libc::sock_filter>,
    made: u64,
}

#[derive(Debug)]
struct Group {
    dir: OwnedFd,
    controller: String,
}

/// A container that was started.
#[derive(Debug)]
pub struct Container {
    /// As the caller sees it.
    pub pid: i32,
    pub stdout: OwnedFd,
    /// When the call was made, in nanoseconds of the monotonic clock.
    pub called_ns: u64,
    pidfd: OwnedFd,
    name: CString,
    failure: OwnedFd,
}

impl Cold {
    /// Prepares what does not belong to a start. `cgroup` is the name of the bench's own cgroup; on v2
    /// this process moves into it. `layers` is made; `lower` is the image. The caller must stand in a mount
    /// namespace without shared mounts.
    pub fn prepare(cgroup: &str, layers: &Path, lower: &Path) -> io::Result<Self> {
        let tree = Tree::discover(cgroup)?;
        match tree.version() {
            // Controllers have to be enabled, for which this process must leave its cgroup.
            Version::V2 => tree.prepare()?,
            Version::V1 => {
                for (_, dir) in tree.dirs() {
                    std::fs::create_dir_all(dir.join("sandboxes"))?;
                }
            }
        }
        let mut groups = Vec::new();
        for (controller, dir) in tree.dirs() {
            groups.push(Group { dir: File::open(dir.join("sandboxes"))?.into(), controller: controller.to_owned() });
        }
        std::fs::create_dir_all(layers)?;
        let filter = fsb_host::seccomp::default_filter();
        let filter = filter
            .chunks_exact(8)
            .map(|i| libc::sock_filter {
                code: u16::from_ne_bytes([i[0], i[1]]),
                jt: i[2],
                jf: i[3],
                k: u32::from_ne_bytes([i[4], i[5], i[6], i[7]]),
            })
            .collect();
        // SAFETY: prctl with integers only.
        let bounded = |cap: &i32| unsafe { libc::prctl(libc::PR_CAPBSET_READ, *cap, 0, 0, 0) } == 1;
        let present: Vec<i32> = (0..64).filter(bounded).collect();
        let capabilities = present.iter().fold(0, |set, cap| set | 1 << cap) & profile::CAPABILITIES;
        Ok(Self {
            tree,
            groups,
            layers: layers.to_owned(),
            layers_dir: File::open(layers)?.into(),
            lower: CString::new(lower.as_os_str().as_encoded_bytes())?,
            masked: profile::masked(),
            read_only: profile::read_only(),
            drop: present.into_iter().filter(|cap| profile::CAPABILITIES >> cap & 1 == 0).collect(),
            capabilities,
            filter,
            made: 0,
        })
    }

    /// Starts `program` in a new container. Its pipes are made before the clock runs.
    pub fn start(&mut self, program: &Program) -> io::Result<Container> {
        self.made += 1;
        let (stdout, write) = pipe()?;
        let (failure, fail) = pipe()?;
        let called_ns = clock::now_ns();
        let name = CString::new(format!("{:032x}", self.made))?;
        let joins = self.join_files(&name)?;
        let root = self.root(&name)?;
        let v2 = self.tree.version() == Version::V2;
        let mut pidfd: i32 = -1;
        // SAFETY: plain integers, all of which may be zero.
        let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
        let namespaces = libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC;
        args.flags = (namespaces | libc::CLONE_PIDFD) as u64 | if v2 { sys::CLONE_INTO_CGROUP } else { 0 };
        args.pidfd = &raw mut pidfd as u64;
        args.exit_signal = libc::SIGCHLD as u64;
        args.cgroup = if v2 { joins[0].as_raw_fd() as u64 } else { 0 };
        // SAFETY: the child runs `child`, which makes system calls only and never returns.
        let pid = unsafe { sys::clone3(&mut args) }?;
        if pid == 0 {
            let joins = if v2 { &[][..] } else { &joins };
            // SAFETY: this is the child of a clone without CLONE_VM, with descriptors that were opened above.
            unsafe { self.child(joins, root.as_raw_fd(), write.as_raw_fd(), fail.as_raw_fd(), &name, program) }
        }
        // SAFETY: the kernel has put a new descriptor there.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        Ok(Container { pid, stdout, called_ns, pidfd, name, failure })
    }

    /// Ends a container if it still runs, waits for it and removes what it leaves behind. Returns the error of a
    /// start that failed.
    pub fn finish(&mut self, container: Container, kill: bool) -> io::Result<()> {
        if kill {
            fsb_host::pidfd::kill(&container.pidfd, nix::sys::signal::Signal::SIGKILL)?;
        }
        nix::sys::wait::waitid(
            nix::sys::wait::Id::PIDFd(container.pidfd.as_fd()),
            nix::sys::wait::WaitPidFlag::WEXITED,
        )?;
        let mut failed = Vec::new();
        File::from(container.failure).read_to_end(&mut failed)?;
        let name = container.name.to_string_lossy().into_owned();
        fsb_host::cgroup::remove(&self.tree.sandbox(&name), Duration::from_secs(5))?;
        std::fs::remove_dir_all(self.layers.join(name))?;
        match failed.as_slice().try_into().map(i32::from_ne_bytes) {
            Ok(errno) => Err(io::Error::from_raw_os_error(errno)),
            Err(_) => Ok(()),
        }
    }

    /// Makes the cgroups with their limits; what a process joins them through.
    fn join_files(&self, name: &CStr) -> io::Result<Vec<OwnedFd>> {
        let mut joins = Vec::with_capacity(4);
        for group in &self.groups {
            sys::make_dir(group.dir.as_fd(), name)?;
            let dir = sys::open(group.dir.as_fd(), name, libc::O_PATH | libc::O_DIRECTORY)?;
            match group.controller.as_str() {
                "memory" => {
                    sys::put(dir.as_fd(), c"memory.limit_in_bytes", DEFAULT_MEMORY_BYTES.to_string().as_bytes())?;
                }
                "pids" => sys::put(dir.as_fd(), c"pids.max", DEFAULT_PIDS.to_string().as_bytes())?,
                "" => {
                    sys::put(dir.as_fd(), c"memory.max", DEFAULT_MEMORY_BYTES.to_string().as_bytes())?;
                    sys::put(dir.as_fd(), c"pids.max", DEFAULT_PIDS.to_string().as_bytes())?;
                }
                _ => {}
            }
            joins.push(match group.controller.as_str() {
                "" => dir,
                _ => sys::open(dir.as_fd(), c"tasks", libc::O_WRONLY)?,
            });
        }
        Ok(joins)
    }

    /// The writable layer over the image, as a detached mount.
    fn root(&self, name: &CStr) -> io::Result<OwnedFd> {
        let base = self.layers.join(name.to_str().unwrap_or_default());
        let path = |part: &str| CString::new(base.join(part).into_os_string().into_encoded_bytes());
        let (upper, work) = (path("upper")?, path("work")?);
        sys::make_dir(self.layers_dir.as_fd(), name)?;
        sys::make_dir(self.layers_dir.as_fd(), &upper)?;
        sys::make_dir(self.layers_dir.as_fd(), &work)?;
        sys::overlay(&self.lower, &upper, &work)
    }

    /// The child. Ends with `errno` on `fail` if a step fails.
    ///
    /// # Safety
    /// Only in a new process, which it never leaves. It allocates nothing and takes no lock.
    unsafe fn child(&self, joins: &[OwnedFd], root: i32, stdout: i32, fail: i32, name: &CStr, program: &Program) -> ! {
        let must = |ok: bool| {
            if !ok {
                // SAFETY: errno is this thread's; the pointer is that of a live integer.
                unsafe {
                    let errno = *libc::__errno_location();
                    libc::write(fail, (&raw const errno).cast(), size_of::<i32>());
                    libc::_exit(126)
                }
            }
        };
        let none: *const c_char = std::ptr::null();
        // SAFETY: mount(2) takes strings and, for these file systems, a string of options or null.
        let mount = |source: &CStr, target: &CStr, kind: &CStr, flags: u64, options: &CStr| unsafe {
            must(libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, options.as_ptr().cast()) == 0);
        };
        let safe = libc::MS_NOSUID | libc::MS_NOEXEC;
        let safe_nodev = safe | libc::MS_NODEV;
        // SAFETY: system calls on descriptors and strings that live in this process's copy of memory.
        unsafe {
            for join in joins {
                must(libc::write(join.as_raw_fd(), c"0".as_ptr().cast(), 1) == 1);
            }
            libc::setsid();
            must(libc::sethostname(name.as_ptr(), 12) == 0);
            must(libc::dup2(stdout, 1) == 1 && libc::dup2(stdout, 2) == 2);

            let here = libc::AT_FDCWD;
            let empty = c"".as_ptr();
            let flags = sys::MOVE_MOUNT_F_EMPTY_PATH;
            must(libc::syscall(libc::SYS_move_mount, root, empty, here, c"/".as_ptr(), flags) == 0);
            must(libc::fchdir(root) == 0);
            mount(c"proc", c"proc", c"proc", 0, c"");
            mount(c"sysfs", c"sys", c"sysfs", safe_nodev | libc::MS_RDONLY, c"");
            mount(c"tmpfs", c"dev", c"tmpfs", libc::MS_NOSUID | libc::MS_STRICTATIME, c"mode=755,size=65536k");
            libc::umask(0);
            for (node, major, minor) in [
                (c"dev/null", 1, 3),
                (c"dev/zero", 1, 5),
                (c"dev/full", 1, 7),
                (c"dev/random", 1, 8),
                (c"dev/urandom", 1, 9),
                (c"dev/tty", 5, 0),
            ] {
                must(libc::mknod(node.as_ptr(), libc::S_IFCHR | 0o666, libc::makedev(major, minor)) == 0);
            }
            libc::umask(0o022);
            for (target, link) in [
                (c"/proc/self/fd", c"dev/fd"),
                (c"/proc/self/fd/0", c"dev/stdin"),
                (c"/proc/self/fd/1", c"dev/stdout"),
                (c"/proc/self/fd/2", c"dev/stderr"),
                (c"pts/ptmx", c"dev/ptmx"),
            ] {
                must(libc::symlink(target.as_ptr(), link.as_ptr()) == 0);
            }
            for dir in [c"dev/pts", c"dev/shm", c"dev/mqueue"] {
                must(libc::mkdir(dir.as_ptr(), 0o755) == 0);
            }
            mount(c"devpts", c"dev/pts", c"devpts", safe, c"newinstance,ptmxmode=0666,mode=0620,gid=5");
            mount(c"shm", c"dev/shm", c"tmpfs", safe_nodev, c"mode=1777,size=65536k");
            mount(c"mqueue", c"dev/mqueue", c"mqueue", safe_nodev, c"");

            must(libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) == 0);
            must(libc::umount2(c".".as_ptr(), libc::MNT_DETACH) == 0);
            must(libc::chdir(c"/".as_ptr()) == 0);

            let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDONLY);
            must(null >= 0 && libc::dup2(null, 0) == 0);
            for path in &self.read_only {
                let path = path.as_ptr();
                must(libc::mount(path, path, none, libc::MS_BIND | libc::MS_REC, std::ptr::null()) == 0);
                let flags = safe_nodev | libc::MS_BIND | libc::MS_REMOUNT | libc::MS_RDONLY;
                must(libc::mount(none, path, none, flags, std::ptr::null()) == 0);
            }
            for (path, is_dir) in &self.masked {
                if *is_dir {
                    mount(c"tmpfs", path, c"tmpfs", libc::MS_RDONLY, c"");
                } else {
                    must(libc::mount(c"/dev/null".as_ptr(), path.as_ptr(), none, libc::MS_BIND, std::ptr::null()) == 0);
                }
            }

            for capability in &self.drop {
                must(libc::prctl(libc::PR_CAPBSET_DROP, *capability, 0, 0, 0) == 0);
            }
            // The raw calls: glibc's would wait for the threads of the parent, which are not here (nptl(7)).
            must(libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()) == 0);
            must(libc::syscall(libc::SYS_setresgid, 0, 0, 0) == 0 && libc::syscall(libc::SYS_setresuid, 0, 0, 0) == 0);
            // struct __user_cap_header_struct and two of __user_cap_data_struct (capset(2)).
            let header: [u32; 2] = [0x2008_0522, 0];
            let (low, high) = (self.capabilities as u32, (self.capabilities >> 32) as u32);
            let data: [u32; 6] = [low, low, 0, high, high, 0];
            must(libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) == 0);
            must(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
            let filter = libc::sock_fprog { len: self.filter.len() as u16, filter: self.filter.as_ptr().cast_mut() };
            must(libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const filter) == 0);
            must(libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) == 0);
            libc::execve(program.path().as_ptr(), program.argv(), program.envp());
            must(false);
            libc::_exit(127)
        }
    }
}

#[cfg(test)]
#[path = "cold_test.rs"]
mod tests;
