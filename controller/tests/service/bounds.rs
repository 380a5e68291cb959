//! What one caller may make the controller keep.

use super::world::World;
use fsb_proto::fastpath::*;
use std::collections::BTreeMap;
use tonic::{Code, Status};

fn labels(range: std::ops::Range<usize>, value: &str) -> BTreeMap<String, String> {
    range.map(|n| (format!("l{n}"), value.to_owned())).collect()
}

async fn update(world: &World, labels: BTreeMap<String, String>) -> Result<usize, Status> {
    let request = UpdateRequest { sandbox_id: "a".into(), labels, ..Default::default() };
    let answer = world.client.clone().update_sandbox(request).await?.into_inner();
    Ok(answer.sandbox.unwrap().labels.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_are_bounded_however_many_updates_add_to_them() {
    let world = World::new(1).await;
    let with = |labels| CreateRequest { labels, ..World::request("a") };
    let refused = world.try_create(with(labels(0..65, ""))).await.unwrap_err();
    assert_eq!((refused.code(), refused.message().starts_with("labels: ")), (Code::InvalidArgument, true));
    world.try_create(with(labels(0..60, "v"))).await.unwrap();
    assert_eq!(update(&world, labels(60..64, "v")).await.unwrap(), 64);
    let refused = update(&world, labels(64..65, "v")).await.unwrap_err();
    assert_eq!((refused.code(), refused.message().starts_with("labels: ")), (Code::InvalidArgument, true));
    assert_eq!(world.get("a").await.unwrap().labels, labels(0..64, "v"), "nothing of it was taken");
    let mut exchanged = labels(64..96, "w");
    exchanged.extend(labels(0..32, ""));
    assert_eq!(update(&world, exchanged).await.unwrap(), 64);
    assert_eq!(update(&world, labels(32..64, "")).await.unwrap(), 32);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_beyond_its_bounds_is_refused_and_leaves_nothing() {
    let world = World::new(1).await;
    world.create("a").await;
    let before = world.until("a", "persisted", |info| info.persisted).await;
    let creates = [
        CreateRequest { exposed_ports: (1..=1025).collect(), ..World::request("b") },
        CreateRequest { args: vec![String::new(); 300_000], ..World::request("b") },
        CreateRequest { request_id: "x".repeat(257), ..World::request("b") },
        CreateRequest { expire_time_seconds: i64::MAX, ..World::request("b") },
        CreateRequest { resources: Some(Resources { pids: i64::MAX, ..Default::default() }), ..World::request("b") },
        CreateRequest {
            resources: Some(Resources { cpu_millis: i64::MAX / 100, ..Default::default() }),
            ..World::request("b")
        },
    ];
    for create in creates {
        assert_eq!(world.try_create(create).await.unwrap_err().code(), Code::InvalidArgument);
    }
    let long = format!("2030-01-01T00:00:00.{}Z", "1".repeat(1 << 20));
    let refused = world.update("a", update_request::Update::ResetRevision(long)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let watch = WatchRequest { sandbox_id: "x".repeat(1 << 20), ..Default::default() };
    assert_eq!(world.client.clone().watch(watch).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(world.list().await, [before]);
}
