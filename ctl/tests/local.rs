//! `local`, with stand-ins for the node's programs: shell scripts that make what the real ones make, cgroups, files and
//! processes, and a controller that answers from within the test.

mod common;

use common::{Controller, ctl, stderr, stdout};
use fsb_proto::fastpath::AgentSummary;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Becomes a member of cgroups as the real one does, leaves a layer, a record and a child behind, and ends when asked.
const KEEPER: &str = r#"#!/bin/sh
env > "$FSB_LOG_DIR/$POD_NAME.next"
mv "$FSB_LOG_DIR/$POD_NAME.next" "$FSB_LOG_DIR/$POD_NAME.env"
for mount in /sys/fs/cgroup /sys/fs/cgroup/memory /sys/fs/cgroup/pids /sys/fs/cgroup/unified; do
  [ -e "$mount/cgroup.procs" ] || continue
  name=$(basename "$mount")
  own=$(awk -F: -v name="$name" '$2 == name || ($2 == "" && (name == "unified" || name == "cgroup")) { print $3 }' /proc/self/cgroup)
  mkdir -p "$mount$own/$FSB_CGROUP/sandboxes/x" && echo 0 > "$mount$own/$FSB_CGROUP/sandboxes/x/cgroup.procs"
done
mkdir -p "$FSB_STATE_DIR/$POD_NAME/layers/x" "$FSB_RUN_DIR/$POD_NAME/records"
mount -t tmpfs none "$FSB_STATE_DIR/$POD_NAME/layers/x"
echo '{"by":"cast"}' > "$FSB_RUN_DIR/$POD_NAME/making.json"
echo "$POD_UID" > "$FSB_STATE_DIR/$POD_NAME/layers/$POD_UID"
trap 'touch "$FSB_LOG_DIR/$POD_NAME.asked"; exit' TERM
sleep 100000 &
wait
"#;

/// The socket is the test's own controller.
const CONTROLLER: &str = r#"#!/bin/sh
echo "$@" > "$FSB_X_LOG/controller.args"
ln -sf "$FSB_X_SOCKET" "$2"
exec sleep 100000
"#;

/// Forwarding is one switch for the whole machine: one test at a time.
static MACHINE: Mutex<()> = Mutex::new(());

/// A node of its own, taken down at the end whatever happened.
struct Node {
    controller: Controller,
    programs: PathBuf,
    root: PathBuf,
    _machine: Option<MutexGuard<'static, ()>>,
}

impl Node {
    fn new() -> Self {
        let machine = MACHINE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        Self::beside(Some(machine))
    }

    fn beside(machine: Option<MutexGuard<'static, ()>>) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "these tests make networks and mounts: run them as root");
        let controller = Controller::start();
        let programs = controller.directory.path().join("bin");
        std::fs::create_dir(&programs).unwrap();
        std::fs::copy(env!("CARGO_BIN_EXE_fsb-ctl"), programs.join("fsb-ctl")).unwrap();
        let node = Self { root: controller.directory.path().join("n"), controller, programs, _machine: machine };
        node.program("fsb-keeper", KEEPER);
        node.program("fsb-controller", CONTROLLER);
        node.program("fsb-agent", "");
        node.program("fsb-spawner", "");
        node.agents(&["agent-1", "agent-2"]);
        node
    }

