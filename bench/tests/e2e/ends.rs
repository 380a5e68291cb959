//! How a sandbox ends, and what is kept of it.

use crate::node::{Calls, Node, PATIENCE, block_on, kill, shell};
use fsb_proto::fastpath::fast_path_service_client::FastPathServiceClient;
use fsb_proto::fastpath::{DeleteRequest, LogChunk, LogsRequest, Resources, UpdateRequest, update_request::Update};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};
use tonic::transport::Channel;
use tonic::{Code, Streaming};

#[test]
fn exit_codes_signals_and_the_oom_killer_are_told_apart() {
    let node = Node::up(&[]);
    block_on(async {
        let mut client = node.client().await;
        client.create("zero", "exit 0").await.unwrap();
        client.create("three", "exit 3").await.unwrap();
        // It overruns its stack: a fault ends the first process of a pid namespace, a SIGSEGV that somebody sends does
        // not (pid_namespaces(7)).
        client.create("segv", "ulimit -c 0; ulimit -s 1024; f() { f; }; f").await.unwrap();
        client.create("killed", "exec sleep 1000").await.unwrap();
        let mut fat = shell("fat", "head -c 200m /dev/zero | tail");
        fat.resources = Some(Resources { memory_bytes: 16 << 20, ..Default::default() });
        client.create_as(fat).await.unwrap();
        let mut neighbour = shell("neighbour", "sleep 100");
        neighbour.resources = Some(Resources { memory_bytes: 16 << 20, ..Default::default() });
        client.create_as(neighbour).await.unwrap();

        let zero = client.until("zero", "Succeeded").await;
        assert_eq!((zero.exit_code, zero.reason.as_str()), (Some(0), "Exited"));
        let three = client.until("three", "Failed").await;
        assert_eq!((three.exit_code, three.reason.as_str()), (Some(3), "Exited"));
        let segv = client.until("segv", "Failed").await;
        assert_eq!((segv.exit_code, segv.reason.as_str()), (Some(128 + 11), "Signaled"), "{segv:?}");
        kill(process_of(&client.until("killed", "Running").await.instance_id));
        let killed = client.until("killed", "Failed").await;
        assert_eq!((killed.exit_code, killed.reason.as_str()), (Some(128 + 9), "Signaled"), "{killed:?}");
        let fat = client.until("fat", "Failed").await;
        assert_eq!(fat.reason, "OOMKilled", "{fat:?}");
        assert_eq!(client.info("neighbour").await.unwrap().phase, "Running");
        assert!(zero.finished_at_ms >= zero.started_at_ms && zero.started_at_ms > 0);
        for name in ["zero", "three", "segv", "killed", "fat", "neighbour"] {
            client.remove(name).await;
        }
    });
    node.finish();
}

/// The process of a sandbox that has only one, as the host sees it.
fn process_of(instance: &str) -> i32 {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let cgroups = |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    pids.find(|pid| cgroups(pid).contains(instance)).expect("it runs")
}

#[test]
fn a_stop_asks_first_waits_the_grace_period_and_then_kills() {
    let node = Node::up(&[]);
    block_on(async {
        let mut client = node.client().await;
        let grace = Duration::from_secs(2);
        let mut deaf = shell("deaf", "trap '' TERM; echo ready; while :; do sleep 0.1; done");
        deaf.grace_period_seconds = Some(grace.as_secs() as i32);
        client.create_as(deaf).await.unwrap();
        // Whoever waits for the kill gives up before it comes.
        let mut polite = shell("polite", "trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.1; done");
        polite.grace_period_seconds = Some(2 * PATIENCE.as_secs() as i32);
        client.create_as(polite).await.unwrap();
        let (mut deaf, mut polite) = (follow(&mut client, "deaf").await, follow(&mut client, "polite").await);
        for log in [&mut deaf, &mut polite] {
            assert_eq!(read_on(log, Some("ready\n")).await, "ready\n");
        }

        let asked = Instant::now();
        client.delete("deaf").await;
        assert_eq!(client.info("deaf").await.unwrap().phase, "Terminating");
        tokio::join!(client.remove("deaf"), read_on(&mut deaf, None));
        assert!(asked.elapsed() >= grace, "killed after {:?}", asked.elapsed());

        let ((), last_words) = tokio::join!(client.remove("polite"), read_on(&mut polite, None));
        assert_eq!(last_words, "bye\n");
    });
    node.finish();
}

