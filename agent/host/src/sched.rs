//! How long a process may keep a processor before another one has its turn.
//!
//! Under load the kernel lets whoever wakes up preempt a process whose slice is longer than its own (EEVDF, Linux 6.12).
//! Those who carry a start along have short slices, so that it does not wait for other people's long ones. No priority and
//! no larger share goes with it, so it needs no privilege (sched_setattr(2)). Older kernels ignore it.

use nix::errno::Errno;
use std::time::Duration;

/// The kernel's shortest slice.
pub const SHORT: Duration = Duration::from_micros(100);

/// struct sched_attr in its first form (sched_setattr(2)).
#[repr(C)]
#[derive(Default)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// Gives this thread, and those that it makes from here on, a short slice. A parked process takes the usual one back
/// itself before it becomes the user's program (`usual_slice` in fsb-park).
pub fn short_slice() -> nix::Result<()> {
    set(SHORT)
}

/// Gives this thread, and those that it makes from here on, the slice that everybody has.
pub fn usual_slice() -> nix::Result<()> {
    set(Duration::ZERO)
}

/// The slice of a process's first thread, 0 = this thread: what it was given, or the usual one. Zero on kernels that
/// have none.
pub fn slice(pid: i32) -> nix::Result<Duration> {
    let mut attributes = Attributes::default();
    // SAFETY: the kernel writes at most `size` bytes, which is what the struct has.
    Errno::result(unsafe {
        libc::syscall(libc::SYS_sched_getattr, pid, &raw mut attributes, size_of::<Attributes>() as u32, 0)
    })?;
    Ok(Duration::from_nanos(attributes.runtime))
}

fn set(slice: Duration) -> nix::Result<()> {
    let attributes = Attributes {
        size: size_of::<Attributes>() as u32,
        policy: libc::SCHED_OTHER as u32,
        runtime: slice.as_nanos() as u64,
        ..Default::default()
    };
    // SAFETY: the kernel reads `size` bytes, which is what the struct has.
    Errno::result(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_slice_is_inherited_and_nobody_elses() {
        let usual = slice(0).unwrap();
        let child = std::thread::spawn(|| {
            short_slice().unwrap();
            std::process::Command::new("sleep").arg("100").spawn().unwrap()
        });
        let mut child = child.join().unwrap();
        let pid = child.id() as i32;
        let inherited = slice(pid).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        // A kernel without slices says zero to all.
        assert_eq!(inherited, if usual.is_zero() { Duration::ZERO } else { SHORT });
        assert_eq!(slice(0).unwrap(), usual, "another thread's is its own");
    }
}
