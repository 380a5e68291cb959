//! CreateSandbox: what it does, what it refuses, and what it leaves behind.

use super::fake::Next;
use super::world::{World, eventually};
use fsb_proto::Refusal;
use fsb_proto::fastpath::*;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tonic::{Code, Request, Status};

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_runs_and_is_written_down() {
    let world = World::new(1).await;
    let request = CreateRequest { exposed_ports: vec![8080], ..World::request("a") };
    let answer = world.try_create(request).await.unwrap();
    assert_eq!((answer.sandbox_id.as_str(), answer.sandbox_name.as_str()), ("a", "a"));
    assert_eq!(answer.agent_pod, "agent-1");
    assert_eq!(answer.endpoints, ["10.213.1.1:8080"]);
    let info = world.until("a", "persisted", |info| info.persisted).await;
    assert_eq!((info.phase.as_str(), info.instance_generation), ("Running", 1));
    assert_eq!(info.instance_id.len(), 32);
}

// T1
#[tokio::test(flavor = "multi_thread")]
async fn every_field_of_a_request_reaches_the_agent() {
    let world = World::new(1).await;
    let request = CreateRequest {
        exposed_ports: vec![80, 90],
        command: vec!["sh".into()],
        args: vec!["-c".into()],
        envs: BTreeMap::from([("K".into(), "V".into())]),
        working_dir: "/w".into(),
        expire_time_seconds: 4_000_000_000,
        failure_policy: FailurePolicy::AutoRecreate as i32,
        recovery_timeout_seconds: 7,
        labels: BTreeMap::from([("l".into(), "m".into())]),
        resources: Some(Resources {
            cpu_millis: 100,
            memory_bytes: 1 << 30,
            pids: 10,
            disk_bytes: 1 << 20,
            inodes: 1_000,
        }),
        grace_period_seconds: Some(3),
        user: "1000".into(),
        request_id: "r".into(),
        pull_policy: PullPolicy::Never as i32,
        ..World::request("a")
    };
    world.try_create(request.clone()).await.unwrap();
    let sent = world.agents[0].state().creates[0].clone();
    assert_eq!((&sent.image, &sent.command, &sent.args), (&request.image, &request.command, &request.args));
    assert_eq!((&sent.envs, &sent.working_dir, &sent.user), (&request.envs, &request.working_dir, &request.user));
    assert_eq!((&sent.exposed_ports, &sent.resources), (&request.exposed_ports, &request.resources));
    assert_eq!((sent.grace_period_seconds, sent.pull_policy), (Some(3), request.pull_policy));
    assert_eq!((sent.failure_policy, sent.recovery_timeout_seconds), (1, 7));
    let claim = sent.claim.unwrap();
    assert_eq!((claim.namespace.as_str(), claim.name.as_str(), claim.generation), ("default", "a", 1));
    assert!(!claim.uid.is_empty(), "F4: a fast sandbox has a claim UID");
    let info = world.get("a").await.unwrap();
    assert_eq!((info.expire_time_seconds, info.labels, info.envs), (4_000_000_000, request.labels, request.envs));
}

// R8
#[tokio::test(flavor = "multi_thread")]
async fn the_same_name_and_spec_again_is_the_same_sandbox() {
    let world = World::new(2).await;
    let first = CreateRequest { exposed_ports: vec![1, 2], ..World::request("a") };
    let again = CreateRequest {
        exposed_ports: vec![2, 1],
        labels: BTreeMap::from([("x".into(), "y".into())]),
        expire_time_seconds: 4_000_000_000,
        ..World::request("a")
    };
    let answer = world.try_create(first).await.unwrap();
    assert_eq!(world.try_create(again).await.unwrap(), answer);
    let other = CreateRequest { args: vec!["x".into()], ..World::request("a") };
    let status = world.try_create(other).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);
    assert!(status.message().contains("hint:"), "{}", status.message());
    assert_eq!(world.live(), 1);
}