async fn follow(client: &mut FastPathServiceClient<Channel>, name: &str) -> Streaming<LogChunk> {
    let request = LogsRequest { sandbox_id: name.into(), follow: true, ..Default::default() };
    client.logs(request).await.unwrap().into_inner()
}

/// What comes next in a log that is followed: up to `word`, or all until the sandbox has ended.
async fn read_on(log: &mut Streaming<LogChunk>, word: Option<&str>) -> String {
    let mut text = String::new();
    while !word.is_some_and(|word| text.contains(word)) {
        let chunk = tokio::time::timeout(PATIENCE, log.message()).await.expect("the log goes on").unwrap();
        let Some(chunk) = chunk else { break };
        for line in chunk.lines {
            text.push_str(&String::from_utf8_lossy(&line.text));
            text.push('\n');
        }
    }
    text
}

#[test]
fn expiry_removes_the_container_and_keeps_the_claim() {
    let node = Node::up(&[]);
    block_on(async {
        let mut client = node.client().await;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() as i64;
        let mut brief = shell("brief", "echo here; sleep 100");
        brief.expire_time_seconds = now + 5;
        client.create_as(brief).await.unwrap();
        client.create("later", "sleep 100").await.unwrap();
        let update = UpdateRequest {
            sandbox_id: "later".into(),
            update: Some(Update::ExpireTimeSeconds(now + 5)),
            ..Default::default()
        };
        client.update_sandbox(update).await.unwrap();
        for name in ["brief", "later"] {
            client.until(name, "Expired").await;
        }
        assert_eq!(client.output("brief").await, "here\n");
        let again = client.create("brief", "sleep 100").await.unwrap_err();
        assert_eq!(again.code(), Code::AlreadyExists);
        client.remove("brief").await;
        client.create("brief", "exit 0").await.unwrap();
    });
    node.finish();
}

#[test]
fn every_line_of_a_long_output_is_there_once_and_in_order() {
    let node = Node::up(&[]);
    block_on(async {
        let mut client = node.client().await;
        client
            .create("long", "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; printf tail")
            .await
            .unwrap();
        let text = client.output("long").await;
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 20001);
        for (i, line) in lines[..20000].iter().enumerate() {
            assert_eq!(*line, format!("line {i}"));
        }
        assert_eq!(lines[20000], "tail");
    });
    node.finish();
}

#[test]
fn limits_are_real() {
    let node = Node::up(&[]);
    block_on(async {
        let mut client = node.client().await;
        let mut few = shell("few", "i=0; while [ $i -lt 40 ]; do sleep 5 & i=$((i+1)); done; echo all");
        few.resources = Some(Resources { pids: 10, ..Default::default() });
        client.create_as(few).await.unwrap();
        let text = client.output("few").await;
        assert!(text.contains("can't fork") && !text.contains("all"), "{text}");
        let mut small = shell("small", "dd if=/dev/zero of=/big bs=64k count=100 2>&1; ls -l /big | wc -l");
        small.resources = Some(Resources { disk_bytes: 1 << 20, ..Default::default() });
        client.create_as(small).await.unwrap();
        let text = client.output("small").await;
        assert!(text.contains("No space left"), "{text}");
    });
    node.finish();
}

#[test]
fn the_number_of_files_is_limited() {
    let node = Node::up(&[]);
    block_on(async {
        let mut client = node.client().await;
        let many = "i=0; while [ $i -lt 2000 ]; do : > /f$i || exit 3; i=$((i+1)); done; echo all; sleep 100";
        // A file system of its own takes no more.
        let mut capped = shell("capped", many);
        capped.resources = Some(Resources { disk_bytes: 64 << 20, inodes: 1_000, ..Default::default() });
        client.create_as(capped).await.unwrap();
        let text = client.output("capped").await;
        assert!(text.contains("No space left") && !text.contains("all"), "{text}");
        assert_eq!(client.until("capped", "Failed").await.reason, "Exited");
        // On everybody's disk they are counted.
        let mut counted = shell("counted", many);
        counted.resources = Some(Resources { inodes: 1_000, ..Default::default() });
        client.create_as(counted).await.unwrap();
        client.create("default", many).await.unwrap();
        let counted = client.until("counted", "Failed").await;
        assert_eq!((counted.reason.as_str(), counted.exit_code), ("InodesExceeded", Some(137)), "{counted:?}");
        assert!(counted.message.contains("resources.inodes"), "{}", counted.message);
        assert_eq!(client.info("default").await.unwrap().phase, "Running", "two thousand files are nothing unusual");
    });
    node.finish();
}

