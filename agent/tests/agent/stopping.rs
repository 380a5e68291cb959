//! Stopping, deleting, forgetting.

use crate::node::{Node, claim, eventually, request};
use fsb_agent::Error;
use fsb_host::mount;
use fsb_proto::agent::{Claim, DeleteRequest, InstancePhase};
use fsb_proto::fastpath::Resources;
use std::os::fd::AsFd;
use std::process::Command;
use std::time::{Duration, Instant};

fn by_id(id: &str, grace: Option<i32>) -> DeleteRequest {
    DeleteRequest { instance_id: id.into(), grace_period_seconds: grace, remove_logs: true, ..Default::default() }
}

fn by_claim(claim: Claim) -> DeleteRequest {
    DeleteRequest { claim: Some(claim), grace_period_seconds: Some(0), remove_logs: true, ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_is_answered_at_once_and_sigkill_comes_after_the_grace_period() {
    let node = Node::new(&[("FSB_MAKE", "cast")]).await;
    node.keeper.set(|mood| mood.ignores_term = true);
    let stubborn = node.agent.start(request("run")).await.unwrap().instance_id;
    assert!(!node.agent.delete(by_id(&stubborn, Some(5))).await.unwrap());
    assert_eq!(node.phase(&stubborn), Some(InstancePhase::Stopping));
    // Nothing waits for it.
    let other = node.agent.start(request("run")).await.unwrap().instance_id;
    assert_eq!(node.phase(&stubborn), Some(InstancePhase::Stopping));
    assert!(!node.agent.delete(by_id(&other, Some(0))).await.unwrap());
    node.empty().await;
    assert!(node.agent.delete(by_id(&stubborn, None)).await.unwrap(), "a repeated call says that it is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_comes_first() {
    let node = Node::new(&[("FSB_MAKE", "cast")]).await;
    let id = node.agent.start(request("run")).await.unwrap().instance_id;
    let kept = DeleteRequest { instance_id: id.clone(), ..Default::default() };
    let agent = node.agent.clone();
    let (ended, _) = tokio::join!(agent.wait_ended(&id), agent.delete(kept));
    assert_eq!((ended.as_ref().unwrap().exit_code, ended.unwrap().reason.as_str()), (Some(143), "Signaled"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_delete_may_shorten_the_grace_period() {
    let node = Node::new(&[("FSB_MAKE", "cast")]).await;
    node.keeper.set(|mood| mood.ignores_term = true);
    let id = node.agent.start(request("run")).await.unwrap().instance_id;
    assert!(!node.agent.delete(by_id(&id, Some(3600))).await.unwrap());
    assert!(!node.agent.delete(by_id(&id, Some(0))).await.unwrap());
    node.empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ended_instance_is_kept_until_it_is_forgotten() {
    let node = Node::new(&[("FSB_MAKE", "cast")]).await;
    let mut request = request("exit 7");
    request.exposed_ports = vec![80];
    let id = node.agent.start(request.clone()).await.unwrap().instance_id;
    node.agent.wait_ended(&id).await.unwrap();
    assert_eq!(node.used(), 0);
    let again = node.agent.start(request.clone()).await.unwrap();
    assert!(again.existed && again.instance_id == id, "a retry of its create gets it, ended or not");
    eventually("its container is removed", || node.keeper.left_behind() == [format!("{id}.log")]).await;
    node.agent.delete(by_id(&id, None)).await.unwrap();
    node.empty().await;
    let late = node.agent.start(request).await.unwrap_err();
    assert!(matches!(late.cause, Error::Stale { .. }), "{late}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_is_deleted_by_uid_and_generation_and_never_comes_back() {
    let node = Node::new(&[("FSB_MAKE", "cast")]).await;
    let mut two = request("run");
    two.claim = Some(claim("box", 2));
    let id = node.agent.start(two.clone()).await.unwrap().instance_id;
    let stale = node.agent.delete(by_claim(claim("box", 1))).await.unwrap_err();
    assert!(matches!(stale, Error::Stale { .. }));
    assert_eq!(node.phase(&id), Some(InstancePhase::Running));
    assert!(!node.agent.delete(by_claim(claim("box", 2))).await.unwrap());
    node.empty().await;
    assert!(node.agent.start(two.clone()).await.is_err());
    // A delete that comes before its create wins as well.
    assert!(node.agent.delete(by_claim(claim("late", 1))).await.unwrap());
    two.claim = Some(claim("late", 1));
    assert!(matches!(node.agent.start(two).await.unwrap_err().cause, Error::Stale { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_while_it_starts_undoes_the_start() {
    let node = Node::new(&[("FSB_MAKE", "cast")]).await;
    node.keeper.set(|mood| mood.ignores_makes = true);
    let (agent, mut create) = (node.agent.clone(), request("run"));
    create.claim = Some(claim("box", 1));
    let within = Duration::from_millis(300);
    let start = tokio::spawn(async move { agent.start_within(create, within).await });
    eventually("it is being created", || node.used() == 1).await;
    assert!(!node.agent.delete(by_claim(claim("box", 1))).await.unwrap());
    start.await.unwrap().unwrap_err();
    node.empty().await;
    assert!(node.agent.delete(by_claim(claim("box", 1))).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_generation_breaks_off_the_start_of_the_older_one_and_runs() {
    let node = Node::new(&[("FSB_MAKE", "cast")]).await;
    node.keeper.set(|mood| mood.ignores_makes = true);
    let (mut one, mut two) = (request("run"), request("run"));
    one.claim = Some(claim("box", 1));
    two.claim = Some(claim("box", 2));
    let (agent, older) = (node.agent.clone(), one.clone());
    let older = tokio::spawn(async move { agent.start(older).await });
    eventually("the older one waits for its container", || node.keeper.makes() > 0).await;
    node.keeper.set(|mood| mood.ignores_makes = false);
    let within = Duration::from_secs(10);
    let id = node.agent.start_within(two, within).await.unwrap().instance_id;
    assert_eq!(older.await.unwrap().unwrap_err().cause, Error::Deleted);
    assert_eq!((node.phase(&id), node.used()), (Some(InstancePhase::Running), 1));
    assert!(matches!(node.agent.start(one).await.unwrap_err().cause, Error::Stale { .. }));
    node.agent.stop_and_remove(&id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn names_and_aliases_find_the_newest_instance() {
    let node = Node::new(&[("FSB_MAKE", "cast")]).await;
    let mut create = request("run");
    create.alias = "my-alias".into();
    let name = create.claim.clone().unwrap().name;
    let id = node.agent.start(create).await.unwrap().instance_id;
    assert_eq!(node.agent.wait_ended("nobody").await.unwrap_err(), Error::NotFound("sandbox \"nobody\"".into()));
    node.agent.stop_and_remove("my-alias").await.unwrap();
    assert_eq!(node.phase(&id), None);
    assert!(node.agent.delete(by_id(&name, None)).await.unwrap());
}

#[test]
fn hundreds_of_sandboxes_leave_nothing_in_memory() {
    // In a process of its own, whose memory nobody else grows.
    let this = std::env::current_exe().unwrap();
    let mut child = Command::new(this);
    child.args(["--exact", "stopping::memory_after_hundreds_of_sandboxes", "--ignored", "--nocapture"]);
    let output = child.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("1 passed"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a child process of hundreds_of_sandboxes_leave_nothing_in_memory"]
async fn memory_after_hundreds_of_sandboxes() {
    let node = Node::new(&[("FSB_MAKE", "cast"), ("AGENT_CAPACITY", "0")]).await;
    // Whoever forgets to let go of a request, a claim or an instance holds this much.
    let large = || {
        let mut request = request("exit 0");
        request.claim_document = vec![b'x'; 32 << 10];
        request.envs = [("LARGE".to_owned(), "x".repeat(32 << 10))].into();
        request
    };
    let rounds = async |rounds: usize| {
        for _ in 0..rounds {
            let calls = (0..10).map(|_| async {
                let id = node.agent.start(large()).await.unwrap().instance_id;
                node.agent.stop_and_remove(&id).await.unwrap();
            });
            futures_util::future::join_all(calls).await;
        }
        node.empty().await;
        resident_bytes()
    };
    // What is made once is there after the first ones.
    let before = rounds(10).await;
    let after = rounds(30).await;
    let each = after.saturating_sub(before) / 300;
    println!("{each} bytes for each sandbox: {before} to {after}");
    assert!(each < 16 << 10, "300 sandboxes have left {each} bytes each");
}

/// What this process has in memory (proc_pid_statm(5)), in bytes.
fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).unwrap().unwrap() as usize
}

#[tokio::test(flavor = "multi_thread")]
async fn sandboxes_whose_cgroups_stay_busy_hold_up_the_end_of_no_other() {
    let node = Node::new(&[("FSB_MAKE", "cast"), ("AGENT_CAPACITY", "0")]).await;
    let mut stuck = Vec::new();
    for _ in 0..4 {
        let id = node.agent.start(request("run")).await.unwrap().instance_id;
        // rmdir(2): EBUSY, as for a cgroup with a process that does not die.
        let cgroup = node.keeper.cgroups.join(&id);
        for file in std::fs::read_dir(&cgroup).unwrap() {
            std::fs::remove_file(file.unwrap().path()).unwrap();
        }
        mount::attach(mount::tmpfs(1 << 20, 16).expect("these tests need root").as_fd(), &cgroup).unwrap();
        stuck.push((id, cgroup));
    }
    for (id, _) in &stuck {
        node.agent.delete(by_id(id, Some(0))).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let begun = Instant::now();
    for _ in 0..10 {
        let id = node.agent.start(request("exit 0")).await.unwrap().instance_id;
        node.agent.wait_ended(&id).await.unwrap();
        node.agent.stop_and_remove(&id).await.unwrap();
    }
    let took = begun.elapsed();
    assert_eq!(node.used(), 4, "those hold their slots");
    for (_, cgroup) in &stuck {
        nix::mount::umount2(cgroup, nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
    node.empty().await;
    assert!(took < Duration::from_secs(4), "ten others took {took:?}: they waited for the patience of a worker");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_with_more_files_than_it_may_have_is_killed_and_says_so() {
    let mut node = Node::new(&[("FSB_MAKE", "cast")]).await;
    let limited = |inodes| {
        let mut limited = request("run");
        limited.resources = Some(Resources { inodes, ..Default::default() });
        limited
    };
    let fill = |node: &Node, id: &str, files: usize| {
        let dir = node.keeper.layers.join(id).join("upper/a/b");
        std::fs::create_dir_all(&dir).unwrap();
        (0..files).for_each(|n| std::fs::write(dir.join(n.to_string()), "").unwrap());
    };
    let (over, within) = (limited(100), limited(200));
    let over = node.agent.start(over).await.unwrap().instance_id;
    let within = node.agent.start(within).await.unwrap().instance_id;
    fill(&node, &within, 150);
    fill(&node, &over, 150);
    let ended = node.agent.wait_ended(&over).await.unwrap();
    assert_eq!((ended.reason.as_str(), ended.exit_code), ("InodesExceeded", Some(137)));
    assert!(ended.message.contains("may have 100"), "{}", ended.message);
    assert_eq!(node.phase(&within), Some(InstancePhase::Running));
    // An agent that finds it running does not know what it had before.
    node.restart().await;
    assert_eq!(node.instance(&over).unwrap().reason, "InodesExceeded", "the record says so");
    fill(&node, &within, 250);
    let ended = node.agent.wait_ended(&within).await.unwrap();
    assert_eq!(ended.reason, "InodesExceeded");
}