    fn program(&self, name: &str, script: &str) {
        let path = self.programs.join(name);
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// The agents that the controller takes for healthy.
    fn agents(&self, names: &[&str]) {
        let summary = |name: &&str| AgentSummary {
            name: (*name).to_owned(),
            namespace: "default".into(),
            healthy: true,
            ..AgentSummary::default()
        };
        self.controller.state().script.agents = names.iter().map(summary).collect();
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(self.programs.join("fsb-ctl"));
        let template = ctl(self.controller.directory.path(), &[]);
        command.env_clear().envs(template.get_envs().filter_map(|(key, value)| Some((key, value?))));
        command.args(words).arg("--root").arg(&self.root).current_dir("/").stdin(std::process::Stdio::null());
        command.env("FSB_X_SOCKET", &self.controller.socket).env("FSB_X_LOG", self.root.join("log"));
        command.env("FSB_TOKEN", "secret").env("POOL_MEMORY", "5%").env("UNRELATED", "x");
        command
    }

    fn run(&self, words: &str) -> Output {
        self.command(&words.split(' ').collect::<Vec<_>>()).output().unwrap()
    }

    fn up(&self, words: &str) {
        let output = self.run(&format!("local up {words}"));
        assert_eq!(output.status.code(), Some(0), "{}{}", stdout(&output), stderr(&output));
        assert!(stdout(&output).contains("export FSB_ENDPOINT=unix:"), "{}", stdout(&output));
    }

    fn record(&self) -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(self.root.join("run/node.json")).unwrap()).unwrap()
    }

    fn keeper(&self, agent: &str) -> i32 {
        self.record()["keepers"][agent]["keeper"]["pid"].as_i64().unwrap() as i32
    }

    fn controller_pid(&self) -> i32 {
        self.record()["controller"]["pid"].as_i64().unwrap() as i32
    }

    fn supervisor(&self) -> i32 {
        let text = std::fs::read(self.root.join("lib/node.lock")).unwrap();
        serde_json::from_slice::<serde_json::Value>(&text).unwrap()["pid"].as_i64().unwrap() as i32
    }

    /// What the keeper of an agent was given.
    fn environment(&self, agent: &str) -> BTreeSet<String> {
        let path = self.root.join(format!("log/{agent}.env"));
        until("the keeper runs", || path.exists());
        std::fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
    }

    fn layers(&self, agent: &str) -> Vec<String> {
        names(&self.root.join("lib").join(agent).join("layers")).into_iter().filter(|name| name != "x").collect()
    }

    /// Everything of the machine that this node has changed. Other nodes may come and go meanwhile.
    fn traces(&self) -> Vec<String> {
        // FNV-1a of the root, as in the names of everything that the node makes.
        let bytes = self.root.as_os_str().as_encoded_bytes();
        let hash = bytes.iter().fold(0x811c_9dc5_u32, |h, byte| (h ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
        let (link, table, cgroup) = (format!("fsb{hash:08x}-"), format!("fsb_{hash:08x}"), format!("fsb-{hash:08x}"));
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mounts = mounts.lines().filter(|line| line.contains(&*self.root.to_string_lossy())).map(str::to_owned);
        let links = names(Path::new("/sys/class/net")).into_iter().filter(|name| name.starts_with(&link));
        let rules = system("nft list tables");
        let rules = rules.lines().filter(|line| line.contains(&table)).map(str::to_owned);
        let cgroups = directories_called(Path::new("/sys/fs/cgroup"), &cgroup);
        let global = std::fs::read_to_string("/run/fast-sandbox.forwarding").unwrap_or_default();
        let mut traces: Vec<String> = mounts.chain(links).chain(rules).collect();
        traces.extend(cgroups.iter().map(|path| path.display().to_string()));
        traces.extend(global.contains(&table).then_some(global));
        traces
    }

    fn cgroups(&self) -> Vec<PathBuf> {
        let cgroup = self.environment("agent-1").into_iter().find_map(|line| {
            line.strip_prefix("FSB_CGROUP=").and_then(|path| Some(path.split_once('/')?.0.to_owned()))
        });
        directories_called(Path::new("/sys/fs/cgroup"), &cgroup.unwrap())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.command(&["local", "down", "--purge"]).output();
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "it never came true: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
}

fn directories_called(directory: &Path, name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if entry.file_name() == name {
                found.push(entry.path());
            }
            found.extend(directories_called(&entry.path(), name));
        }
    }
    found
}

fn kill_9(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}

fn alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn system(line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    stdout(&output)
}

/// The switch for forwarding and what hangs on it; `None` while a node needs it that is none of ours.
fn forwarding() -> Option<String> {
    let free = !Path::new("/run/fast-sandbox.forwarding").exists();
    let settings = "ip_forward conf/all/accept_redirects conf/default/forwarding conf/lo/forwarding";
    free.then(|| system(&format!("cd /proc/sys/net/ipv4 && grep . {settings}")))
}

/// A setting of its own for one interface, as an administrator may have made it; put back in the end.
struct OwnForwarding(String);

impl OwnForwarding {
    const PATH: &str = "/proc/sys/net/ipv4/conf/lo/forwarding";

