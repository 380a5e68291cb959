//! What a paused container promises, whoever made it: it takes any program, says why one cannot run, holds nothing that
//! is not its own, and an image cannot get at what makes it.

mod common;

use common::{Paused, Spawner};
use fsb_host::handoff::{Outcome, Stage};
use fsb_host::sched;
use fsb_host::wire::{How, Make, Overlay, Plugin, Recipe, User};
use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;

const BOTH: [How; 2] = [How::Cast, How::Libcontainer];

fn output(paused: &mut Paused) -> String {
    let mut text = String::new();
    paused.stdout.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn a_hand_off_binds_program_arguments_environment_and_directory() {
    let mut spawner = Spawner::start();
    for how in BOTH {
        let mut paused = spawner.make(spawner.recipe(), how);
        paused
            .start(
                &["sh", "-c", "pwd; echo $A; echo \"$0 $1\"", "zero", "o n e"],
                &["PATH=/nowhere:/bin", "A=b c"],
                "/tmp",
            )
            .unwrap();
        assert_eq!(output(&mut paused), "/tmp\nb c\nzero o n e\n");
        assert_eq!(spawner.finish(paused, false).code, Some(0));
    }
}

#[test]
fn a_roused_container_takes_its_hand_off_at_once_or_later_and_ends_when_none_can_come() {
    let mut spawner = Spawner::start();
    for (how, wait_ms, times) in [(How::Cast, 0, 1), (How::Cast, 20, 3), (How::Libcontainer, 20, 2)] {
        let mut paused = spawner.make(spawner.recipe(), how);
        for _ in 0..times {
            fsb_host::handoff::rouse(paused.ctl.as_fd());
            std::thread::sleep(std::time::Duration::from_millis(wait_ms));
        }
        assert_eq!(fsb_host::handoff::outcome(paused.ctl.as_fd()).unwrap(), None, "it has nothing to say to that");
        paused.start(&["echo", "here"], &["PATH=/bin"], "/").unwrap();
        assert_eq!(output(&mut paused), "here\n");
        assert_eq!(spawner.finish(paused, false).code, Some(0));
    }
    let mut paused = spawner.make(spawner.recipe(), How::Cast);
    let (nobody, _) = fsb_host::socket::pair().unwrap();
    fsb_host::handoff::rouse(paused.ctl.as_fd());
    paused.ctl = nobody;
    assert_eq!(spawner.finish(paused, false).code, Some(0));
}

#[test]
fn an_environment_too_large_for_a_message_arrives_whole() {
    let mut spawner = Spawner::start();
    let value = "x".repeat(100_000);
    let env: Vec<String> = (0..10).map(|i| format!("K{i}={value}")).chain(["PATH=/bin".into()]).collect();
    let env: Vec<&str> = env.iter().map(String::as_str).collect();
    for how in BOTH {
        let mut paused = spawner.make(spawner.recipe(), how);
        paused.start(&["sh", "-c", "echo ${#K0} ${#K9}"], &env, "/").unwrap();
        assert_eq!(output(&mut paused), "100000 100000\n");
        spawner.finish(paused, false);
        let mut paused = spawner.make(spawner.recipe(), how);
        let many: Vec<String> = (0..5000).map(|i| i.to_string()).collect();
        let argv: Vec<&str> =
            ["sh", "-c", "echo $#", "sh"].into_iter().chain(many.iter().map(String::as_str)).collect();
        paused.start(&argv, &["PATH=/bin"], "/").unwrap();
        assert_eq!(output(&mut paused), "5000\n");
        spawner.finish(paused, false);
    }
}

#[test]
fn a_program_that_cannot_run_is_told_by_stage_and_errno() {
    let mut spawner = Spawner::start();
    std::fs::write(spawner.image.join("bin/text"), "no program").unwrap();
    std::fs::write(spawner.image.join("bin/broken"), "\x7fELF nothing").unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(spawner.image.join("bin/broken"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let cases = [
        (vec!["missing"], "/", Stage::Exec, libc_enoent()),
        (vec!["/bin/missing"], "/", Stage::Exec, libc_enoent()),
        (vec!["text"], "/", Stage::Exec, nix::libc::EACCES),
        (vec!["/bin/broken"], "/", Stage::Exec, nix::libc::ENOEXEC),
        (vec!["/tmp"], "/", Stage::Exec, nix::libc::EACCES),
        (vec!["sh"], "/missing", Stage::Chdir, libc_enoent()),
    ];
    for how in BOTH {
        for (argv, cwd, stage, errno) in &cases {
            let mut paused = spawner.make(spawner.recipe(), how);
            let failed = paused.start(argv, &["PATH=/bin"], cwd).unwrap_err();
            assert_eq!(failed, Outcome::Failed { stage: *stage, errno: *errno }, "{argv:?}");
            let mut told = String::new();
            paused.started.read_to_string(&mut told).unwrap();
            assert!(told.ends_with('N'), "{told}");
            assert_eq!(spawner.finish(paused, false).code, Some(127));
        }
    }
}

fn libc_enoent() -> i32 {
    nix::libc::ENOENT
}

#[test]
fn the_started_pipe_tells_a_program_that_ran_from_one_that_never_did() {
    let mut spawner = Spawner::start();
    for how in BOTH {
        let mut paused = spawner.make(spawner.recipe(), how);
        paused.start(&["true"], &["PATH=/bin"], "/").unwrap();
        let mut told = String::new();
        paused.started.read_to_string(&mut told).unwrap();
        assert_eq!(told, "x");
        spawner.finish(paused, false);
        let mut paused = spawner.make(spawner.recipe(), how);
        fsb_host::pidfd::kill(&paused.pidfd, nix::sys::signal::Signal::SIGKILL).unwrap();
        let mut told = String::new();
        paused.started.read_to_string(&mut told).unwrap();
        assert_eq!(told, "");
        spawner.finish(paused, false);
    }
}

#[test]
fn a_hundred_paused_and_running_containers_hold_no_descriptor_that_is_not_theirs() {
    let mut spawner = Spawner::start();
    let mut all: Vec<Paused> = Vec::new();
    for i in 0..100 {
        let how = if i % 10 == 0 { How::Libcontainer } else { How::Cast };
        all.push(spawner.make(spawner.recipe(), how));
    }
    for paused in &all {
        let mut held = descriptors(paused.made.pid);
        held.sort();
        assert_eq!(held, ["/dev/null", "pipe", "pipe", "pipe", "socket"], "{:?}", paused.made.how);
    }
    for paused in &mut all {
        paused.start(&["sleep", "100"], &["PATH=/bin"], "/").unwrap();
    }
    for paused in all {
        assert_eq!(descriptors(paused.made.pid), ["/dev/null", "pipe", "pipe"]);
        assert_eq!(spawner.finish(paused, true).signal, Some(9));
    }
}

fn descriptors(pid: i32) -> Vec<String> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten() {
        let target = std::fs::read_link(entry.path()).unwrap().display().to_string();
        names.push(target.split(':').next().unwrap().to_owned());
    }
    names.sort();
    names
}

#[test]
fn a_killed_spawner_and_its_moulds_leave_their_casts_alone() {
    let mut spawner = Spawner::start();
    let mut parked = spawner.make(spawner.recipe(), How::Cast);
    let mut running = spawner.make(spawner.recipe(), How::Cast);
    running.start(&["sh", "-c", "sleep 0.3; echo done; exit 9"], &["PATH=/bin"], "/").unwrap();
    fsb_host::pidfd::kill(&spawner.pidfd, nix::sys::signal::Signal::SIGKILL).unwrap();
    for pid in &spawner.moulds {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    }
    assert_eq!(parked.sh("echo still here"), "still here\n");
    assert_eq!(output(&mut running), "done\n");
    assert_eq!(spawner.finish(running, false).code, Some(9));
    assert_eq!(spawner.finish(parked, false).code, Some(0));
}

#[test]
fn a_mould_that_was_killed_is_made_again() {
    let mut spawner = Spawner::start();
    for pid in spawner.moulds.clone() {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    }
    let mut paused = spawner.make(spawner.recipe(), How::Cast);
    assert_eq!(paused.sh("echo ok"), "ok\n");
    spawner.finish(paused, false);
}

#[test]
fn a_mould_or_a_container_that_cannot_be_made_takes_nobody_along() {
    let mut spawner = Spawner::start();
    let mut paused = spawner.make(spawner.recipe(), How::Cast);
    let mould = nix::unistd::Pid::from_raw(spawner.moulds[0]);
    // Processes that the agent may have. libcontainer's first process joins its cgroup and starts a second one, which is
    // one too many.
    let pids = spawner.tree.dir("pids").unwrap().to_owned();
    let limit = || {
        let now: u64 = std::fs::read_to_string(pids.join("pids.current")).unwrap().trim().parse().unwrap();
        std::fs::write(pids.join("pids.max"), (now + 1).to_string()).unwrap();
    };
    limit();
    let other = Recipe { user: User { uid: 1000, gid: 1000, groups: vec![] }, ..spawner.recipe() };
    let Err(error) = spawner.request(other.clone(), Some(How::Cast)) else { panic!("a mould was made") };
    assert!(error.contains("make a mould"), "{error}");
    limit();
    let Err(error) = spawner.request(other.clone(), Some(How::Libcontainer)) else { panic!("a container was made") };
    assert!(error.contains("libcontainer"), "{error}");
    std::fs::write(pids.join("pids.max"), "max").unwrap();
    let instead = spawner.request(other.clone(), None).unwrap();
    assert_eq!(instead.made.how, How::Libcontainer, "a mould that failed is not tried for every container");
    spawner.finish(instead, true);
    assert!(!fsb_host::pidfd::ended(spawner.pidfd.as_fd()), "the spawner lives");
    nix::sys::signal::kill(mould, None).expect("the first mould lives");
    assert_eq!((spawner.tree.moulds().len(), spawner.tree.list().len()), (1, 1), "nothing is left of them");
    assert_eq!(paused.sh("echo still here"), "still here\n");
    spawner.finish(paused, false);
    for how in [How::Cast, How::Libcontainer] {
        let mut next = spawner.make(other.clone(), how);
        assert_eq!(next.sh("id -u"), "1000\n");
        spawner.finish(next, false);
    }
    assert_eq!(spawner.moulds.len(), 2, "one for each user");
}

#[test]
fn an_image_with_links_in_the_places_of_mounts_is_refused_and_reaches_nothing() {
    let mut spawner = Spawner::start();
    let outside = spawner.dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    for name in ["dev", "proc", "sys"] {
        let hostile = spawner.dir.path().join(format!("hostile-{name}"));
        std::fs::create_dir(&hostile).unwrap();
        std::os::unix::fs::symlink(&outside, hostile.join(name)).unwrap();
        let recipe = Recipe { lowers: vec![hostile, spawner.image.clone()], ..spawner.recipe() };
        let error = spawner.request(recipe, Some(How::Cast)).err().expect("a cast refuses it");
        assert!(error.contains("find /proc, /dev, /sys"), "{error}");
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    }
    // Nothing is left of the attempts.
    assert_eq!(spawner.tree.list(), Vec::<String>::new());
    assert_eq!(std::fs::read_dir(spawner.paths.layers()).unwrap().count(), 0);
}

#[test]
fn a_writable_layer_with_a_cap_is_full_at_its_cap() {
    let mut spawner = Spawner::start();
    for how in BOTH {
        let recipe = Recipe { overlay: Overlay::Tmpfs { bytes: 1 << 20, inodes: 1_000 }, ..spawner.recipe() };
        let mut paused = spawner.make(recipe, how);
        let output = paused.sh("dd if=/dev/zero of=/tmp/big bs=4096 count=1000 2>&1 | head -1; wc -c < /tmp/big");
        assert!(output.contains("No space left"), "{output}");
        spawner.finish(paused, false);
    }
}

#[test]
fn nothing_of_a_container_is_in_the_layer_that_the_next_one_gets() {
    let mut spawner = Spawner::start();
    const WRITE: &str = "echo x > /left; echo x >> /etc/hosts; echo x > /etc/hostname; rm /etc/resolv.conf; mkdir /etc/d; \
                         chown 5:6 /etc; chmod 700 / /etc; mv /tmp /moved; echo written";
    const LOOK: &str = "cd /; for f in . * etc/*; do stat -c '%n %F %a %u %g %s' $f; done; grep . etc/hosts \
                        etc/resolv.conf; [ $(cat etc/hostname) = $(hostname) ] && grep -c $(hostname) etc/hosts";
    let neutral = |text: String, host: &str| text.replace(&host[..12], "HOST");
    for how in BOTH {
        let mut new = spawner.make(spawner.recipe(), how);
        let before = neutral(new.sh(LOOK), &new.made.id);
        assert!(before.ends_with("\n1\n"), "{before}");
        spawner.finish(new, false);

        let mut first = spawner.make(spawner.recipe(), how);
        assert_eq!(first.sh(WRITE), "written\n");
        let spare = spawner.spare(first);
        let make = |id: String, spare: &str| {
            let (recipe, spare) = (spawner.recipe(), Some(spare.to_owned()));
            Make { id, recipe, how: Some(how), urgent: true, lookups: Vec::new(), spare }
        };
        let (reused, missing) = (make(Spawner::id(), &spare), make(Spawner::id(), "gone"));
        // One that is gone meanwhile is made anew.
        for make in [reused, missing] {
            let mut next = spawner.request_as(make).unwrap();
            assert!(!spawner.paths.spare(&spare).exists());
            assert_eq!(neutral(next.sh(LOOK), &next.made.id), before);
            spawner.finish(next, false);
        }
    }
    let bad = Make {
        id: Spawner::id(),
        recipe: spawner.recipe(),
        how: None,
        urgent: true,
        lookups: Vec::new(),
        spare: Some("../other".into()),
    };
    assert!(spawner.request_as(bad).is_err());
}

#[test]
fn plugins_are_there_read_only_and_only_below_their_place() {
    let mut spawner = Spawner::start();
    let tool = spawner.dir.path().join("tool");
    std::fs::write(&tool, "content").unwrap();
    let plugin = |target: &str| Plugin { source: tool.clone(), target: target.into() };
    for how in BOTH {
        let recipe = Recipe { plugins: vec![plugin("/.fs/tool")], ..spawner.recipe() };
        let mut paused = spawner.make(recipe, how);
        let output = paused.sh("cat /.fs/tool; echo; echo x > /.fs/tool");
        assert!(output.starts_with("content\n") && output.contains("Read-only"), "{output}");
        spawner.finish(paused, false);
    }
    for target in ["/etc/passwd", "/.fs/../etc/passwd", "relative"] {
        let recipe = Recipe { plugins: vec![plugin(target)], ..spawner.recipe() };
        assert!(spawner.request(recipe, None).is_err(), "{target}");
    }
}

#[test]
fn what_is_asked_for_wrongly_is_refused_and_leaves_nothing() {
    let mut spawner = Spawner::start();
    let recipe = spawner.recipe();
    let make = |id: &str, recipe: Recipe| Make {
        id: id.into(),
        recipe,
        how: None,
        urgent: false,
        lookups: Vec::new(),
        spare: None,
    };
    let missing = Recipe { lowers: vec!["/nowhere/at/all".into()], ..recipe.clone() };
    let none = Recipe { lowers: vec![], ..recipe.clone() };
    for bad in [
        make("../../etc", recipe.clone()),
        make("short", recipe.clone()),
        make(&Spawner::id(), missing),
        make(&Spawner::id(), none),
    ] {
        assert!(spawner.request_as(bad.clone()).is_err(), "{bad:?}");
    }
    assert_eq!(spawner.tree.list(), Vec::<String>::new());
    assert_eq!(std::fs::read_dir(spawner.paths.layers()).unwrap().count(), 0);
    let paused = spawner.request(recipe, None).unwrap();
    assert_eq!(paused.made.how, How::Cast);
    spawner.finish(paused, true);
}

#[test]
fn a_program_begins_with_the_slice_that_everybody_has() {
    let mut spawner = Spawner::start();
    let usual = sched::slice(0).unwrap();
    for how in BOTH {
        let mut paused = spawner.make(spawner.recipe(), how);
        // A kernel without slices says zero to all.
        let short = if usual.is_zero() { usual } else { sched::SHORT };
        assert_eq!(sched::slice(paused.made.pid).unwrap(), short, "the start is carried along by a short one");
        paused.start(&["sleep", "100"], &["PATH=/bin"], "/").unwrap();
        assert_eq!(sched::slice(paused.made.pid).unwrap(), usual);
        spawner.finish(paused, true);
    }
}

#[test]
fn where_the_node_may_set_the_least_oom_score_no_sandbox_lowers_its_own() {
    const TRIES: &str = "cat /proc/self/oom_score_adj; echo 499 > /proc/self/oom_score_adj && echo lowered; \
                         echo 700 > /proc/self/oom_score_adj && echo 500 > /proc/self/oom_score_adj && echo as before";
    // CAP_SYS_RESOURCE (capabilities(7)).
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:\t")).unwrap();
    let may = u64::from_str_radix(effective, 16).unwrap() >> 24 & 1 == 1;
    let mut spawner = Spawner::start();
    for how in BOTH {
        for user in [User::default(), User { uid: 1000, gid: 1000, groups: vec![] }] {
            let mut paused = spawner.make(Recipe { user, ..spawner.recipe() }, how);
            let said = paused.sh(TRIES);
            spawner.finish(paused, false);
            match may {
                true => assert!(said.starts_with("500\nas before\n") && said.contains("Permission denied"), "{said}"),
                false => assert_eq!(said, "500\nlowered\nas before\n", "README's Limits and `doctor` say so"),
            }
        }
    }
}

/// The well-known ways out, each tried by root and by a user, from both kinds of container.
#[test]
fn nobody_breaks_out_by_the_well_known_ways() {
    let mut spawner = Spawner::start();
    compile_escapes(&spawner.image);
    let (process, directory) = (std::process::id().to_string(), spawner.image.display().to_string());
    const TRIES: &str = r#"
try() { name=$1; shift; if "$@" >/dev/null 2>&1; then echo "POSSIBLE: $name"; fi; }
put() { echo "$1" > "$2"; }
# The setting that is there: where it can be written, it is still the same.
write() { put "$(sed 's/.*\[\(.*\)\].*/\1/' "$1")" "$1"; }
holds() { [ "$(head -c 1 "$1" | wc -c)" != 0 ]; }
device() { mknod "/tmp/$1-$2" "$1" "${2%:*}" "${2#*:}" && head -c 1 "/tmp/$1-$2"; }
try mount mount -t tmpfs x /tmp
try mount-proc mount -t proc proc /tmp
try remount mount -o remount,rw /proc/sys
try bind mount -o bind / /tmp
try sysrq write /proc/sysrq-trigger
try core_pattern write /proc/sys/kernel/core_pattern
try domainname write /proc/sys/kernel/domainname
try uevent write /sys/kernel/uevent_helper
try sys-write write /sys/kernel/mm/transparent_hugepage/enabled
# Not every kernel has each of them; none is without interrupts.
for file in interrupts kcore keys timer_list sched_debug latency_stats; do
    try "read $file" holds /proc/$file
    try "umount $file" umount /proc/$file
done
try firmware sh -c '[ -n "$(ls -A /sys/firmware)" ]'
for disk in 254:0 8:0 $(cat /sys/block/*/dev 2>/dev/null); do try "disk $disk" device b $disk; done
try mem device c 1:1
try kmsg device c 1:11
mounts=$(awk '$3 ~ /^cgroup/ { print $2 }' /proc/mounts)
names="-name cgroup.procs -o -name memory.limit_in_bytes -o -name memory.max"
for file in $(busybox find /sys/fs/cgroup $mounts $names 2>/dev/null); do
    case $file in *procs) value=0 ;; *max) value=max ;; *) value=-1 ;; esac
    try "$file" put $value $file
done
try hostname hostname other
try pid-of-others sh -c '[ $(ls -d /proc/[0-9]* | wc -l) -gt 6 ]'
try lower-oom sh -c 'echo -900 > /proc/self/oom_score_adj'
echo checked
"#;
    for how in BOTH {
        for user in [User::default(), User { uid: 1000, gid: 1000, groups: vec![] }] {
            let mut paused = spawner.make(Recipe { user: user.clone(), ..spawner.recipe() }, how);
            assert_eq!(paused.sh(TRIES), "checked\n");
            spawner.finish(paused, false);
            let mut paused = spawner.make(Recipe { user, ..spawner.recipe() }, how);
            assert_eq!(paused.run(&["/bin/escapes", &process, &directory]), "checked\n");
            spawner.finish(paused, false);
        }
    }
}

/// Puts escapes.c into an image, for the calls that no tool in it makes.
fn compile_escapes(image: &Path) {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/escapes.c");
    let mut compiler = Command::new("gcc");
    compiler.args(["-static", "-o"]).arg(image.join("bin/escapes")).arg(source);
    assert!(compiler.status().expect("gcc is installed (make setup)").success());
}
