//! A cast and a container made by libcontainer are the same in everything that a process can see.

mod common;

use common::Spawner;
use fsb_host::cgroup::{self, Limits};
use fsb_host::wire::{How, Overlay, Plugin, Recipe, User};

/// Prints all that a process can find out about itself and where it stands.
const LOOK: &str = r##"
echo "# mounts"; while read id parent dev root point opt rest; do echo "$point $root $opt ${rest#*- } [${rest%%- *}]"; done < /proc/self/mountinfo | sed 's/upperdir=[^,]*,workdir=[^, ]*/LAYER/; s/lowerdir[^,]*,/LOWER,/' | sort
echo "# order"; cut -d' ' -f5 /proc/self/mountinfo | sort
echo "# status"; grep -E "^(Cap|NoNew|Seccomp|Uid|Gid|Groups|NSpid|NSsid|NSpgid|Umask|Sig[BIC]|ShdPnd|Threads|Speculation|Cpus_allowed_list|Mems_allowed_list|CoreDumping)" /proc/self/status
echo "# limits"; cat /proc/self/limits
echo "# cgroup"; sed 's/^[0-9]*://' /proc/self/cgroup | grep -E '^(memory|cpu|pids|devices|.*cpuacct|)' | sort
echo "# host"; hostname | wc -c; pwd; env | sort; echo "pid $$"; id; cat /etc/resolv.conf; cat /etc/hosts | wc -l; cat /etc/hostname | wc -c
echo "# descriptors"; for f in /proc/$$/fd/*; do echo "${f##*/} $(readlink $f | sed 's/[0-9][0-9]*/N/')"; grep flags /proc/$$/fdinfo/${f##*/}; done
echo "# stat"; cut -d' ' -f 4-8,18,19,38,40,41 /proc/self/stat; for f in oom_score_adj coredump_filter personality loginuid timerslack_ns comm; do echo $f; cat /proc/self/$f; done 2>&1; cat /proc/sys/kernel/domainname
echo "# dev"; ls -lan /dev /dev/pts /dev/shm /dev/mqueue | sed 's/[A-Z][a-z][a-z] [ 0-9][0-9] [0-9:]*//; s/^total.*//'
echo "# root"; ls -lan / /etc | sed 's/[A-Z][a-z][a-z] [ 0-9][0-9] [0-9:]*//; s/^total.*//; s/^\(dr-xr-xr-x\) *[0-9]* \(.*proc\)$/\1 \2/'
echo "# plugins"; ls -lanR /.fs 2>&1 | sed 's/[A-Z][a-z][a-z] [ 0-9][0-9] [0-9:]*//; s/^total.*//'; echo x 2>&1 > /.fs/tool && echo written
echo "# masks"; for p in /proc/acpi /proc/asound /proc/interrupts /proc/keys /proc/timer_list /proc/kcore /proc/sched_debug /proc/scsi /sys/firmware /sys/devices/virtual/powercap /sys/devices/system/cpu/cpu*/thermal_throttle; do [ -e $p ] && { ls -land $p | cut -c1-30; wc -c < $p; ls -A $p | wc -l; }; done 2>&1
echo "# read-only"; for p in /proc/bus/x /proc/sys/kernel/domainname /proc/irq/default_smp_affinity /proc/sysrq-trigger /sys/kernel/x /proc/fs/x; do echo 1 > $p; done 2>&1
echo "# may"; mount -t tmpfs x /tmp 2>&1; mknod /tmp/n c 1 3 2>&1 && echo node; mknod /tmp/d b 8 0 2>&1 && dd if=/tmp/d bs=1 count=1 2>&1 | head -1; hostname z 2>&1
for n in pid ipc uts mnt net user cgroup time; do readlink /proc/self/ns/$n | sed 's/[0-9][0-9]*/N/'; done; ls /sys/fs/cgroup | wc -l; ls -la /proc/1/exe /proc/1/cwd /proc/1/root 2>&1 | sed 's/.* \/proc/\/proc/'
echo "# write"; echo x > /tmp/x && echo tmp; echo x > /etc/x && echo etc; echo hello > /dev/stdout; echo hello > /dev/stderr
"##;

/// The parts of an output that name the one container, made neutral.
fn neutral(text: &str, id: &str) -> String {
    text.replace(id, "ID").replace(&id[..12], "HOST")
}