// R8
#[tokio::test(flavor = "multi_thread")]
async fn creates_of_one_name_at_the_same_time_start_one_sandbox() {
    let world = World::new(3).await;
    for agent in &world.agents {
        agent.state().next.push_back(Next::Slow(Duration::from_millis(50)));
    }
    let calls: Vec<_> = (0..20)
        .map(|_| {
            let mut client = world.client.clone();
            tokio::spawn(async move { client.create_sandbox(World::request("a")).await.map(|a| a.into_inner()) })
        })
        .collect();
    let mut answers = Vec::new();
    for call in calls {
        answers.push(call.await.unwrap().unwrap());
    }
    assert!(answers.iter().all(|answer| *answer == answers[0]));
    assert_eq!(world.live(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_of_a_request_with_a_generated_name_gets_the_same_sandbox() {
    let world = World::new(1).await;
    let request = CreateRequest { request_id: "r-1".into(), ..World::request("") };
    let first = world.try_create(request.clone()).await.unwrap();
    assert_eq!(world.try_create(request.clone()).await.unwrap(), first);
    let other = CreateRequest { request_id: "r-2".into(), ..request };
    assert_ne!(world.try_create(other).await.unwrap().sandbox_id, first.sandbox_id);
    let unnamed = world.try_create(World::request("")).await.unwrap();
    assert_ne!(unnamed.sandbox_id, first.sandbox_id);
    assert_eq!(world.live(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_request_is_refused_with_its_field_and_reaches_no_agent() {
    let world = World::new(1).await;
    let base = || World::request("a");
    let cases = [
        ("image", CreateRequest { image: String::new(), ..base() }),
        ("name", CreateRequest { name: "../etc".into(), ..base() }),
        ("name", CreateRequest { name: "x".repeat(64), ..base() }),
        ("namespace", CreateRequest { namespace: "A".into(), ..base() }),
        ("exposed_ports", CreateRequest { exposed_ports: vec![0], ..base() }),
        ("exposed_ports", CreateRequest { exposed_ports: vec![65536], ..base() }),
        ("exposed_ports", CreateRequest { exposed_ports: vec![80, 80], ..base() }),
        ("envs", CreateRequest { envs: BTreeMap::from([("a=b".into(), String::new())]), ..base() }),
        ("args", CreateRequest { args: vec!["x".repeat(100_000); 40], ..base() }),
        ("expire_time_seconds", CreateRequest { expire_time_seconds: 1, ..base() }),
        ("expire_time_seconds", CreateRequest { expire_time_seconds: -1, ..base() }),
        ("recovery_timeout_seconds", CreateRequest { recovery_timeout_seconds: -1, ..base() }),
        ("grace_period_seconds", CreateRequest { grace_period_seconds: Some(-1), ..base() }),
        ("failure_policy", CreateRequest { failure_policy: 9, ..base() }),
        ("consistency_mode", CreateRequest { consistency_mode: 9, ..base() }),
        ("pull_policy", CreateRequest { pull_policy: 9, ..base() }),
        ("labels", CreateRequest { labels: BTreeMap::from([("".into(), "x".into())]), ..base() }),
    ];
    for (field, request) in cases {
        let status = world.try_create(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{field}: {status:?}");
        assert!(status.message().starts_with(field), "{field}: {}", status.message());
    }
    assert!(world.agents[0].state().creates.is_empty());
    assert!(world.list().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_is_not_there_is_named_beside_those_that_are() {
    let world = World::new(1).await;
    let status = world.try_create(CreateRequest { pool_ref: "gpu".into(), ..World::request("a") }).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert!(status.message().contains("gpu") && status.message().contains("default-pool"), "{}", status.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_pool_says_its_capacity_and_its_use() {
    let world = World::new(2).await;
    for number in 0..10 {
        world.create(&format!("a{number}")).await;
    }
    let status = world.try_create(World::request("b")).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("10 of 10"), "{}", status.message());
    assert_eq!(world.live(), 10);
    assert_eq!(world.get("b").await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_everywhere_is_named() {
    let world = World::new(2).await;
    let with_port = |name: &str| CreateRequest { exposed_ports: vec![8080], ..World::request(name) };
    let first = world.try_create(with_port("a")).await.unwrap();
    let second = world.try_create(with_port("b")).await.unwrap();
    assert_ne!(first.agent_pod, second.agent_pod);
    let status = world.try_create(with_port("c")).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("8080"), "{}", status.message());
    world.delete("a").await;
    world.until_gone("a").await;
    assert_eq!(world.try_create(with_port("c")).await.unwrap().agent_pod, first.agent_pod);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_no_healthy_agent_the_service_is_unavailable() {
    let mut world = World::new(1).await;
    world.create("a").await;
    world.agents[0].kill();
    let core = world.controller.as_ref().unwrap().core().clone();
    eventually("the broken stream is seen", || core.agents.healthy() == 0).await;
    let status = world.try_create(World::request("b")).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
}

// R1
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_race_for_a_slot_is_tried_on_the_next_agent() {
    let world = World::new(3).await;
    let refusals = [Refusal::Full, Refusal::PortTaken, Refusal::Cordoned, Refusal::Unavailable, Refusal::DiskFull];
    for refusal in refusals {
        for agent in &world.agents[1..] {
            agent.state().next.clear();
            agent.state().next.push_back(Next::Refuse(refusal, "not here"));
        }
        let name = refusal.as_str();
        let answer = world.create(name).await;
        assert!(!answer.agent_pod.is_empty());
        assert_eq!(world.get(name).await.unwrap().phase, "Running");
    }
    assert_eq!(world.live(), refusals.len());
    eventually("nothing is reserved beside what runs", || world.used() == refusals.len()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_final_refusal_keeps_the_agents_words_and_leaves_nothing() {
    let world = World::new(3).await;
    let cases = [
        (Refusal::Image, Code::NotFound),
        (Refusal::Start, Code::FailedPrecondition),
        (Refusal::Invalid, Code::InvalidArgument),
        (Refusal::Stale, Code::FailedPrecondition),
        (Refusal::Conflict, Code::AlreadyExists),
    ];
    for (refusal, code) in cases {
        for mode in [ConsistencyMode::Fast, ConsistencyMode::Strong] {
            for agent in &world.agents {
                agent.state().next.push_back(Next::Refuse(refusal, "because of this"));
            }
            let before: usize = world.agents.iter().map(|agent| agent.state().creates.len()).sum();
            let request = CreateRequest { consistency_mode: mode as i32, ..World::request("a") };
            let status = world.try_create(request).await.unwrap_err();
            assert_eq!((status.code(), status.message()), (code, "because of this"));
            let after: usize = world.agents.iter().map(|agent| agent.state().creates.len()).sum();
            assert_eq!(after - before, 1, "{refusal:?} is not tried elsewhere");
            world.agents.iter().for_each(|agent| agent.state().next.clear());
            assert_eq!(world.get("a").await.unwrap_err().code(), Code::NotFound);
            assert_eq!((world.live(), world.used()), (0, 0));
        }
    }
    world.create("a").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_whose_time_is_over_leaves_nothing() {
    let world = World::new(1).await;
    world.agents[0].state().next.push_back(Next::Slow(Duration::from_millis(400)));
    let mut request = Request::new(World::request("a"));
    request.set_timeout(Duration::from_millis(150));
    let status = world.client.clone().create_sandbox(request).await.unwrap_err();
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");
    world.until_gone("a").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    eventually("the agent has nothing", || world.live() == 0).await;
    eventually("nothing is reserved", || world.used() == 0).await;
    world.create("a").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_whose_call_breaks_leaves_nothing() {
    let world = World::new(1).await;
    world.agents[0].state().next.push_back(Next::Break(Status::internal("no idea")));
    let status = world.try_create(World::request("a")).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Internal, "no idea"));
    world.until_gone("a").await;
    assert_eq!((world.live(), world.used()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_hangs_up_leaves_a_whole_sandbox_or_none() {
    let world = World::new(1).await;
    world.agents[0].state().next.push_back(Next::Slow(Duration::from_millis(100)));
    let mut client = world.client.clone();
    let call = tokio::spawn(async move { client.create_sandbox(World::request("a")).await });
    eventually("the agent was asked", || !world.agents[0].state().creates.is_empty()).await;
    call.abort();
    world.until_phase("a", "Running").await;
    assert_eq!((world.live(), world.used()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_that_is_deleted_while_it_starts_is_gone_in_the_end() {
    let world = World::new(1).await;
    world.agents[0].state().next.push_back(Next::Slow(Duration::from_millis(300)));
    let mut client = world.client.clone();
    let call = tokio::spawn(async move { client.create_sandbox(World::request("a")).await });
    eventually("the agent was asked", || !world.agents[0].state().creates.is_empty()).await;
    let seen = world.get("a").await.unwrap();
    assert_eq!((seen.phase.as_str(), seen.persisted), ("Bound", false), "visible before it runs");
    world.delete("a").await;
    assert_eq!(call.await.unwrap().unwrap_err().code(), Code::Aborted);
    world.until_gone("a").await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    eventually("what the agent started late is removed", || world.live() == 0).await;
    world.create("a").await;
}

// F8
#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_fails_is_tried_until_it_succeeds_and_nobody_waits_for_it() {
    let world = World::new(1).await;
    world.faults.transient.store(true, Ordering::SeqCst);
    world.create("a").await;
    let metrics = &world.controller.as_ref().unwrap().core().metrics;
    eventually("the failures are counted", || metrics.claim_write_errors.get() > 3).await;
    let info = world.get("a").await.unwrap();
    assert_eq!((info.phase.as_str(), info.persisted), ("Running", false));
    assert_eq!(world.list().await.len(), 1);
    assert_eq!(metrics.claims_waiting.get(), 1);
    world.faults.transient.store(false, Ordering::SeqCst);
    world.until("a", "persisted", |info| info.persisted).await;
    assert_eq!(metrics.claims_waiting.get(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_can_be_deleted_before_its_claim_is_written() {
    let world = World::new(1).await;
    world.faults.transient.store(true, Ordering::SeqCst);
    world.create("a").await;
    world.delete("a").await;
    world.until_gone("a").await;
    world.faults.transient.store(false, Ordering::SeqCst);
    world.pass().await;
    assert_eq!((world.list().await.len(), world.live()), (0, 0), "the late write brings nothing back");
}

// F4
#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_is_refused_for_good_stops_its_sandbox_after_the_orphan_timeout() {
    let world = World::new(1).await;
    world.faults.refuse.store(true, Ordering::SeqCst);
    world.agents[0].state().stop_hangs = true;
    world.create("a").await;
    assert_eq!(world.get("a").await.unwrap().phase, "Running");
    let info = world.until_phase("a", "Terminating").await;
    assert_eq!(info.reason, "ClaimRefused");
    assert!(info.message.contains("over the quota"), "{}", info.message);
    world.agents[0].state().stop_hangs = false;
    world.until_gone("a").await;
    assert_eq!(world.live(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_strong_create_is_written_before_the_agent_is_asked() {
    let world = World::new(1).await;
    let strong =
        |name: &str| CreateRequest { consistency_mode: ConsistencyMode::Strong as i32, ..World::request(name) };
    world.agents[0].state().next.push_back(Next::Slow(Duration::from_millis(100)));
    let mut client = world.client.clone();
    let call = tokio::spawn(async move { client.create_sandbox(strong("a")).await });
    eventually("the agent was asked", || !world.agents[0].state().creates.is_empty()).await;
    assert_eq!(world.faults.writes.lock().unwrap()[0], "put a Pending");
    call.await.unwrap().unwrap();

    world.faults.refuse.store(true, Ordering::SeqCst);
    let status = world.try_create(strong("b")).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(world.agents[0].state().creates.len(), 1, "no agent is asked for a claim that was refused");
    assert_eq!(world.get("b").await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_over_has_to_be_removed_or_reset_first() {
    let world = World::new(1).await;
    world.create("a").await;
    let id = world.get("a").await.unwrap().instance_id;
    world.agents[0].state().end(&id, 3, "Exited");
    world.until_phase("a", "Failed").await;
    let status = world.try_create(World::request("a")).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);
    assert!(status.message().contains("fsb-ctl rm a") && status.message().contains("reset"), "{}", status.message());

    world.create("b").await;
    world.agents[0].state().stop_hangs = true;
    world.delete("b").await;
    let status = world.try_create(World::request("b")).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(!status.details().is_empty(), "it says when to try again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_goes_where_its_image_is_and_where_a_container_waits() {
    let world = World::with(3, &[], |agent| {
        let name = agent.name();
        let mut state = agent.state();
        state.images = if name == "agent-1" { vec![] } else { vec!["docker.io/library/busybox:latest".into()] };
        if name == "agent-3" {
            state.stock = vec![fsb_proto::agent::Stock { image: "busybox".into(), paused: 5 }];
        }
    })
    .await;
    for number in 0..5 {
        assert_eq!(world.create(&format!("s{number}")).await.agent_pod, "agent-3");
    }
    for number in 0..5 {
        assert_eq!(world.create(&format!("i{number}")).await.agent_pod, "agent-2");
    }
    assert_eq!(world.create("n").await.agent_pod, "agent-1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spec_that_no_agents_record_can_carry_is_written_first() {
    let world = World::new(1).await;
    let request = CreateRequest { args: vec!["x".repeat(100_000); 5], ..World::request("a") };
    world.try_create(request).await.unwrap();
    let sent = world.agents[0].state().creates[0].clone();
    assert!(sent.claim_document.len() < 100_000);
    assert_eq!(sent.args.len(), 5);
    assert_eq!(world.faults.writes.lock().unwrap()[0], "put a Pending");
}
