//! Watch, Logs and the list of agents.

use super::world::{PATIENCE, World};
use fsb_proto::fastpath::{watch_event::Event, *};
use std::time::Duration;
use tonic::{Code, Streaming};

async fn next(stream: &mut Streaming<WatchEvent>) -> Event {
    let event = tokio::time::timeout(Duration::from_secs(20), stream.message()).await.unwrap().unwrap().unwrap();
    event.event.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_says_what_is_there_and_then_what_changes() {
    let world = World::new(1).await;
    world.create("old").await;
    let mut watch = world.client.clone().watch(WatchRequest::default()).await.unwrap().into_inner();
    assert!(matches!(next(&mut watch).await, Event::Changed(info) if info.sandbox_id == "old"));
    assert_eq!(next(&mut watch).await, Event::Synced(true));
    world.create("new").await;
    let mut phases = Vec::new();
    loop {
        match next(&mut watch).await {
            Event::Changed(info) if info.sandbox_id == "new" => {
                phases.push(info.phase.clone());
                if info.persisted {
                    break;
                }
            }
            _ => {}
        }
    }
    phases.dedup();
    assert_eq!(phases, ["Pending", "Bound", "Running"]);
    world.delete("old").await;
    loop {
        if let Event::Removed(info) = next(&mut watch).await {
            assert_eq!((info.sandbox_id.as_str(), info.namespace.as_str()), ("old", "default"));
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_of_one_name_hears_of_no_other() {
    let world = World::new(1).await;
    let request = WatchRequest { sandbox_id: "b".into(), ..Default::default() };
    let mut watch = world.client.clone().watch(request).await.unwrap().into_inner();
    assert_eq!(next(&mut watch).await, Event::Synced(true));
    world.create("a").await;
    world.create("b").await;
    assert!(matches!(next(&mut watch).await, Event::Changed(info) if info.sandbox_id == "b"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_that_does_not_read_is_dropped_and_may_come_again() {
    let world = World::with(1, &[], |agent| agent.state().info.capacity = 0).await;
    world.create("first").await;
    let mut watch = world.client.clone().watch(WatchRequest::default()).await.unwrap().into_inner();
    let core = world.controller.as_ref().unwrap().core().clone();
    let claim = core.table.get(&fsb_controller::claims::Key::new("default", "first")).unwrap().0;
    let mut big = (*claim).clone();
    big.labels.insert("big".into(), "x".repeat(10_000));
    let big = std::sync::Arc::new(big);
    // More than lies between the table and this client, and 4 MiB.
    for _ in 0..20_000 {
        core.table.tell(fsb_controller::claims::Change::Changed { claim: big.clone(), persisted: true });
    }
    let mut read = 0;
    let status = loop {
        match tokio::time::timeout(PATIENCE, watch.message()).await.expect("it ends") {
            Ok(event) => read += usize::from(event.is_some()),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(read < 1000, "{read} events of 10 kB");
    assert_eq!(core.metrics.watches_dropped.get(), 1);
    world.create("last").await;
    let mut again = world.client.clone().watch(WatchRequest::default()).await.unwrap().into_inner();
    let mut seen = Vec::new();
    while let Event::Changed(info) = next(&mut again).await {
        seen.push(info.sandbox_id);
    }
    assert_eq!(seen, ["first", "last"]);
}

async fn lines(world: &World, request: LogsRequest) -> Result<Vec<String>, tonic::Status> {
    let mut stream = world.client.clone().logs(request).await?.into_inner();
    let mut lines = Vec::new();
    while let Some(chunk) = stream.message().await? {
        lines.extend(chunk.lines.into_iter().map(|line| String::from_utf8(line.text.to_vec()).unwrap()));
    }
    Ok(lines)
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_come_from_the_instance_that_is_asked_for() {
    let world = World::new(1).await;
    world.create("a").await;
    let of = |previous| LogsRequest { sandbox_id: "a".into(), previous, ..Default::default() };
    let first = world.get("a").await.unwrap().instance_id;
    assert_eq!(lines(&world, of(false)).await.unwrap()[9], format!("{first} 9"));
    assert_eq!(lines(&world, of(true)).await.unwrap_err().code(), Code::NotFound);
    world.reset("a", "2030-01-01T00:00:00Z").await;
    let second = world.until("a", "new", |info| info.phase == "Running" && info.instance_id != first).await.instance_id;
    assert_eq!(lines(&world, of(false)).await.unwrap()[0], format!("{second} 0"));
    assert_eq!(lines(&world, of(true)).await.unwrap()[0], format!("{first} 0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_whose_agent_is_away_is_unavailable_with_a_sentence() {
    let mut world = World::new(1).await;
    world.create("a").await;
    world.agents[0].kill();
    world.until_phase("a", "Lost").await;
    let request = LogsRequest { sandbox_id: "a".into(), ..Default::default() };
    let status = lines(&world, request).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("agent-1"), "{}", status.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_breaks_off_before_its_end_ends_with_an_error() {
    for agent_goes in [true, false] {
        let mut world = World::new(1).await;
        world.create("a").await;
        let request = LogsRequest { sandbox_id: "a".into(), follow: true, ..Default::default() };
        let mut stream = world.client.clone().logs(request).await.unwrap().into_inner();
        stream.message().await.unwrap().unwrap();
        let reader = tokio::spawn(async move {
            loop {
                match stream.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => return None,
                    Err(status) => return Some(status),
                }
            }
        });
        if agent_goes {
            world.agents[0].kill();
        } else {
            world.stop().await;
        }
        let status = tokio::time::timeout(Duration::from_secs(20), reader).await.unwrap().unwrap();
        let status = status.expect("it did not end here");
        assert_eq!(status.code(), Code::Unavailable);
        assert!(status.message().contains("breaks off here"), "{}", status.message());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_are_listed_with_their_capacity_and_use() {
    let mut world = World::new(2).await;
    world.create("a").await;
    world.agents[1].kill();
    let core = world.controller.as_ref().unwrap().core().clone();
    super::world::eventually("the broken stream is seen", || core.agents.healthy() == 1).await;
    let items = world.client.clone().list_agents(ListAgentsRequest {}).await.unwrap().into_inner().items;
    assert_eq!(items.iter().map(|agent| agent.name.as_str()).collect::<Vec<_>>(), ["agent-1", "agent-2"]);
    assert_eq!(items.iter().map(|agent| agent.used).sum::<i32>(), 1);
    assert_eq!(items.iter().map(|agent| (agent.capacity, agent.healthy)).collect::<Vec<_>>(), [(5, true), (5, false)]);
}