fn rows(spawner: &Spawner) -> Vec<(&'static str, Recipe)> {
    let base = spawner.recipe();
    let tool = spawner.dir.path().join("tool");
    std::fs::write(&tool, "#!/bin/sh\n").unwrap();
    let kit = spawner.dir.path().join("kit");
    std::fs::create_dir_all(kit.join("sub")).unwrap();
    let plugin =
        |source: &std::path::Path, name: &str| Plugin { source: source.into(), target: format!("/.fs/{name}").into() };
    let upper = spawner.dir.path().join("second-layer");
    std::fs::create_dir_all(upper.join("etc")).unwrap();
    let user = |uid, gid, groups: &[u32]| User { uid, gid, groups: groups.to_vec() };
    vec![
        ("root", base.clone()),
        ("a user", Recipe { user: user(1000, 1000, &[]), ..base.clone() }),
        ("a user with groups", Recipe { user: user(1000, 1001, &[5, 27, 1001]), ..base.clone() }),
        ("root with another group", Recipe { user: user(0, 100, &[0, 100]), ..base.clone() }),
        ("plugins", Recipe { plugins: vec![plugin(&tool, "tool"), plugin(&kit, "kit")], ..base.clone() }),
        ("a capped overlay", Recipe { overlay: Overlay::Tmpfs { bytes: 8 << 20, inodes: 1_000 }, ..base.clone() }),
        ("two layers", Recipe { lowers: vec![upper, spawner.image.clone()], ..base.clone() }),
    ]
}

#[test]
fn a_cast_equals_a_container_made_by_libcontainer_in_everything_a_process_can_see() {
    let mut spawner = Spawner::start();
    for (name, recipe) in rows(&spawner) {
        // More than it uses: it is to be seen, not to make the test wait.
        for limits in [None, Some(Limits { memory_bytes: 64 << 20, pids: 33, cpu_millis: Some(4000) })] {
            let mut seen = Vec::new();
            let mut files = Vec::new();
            for how in [How::Libcontainer, How::Cast] {
                let mut paused = spawner.make(recipe.clone(), how);
                assert_eq!(paused.made.how, how);
                if let Some(limits) = &limits {
                    cgroup::set_limits(&paused.made.cgroups, limits, None).unwrap();
                }
                files.push(cgroup_files(&paused.made.cgroups));
                let output = paused.sh(LOOK);
                seen.push(neutral(&output, &paused.made.id));
                let exit = spawner.finish(paused, false);
                assert_eq!(exit.code, Some(0), "{output}");
                let open_files = output.lines().find(|line| line.starts_with("Max open files")).unwrap();
                assert_eq!(open_files.split_whitespace().nth(3), Some("1024"), "not the daemons' own: {open_files}");
            }
            same(&format!("{name}, limits {limits:?}"), &seen[0], &seen[1]);
            same(&format!("{name}, cgroup files, limits {limits:?}"), &files[0], &files[1]);
        }
    }
}

/// Every setting in the cgroups of memory, cpu and pids; not what they count.
fn cgroup_files(dirs: &[std::path::PathBuf]) -> String {
    let counts =
        ["usage", "stat", "procs", "tasks", "threads", "current", "events", "peak", "max_usage", "pressure", "kill"];
    let mut lines = Vec::new();
    for dir in dirs {
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            let name = entry.file_name().into_string().unwrap();
            if counts.iter().any(|word| name.contains(word)) {
                continue;
            }
            if let Ok(text) = std::fs::read_to_string(entry.path()) {
                let controller = dir.iter().nth(4).unwrap_or_default().to_string_lossy();
                lines.push(format!("{controller} {name} {}", text.trim()));
            }
        }
    }
    lines.sort();
    assert!(lines.len() > 10, "{lines:?}");
    lines.join("\n")
}

fn same(what: &str, libcontainer: &str, cast: &str) {
    assert!(libcontainer.lines().count() > 10, "{what}: {libcontainer}");
    let mut differences = Vec::new();
    let (a, b): (Vec<_>, Vec<_>) = (libcontainer.lines().collect(), cast.lines().collect());
    for i in 0..a.len().max(b.len()) {
        let (x, y) = (a.get(i).unwrap_or(&"(nothing)"), b.get(i).unwrap_or(&"(nothing)"));
        if x != y {
            differences.push(format!("libcontainer: {x}\ncast:         {y}"));
        }
    }
    assert!(differences.is_empty(), "{what}: {} lines differ\n{}", differences.len(), differences.join("\n"));
}
