//! What the end and the new start of a controller do to sandboxes: nothing.

use super::world::{World, eventually};
use fsb_proto::agent::InstancePhase;
use fsb_proto::fastpath::*;
use std::sync::atomic::Ordering;
use std::time::Duration;

// Rule 8
#[tokio::test(flavor = "multi_thread")]
async fn a_new_controller_knows_every_sandbox_and_books_nothing_twice() {
    let mut world = World::new(3).await;
    for number in 0..12 {
        let request = CreateRequest { exposed_ports: vec![9000 + number], ..World::request(&format!("s{number}")) };
        world.try_create(request).await.unwrap();
    }
    let before = world.list().await;
    world.restart().await;
    let mut after = world.list().await;
    after.iter_mut().for_each(|info| info.persisted = false);
    let mut before: Vec<_> = before;
    before.iter_mut().for_each(|info| info.persisted = false);
    assert_eq!(after, before);
    assert_eq!((world.live(), world.used()), (12, 12));
    let creates: usize = world.agents.iter().map(|agent| agent.state().creates.len()).sum();
    assert_eq!(creates, 12, "nothing was started again");
    assert!(world.agents.iter().all(|agent| agent.state().deletes.is_empty()), "nothing was killed");
    for number in 0..3 {
        world.create(&format!("t{number}")).await;
    }
    assert_eq!(world.try_create(World::request("u")).await.unwrap_err().code(), tonic::Code::ResourceExhausted);
    for info in after {
        world.delete(&info.sandbox_id).await;
        world.until_gone(&info.sandbox_id).await;
    }
    eventually("slots are free again", || world.used() == 3).await;
}

