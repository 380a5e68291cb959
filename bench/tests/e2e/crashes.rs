//! kill -9 at bad moments, under load: nothing is lost, nothing is left behind.

use crate::node::{Calls, Node, PATIENCE, block_on, kill, shell};
use fsb_proto::agent::{InstancePhase, RemoveImageRequest, StatusRequest};
use fsb_proto::fastpath::FailurePolicy;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};
use tonic::Code;

/// A new one each time; FSB_SEED repeats a run.
fn seeded() -> StdRng {
    let seed = std::env::var("FSB_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(rand::random);
    eprintln!("FSB_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

/// Waits until `word` runs under another process id than `before`.
async fn restarted(node: &Node, word: &str, before: i32) {
    let end = Instant::now() + PATIENCE;
    loop {
        if node.pids(word).iter().any(|pid| *pid != before) {
            return;
        }
        assert!(Instant::now() < end, "{word} is not restarted{}", node.node_log());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Creates until it succeeds: while a daemon restarts, a refusal is right.
async fn create_at_last(client: &mut impl Calls, name: &str, script: &str) {
    let end = Instant::now() + PATIENCE;
    loop {
        match client.create(name, script).await {
            Ok(_) => return,
            Err(status) if status.code() == Code::AlreadyExists => return,
            Err(status) if Instant::now() > end => panic!("{name}: {status:?}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

const COUNT: &str = "i=0; while [ $i -lt 300 ]; do echo line $i; i=$((i+1)); sleep 0.01; done; exit 7";

fn assert_counted(text: &str, name: &str) {
    let expected: String = (0..300).map(|i| format!("line {i}\n")).collect();
    assert_eq!(text, expected, "the log of {name}");
}

#[test]
fn a_killed_agent_loses_no_sandbox_no_line_and_no_exit_code() {
    let node = Node::up(&[]);
    let mut random = seeded();
    block_on(async {
        let mut client = node.client().await;
        for i in 0..20 {
            client.create(&format!("count{i}"), COUNT).await.unwrap();
        }
        for i in 0..10 {
            client.create(&format!("stay{i}"), "sleep 1000").await.unwrap();
        }
        let mut names = Vec::new();
        for round in 0..10 {
            // Creates are in flight while it dies.
            let mut tasks = Vec::new();
            for k in 0..4 {
                let (mut client, name) = (node.client().await, format!("r{round}k{k}"));
                names.push(name.clone());
                tasks.push(tokio::spawn(async move { client.create(&name, "sleep 1000").await }));
            }
            tokio::time::sleep(Duration::from_micros(random.random_range(0..20_000))).await;
            let pid = node.kill("fsb-agent");
            for task in tasks {
                let _ = task.await;
            }
            restarted(&node, "fsb-agent", pid).await;
        }
        // It serves again, and knows all of them.
        create_at_last(&mut client, "after", "sleep 1000").await;
        for i in 0..20 {
            let name = format!("count{i}");
            let end = client.until(&name, "Failed").await;
            assert_eq!((end.exit_code, end.reason.as_str()), (Some(7), "Exited"), "{name}");
            assert_counted(&client.output(&name).await, &name);
        }
        for i in 0..10 {
            assert_eq!(client.info(&format!("stay{i}")).await.unwrap().phase, "Running");
        }
        // What was in flight is whole or was undone: nothing runs that nobody knows.
        let mut running = 11;
        for name in names {
            match client.info(&name).await {
                Ok(info) => {
                    assert_eq!(info.phase, "Running", "{info:?}");
                    running += 1;
                }
                Err(status) => assert_eq!(status.code(), Code::NotFound),
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let agents = client.list_agents(fsb_proto::fastpath::ListAgentsRequest {}).await.unwrap().into_inner().items;
        assert_eq!(agents[0].used, running);
        for info in client.list().await {
            client.delete(&info.sandbox_id).await;
        }
        wait_empty(&mut client).await;
    });
    node.finish();
}

#[test]
fn an_image_in_use_is_not_taken_away_while_its_agent_is_dead() {
    let node = Node::up(&["--agents", "2"]);
    block_on(async {
        let mut client = node.client().await;
        let reader =
            "while :; do grep -q user /etc/group && ls /bin | grep -q sed && echo read || echo gone; sleep 0.1; done";
        let owner = client.create("reader", reader).await.unwrap().agent_pod;
        let instance = client.info("reader").await.unwrap().instance_id;
        let other = if owner == "agent-1" { "agent-2" } else { "agent-1" };
        let layers = node.root().join("lib/images/layers");
        let layers = || std::fs::read_dir(&layers).unwrap().count();
        assert_eq!(layers(), 1);
        let named = format!("POD_NAME={owner}");
        let environment = |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/environ")).unwrap_or_default();
        let own = |pid: &i32| environment(pid).split('\0').any(|entry| entry == named);
        let server = node.pids("fsb-agent").into_iter().find(own).unwrap();
        let keeper = parent(server);
        // While the keeper stands still there is no new agent.
        signal(keeper, Signal::SIGSTOP);
        kill(server);
        let mut agent = node.agent(other).await;
        let request = RemoveImageRequest { reference: "busybox".into() };
        assert!(agent.remove_image(request).await.unwrap().into_inner().existed);
        // Long enough for the other one to look again, when its own paused containers are gone.
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(layers(), 1, "the layers of a sandbox that runs are there");
        signal(keeper, Signal::SIGCONT);
        restarted(&node, "fsb-agent", server).await;
        let info = client.info("reader").await.unwrap();
        assert_eq!((info.phase.as_str(), info.instance_id), ("Running", instance));
        let before = reads(&node);
        let end = Instant::now() + PATIENCE;
        while reads(&node) <= before {
            assert!(Instant::now() < end, "it reads no more");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        client.remove("reader").await;
        let end = Instant::now() + PATIENCE * 2;
        while layers() > 0 {
            assert!(Instant::now() < end, "the layers stay though nobody uses them{}", node.node_log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    node.finish();
}

/// How often the reader has found its files; it must never miss one.
fn reads(node: &Node) -> usize {
    let text = node.ctl_ok(&["logs", "reader"]);
    assert!(!text.contains("gone"), "{text}");
    text.lines().count()
}

fn signal(pid: i32, signal: Signal) {
    nix::sys::signal::kill(Pid::from_raw(pid), signal).unwrap();
}

fn parent(pid: i32) -> i32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().parse().unwrap()
}

#[test]
fn an_agent_killed_while_logs_rotate_loses_no_line() {
    let node = Node::up_with(&[], &[("LOG_MAX_SIZE", "64Ki"), ("LOG_MAX_FILES", "1000")]);
    let mut random = seeded();
    block_on(async {
        let mut client = node.client().await;
        let script = "i=0; while [ $i -lt 20000 ]; do echo line $i of a log that is rotated; i=$((i+1)); done; exit 7";
        for i in 0..8 {
            client.create(&format!("rotate{i}"), script).await.unwrap();
        }
        for _ in 0..6 {
            tokio::time::sleep(Duration::from_micros(random.random_range(0..100_000))).await;
            let pid = node.kill("fsb-agent");
            restarted(&node, "fsb-agent", pid).await;
        }
        let expected: String = (0..20_000).map(|i| format!("line {i} of a log that is rotated\n")).collect();
        for i in 0..8 {
            let name = format!("rotate{i}");
            let end = client.until(&name, "Failed").await;
            assert_eq!(end.exit_code, Some(7), "{name}");
            assert!(client.output(&name).await == expected, "{name}: a line is missing, doubled or changed");
            let rotated = node.root().join("log").join(format!("{}.log.5", end.instance_id));
            assert!(rotated.exists(), "{name}: {} is not there", rotated.display());
        }
        for info in client.list().await {
            client.delete(&info.sandbox_id).await;
        }
        wait_empty(&mut client).await;
    });
    node.finish();
}

async fn wait_empty(client: &mut impl Calls) {
    let end = Instant::now() + PATIENCE;
    loop {
        let left = client.list().await;
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < end, "still there: {left:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[test]
fn a_killed_spawner_stops_no_start_for_long_and_nothing_that_runs() {
    let node = Node::up(&[]);
    let mut random = seeded();
    block_on(async {
        let mut client = node.client().await;
        client.create("stay", "sleep 1000").await.unwrap();
        for round in 0..8 {
            let pid = node.kill("fsb-spawner");
            for k in 0..5 {
                create_at_last(&mut client, &format!("r{round}k{k}"), "exit 3").await;
            }
            tokio::time::sleep(Duration::from_micros(random.random_range(0..50_000))).await;
            restarted(&node, "fsb-spawner", pid).await;
        }
        for round in 0..8 {
            for k in 0..5 {
                let end = client.until(&format!("r{round}k{k}"), "Failed").await;
                assert_eq!(end.exit_code, Some(3));
            }
        }
        assert_eq!(client.info("stay").await.unwrap().phase, "Running");
        for info in client.list().await {
            client.delete(&info.sandbox_id).await;
        }
        wait_empty(&mut client).await;
    });
    node.finish();
}

#[test]
fn a_killed_controller_loses_nothing_and_books_nothing_twice() {
    let node = Node::up(&["--agents", "3", "--capacity", "20"]);
    let mut random = seeded();
    block_on(async {
        let mut acknowledged = Vec::new();
        for round in 0..8 {
            let mut tasks = Vec::new();
            for k in 0..5 {
                let (mut client, name) = (node.client().await, format!("r{round}k{k}"));
                tasks.push(tokio::spawn(async move {
                    client.create(&name, "sleep 1000").await.map(|made| made.sandbox_id)
                }));
            }
            tokio::time::sleep(Duration::from_micros(random.random_range(0..8_000))).await;
            let pid = node.kill("fsb-controller");
            for task in tasks {
                acknowledged.extend(task.await.unwrap());
            }
            restarted(&node, "fsb-controller", pid).await;
        }
        let mut client = node.client().await;
        create_at_last(&mut client, "after", "sleep 1000").await;
        // Everything that was acknowledged is there, adopted where its claim was not written.
        let mut instances = std::collections::BTreeSet::new();
        for name in &acknowledged {
            let info = client.until(name, "Running").await;
            assert!(instances.insert(info.instance_id), "{name} shares an instance");
        }
        let end = Instant::now() + PATIENCE;
        while !client.list().await.iter().all(|info| info.persisted) {
            assert!(Instant::now() < end, "claims are not written");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let agents = client.list_agents(fsb_proto::fastpath::ListAgentsRequest {}).await.unwrap().into_inner().items;
        let used: i32 = agents.iter().map(|agent| agent.used).sum();
        let running = client.list().await.iter().filter(|info| info.phase == "Running").count();
        assert_eq!(used as usize, running, "{agents:?}");
        for info in client.list().await {
            client.delete(&info.sandbox_id).await;
        }
        wait_empty(&mut client).await;
    });
    node.finish();
}

#[test]
fn a_controller_whose_port_was_taken_meanwhile_listens_on_another() {
    let node = Node::up(&["--tcp"]);
    let address = || {
        let record = std::fs::read(node.run_dir().join("node.json")).unwrap();
        let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
        record["addresses"]["fastpath"].as_str().unwrap().to_owned()
    };
    let (before, end) = (address(), Instant::now() + PATIENCE);
    let _taken = loop {
        for pid in node.pids("fsb-controller") {
            let _ = nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        if let Ok(listener) = TcpListener::bind(&before) {
            break listener;
        }
        assert!(Instant::now() < end, "{before} does not become free");
    };
    while address() == before || TcpStream::connect(address()).is_err() {
        assert!(Instant::now() < end, "nobody listens on {}{}", address(), node.node_log());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(node.ctl_ok(&["run", "--rm", "--image", "busybox", "--", "echo", "works"]), "works\n");
    node.finish();
}

#[test]
fn with_the_keeper_every_sandbox_of_its_agent_ends_and_the_claims_say_so() {
    let node = Node::up(&["--agents", "2"]);
    block_on(async {
        let mut client = node.client().await;
        let mut on = std::collections::BTreeMap::new();
        for i in 0..8 {
            let name = format!("s{i}");
            let mut request = shell(&name, "sleep 1000");
            if i % 2 == 0 {
                request.failure_policy = FailurePolicy::AutoRecreate as i32;
                request.recovery_timeout_seconds = 1;
            }
            let made = client.create_as(request).await.unwrap();
            let id = client.until(&name, "Running").await.instance_id;
            on.insert(name, (made.agent_pod, id));
        }
        let victim = node.pids("fsb-keeper").into_iter().find(|pid| {
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
            String::from_utf8_lossy(&environment).contains("POD_NAME=agent-1")
        });
        kill(victim.expect("the keeper of agent-1"));
        for (i, (name, (agent, id))) in on.iter().enumerate() {
            if agent != "agent-1" {
                assert_eq!(client.info(name).await.unwrap().instance_id, *id, "the other agent's are untouched");
            } else if i % 2 == 0 {
                let end = Instant::now() + PATIENCE;
                loop {
                    let info = client.info(name).await.unwrap();
                    if info.phase == "Running" && info.instance_id != *id {
                        break;
                    }
                    assert!(Instant::now() < end, "{name} is not started again: {info:?}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            } else {
                let lost = client.until(name, "Lost").await;
                assert_eq!(lost.reason, "AgentRestarted", "{lost:?}");
            }
        }
        create_at_last(&mut client, "after", "sleep 1000").await;
        for info in client.list().await {
            client.delete(&info.sandbox_id).await;
        }
        wait_empty(&mut client).await;
    });
    node.finish();
}

/// Where a claim's instances are, on all agents: agent and instance id of each that runs.
async fn running(node: &Node, agents: &[&str], claim: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for name in agents {
        let snapshot = node.agent(name).await.status(StatusRequest {}).await.unwrap().into_inner();
        let of_claim = snapshot.instances.into_iter().filter(|instance| {
            instance.claim.as_ref().is_some_and(|known| known.name == claim)
                && instance.phase == InstancePhase::Running as i32
        });
        found.extend(of_claim.map(|instance| ((*name).to_owned(), instance.instance_id)));
    }
    found
}

#[test]
fn a_frozen_agents_sandboxes_are_lost_and_come_back_and_recreated_ones_run_once() {
    let agents = ["agent-1", "agent-2"];
    let node = Node::up(&["--agents", "2", "--controller-arg=--agent-lost-after=5s"]);
    block_on(async {
        let mut client = node.client().await;
        let kept = client.create("kept", "sleep 1000").await.unwrap().agent_pod;
        let mut moved = Vec::new();
        for i in 0..6 {
            let mut request = shell(&format!("moved{i}"), "sleep 1000");
            request.failure_policy = FailurePolicy::AutoRecreate as i32;
            request.recovery_timeout_seconds = 1;
            if client.create_as(request).await.unwrap().agent_pod == kept {
                moved.push(format!("moved{i}"));
            }
        }
        assert!(!moved.is_empty(), "none is beside it");
        let mut before = vec![client.info("kept").await.unwrap()];
        for name in &moved {
            before.push(client.info(name).await.unwrap());
        }

        let own = format!("POD_NAME={kept}");
        let named = |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/environ")).unwrap().contains(&own);
        let frozen = Pid::from_raw(node.pids("fsb-agent").into_iter().find(named).unwrap());
        nix::sys::signal::kill(frozen, Signal::SIGSTOP).unwrap();
        client.until("kept", "Lost").await;
        let end = Instant::now() + PATIENCE;
        for name in &moved {
            loop {
                let info = client.info(name).await.unwrap();
                if info.agent_pod != kept && info.phase == "Running" {
                    break;
                }
                assert!(Instant::now() < end, "{name} is not started elsewhere: {info:?}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }

        nix::sys::signal::kill(frozen, Signal::SIGCONT).unwrap();
        let back = client.until("kept", "Running").await;
        assert_eq!(back.instance_id, before[0].instance_id, "it ran all the time");
        for (name, old) in moved.iter().zip(&before[1..]) {
            loop {
                let instances = running(&node, &agents, name).await;
                if let [(agent, instance)] = instances.as_slice() {
                    assert!(*agent != kept && *instance != old.instance_id, "{instances:?}");
                    break;
                }
                assert!(Instant::now() < end, "{name} runs more than once: {instances:?}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    });
    node.finish();
}