/// Nobody waits for a neighbour's files.
#[test]
fn ends_are_quick_and_ports_free_while_layers_of_very_many_files_go() {
    const FILES: usize = 300_000;
    const P99: Duration = Duration::from_millis(50);
    let node = Node::up(&["--capacity", "0"]);
    let tries = block_on(async {
        let mut client = node.client().await;
        let layers = node.root().join("lib/agent-1/layers");
        let large = [("large", 8001), ("larger", 8002)];
        let mut tries = Vec::new();
        // A noisy machine may spoil one.
        while tries.len() < 3 && tries.last().is_none_or(|p99| *p99 > P99) {
            for (name, port) in large {
                let mut request =
                    shell(name, &format!("mkdir /f; cd /f; seq {FILES} | xargs touch; : > /full; exec sleep 1000"));
                request.exposed_ports = vec![port];
                client.create_as(request).await.unwrap();
            }
            for (name, _) in large {
                let full = layers.join(client.info(name).await.unwrap().instance_id).join("upper/full");
                let end = Instant::now() + PATIENCE * 6;
                while !full.exists() {
                    assert!(Instant::now() < end, "{name} does not fill its layer");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
            let begun = Instant::now();
            for (name, _) in large {
                kill_sandbox(&mut client, name).await;
            }
            for (name, port) in large {
                let mut next = shell(&format!("next-{name}"), "exec sleep 1000");
                next.exposed_ports = vec![port];
                while client.create_as(next.clone()).await.is_err() {
                    assert!(begun.elapsed() < PATIENCE, "the port of {name} is not free");
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            let ports = begun.elapsed();
            let mut ends = Vec::new();
            for i in 0..100 {
                let name = format!("other-{i}");
                client.create(&name, "exec sleep 1000").await.unwrap();
                let begun = Instant::now();
                kill_sandbox(&mut client, &name).await;
                while client.info(&name).await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                ends.push(begun.elapsed());
            }
            let going = std::fs::read_dir(&layers).unwrap().flatten().map(|entry| entry.file_name());
            let going = going.filter(|name| name.to_string_lossy().ends_with(".removed")).count();
            ends.sort();
            println!("ports free after {ports:?}, ends p50 {:?} p99 {:?}, {going} going", ends[49], ends[98]);
            assert!(ends[98] > P99 || going > 0, "they were gone before: nothing was shown");
            tries.push(ends[98]);
            for (name, _) in large {
                client.remove(&format!("next-{name}")).await;
            }
        }
        tries
    });
    assert!(tries.last().is_some_and(|p99| *p99 <= P99), "the slowest but one of 100 ends: {tries:?}");
    node.finish();
}

async fn kill_sandbox(client: &mut FastPathServiceClient<Channel>, name: &str) {
    let request = DeleteRequest { sandbox_id: name.into(), force: true, ..Default::default() };
    client.delete_sandbox(request).await.unwrap();
}

#[test]
fn half_a_processor_is_half_a_processor() {
    let node = Node::up(&[]);
    // Two that would take one each; in hundredths of a second, as proc_pid_stat(5) has them.
    const SPIN: &str = "yes >/dev/null & yes >/dev/null & sleep 0.2; \
        look() { cut -d' ' -f1 /proc/uptime; cat /proc/[0-9]*/stat | awk '{ sum += $14 + $15 } END { print sum }'; }; \
        look; sleep 2; look; kill %1 %2";
    // Beside busy neighbours it may get less: some tries.
    let mut shares = Vec::new();
    for _ in 0..5 {
        let text = node.ctl_ok(&["run", "--rm", "--image", "busybox", "--cpus", "0.5", "--", "sh", "-c", SPIN]);
        let [from, ran_then, to, ran_now] = text.lines().collect::<Vec<_>>()[..] else { panic!("{text}") };
        let number = |text: &str| text.parse::<f64>().unwrap();
        shares.push((number(ran_now) - number(ran_then)) / 100.0 / (number(to) - number(from)));
        if (0.4..=0.6).contains(shares.last().unwrap()) {
            return node.finish();
        }
    }
    panic!("{shares:?} of a processor");
}

/// Sets nice 10 and SCHED_BATCH as its first act, and looks later.
const SETS_ITS_OWN: &str = r#"
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <sys/resource.h>
#include <unistd.h>
int main(void)
{
    struct sched_param none = { 0 };
    if (sched_setscheduler(0, SCHED_BATCH, &none) != 0 || setpriority(PRIO_PROCESS, 0, 10) != 0)
        return 1;
    usleep(300000);
    printf("policy %d nice %d\n", sched_getscheduler(0), getpriority(PRIO_PROCESS, 0));
    return 0;
}
"#;

#[test]
fn a_program_keeps_the_policy_and_the_nice_value_that_it_sets_first() {
    let node = Node::up(&[]);
    node.import_program("own", SETS_ITS_OWN);
    // Whatever else is told about a start comes a few milliseconds after it.
    for _ in 0..5 {
        // SCHED_BATCH is 3 (sched(7)).
        assert_eq!(node.ctl_ok(&["run", "--rm", "--image", "own"]), "policy 3 nice 10\n");
    }
    node.finish();
}

#[test]
fn a_thousand_short_sandboxes_leave_no_process_mount_cgroup_file_or_descriptor() {
    let node = Node::up(&[]);
    block_on(async {
        let mut client = node.client().await;
        let mut count = async |from: usize, to: usize| {
            for batch in (from..to).collect::<Vec<_>>().chunks(10) {
                for i in batch {
                    client.create(&format!("s{i}"), "exit 0").await.unwrap();
                }
                for i in batch {
                    client.remove(&format!("s{i}")).await;
                }
            }
            // The stock settles.
            tokio::time::sleep(Duration::from_secs(2)).await;
            resources(&node)
        };
        let before = count(0, 200).await;
        let after = count(200, 1200).await;
        for ((name, before), (_, after)) in before.iter().zip(&after) {
            assert!(after <= &(before + 10), "{name}: {before} before, {after} after");
        }
    });
    node.finish();
}

#[test]
fn what_a_sandbox_had_mounted_is_unmounted_by_the_agent_and_not_by_its_last_process() {
    let node = Node::up(&[]);
    node.ctl_ok(&["run", "s", "--image", "busybox", "--", "sh", "-c", "readlink /proc/self/ns/mnt; sleep 1000"]);
    let mut mounts = String::new();
    eventually("it says where it is", || {
        mounts = node.ctl_ok(&["logs", "s"]).trim().to_owned();
        !mounts.is_empty()
    });
    let agent = node.pids("fsb-agent")[0];
    let held = || {
        let held = std::fs::read_dir(format!("/proc/{agent}/fd")).unwrap().flatten();
        held.filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to.as_os_str() == mounts.as_str())).count()
    };
    assert_eq!(held(), 1, "{mounts}");
    node.ctl_ok(&["rm", "s", "--force", "--wait"]);
    eventually("its mount namespace is gone", || held() == 0);
    node.finish();
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Things that would grow if any were left behind.
fn resources(node: &Node) -> Vec<(String, usize)> {
    let mut list = Vec::new();
    for daemon in ["fsb-keeper", "fsb-agent", "fsb-spawner", "fsb-controller"] {
        let pid = node.pids(daemon)[0];
        list.push((format!("descriptors of {daemon}"), entries(&format!("/proc/{pid}/fd"))));
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        list.push((format!("children of {daemon}"), children.split_whitespace().count()));
        let mounts = std::fs::read_to_string(format!("/proc/{pid}/mounts")).unwrap_or_default();
        list.push((format!("mounts of {daemon}"), mounts.lines().count()));
    }
    list.push(("layers".into(), entries(&node.root().join("lib/agent-1/layers").display().to_string())));
    list.push(("records".into(), entries(&node.run_dir().join("agent-1/records").display().to_string())));
    list.push(("logs".into(), entries(&node.root().join("log").display().to_string())));
    let environment = std::fs::read(format!("/proc/{}/environ", node.pids("fsb-keeper")[0])).unwrap();
    let environment = String::from_utf8_lossy(&environment);
    let cgroup = environment.split('\0').find_map(|entry| entry.strip_prefix("FSB_CGROUP=")).unwrap();
    // One hierarchy of v1 each; on v2 the one directory that has the node's.
    for top in directories(Path::new("/sys/fs/cgroup")) {
        let below = below(&top, &format!("/{cgroup}/"));
        if below > 0 {
            list.push((format!("cgroups in {}", top.display()), below));
        }
    }
    list
}

/// How many directories in `dir` have `part` in their paths.
fn below(dir: &Path, part: &str) -> usize {
    let count = |dir: &PathBuf| usize::from(dir.to_string_lossy().contains(part)) + below(dir, part);
    directories(dir).iter().map(count).sum()
}

fn directories(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> =
        entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect();
    found.sort();
    found
}

fn entries(dir: &str) -> usize {
    std::fs::read_dir(dir).map_or(0, Iterator::count)
}
