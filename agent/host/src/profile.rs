//! The default security profile: what every sandbox is held by, whoever makes it.

use crate::wire::Profile;
use caps::Capability;
use std::path::Path;
use std::sync::LazyLock;

/// Docker's default capabilities without NET_RAW, and without MKNOD.
pub const CAPABILITIES: [Capability; 12] = [
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

/// The capabilities of a profile. Where device nodes are not policed (cgroup v2 until the eBPF program is there) MKNOD
/// is not among them: it would open the host's disks.
pub fn capabilities(profile: Profile, devices_policed: bool) -> Vec<Capability> {
    let Profile::Default = profile;
    let mut list = CAPABILITIES.to_vec();
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
pub const fn mask(capabilities: &[Capability]) -> u64 {
    let (mut mask, mut index) = (0, 0);
    while index < capabilities.len() {
        mask |= 1 << capabilities[index] as u8;
        index += 1;
    }
    mask
}

/// The bits of what the default profile allows where device nodes are policed.
pub const DEFAULT_MASK: u64 = mask(&CAPABILITIES) | mask(&[Capability::CAP_MKNOD]);

/// Docker's masked paths that are the same everywhere (`defaultLinuxMaskedPaths` in daemon/pkg/oci/defaults.go of
/// moby 28.1 and later).
const MASKED: [&str; 12] = [
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

/// All of Docker's masked paths on this machine, looked for once: the ones above, and what each processor tells of its
/// temperature, which shows what others compute (GHSA-6fw5-f8r9-fgfm).
pub fn masked() -> &'static [String] {
    static ALL: LazyLock<Vec<String>> = LazyLock::new(|| {
        let everywhere = MASKED.iter().map(|path| (*path).to_owned());
        everywhere.chain(thermal_throttles(Path::new("/sys/devices/system/cpu"))).collect()
    });
    &ALL
}

/// `cpuN/thermal_throttle` of every processor that has one.
fn thermal_throttles(processors: &Path) -> Vec<String> {
    let number = |name: &str| name.strip_prefix("cpu")?.parse::<u32>().ok();
    let entries = std::fs::read_dir(processors).into_iter().flatten().flatten();
    let mut numbers: Vec<u32> = entries.filter_map(|entry| number(entry.file_name().to_str()?)).collect();
    numbers.sort_unstable();
    let paths = numbers.into_iter().map(|number| processors.join(format!("cpu{number}/thermal_throttle")));
    paths.filter(|path| path.exists()).map(|path| path.display().to_string()).collect()
}

/// Docker's read-only paths.
pub const READONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Sandboxes are killed before daemons when the node runs out of memory.
pub const OOM_SCORE_ADJ: i32 = 500;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_every_processor_tells_of_its_temperature_is_masked() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["cpu0/thermal_throttle", "cpu10/thermal_throttle", "cpu2/thermal_throttle", "cpu3/cache"] {
            std::fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        std::fs::create_dir_all(dir.path().join("cpufreq/thermal_throttle")).unwrap();
        let of = |name: &str| dir.path().join(name).join("thermal_throttle").display().to_string();
        assert_eq!(thermal_throttles(dir.path()), ["cpu0", "cpu2", "cpu10"].map(of));
        let there = thermal_throttles(Path::new("/sys/devices/system/cpu"));
        assert!(masked().ends_with(&there) && masked().len() == MASKED.len() + there.len());
    }

    #[test]
    fn the_bits_are_those_of_the_kernel() {
        // linux/capability.h
        let bits = [29, 0, 1, 3, 4, 5, 10, 31, 6, 8, 7, 18].iter().fold(0u64, |mask, bit| mask | 1 << bit);
        assert_eq!(mask(&CAPABILITIES), bits);
        assert_eq!(DEFAULT_MASK, bits | 1 << 27);
        assert_eq!(mask(&capabilities(Profile::Default, true)), DEFAULT_MASK);
    }
}