    fn other_than_the_switch() -> Self {
        let (own, switch) = (system(&format!("cat {}", Self::PATH)), system("cat /proc/sys/net/ipv4/ip_forward"));
        std::fs::write(Self::PATH, if switch.trim() == "0" { "1" } else { "0" }).unwrap();
        Self(own)
    }
}

impl Drop for OwnForwarding {
    fn drop(&mut self) {
        let _ = std::fs::write(Self::PATH, &self.0);
    }
}

#[test]
fn up_makes_a_node_and_down_leaves_only_images_claims_and_logs() {
    let node = Node::new();
    let before = forwarding();
    node.up("--agents 2 --capacity 7 --warm-image a --warm-image b --controller-arg=--profiling");
    let environment = node.environment("agent-2");
    let run = node.root.join("run");
    for wanted in [
        "POD_NAME=agent-2",
        "FSB_POOL=default-pool",
        "NAMESPACE=default",
        "AGENT_CAPACITY=7",
        "AGENT_PORT=0",
        "WARM_IMAGES=a,b",
        "POOL_MEMORY=5%",
        &format!("FSB_RUN_DIR={}", run.display()),
        &format!("AGENT_NETNS={}/netns/agent-2", run.display()),
        &format!("AGENT_SOCKET={}/agent-2.sock", run.display()),
    ] {
        assert!(environment.contains(wanted), "{wanted} is not in {environment:?}");
    }
    let leaked = |line: &String| line.starts_with("UNRELATED=") || line.starts_with("FSB_TOKEN=");
    assert!(!environment.iter().any(leaked), "{environment:?}");
    let arguments = std::fs::read_to_string(node.root.join("log/controller.args")).unwrap();
    for wanted in ["agent-1.sock", "agent-2.sock", "claims.redb", "--profiling", "--fastpath-bind-address=off"] {
        assert!(arguments.contains(wanted), "{arguments}");
    }

    let status = std::fs::read_to_string(format!("/proc/{}/status", node.keeper("agent-1"))).unwrap();
    let pids = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap();
    assert_eq!(pids.split_whitespace().nth(1), Some("1"), "a keeper is PID 1 of a namespace of its own");
    let ip = environment.iter().find_map(|line| line.strip_prefix("POD_IP=")).unwrap();
    let netns = run.join("netns/agent-2");
    let inside = system(&format!("nsenter --net={} ip -4 addr; nsenter --net={0} ip route", netns.display()));
    assert!(inside.contains(ip) && inside.contains("default via") && inside.contains("state UP"), "{inside}");
    assert_eq!(system(&format!("stat -f -c %T {}", run.display())).trim(), "tmpfs");
    until("the keepers are in their cgroups", || !node.cgroups().is_empty());
    let status: serde_json::Value = serde_json::from_slice(&node.run("local status -o json").stdout).unwrap();
    assert_eq!(status["up"], true, "{status}");

    assert!(node.traces().len() > 6, "two links, a table, the tmpfs, two namespaces, cgroups: {:?}", node.traces());
    let keepers = [node.keeper("agent-1"), node.keeper("agent-2")];
    let again = node.run("local up --agents 2");
    assert_eq!(again.status.code(), Some(0), "{}", stderr(&again));
    assert!(stderr(&again).contains("up already"));
    assert_eq!(keepers, [node.keeper("agent-1"), node.keeper("agent-2")], "nothing was touched");

    let (cgroups, supervisor, controller) = (node.cgroups(), node.supervisor(), node.controller_pid());
    let down = node.run("local down");
    assert_eq!((down.status.code(), stderr(&down).contains("error")), (Some(0), false), "{}", stderr(&down));
    assert!(!keepers.into_iter().chain([supervisor, controller]).any(alive));
    for agent in ["agent-1", "agent-2"] {
        assert!(node.root.join(format!("log/{agent}.asked")).exists(), "its keeper was asked to end, not killed");
    }
    assert!(cgroups.iter().all(|path| !path.exists()), "{cgroups:?}");
    assert_eq!(node.traces(), Vec::<String>::new());
    assert!(before.is_none() || forwarding().is_none() || forwarding() == before);
    assert_eq!(names(&node.root).len(), 2, "lib and log: {:?}", names(&node.root));
    assert_eq!(names(&node.root.join("lib")), Vec::<String>::new(), "no layer and no lock is left");
    assert_eq!(node.run("local status").status.code(), Some(1));
    assert_eq!(node.run("local down --purge").status.code(), Some(0));
    assert!(!node.root.exists());
}

