//! What controllers see, and what happens when they are gone.

use crate::node::{Node, eventually, import_as, request};
use fsb_agent::{Listeners, serve};
use fsb_proto::agent::agent_service_client::AgentServiceClient;
use fsb_proto::agent::event::Event;
use fsb_proto::agent::{CreateRequest, InstancePhase, WatchRequest};
use futures_util::StreamExt;
use std::collections::HashMap;
use tokio_util::sync::CancellationToken;
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_gets_a_snapshot_and_then_every_change_in_order() {
    let node = Node::new(&[("FSB_MAKE", "cast")]).await;
    let first = node.agent.start(request("run")).await.unwrap().instance_id;
    let mut events = Box::pin(node.agent.watch(true));
    let Some(Event::Snapshot(snapshot)) = events.next().await.unwrap().unwrap().event else { panic!("no snapshot") };
    assert_eq!(snapshot.instances[0].instance_id, first);
    assert_eq!((snapshot.used_slots, snapshot.agent.unwrap().uid.as_str()), (1, "keeper-1"));
    node.agent.stop_and_remove(&first).await.unwrap();
    let (mut phases, mut heartbeat) = (Vec::new(), false);
    let mut removed = false;
    while !(removed && heartbeat) {
        match events.next().await.unwrap().unwrap().event.unwrap() {
            Event::Instance(instance) => phases.push(instance.phase()),
            Event::Removed(gone) => {
                assert_eq!(gone.instance_id, first);
                removed = true;
            }
            Event::Heartbeat(_) => heartbeat = true,
            _ => {}
        }
    }
    // A start is told after its answer: maybe after the snapshot that had it already.
    if phases.first() == Some(&InstancePhase::Running) {
        phases.remove(0);
    }
    assert_eq!(phases, [InstancePhase::Stopping, InstancePhase::Ended]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_right_after_a_start_is_told_once() {
    let node = Node::new(&[("FSB_MAKE", "cast"), ("AGENT_CAPACITY", "0")]).await;
    let mut events = Box::pin(node.agent.watch(true));
    events.next().await.unwrap().unwrap();
    let calls = (0..100).map(|_| async {
        let id = node.agent.start(request("run")).await.unwrap().instance_id;
        node.agent.stop_and_remove(&id).await.unwrap();
    });
    let mut told = HashMap::<String, Vec<InstancePhase>>::new();
    let watched = async {
        let mut removed = 0;
        while removed < 100 {
            match events.next().await.unwrap().unwrap().event.unwrap() {
                Event::Instance(instance) => {
                    let phase = instance.phase();
                    told.entry(instance.instance_id).or_default().push(phase);
                }
                Event::Removed(_) => removed += 1,
                _ => {}
            }
        }
    };
    tokio::join!(futures_util::future::join_all(calls), watched);
    assert_eq!(told.len(), 100);
    for (id, phases) in told {
        assert!(phases.is_sorted_by_key(|phase| *phase as i32), "{id}: {phases:?}");
        assert!(phases.windows(2).all(|two| two[0] != two[1]), "{id}: {phases:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_that_does_not_read_for_4096_events_is_dropped() {
    let node = Node::new(&[("FSB_MAKE", "cast"), ("AGENT_CAPACITY", "0")]).await;
    let mut events = Box::pin(node.agent.watch(true));
    events.next().await.unwrap().unwrap();
    // Each is at least three changes: running, ended, removed.
    for _ in 0..60 {
        let calls = (0..25).map(|_| async {
            let id = node.agent.start(request("exit 0")).await.unwrap().instance_id;
            node.agent.stop_and_remove(&id).await.unwrap();
        });
        futures_util::future::join_all(calls).await;
    }
    let status = loop {
        match events.next().await.unwrap() {
            Ok(event) => assert!(matches!(event.event.unwrap(), Event::Heartbeat(_)), "what was missed cannot be told"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(events.next().await.is_none());
    let again = Box::pin(node.agent.watch(true)).next().await.unwrap().unwrap();
    assert!(matches!(again.event.unwrap(), Event::Snapshot(snapshot) if snapshot.instances.is_empty()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_lost_its_controllers_stops_autorecreate_sandboxes_and_no_others() {
    let node = Node::new(&[("FSB_MAKE", "cast")]).await;
    let auto = CreateRequest { failure_policy: 1, recovery_timeout_seconds: 1, ..request("run") };
    let auto = node.agent.start(auto).await.unwrap().instance_id;
    let manual = node.agent.start(request("run")).await.unwrap().instance_id;
    // The controller starts it elsewhere, whether it obeys SIGTERM or not.
    node.keeper.set(|mood| mood.ignores_term = true);
    let stubborn = CreateRequest { failure_policy: 1, recovery_timeout_seconds: 1, ..request("run") };
    let stubborn = node.agent.start(stubborn).await.unwrap().instance_id;
    // Nobody ever watched: nobody is missed.
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    assert_eq!(node.phase(&auto), Some(InstancePhase::Running));
    let mut events = Box::pin(node.agent.watch(true));
    events.next().await.unwrap().unwrap();
    drop(events);
    eventually("it is stopped", || node.phase(&auto) == Some(InstancePhase::Ended)).await;
    eventually("it is killed", || node.phase(&stubborn) == Some(InstancePhase::Ended)).await;
    assert_eq!(node.phase(&manual), Some(InstancePhase::Running));
    let ended = node.agent.snapshot().instances.into_iter().find(|instance| instance.instance_id == auto);
    assert_eq!(ended.unwrap().reason, "AgentLost", "the next controller starts it again");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_only_looks_on_does_not_stand_in_for_a_controller() {
    let node = Node::new(&[("FSB_MAKE", "cast")]).await;
    let listeners = Listeners::bind(&node.config.socket, 0, None).await.unwrap();
    let serving = tokio::spawn(serve(node.agent.clone(), listeners, CancellationToken::new()));
    let address = format!("unix:{}", node.config.socket.display());
    let watch = async |controller: bool| {
        let mut client = AgentServiceClient::connect(address.clone()).await.unwrap();
        let request = WatchRequest { watcher: "fsb-controller".into(), controller };
        let mut events = client.watch(request).await.unwrap().into_inner();
        events.message().await.unwrap().unwrap();
        events
    };
    let controller = watch(true).await;
    let mut onlooker = watch(false).await;
    let auto = CreateRequest { failure_policy: 1, recovery_timeout_seconds: 1, ..request("run") };
    let auto = node.agent.start(auto).await.unwrap().instance_id;
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    assert_eq!(node.phase(&auto), Some(InstancePhase::Running), "a controller watches");
    drop(controller);
    eventually("it is stopped", || node.phase(&auto) == Some(InstancePhase::Ended)).await;
    assert!(onlooker.message().await.unwrap().is_some(), "and is told so");
    serving.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_does_not_come_back_after_a_restart_is_missed_too() {
    let mut node = Node::new(&[("FSB_MAKE", "cast")]).await;
    let auto = CreateRequest { failure_policy: 1, recovery_timeout_seconds: 1, ..request("run") };
    let auto = node.agent.start(auto).await.unwrap().instance_id;
    node.restart().await;
    assert_eq!(node.phase(&auto), Some(InstancePhase::Running));
    eventually("it is stopped", || node.phase(&auto) == Some(InstancePhase::Ended)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn images_that_another_agent_of_the_node_brings_are_told() {
    let node = Node::new(&[("FSB_MAKE", "cast")]).await;
    let mut events = Box::pin(node.agent.watch(true));
    events.next().await.unwrap().unwrap();
    import_as(&node, "other").await;
    loop {
        if let Event::Images(images) = events.next().await.unwrap().unwrap().event.unwrap() {
            break assert!(images.references.contains(&"docker.io/library/other:latest".to_owned()), "{images:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_comes_later_is_kept_warm_as_soon_as_it_is_there() {
    let node = Node::new(&[("WARM_IMAGES", "127.0.0.1:1/late"), ("POOL_PER_IMAGE", "1")]).await;
    import_as(&node, "127.0.0.1:1/late").await;
    eventually("it is in stock", || node.agent.stock("127.0.0.1:1/late") == 1).await;
}
