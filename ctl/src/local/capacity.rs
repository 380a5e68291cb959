//! How many sandboxes an agent of the local node takes when nobody says.

/// A small sandbox with its cgroups, its layer and a shell in it stays well below this; one that needs more asks for
/// it, and the kernel's own limits stand behind.
const KIB_PER_SANDBOX: u64 = 8 << 10;
/// A laptop with little free memory still gets a node that is of use.
const LEAST: u64 = 100;
/// More would only be a longer list of cgroups, which slows every start down.
const MOST: u64 = 4096;

/// The capacity of each of `agents` agents on a machine with `available_kib` of free memory.
pub(crate) fn of_an_agent(available_kib: u64, agents: usize) -> u32 {
    let share = available_kib / KIB_PER_SANDBOX / agents.max(1) as u64;
    share.clamp(LEAST, MOST) as u32
}

/// `MemAvailable` of `/proc/meminfo`, in KiB; 0 if it is not there.
pub(crate) fn available_kib() -> u64 {
    std::fs::read_to_string("/proc/meminfo").map(|text| parse(&text)).unwrap_or(0)
}

fn parse(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    line.and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_decides_between_a_hundred_and_four_thousand() {
        assert_eq!(of_an_agent(0, 1), 100);
        assert_eq!(of_an_agent(8 << 20, 1), 1024);
        assert_eq!(of_an_agent(8 << 20, 4), 256);
        assert_eq!(of_an_agent(1 << 40, 1), 4096);
    }

    #[test]
    fn free_memory_is_read() {
        assert_eq!(parse("MemFree: 1 kB\nMemAvailable:   24345678 kB\n"), 24_345_678);
        assert_eq!(parse("nothing"), 0);
    }
}
