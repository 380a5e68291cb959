//! A sandbox that takes all that the kernel counts for a user of the host, or for the machine.

use crate::node::{Node, PATIENCE, compile, kill};
use std::process::Command;
use std::time::{Duration, Instant};

/// Waits until a sandbox holds all that it can take.
fn until_held(node: &Node, name: &str) -> String {
    let end = Instant::now() + 4 * PATIENCE;
    loop {
        let log = node.ctl_ok(&["-n", "one", "logs", name]);
        if log.ends_with("held\n") {
            return log;
        }
        assert!(Instant::now() < end, "{name} has taken {log:?}{}", node.node_log());
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn who_takes_all_that_a_user_of_the_host_may_have_stops_no_other_tenant_and_nothing_of_the_host() {
    let agents = ["--agent", "name=a,namespace=one", "--agent", "name=b,namespace=two"];
    let node = Node::up(&[&agents[..], &["--warm-image", "busybox"]].concat());
    node.import_program("takes", include_str!("takes.c"));
    let take = |name: &str, user: &str, what: &[&str]| {
        let run = ["-n", "one", "run", name, "--image", "takes", "--user", user, "--", "/main"];
        node.ctl_ok(&[&run, what].concat());
    };
    let all = ["instances", "timers", "queues", "aio", "terminals", "locked", "pipes", "inflight"];
    take("user", "1000", &["timers", "queues", "locked", "pipes"]);
    // The compiled filters, all that there are, in a sandbox that does nothing else: it takes what others let go as well.
    take("root", "0", &all);
    take("filters", "0", &["filters"]);
    let taken = ["user", "root", "filters"].map(|name| until_held(&node, name));
    println!("{}", taken.concat());

    let other = |user: &str, script: &str| {
        let run = ["-n", "two", "run", "--rm", "--image", "busybox", "--user", user, "--", "sh", "-c", script];
        node.ctl_ok(&run)
    };
    let lines: String = (1..=3000).map(|n| format!("{n}\n")).collect();
    let others_go_on = || {
        // From the stock, and as another user, of whom there is none in stock: cast.
        for user in ["0", "1001", "0", "1001", "0", "1001"] {
            assert_eq!(other(user, "seq 3000"), lines, "as {user}: every line to the last one");
        }
    };
    others_go_on();
    // The host's own programs, which are the same user, have room still.
    let program = node.root().join("takes");
    compile(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/takes.c").as_ref(), &program);
    for one in ["timers", "queues"] {
        assert!(Command::new(&program).args(["one", one]).status().unwrap().success(), "the host has no {one}");
    }
    // An agent that begins in the midst of this.
    let before = node.pids("fsb-agent");
    node.kill("fsb-spawner");
    for pid in &before {
        kill(*pid);
    }
    let end = Instant::now() + PATIENCE;
    let up = || node.pids("fsb-agent").iter().filter(|pid| !before.contains(pid)).count() == before.len();
    let answers = || node.ctl(&["-n", "two", "run", "--rm", "--image", "busybox", "--", "true"]).status.success();
    while !(up() && answers()) {
        assert!(Instant::now() < end, "the agents do not come back{}", node.node_log());
        std::thread::sleep(Duration::from_millis(50));
    }
    others_go_on();
    // No sandbox has all terminals of the machine, so others have some.
    let log = node.ctl_ok(&["-n", "one", "logs", "root"]);
    assert!(log.contains("terminals 256 "), "{log}");
    node.ctl_ok(&["-n", "one", "rm", "--force", "root", "user", "filters"]);
    node.finish();
}
