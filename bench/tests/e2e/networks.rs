//! Who reaches whom: no sandbox of another agent, another node, or the machine itself; nobody beyond the machine a sandbox.

use crate::node::{Node, PATIENCE};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Whether this machine forwards is one switch: one test at a time.
static MACHINE: Mutex<()> = Mutex::new(());

pub fn machine() -> MutexGuard<'static, ()> {
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A network of somebody else's on this machine: a namespace with a link to the host, and a server in it.
pub struct Elsewhere {
    /// Holds the namespace.
    holder: Child,
    server: Child,
    link: String,
    /// The host's address on the link.
    pub host: Ipv4Addr,
    /// The server's.
    pub address: Ipv4Addr,
}

/// Where the server of every [`Elsewhere`] listens.
pub const SERVED: u16 = 8081;
/// Where a cloud's machines find their credentials.
const METADATA: &str = "169.254.169.254";

impl Elsewhere {
    pub fn new(number: u8) -> Self {
        let quiet = |command: &mut Command| command.stdin(Stdio::null()).spawn().unwrap();
        let holder = quiet(Command::new("unshare").args(["--net", "sleep", "1000"]));
        let ours = std::fs::read_link("/proc/self/ns/net").unwrap();
        let namespace = format!("/proc/{}/ns/net", holder.id());
        until("a network namespace", || std::fs::read_link(&namespace).is_ok_and(|theirs| theirs != ours));
        // Networks for measurements (RFC 2544): nobody else's.
        let (host, address) = (Ipv4Addr::new(198, 18, number, 1), Ipv4Addr::new(198, 18, number, 2));
        let link = format!("tst{number}x{}", std::process::id());
        run(&format!("ip link add {link} type veth peer name eth0 netns {}", holder.id()));
        run(&format!("ip addr add {host}/24 dev {link}"));
        run(&format!("ip link set {link} up"));
        for line in [
            "ip link set lo up".to_owned(),
            format!("ip addr add {address}/24 dev eth0"),
            "ip link set eth0 up".to_owned(),
            format!("ip route add default via {host}"),
        ] {
            run(&format!("nsenter --net={namespace} {line}"));
        }
        let port = SERVED.to_string();
        let serve = [format!("--net={namespace}"), "busybox".into(), "httpd".into(), "-f".into(), "-p".into(), port];
        let server = quiet(Command::new("nsenter").args(serve));
        let elsewhere = Self { holder, server, link, host, address };
        until("its server", || reached_by_host(&address.to_string(), SERVED));
        elsewhere
    }

    /// Has the server answer for a cloud's metadata, too.
    fn serve_metadata(&self) {
        run(&format!("nsenter --net=/proc/{}/ns/net ip addr add {METADATA}/32 dev eth0", self.holder.id()));
        run(&format!("ip route add {METADATA}/32 dev {}", self.link));
    }

    /// Which of these it reaches.
    fn reaches(&self, targets: &[Target]) -> Vec<Target> {
        let mut command = Command::new("nsenter");
        command.args([format!("--net=/proc/{}/ns/net", self.holder.id()).as_str(), "busybox", "sh", "-c"]);
        let output = command.arg(script(targets)).output().unwrap();
        reached(&String::from_utf8_lossy(&output.stdout))
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        for child in [&mut self.server, &mut self.holder] {
            let _ = child.kill();
            let _ = child.wait();
        }
        // The kernel takes its time to remove a namespace; its link goes now.
        let _ = Command::new("ip").args(["link", "del", &self.link]).output();
    }
}

/// Address and port.
type Target = (String, u16);

/// A shell script that tells which of these can be connected to. All at once: what is dropped takes its second.
pub fn script(targets: &[Target]) -> String {
    let tries = targets.iter().map(|(address, port)| {
        format!("(nc -w 1 {address} {port} </dev/null >/dev/null 2>&1 && echo 'REACHED {address} {port}') &\n")
    });
    format!("{}wait; echo tried", tries.collect::<String>())
}

/// What [`script`] has said.
pub fn reached(output: &str) -> Vec<Target> {
    assert!(output.ends_with("tried\n"), "{output}");
    let words = output.lines().filter_map(|line| line.strip_prefix("REACHED ")?.split_once(' '));
    let mut targets: Vec<Target> = words.map(|(address, port)| (address.into(), port.parse().unwrap())).collect();
    targets.sort();
    targets
}

fn reached_by_host(address: &str, port: u16) -> bool {
    let script = script(&[(address.into(), port)]);
    let output = Command::new("busybox").args(["sh", "-c", &script]).output().unwrap();
    reached(&String::from_utf8_lossy(&output.stdout)).len() == 1
}

fn until(what: &str, so: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < end, "{what} is not there");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn run(line: &str) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The link-local addresses of this machine's interfaces whose names begin like this.
pub fn link_local(beginning: &str) -> Vec<String> {
    let output = run("ip -o -6 addr show scope link");
    let ours =
        output.lines().filter(|line| line.split_whitespace().nth(1).is_some_and(|name| name.starts_with(beginning)));
    ours.map(|line| line.split_whitespace().nth(3).unwrap().split('/').next().unwrap().to_owned()).collect()
}

/// An agent with a sandbox that serves.
struct Serving<'a> {
    node: &'a Node,
    namespace: &'a str,
    address: String,
}