#[test]
fn a_dead_keeper_comes_back_as_an_empty_agent_and_the_others_do_not_notice() {
    let node = Node::new();
    node.up("--agents 2");
    until("both have a layer", || node.layers("agent-1").len() == 1 && node.layers("agent-2").len() == 1);
    let (first, second) = (node.layers("agent-1"), node.layers("agent-2"));
    let (keeper, other, controller) = (node.keeper("agent-1"), node.keeper("agent-2"), node.controller_pid());
    kill_9(keeper);
    until("another keeper has its own layer", || {
        let layers = node.layers("agent-1");
        layers.len() == 1 && layers != first
    });
    assert_ne!(node.keeper("agent-1"), keeper);
    assert_eq!((node.keeper("agent-2"), node.layers("agent-2")), (other, second));
    assert_eq!(node.controller_pid(), controller);
    kill_9(controller);
    until("another controller", || node.controller_pid() != controller && alive(node.controller_pid()));
    assert!(alive(other));
}

#[test]
fn two_that_start_a_node_in_the_same_moment_both_get_the_one_node() {
    let node = Node::new();
    let start = || {
        let mut command = node.command(&["local", "up", "--agents", "2"]);
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped()).spawn().unwrap()
    };
    for up in [start(), start(), start()] {
        let output = up.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    }
    assert!(alive(node.supervisor()) && alive(node.keeper("agent-1")) && alive(node.controller_pid()));
}

#[test]
fn a_new_supervisor_goes_on_with_what_the_dead_one_left() {
    let node = Node::new();
    node.up("--agents 2");
    let before = (node.keeper("agent-1"), node.keeper("agent-2"), node.controller_pid());
    let supervisor = node.supervisor();
    kill_9(supervisor);
    until("it is dead", || !alive(supervisor));
    node.up("--agents 2");
    assert_ne!(node.supervisor(), supervisor);
    assert_eq!((node.keeper("agent-1"), node.keeper("agent-2"), node.controller_pid()), before);
    kill_9(before.0);
    until("it sees the end of a keeper that it did not start", || node.keeper("agent-1") != before.0);
    kill_9(before.2);
    until("and of the controller", || node.controller_pid() != before.2);
}

#[test]
fn down_leaves_nothing_whatever_died_before() {
    let node = Node::new();
    for case in ["the supervisor", "everything", "everything and the record"] {
        node.up("--agents 2");
        until("the keepers are in their cgroups", || node.layers("agent-2").len() == 1 && !node.cgroups().is_empty());
        let (cgroups, keepers) = (node.cgroups(), [node.keeper("agent-1"), node.keeper("agent-2")]);
        let rest = [node.controller_pid(), keepers[0], keepers[1]];
        kill_9(node.supervisor());
        if case != "the supervisor" {
            rest.into_iter().for_each(kill_9);
        }
        if case == "everything and the record" {
            std::fs::remove_file(node.root.join("run/node.json")).unwrap();
        }
        let down = node.run("local down --purge");
        assert_eq!(down.status.code(), Some(0), "{case}: {}", stderr(&down));
        assert!(!rest.into_iter().any(alive), "{case}");
        assert!(cgroups.iter().all(|path| !path.exists()), "{case}: {cgroups:?}");
        assert_eq!(node.traces(), Vec::<String>::new(), "{case}");
        assert!(!node.root.exists(), "{case}");
    }
}

#[test]
fn down_finds_living_processes_of_which_no_record_is_left() {
    let node = Node::new();
    node.up("--agents 1");
    let (keeper, controller) = (node.keeper("agent-1"), node.controller_pid());
    kill_9(node.supervisor());
    std::fs::remove_file(node.root.join("run/node.json")).unwrap();
    assert_eq!(node.run("local down --purge").status.code(), Some(0));
    assert!(!alive(keeper) && !alive(controller));
}

