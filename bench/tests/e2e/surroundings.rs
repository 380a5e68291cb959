//! Machines and places that are not as a node needs them.

use crate::node::{Node, program};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

#[test]
fn what_cannot_work_is_refused_before_anything_is_made() {
    let node = Node::down();
    let [lower, upper, work, state] = ["lower", "upper", "work", "lib"].map(|name| node.root().join(name));
    for dir in [&lower, &upper, &work, &state] {
        std::fs::create_dir(dir).unwrap();
    }
    // As in a container: an overlay is no place for the writable layers of others.
    let options = format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    mount(Some("overlay"), &state, Some("overlay"), MsFlags::empty(), Some(options.as_str())).unwrap();
    let said = ["up", "serve"].map(|how| node.ctl(&["local", how]));
    let made = ["run", "log"].map(|name| node.root().join(name).exists());
    let written = std::fs::read_dir(&state).unwrap().count();
    umount2(&state, MntFlags::MNT_DETACH).unwrap();
    for output in said {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.starts_with("error: overlay mount: ") && text.contains("hint: put"), "{text}");
    }
    assert_eq!((made, written), ([false; 2], 0), "nothing was made");
    std::fs::remove_dir(&state).unwrap();
    node.finish();
}

/// A spawner below these cgroups of its agent no process may be started.
fn spawner_without_processes_in(node: &Node, cgroups: &str) -> String {
    let script = node.root().join("spawner");
    // The tree of cgroups is JSON: every path in it is a directory of the agent's.
    let text = format!(
        "#!/bin/sh\nfor dir in $(echo \"$FSB_CGROUP_TREE\" | grep -o '\"/[^\"]*\"' | tr -d '\"'); do for group in {cgroups}; do\n\
         [ ! -e $dir/$group/pids.max ] || echo 0 > $dir/$group/pids.max\ndone; done\nexec {}\n",
        program("fsb-spawner").display()
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    script.display().to_string()
}

#[test]
fn without_moulds_libcontainer_makes_what_starts_and_the_node_says_so() {
    let node = Node::down();
    let spawner = spawner_without_processes_in(&node, "moulds");
    let up = node.command(&["local", "up", "--no-egress"]).env("FSB_SPAWNER_PROGRAM", spawner).output().unwrap();
    let said = String::from_utf8_lossy(&up.stderr).into_owned();
    assert!(up.status.success(), "{said}{}", node.node_log());
    assert!(said.contains("agent-1 has no moulds") && said.contains("make a mould: "), "{said}");
    let status = node.ctl_ok(&["local", "status"]);
    assert!(status.contains("no moulds, slow starts: cast: make a mould: "), "{status}");
    let doctor: serde_json::Value = serde_json::from_str(&node.ctl_ok(&["doctor", "-o", "json"])).unwrap();
    let finding = doctor["items"].as_array().unwrap().iter().find(|finding| finding["check"] == "moulds").unwrap();
    assert_eq!(finding["verdict"], "warning", "{finding}");
    node.import_busybox();
    let run = |name: &str| node.ctl_ok(&["run", name, "--rm", "--image", "busybox", "--", "echo", "runs"]);
    assert_eq!(run("a"), "runs\n");
    node.kill("fsb-spawner");
    assert_eq!(run("b"), "runs\n");
    node.finish();
}

#[test]
fn a_node_that_can_make_no_container_says_why_within_ten_seconds() {
    let node = Node::down();
    let spawner = spawner_without_processes_in(&node, "moulds sandboxes");
    let begun = Instant::now();
    let up = node.command(&["local", "up", "--no-egress"]).env("FSB_SPAWNER_PROGRAM", spawner).output().unwrap();
    let said = String::from_utf8_lossy(&up.stderr).into_owned();
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!(up.status.code(), Some(1), "{said}");
    let last = said.lines().find(|line| line.starts_with("error: ")).unwrap();
    assert!(last.contains("agent-1 can make no container: cast: make a mould: "), "{said}");
    assert!(!said.to_lowercase().contains("broken pipe"), "{said}");
    node.finish();
}