// R3
#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_whose_claim_was_never_written_is_adopted() {
    let mut world = World::new(2).await;
    world.faults.transient.store(true, Ordering::SeqCst);
    let labels = [("l".to_owned(), "m".to_owned())].into();
    let request = CreateRequest { exposed_ports: vec![80], labels, args: vec!["x".into()], ..World::request("a") };
    world.try_create(request.clone()).await.unwrap();
    let before = world.get("a").await.unwrap();
    world.stop().await;
    world.faults.transient.store(false, Ordering::SeqCst);
    world.start().await;
    let adopted = world.until("a", "adopted", |info| info.phase == "Running" && info.persisted).await;
    assert_eq!(adopted, SandboxInfo { persisted: true, ..before });
    assert_eq!(world.try_create(request).await.unwrap().agent_pod, adopted.agent_pod, "it is the same sandbox");
    eventually("its slot is counted", || world.used() == 1).await;
    world.restart().await;
    assert_eq!(world.get("a").await.unwrap(), adopted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_that_ended_while_nobody_had_its_claim_is_adopted_with_its_exit_code() {
    let mut world = World::new(1).await;
    world.faults.transient.store(true, Ordering::SeqCst);
    world.create("a").await;
    let id = world.get("a").await.unwrap().instance_id;
    world.stop().await;
    world.agents[0].state().end(&id, 9, "Exited");
    world.faults.transient.store(false, Ordering::SeqCst);
    world.start().await;
    let info = world.until_phase("a", "Failed").await;
    assert_eq!(info.exit_code, Some(9));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_came_while_no_controller_was_there_is_taken_over() {
    let mut world = World::new(1).await;
    world.create("a").await;
    let id = world.until("a", "persisted", |info| info.persisted).await.instance_id;
    world.stop().await;
    world.agents[0].state().end(&id, 4, "Exited");
    world.start().await;
    let info = world.until_phase("a", "Failed").await;
    assert_eq!((info.exit_code, info.instance_id), (Some(4), id));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_that_was_asked_for_goes_on_after_a_restart() {
    let mut world = World::new(1).await;
    world.create("a").await;
    world.agents[0].state().stop_hangs = true;
    world.delete("a").await;
    world.restart().await;
    assert_eq!(world.get("a").await.unwrap().phase, "Terminating");
    world.agents[0].state().stop_hangs = false;
    world.until_gone("a").await;
    world.restart().await;
    assert!(world.list().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_of_a_removed_claim_is_told_to_go_when_its_agent_is_back() {
    let mut world = World::new(2).await;
    let request = CreateRequest {
        failure_policy: FailurePolicy::AutoRecreate as i32,
        recovery_timeout_seconds: 1,
        ..World::request("a")
    };
    world.try_create(request).await.unwrap();
    let before = world.until("a", "persisted", |info| info.persisted).await;
    world.agent_of(&before).kill();
    world.until("a", "moved", |info| info.phase == "Running" && info.instance_generation == 2).await;
    world.delete("a").await;
    world.until_gone("a").await;
    assert_eq!(world.live(), 1, "the old one is out of reach");
    // Also a new controller knows that this claim is gone.
    world.restart().await;
    world.agent_of(&before).serve();
    eventually("it goes", || world.live() == 0).await;
    assert!(world.list().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_sandboxes_with_one_name_the_first_uid_stays() {
    let mut world = World::new(2).await;
    world.faults.transient.store(true, Ordering::SeqCst);
    world.create("a").await;
    world.stop().await;
    // Another controller has given the same name to another agent meanwhile.
    let mut twin = world.agents.iter().find_map(|agent| agent.state().live().next().cloned()).unwrap();
    let document = String::from_utf8(twin.claim_document.clone()).unwrap();
    let uid = twin.claim.as_ref().unwrap().uid.clone();
    let other = "00000000-0000-4000-8000-000000000000";
    twin.claim_document = document.replace(&uid, other).into_bytes();
    twin.claim.as_mut().unwrap().uid = other.into();
    twin.instance_id = "f".repeat(32);
    let free = world.agents.iter().position(|agent| agent.state().live().count() == 0).unwrap();
    world.agents[free].state().instances.insert(twin.instance_id.clone(), twin);
    assert_eq!(world.live(), 2);
    world.faults.transient.store(false, Ordering::SeqCst);
    world.start().await;
    eventually("one of them goes", || world.live() == 1).await;
    world.until_phase("a", "Running").await;
    assert_eq!(world.list().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_old_generation_on_an_agent_that_is_back_is_told_to_go_by_a_new_controller_too() {
    let mut world = World::new(2).await;
    world.create("a").await;
    let before = world.until("a", "persisted", |info| info.persisted).await;
    world.agent_of(&before).kill();
    world.until_phase("a", "Lost").await;
    world.reset("a", "2030-01-01T00:00:00Z").await;
    world.until("a", "moved", |info| info.phase == "Running" && info.persisted).await;
    world.stop().await;
    world.agent_of(&before).serve();
    world.start().await;
    eventually("the old one goes", || world.live() == 1).await;
    world.pass().await;
    let info = world.get("a").await.unwrap();
    assert_eq!((info.phase.as_str(), info.instance_generation), ("Running", 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_admitted_before_the_agents_have_reported() {
    let mut world = World::new(1).await;
    world.create("a").await;
    world.stop().await;
    world.agents[0].kill();
    world.timing.settle = Duration::from_secs(20);
    world.start().await;
    let core = world.controller.as_ref().unwrap().core().clone();
    assert!(!*core.ready.borrow());
    let health = world.controller.as_ref().unwrap().addresses().health.unwrap();
    assert!(http(health, "/healthz").await.starts_with("HTTP/1.1 200"));
    assert!(http(health, "/readyz").await.starts_with("HTTP/1.1 503"));
    assert_eq!(world.list().await.len(), 1, "claims are seen at once");
    world.agents[0].serve();
    world.create("b").await;
    assert!(http(health, "/readyz").await.starts_with("HTTP/1.1 200"));
    assert_eq!(world.used(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_stays_away_at_the_start_is_lost_after_a_while_and_holds_up_nobody() {
    let mut world = World::with(2, &[], |agent| agent.state().info.capacity = 20).await;
    for number in 0..6 {
        world.create(&format!("s{number}")).await;
    }
    for info in world.list().await {
        world.until(&info.sandbox_id, "persisted", |info| info.persisted).await;
    }
    world.stop().await;
    world.agents[0].kill();
    world.timing.settle = Duration::from_millis(300);
    world.start().await;
    world.ready().await;
    for info in world.list().await {
        let phase = if info.agent_pod == "agent-1" { "Lost" } else { "Running" };
        world.until_phase(&info.sandbox_id, phase).await;
    }
    world.create("new").await;
    world.agents[0].serve();
    for info in world.list().await {
        world.until_phase(&info.sandbox_id, "Running").await;
    }
    assert_eq!(world.live(), 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_store_is_moved_aside_and_claims_come_back_from_the_agents() {
    let mut world = World::new(1).await;
    world.create("a").await;
    let before = world.until("a", "persisted", |info| info.persisted).await;
    world.stop().await;
    std::fs::write(world.path("claims.redb"), b"this is no database").unwrap();
    world.start().await;
    let after = world.until("a", "back", |info| info.phase == "Running" && info.persisted).await;
    assert_eq!(after, before);
    let aside = std::fs::read_dir(world.path("")).unwrap().flatten();
    assert!(aside.into_iter().any(|file| file.file_name().to_string_lossy().contains("damaged")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_that_is_being_made_belongs_to_nobody_yet() {
    let mut world = World::new(1).await;
    world.faults.transient.store(true, Ordering::SeqCst);
    world.create("a").await;
    world.stop().await;
    let id = world.agents[0].state().instances.keys().next().unwrap().clone();
    world.agents[0].state().instances.get_mut(&id).unwrap().phase = InstancePhase::Creating as i32;
    world.faults.transient.store(false, Ordering::SeqCst);
    world.start().await;
    world.ready().await;
    assert!(world.list().await.is_empty());
}

async fn http(address: std::net::SocketAddr, path: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_say_what_is_there() {
    let world = World::new(1).await;
    world.create("a").await;
    let metrics = world.controller.as_ref().unwrap().addresses().metrics.unwrap();
    let text = http(metrics, "/metrics").await;
    for line in [
        "fsb_controller_creates_total{code=\"OK\"} 1",
        "fsb_controller_sandboxes{reason=\"Running\"} 1",
        "fsb_controller_pool_used{namespace=\"default\",pool=\"default-pool\"} 1",
        "fsb_controller_healthy_agents 1",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_no_agent_at_all_the_service_is_unavailable_and_says_so_in_time() {
    let mut world = World::new(1).await;
    world.stop().await;
    world.agents[0].kill();
    world.timing.settle = Duration::from_millis(100);
    world.start().await;
    let status = world.try_create(World::request("a")).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unavailable, "{status:?}");
    assert!(world.list().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn another_agent_at_an_old_address_has_nothing_of_the_one_before() {
    let mut world = World::new(1).await;
    world.create("a").await;
    world.until("a", "persisted", |info| info.persisted).await;
    world.agents[0].kill();
    {
        let mut state = world.agents[0].state();
        state.instances.clear();
        state.info.name = "newcomer".into();
        state.info.uid = "newcomer-1".into();
    }
    world.agents[0].serve();
    world.until_phase("a", "Lost").await;
    let core = world.controller.as_ref().unwrap().core().clone();
    eventually("the newcomer is known", || core.agents.get("newcomer").is_some()).await;
    assert!(core.agents.get("agent-1").is_none());
    assert_eq!(world.create("b").await.agent_pod, "newcomer");
    world.delete("a").await;
    world.until_gone("a").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_cannot_be_read_is_named_and_its_name_is_free() {
    let mut world = World::new(1).await;
    world.stop().await;
    {
        let database = redb::Database::create(world.path("claims.redb")).unwrap();
        let transaction = database.begin_write().unwrap();
        let table = redb::TableDefinition::<&str, (&str, &[u8])>::new("claims-v1");
        transaction.open_table(table).unwrap().insert("default/a", ("uid", b"{".as_slice())).unwrap();
        transaction.commit().unwrap();
    }
    world.start().await;
    let named = async |world: &World| {
        let answer = world.client.clone().list_agents(ListAgentsRequest {}).await.unwrap();
        answer.into_inner().unreadable_claims
    };
    assert_eq!(named(&world).await, ["default/a"]);
    world.create("a").await;
    world.until("a", "persisted", |info| info.persisted).await;
    assert!(named(&world).await.is_empty());
    world.restart().await;
    assert!(named(&world).await.is_empty() && world.get("a").await.unwrap().phase == "Running");
}