#[test]
fn a_disk_that_holds_the_state_is_emptied_and_stays() {
    let node = Node::new();
    let lib = node.root.join("lib");
    let disk = Disk::mount(&lib);
    node.up("--agents 1");
    let down = node.run("local down --purge");
    assert_eq!(down.status.code(), Some(0), "{}", stderr(&down));
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    assert!(mounts.lines().any(|line| line.starts_with(&format!("disk {} ", lib.display()))), "it is not ours");
    assert_eq!(names(&lib), Vec::<String>::new());
    drop(disk);
}

/// A file system of somebody else's, until this is dropped.
struct Disk(PathBuf);

impl Disk {
    fn mount(place: &Path) -> Self {
        system(&format!("mkdir -p {0} && mount -t tmpfs disk {0}", place.display()));
        Self(place.to_owned())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        system(&format!("umount -l {}", self.0.display()));
    }
}

#[test]
fn nodes_live_side_by_side_and_the_last_one_puts_settings_back() {
    let first = Node::new();
    let second = Node::beside(None);
    let _own = OwnForwarding::other_than_the_switch();
    let before = forwarding();
    let watches = || system("cat /proc/sys/fs/epoll/max_user_watches").trim().parse::<u64>().unwrap();
    let (some, alone) = (watches(), !Path::new("/run/fast-sandbox.settings").exists());
    first.up("--agents 2");
    second.up("--agents 1");
    assert!(!alone || watches() == 25 * some, "more than a sandbox can have");
    let address = |node: &Node| node.environment("agent-1").into_iter().find(|line| line.starts_with("POD_IP="));
    assert_ne!(address(&first), address(&second), "each has a network of its own");
    assert_eq!(first.run("local down --purge").status.code(), Some(0));
    assert_eq!(system("cat /proc/sys/net/ipv4/ip_forward").trim(), "1", "the second still needs it");
    assert!(!alone || watches() == 25 * some);
    assert!(alive(second.keeper("agent-1")));
    assert_eq!(second.run("local down --purge").status.code(), Some(0));
    assert!(first.traces().is_empty() && second.traces().is_empty());
    assert!(before.is_none() || forwarding().is_none() || forwarding() == before);
    assert!(!alone || watches() == some, "as it was");
}

#[test]
fn without_egress_there_is_no_way_out_and_no_switch_is_touched() {
    let node = Node::new();
    node.up("--no-egress");
    assert!(!node.traces().iter().any(|trace| trace.contains("nodes")), "{:?}", node.traces());
    let table = node.traces().into_iter().find(|trace| trace.starts_with("table inet")).expect("rules are in force");
    assert!(!system(&format!("nft list {table}")).contains("masquerade"));
    let netns = node.root.join("run/netns/agent-1");
    assert!(!system(&format!("nsenter --net={} ip route", netns.display())).contains("default"));
}

#[test]
fn agents_have_the_names_pools_and_namespaces_that_they_were_given() {
    let node = Node::new();
    node.agents(&["a"]);
    node.up("--agent name=a,pool=p,capacity=3");
    let environment = node.environment("a");
    for wanted in ["POD_NAME=a", "FSB_POOL=p", "AGENT_CAPACITY=3"] {
        assert!(environment.contains(wanted), "{wanted}");
    }
}

#[test]
fn a_node_that_does_not_come_up_says_why_and_leaves_nothing() {
    let node = Node::new();
    let in_the_way = node.root.join("lib/node.lock");
    std::fs::create_dir_all(&in_the_way).unwrap();
    let output = node.run("local up");
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    assert!(text.contains("node.log") && text.contains("cannot open"), "the log's last lines: {text}");
    assert!(text.contains("doctor: ") && text.contains("\nhint: "), "{text}");
    std::fs::remove_dir(&in_the_way).unwrap();
    assert_eq!(node.traces(), Vec::<String>::new());
    std::fs::remove_file(node.programs.join("fsb-agent")).unwrap();
    let output = node.run("local up");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("there is no fsb-agent"), "{}", stderr(&output));
}

#[test]
fn the_doctor_finds_a_machine_that_runs_these_tests_fit() {
    let node = Node::new();
    let output = node.run("doctor -o json");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    for finding in report["items"].as_array().unwrap() {
        assert_ne!(finding["verdict"], "missing", "{finding}");
        assert_eq!(finding["verdict"] == "ok", finding["fix"] == "", "{finding}");
    }
    assert_eq!(output.status.code(), Some(0));
}
