//! What another user of the machine gets to see of a node: nothing that its tenants said or wrote.

use crate::doors::{self, Door};
use crate::node::{Calls, Node, PATIENCE, block_on, shell};
use crate::stranger::{Search, finds};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Group, Pid};
use std::io::Write;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const SECRET: &str = "what-only-its-tenant-may-know";

#[test]
fn another_user_of_the_machine_finds_what_a_tenant_said_in_no_file_and_behind_no_door() {
    let node = node_with_a_past();
    let (planted, guarded) = plant(node.root());

    let mut doors: Vec<Door> = doors::of(&programs(&node)).into_iter().collect();
    let paths = everything_below(node.root());
    // A socket's name in the kernel's table is the one that it was bound to.
    doors.extend(paths.iter().filter(|path| is_socket(path)).map(|path| Door::Path(path.clone())));
    for socket in ["controller.sock", "agent-1.sock"] {
        assert!(doors.contains(&Door::Path(node.run_dir().join(socket))), "{doors:?}");
    }
    assert!(doors.iter().any(|door| matches!(door, Door::Tcp(_))), "its metrics are for all: {doors:?}");
    doors.extend(guarded.doors());
    let search = Search {
        secret: SECRET.to_owned(),
        paths,
        pids: processes_of(&node),
        doors,
        sandboxes: vec!["before".into(), "after".into()],
    };
    let mut found = finds(&search);
    // He can see: what was put there for him.
    let controls = guarded.doors().map(|door| format!("{door:?} says it")).chain([planted.display().to_string()]);
    for control in controls {
        assert!(found.contains(&control), "he is blind: {control} is not among {found:#?}");
    }
    let ours: Vec<String> = guarded.doors().map(|door| format!("{door:?} ")).collect();
    found.retain(|place| planted != Path::new(place) && !ours.iter().any(|door| place.starts_with(door)));
    assert!(found.is_empty(), "another user found it in {found:#?}");
    node.finish();
}

#[test]
fn every_file_of_a_node_is_its_owners_alone_also_those_that_were_there_before() {
    let node = node_with_a_past();
    let group = Group::from_name("fsb").unwrap().map(|group| group.gid.as_raw());
    let shared = |path: &Path, mode: u32, gid: u32| match path.strip_prefix(node.root()).unwrap().to_str().unwrap() {
        "run" => group.is_some_and(|group| (mode, gid) == (0o750, group)),
        "run/controller.sock" => (mode, gid) == (0o660, group.unwrap_or(0)),
        // The kernel's, on which a namespace is pinned: nobody gets to it, and entering it takes a privilege (setns(2)).
        path if path.starts_with("run/netns/") => mode == 0o444,
        _ => false,
    };
    let tops = ["run", "lib", "log"].map(|name| node.root().join(name));
    let mut open = Vec::new();
    for path in tops.iter().flat_map(|top| everything_below(top)).filter(|path| !is_a_containers(node.root(), path)) {
        let Ok(found) = path.symlink_metadata() else { continue };
        let mode = found.mode() & 0o7777;
        if mode & 0o077 != 0 && !shared(&path, mode, found.gid()) {
            open.push(format!("{mode:04o} {}", path.display()));
        }
    }
    assert!(open.is_empty(), "others may use {open:#?}");
    node.finish();
}

/// A node that an older version has left with a crash, and that is up again. Its root may be looked into by everybody, as
/// somebody's `mkdir` makes it.
fn node_with_a_past() -> Node {
    let node = Node::up(&[]);
    set_mode(node.root(), 0o755);
    block_on(says(&node, "before"));
    let pids = programs(&node);
    for pid in &pids {
        // With a keeper the kernel ends its agent.
        let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
    }
    let end = Instant::now() + PATIENCE;
    while pids.iter().any(|pid| Path::new(&format!("/proc/{pid}")).exists()) {
        assert!(Instant::now() < end, "{pids:?} do not die");
        std::thread::sleep(Duration::from_millis(10));
    }
    as_an_older_version_left_it(node.root());
    node.start(&[]);
    block_on(says(&node, "after"));
    node
}

/// The supervisor first: what dies after it is not started again.
fn programs(node: &Node) -> Vec<i32> {
    let lock = std::fs::read(node.root().join("lib/node.lock")).unwrap();
    let supervisor: serde_json::Value = serde_json::from_slice(&lock).unwrap();
    let mut pids = vec![supervisor["pid"].as_i64().unwrap() as i32];
    for name in ["fsb-controller", "fsb-keeper", "fsb-agent", "fsb-spawner"] {
        let found = node.pids(name);
        assert!(!found.is_empty(), "no {name} runs{}", node.node_log());
        pids.extend(found);
    }
    pids
}

