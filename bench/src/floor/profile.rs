//! What a sandbox may not do: the same as in a sandbox of ours, as numbers.

use std::ffi::CString;

/// Docker's default capabilities without NET_RAW: CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP,
/// NET_BIND_SERVICE, SYS_CHROOT, MKNOD, AUDIT_WRITE, SETFCAP (linux/capability.h).
pub(super) const CAPABILITIES: u64 =
    1 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 18 | 1 << 27 | 1 << 29 | 1 << 31;

const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Masked paths that exist here, each with whether it is a directory.
pub(super) fn masked() -> Vec<(CString, bool)> {
    MASKED
        .iter()
        .filter_map(|path| {
            let kind = std::fs::metadata(path).ok()?;
            Some((CString::new(*path).ok()?, kind.is_dir()))
        })
        .collect()
}

/// Read-only paths that exist here.
pub(super) fn read_only() -> Vec<CString> {
    READ_ONLY
        .iter()
        .filter(|path| std::path::Path::new(path).exists())
        .filter_map(|path| CString::new(*path).ok())
        .collect()
}
