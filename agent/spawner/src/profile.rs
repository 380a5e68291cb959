//! The default security profile: what every sandbox is held by, whoever makes it.

use caps::Capability;
use fsb_host::wire::Profile;

/// Docker's default capabilities without NET_RAW. Where device nodes are not policed (cgroup v2 until the eBPF program
/// is there) MKNOD goes too: it would open the host's disks.
pub fn capabilities(profile: Profile, devices_policed: bool) -> Vec<Capability> {
    let Profile::Default = profile;
    let mut list = vec![
        Capability::CAP_AUDIT_WRITE,
        Capability::CAP_CHOWN,
        Capability::CAP_DAC_OVERRIDE,
        Capability::CAP_FOWNER,
        Capability::CAP_FSETID,
        Capability::CAP_KILL,
        Capability::CAP_NET_BIND_SERVICE,
        Capability::CAP_SETFCAP,
        Capability::CAP_SETGID,
        Capability::CAP_SETPCAP,
        Capability::CAP_SETUID,
        Capability::CAP_SYS_CHROOT,
    ];
    if devices_policed {
        list.push(Capability::CAP_MKNOD);
    }
    list
}

/// What a mould holds beyond its recipe, to mount, clone and hand over.
pub const MOULD_CAPABILITIES: [Capability; 7] = [
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_MKNOD,
    Capability::CAP_SETUID,
    Capability::CAP_SETGID,
    Capability::CAP_SETPCAP,
    Capability::CAP_SYS_CHROOT,
    Capability::CAP_DAC_OVERRIDE,
];

/// The bits of a capability set.
pub fn mask(capabilities: &[Capability]) -> u64 {
    capabilities.iter().map(|capability| capability.bitmask()).fold(0, |mask, bit| mask | bit)
}

/// Docker's masked paths.
pub const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Docker's read-only paths.
pub const READONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Sandboxes are killed before daemons when the node runs out of memory.
pub const OOM_SCORE_ADJ: u32 = 500;