/// A sandbox that is told the secret, says it, writes it down, and lives.
async fn says(node: &Node, name: &str) {
    let mut client = node.client().await;
    let mut request = shell(name, "echo $S; echo $S > /tmp/written; exec sleep 1000");
    request.envs.insert("S".into(), SECRET.into());
    request.labels.insert("said".into(), SECRET.into());
    client.create_as(request).await.unwrap();
    node.until_logged(name, &format!("{SECRET}\n"));
}

/// Modes as they were when nobody had thought of them, and what a damaged store and a full log leave behind.
fn as_an_older_version_left_it(root: &Path) {
    std::fs::copy(root.join("lib/claims.redb"), root.join("lib/claims.damaged-17")).unwrap();
    std::fs::write(root.join("log/node.log.1"), SECRET).unwrap();
    for top in ["run", "lib", "log"].map(|name| root.join(name)) {
        let below = everything_below(&top);
        // A namespace's mode is the kernel's, for good.
        let pinned = |path: &Path| path.parent().is_some_and(|above| above.ends_with("run/netns"));
        for path in below.iter().filter(|path| !is_a_containers(root, path) && !pinned(path)) {
            set_mode(path, if path.is_dir() { 0o755 } else { 0o644 });
        }
    }
}

/// What lies in an image or in a layer looks as the container has it; nobody gets there.
fn is_a_containers(root: &Path, path: &Path) -> bool {
    let below = path.strip_prefix(root.join("lib")).ok().and_then(Path::parent);
    below.is_some_and(|above| above.iter().any(|name| name == "layers"))
}

/// The path, and all below it.
fn everything_below(path: &Path) -> Vec<PathBuf> {
    let mut all = vec![path.to_owned()];
    if path.symlink_metadata().is_ok_and(|found| found.is_dir()) {
        let below = std::fs::read_dir(path).into_iter().flatten().flatten();
        all.extend(below.flat_map(|entry| everything_below(&entry.path())));
    }
    all
}

fn is_socket(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|found| found.file_type().is_socket())
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// Its programs, what they have paused, and its sandboxes.
fn processes_of(node: &Node) -> Vec<i32> {
    let root = node.root().display().to_string();
    let keepers = node.pids("fsb-keeper");
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let all = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let named = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&root) || is_inside(*pid, &keepers)
    };
    let found: Vec<i32> = all.filter(|pid| *pid != std::process::id() as i32 && named(pid)).collect();
    assert!(found.len() > keepers.len() + 4, "{found:?}");
    found
}

/// Whether it descends from one of these.
fn is_inside(mut pid: i32, of: &[i32]) -> bool {
    while pid > 1 {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok());
        pid = parent.unwrap_or(0);
        if of.contains(&pid) {
            return true;
        }
    }
    false
}

/// Doors behind which the secret is told to everybody, one of each kind.
struct Guarded {
    four: TcpListener,
    six: Option<TcpListener>,
    path: PathBuf,
    name: String,
}

impl Guarded {
    fn doors(&self) -> impl Iterator<Item = Door> {
        let tcp = [Some(&self.four), self.six.as_ref()].into_iter().flatten();
        let tcp: Vec<Door> = tcp.map(|listener| Door::Tcp(listener.local_addr().unwrap())).collect();
        tcp.into_iter().chain([Door::Path(self.path.clone()), Door::Abstract(self.name.clone())])
    }
}

/// Puts the secret where another user must find it, or he finds nothing anywhere.
fn plant(root: &Path) -> (PathBuf, Guarded) {
    let (file, path) = (root.join("planted"), root.join("planted.sock"));
    std::fs::write(&file, SECRET).unwrap();
    set_mode(&file, 0o644);
    let name = format!("{}/planted", root.display());
    let guarded = Guarded {
        four: TcpListener::bind("127.0.0.1:0").unwrap(),
        // A machine may be without.
        six: TcpListener::bind("[::1]:0").ok(),
        path: path.clone(),
        name: name.clone(),
    };
    for listener in [Some(&guarded.four), guarded.six.as_ref()].into_iter().flatten() {
        let listener = listener.try_clone().unwrap();
        tell(move || listener.accept().map(|(stream, _)| stream));
    }
    let listener = UnixListener::bind(&path).unwrap();
    set_mode(&path, 0o666);
    tell(move || listener.accept().map(|(stream, _)| stream));
    let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    tell(move || listener.accept().map(|(stream, _)| stream));
    (file, guarded)
}

/// Tells the secret to whoever comes, on a thread that ends with the process.
fn tell<S: Write>(accept: impl Fn() -> std::io::Result<S> + Send + 'static) {
    std::thread::spawn(move || {
        while let Ok(mut stream) = accept() {
            let _ = stream.write_all(SECRET.as_bytes());
        }
    });
}