impl<'a> Serving<'a> {
    fn start(node: &'a Node, namespace: &'a str) -> Self {
        let words = ["run", "web", "--image", "busybox", "--ports", "8080", "-n", namespace];
        node.ctl_ok(&[&words[..], &["--", "httpd", "-f", "-p", "8080"]].concat());
        let info: serde_json::Value =
            serde_json::from_str(&node.ctl_ok(&["get", "web", "-n", namespace, "-o", "json"])).unwrap();
        let endpoint = info["endpoints"][0].as_str().unwrap();
        let address = endpoint.strip_suffix(":8080").unwrap().to_owned();
        until("the sandbox's server", || reached_by_host(&address, 8080));
        Self { node, namespace, address }
    }

    fn target(&self) -> Target {
        (self.address.clone(), 8080)
    }

    /// Which of these another sandbox of this agent reaches.
    fn reaches(&self, targets: &[Target]) -> Vec<Target> {
        let words = ["run", "--rm", "--image", "busybox", "-n", self.namespace, "--", "sh", "-c"];
        reached(&self.node.ctl_ok(&[&words[..], &[&script(targets)]].concat()))
    }

    /// The link-local address of the agent's own end of its link.
    fn link_local(&self) -> String {
        let words = ["run", "--rm", "--image", "busybox", "-n", self.namespace, "--", "ip", "-o", "-6", "addr"];
        let output = self.node.ctl_ok(&words);
        let line = output.lines().find(|line| line.contains("eth0")).unwrap();
        line.split_whitespace().nth(3).unwrap().split('/').next().unwrap().to_owned()
    }
}

#[test]
fn sandboxes_reach_no_other_network_of_ours_and_nobody_beyond_this_machine_reaches_them() {
    let _machine = machine();
    let before = std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap();
    let first = Node::up_with_egress(&["--agent", "name=a,namespace=one", "--agent", "name=b,namespace=two"]);
    let second = Node::up_with_egress(&["--agent", "name=c,namespace=three"]);
    let (one, two) = (Serving::start(&first, "one"), Serving::start(&first, "two"));
    let three = Serving::start(&second, "three");
    let serving = [&one, &two, &three];
    let (there, beyond) = (Elsewhere::new(1), Elsewhere::new(2));
    there.serve_metadata();
    let listener = TcpListener::bind("[::]:0").unwrap();
    let open = listener.local_addr().unwrap().port();
    std::thread::spawn(move || while listener.accept().is_ok() {});

    // What must be reached: from this machine everything, from elsewhere this machine, over both protocols.
    for (address, port) in serving.iter().map(|serving| serving.target()).chain([(METADATA.into(), SERVED)]) {
        assert!(reached_by_host(&address, port), "{address}");
    }
    let own = (there.host.to_string(), open);
    let own_6 = || (format!("{}%eth0", link_local(&there.link)[0]), open);
    until("an address of IPv6", || !link_local(&there.link).is_empty() && there.reaches(&[own_6()]) == [own_6()]);

    // This machine's addresses, and those of IPv6 on every link of a node as a sandbox names them.
    let machine = run("ip -o -4 addr");
    let machine = machine.lines().map(|line| line.split_whitespace().nth(3).unwrap().split('/').next().unwrap());
    let mut hosts: Vec<Target> =
        machine.filter(|address| *address != "127.0.0.1").map(|a| (a.to_owned(), open)).collect();
    hosts.extend(link_local("fsb").into_iter().map(|address| (format!("{address}%eth0"), open)));
    assert!(hosts.len() > 6, "{hosts:?}");
    let peers: Vec<Target> = serving.iter().map(|serving| (format!("{}%eth0", serving.link_local()), 8080)).collect();
    let elsewhere = (there.address.to_string(), SERVED);
    let look = |serving: &[&Serving<'_>]| {
        for own in serving {
            let others = serving.iter().map(|serving| serving.target());
            let all: Vec<Target> =
                others.chain(hosts.clone()).chain([elsewhere.clone(), (METADATA.into(), SERVED)]).collect();
            let mut must = vec![own.target(), elsewhere.clone()];
            must.sort();
            assert_eq!(own.reaches(&all), must, "from {}", own.namespace);
            let mine = format!("{}%eth0", own.link_local());
            let others: Vec<Target> = peers.iter().filter(|(address, _)| *address != mine).cloned().collect();
            assert_eq!(own.reaches(&others), [], "from {}", own.namespace);
        }
        let beyond = (beyond.address.to_string(), SERVED);
        let all: Vec<Target> =
            serving.iter().map(|serving| serving.target()).chain([own.clone(), beyond.clone()]).collect();
        // Between others' networks this machine routes if it did so before.
        let must = if routed_before(&before) { vec![own.clone(), beyond] } else { vec![own.clone()] };
        assert_eq!(there.reaches(&all), must);
    };
    look(&[&one, &two, &three]);
    // It does not matter which one goes first.
    first.finish();
    look(&[&three]);
    second.finish();
    let after = std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap();
    assert!(after == before || Path::new("/run/fast-sandbox.forwarding").exists());
}

/// Whether the machine forwarded before its first node, which may be none of this test's.
fn routed_before(before: &str) -> bool {
    let state = std::fs::read_to_string("/run/fast-sandbox.forwarding").unwrap();
    let state: serde_json::Value = serde_json::from_str(&state).unwrap();
    let said = state["before"]["/proc/sys/net/ipv4/ip_forward"].as_str().unwrap();
    assert!(said == before || before.trim() == "1", "{said}, {before}");
    said.trim() == "1"
}
