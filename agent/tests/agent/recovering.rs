//! What an agent finds again after it was killed.

use crate::keeper::now_ms;
use crate::node::{IMAGE, Node, eventually, request};
use fsb_agent::Error;
use fsb_host::paths::SPARE;
use fsb_proto::agent::{DeleteRequest, InstancePhase, Source};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_agent_finds_its_sandboxes_with_slots_ports_names_and_exit_codes() {
    let mut node = Node::new(&[("FSB_MAKE", "cast"), ("AGENT_CAPACITY", "3")]).await;
    let mut running = request("run");
    running.exposed_ports = vec![80];
    running.alias = "web".into();
    let running_id = node.agent.start(running.clone()).await.unwrap().instance_id;
    let ended_id = node.agent.start(request("exit 9")).await.unwrap().instance_id;
    node.agent.wait_ended(&ended_id).await.unwrap();
    // An agent of this process does not die with its threads: what it has begun must not come after the next one's look.
    let settled = |name: &String| !name.contains(&ended_id) || name.ends_with(".log") || name.ends_with(SPARE);
    eventually("the ended one's layer is a spare one", || node.keeper.left_behind().iter().all(settled)).await;
    let known = |node: &Node| [&running_id, &ended_id].map(|id| node.instance(id).unwrap());
    let before = known(&node);
    assert_eq!((before[1].phase(), before[1].exit_code), (InstancePhase::Ended, Some(9)));
    // What the agent has not said of the starts when it dies, it cannot say any more.
    eventually("the keeper was told of both", || node.keeper.told(&running_id) && node.keeper.told(&ended_id)).await;
    node.restart().await;
    assert_eq!(known(&node), before, "the times that callers were told, too");
    assert_eq!(node.used(), 1);
    let again = node.agent.start(running).await.unwrap();
    assert!(again.existed && again.instance_id == running_id);
    let mut other = request("run");
    other.exposed_ports = vec![80];
    assert!(matches!(node.agent.start(other).await.unwrap_err().cause, Error::PortTaken { .. }));
    node.agent.stop_and_remove("web").await.unwrap();
    node.agent.stop_and_remove(&ended_id).await.unwrap();
    node.empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_agent_uses_the_stock_that_is_there() {
    let mut node = Node::new(&[("WARM_IMAGES", IMAGE), ("POOL_PER_IMAGE", "3")]).await;
    node.stocked(3).await;
    let (before, makes) = (node.keeper.ids(), node.keeper.makes());
    node.restart().await;
    node.stocked(3).await;
    let started = node.agent.start(request("run")).await.unwrap();
    assert_eq!(started.source, Source::Stock);
    assert!(before.contains(&started.instance_id));
    assert_eq!(makes, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn paused_containers_of_an_image_that_is_gone_are_forgotten() {
    let mut node = Node::new(&[("WARM_IMAGES", IMAGE), ("POOL_PER_IMAGE", "2")]).await;
    node.stocked(2).await;
    std::fs::remove_file(node.config.paths.images().join("index.json")).unwrap();
    node.config.warm_images.clear();
    node.restart().await;
    node.empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_the_agent_died_in_is_undone() {
    let mut node = Node::new(&[("FSB_MAKE", "cast")]).await;
    node.keeper.set(|mood| mood.ignores_handoffs = true);
    let (agent, create) = (node.agent.clone(), request("run"));
    let retry = create.clone();
    tokio::spawn(async move { agent.start(create).await });
    eventually("it is bound", || node.keeper.binds() == 1).await;
    node.restart().await;
    node.keeper.set(|mood| mood.ignores_handoffs = false);
    let waited = node.agent.start(retry.clone()).await.unwrap_err();
    assert!(matches!(waited.cause, Error::Unavailable(_)), "{waited}");
    node.empty().await;
    assert!(!node.agent.start(retry).await.unwrap().existed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_goes_on_where_the_agent_before_left_it() {
    let mut node = Node::new(&[("FSB_MAKE", "cast")]).await;
    node.keeper.set(|mood| mood.ignores_term = true);
    let id = node.agent.start(request("run")).await.unwrap().instance_id;
    let delete = DeleteRequest {
        instance_id: id.clone(),
        grace_period_seconds: Some(5),
        remove_logs: true,
        ..Default::default()
    };
    assert!(!node.agent.delete(delete).await.unwrap());
    eventually("the record says so", || node.keeper.binding(&id).is_some_and(|b| b.kill_at_ms > 0 && b.remove)).await;
    node.restart().await;
    assert_eq!(node.phase(&id), Some(InstancePhase::Stopping));
    node.empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_told_to_end_takes_nothing_new_and_kills_nothing() {
    let node = Node::new(&[("FSB_MAKE", "cast")]).await;
    let id = node.agent.start(request("run")).await.unwrap().instance_id;
    node.agent.close(Duration::from_secs(5)).await;
    assert_eq!(node.agent.start(request("run")).await.unwrap_err().cause, Error::Cordoned);
    assert_eq!(node.phase(&id), Some(InstancePhase::Running));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_in_a_record_is_by_the_clock_that_nobody_sets() {
    let mut node = Node::new(&[("FSB_MAKE", "cast")]).await;
    node.keeper.set(|mood| mood.ignores_term = true);
    let mut create = request("run");
    create.grace_period_seconds = Some(1);
    let id = node.agent.start(create).await.unwrap().instance_id;
    let remove = DeleteRequest {
        instance_id: id.clone(),
        grace_period_seconds: Some(3600),
        remove_logs: true,
        ..Default::default()
    };
    assert!(!node.agent.delete(remove).await.unwrap());
    eventually("it is written down", || node.keeper.binding(&id).is_some_and(|b| b.kill_at_ms != 0)).await;
    let up_ms = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap().tv_sec() * 1000;
    let left_ms = node.keeper.binding(&id).unwrap().kill_at_ms - up_ms;
    assert!((3_500_000..3_700_000).contains(&left_ms), "{left_ms}");
    // An agent of an earlier version wrote down Unix time: here one whose clock was five years ahead.
    let years_ms = 5 * 365 * 24 * 3_600_000;
    node.keeper.edit(&id, |record| record.binding.as_mut().unwrap().kill_at_ms = now_ms() + years_ms);
    node.restart().await;
    node.empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_that_an_earlier_version_has_carried_out_finds_what_it_made() {
    let mut node = Node::new(&[("FSB_MAKE", "cast")]).await;
    let create = request("run");
    let id = node.agent.start(create.clone()).await.unwrap().instance_id;
    node.keeper.edit(&id, |record| record.binding.as_mut().unwrap().spec_hash = 0xdead_beef_dead_beef);
    node.restart().await;
    let again = node.agent.start(create).await.unwrap();
    assert_eq!((again.instance_id.as_str(), again.existed), (id.as_str(), true));
    node.agent.stop_and_remove(&id).await.unwrap();
}
