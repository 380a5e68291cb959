//! The rules of a sandbox's life.

use super::world::{World, eventually};
use fsb_controller::clock;
use fsb_proto::fastpath::{update_request::Update, *};
use std::sync::atomic::Ordering;
use std::time::Duration;
use tonic::Code;

fn auto(name: &str, recovery_seconds: i32) -> CreateRequest {
    CreateRequest {
        failure_policy: FailurePolicy::AutoRecreate as i32,
        recovery_timeout_seconds: recovery_seconds,
        ..World::request(name)
    }
}

// Rule 1, C2
#[tokio::test(flavor = "multi_thread")]
async fn a_claim_stays_until_the_agent_confirms_however_often_the_call_fails() {
    let world = World::new(1).await;
    world.create("a").await;
    world.agents[0].state().failing_deletes = 8;
    world.agents[0].state().stop_hangs = true;
    world.delete("a").await;
    eventually("the call was tried again and again", || world.agents[0].state().deletes.len() > 8).await;
    assert_eq!(world.get("a").await.unwrap().phase, "Terminating");
    assert_eq!(world.used(), 1, "slot and ports are not free yet");
    world.agents[0].state().stop_hangs = false;
    world.until_gone("a").await;
    eventually("slot and ports are free", || world.used() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_asked_once_to_remove_and_its_word_that_it_is_done_is_enough() {
    let mut world = World::new(1).await;
    // However slow the machine is, the agent's word comes before it is time to ask again.
    world.timing.retry_least = Duration::from_secs(10);
    world.timing.retry_most = Duration::from_secs(10);
    world.timing.call = Duration::from_secs(10);
    world.restart().await;
    for (name, answers_late) in [("a", false), ("b", true)] {
        world.create(name).await;
        {
            let mut state = world.agents[0].state();
            state.answers_late = answers_late;
            state.deletes.clear();
        }
        world.delete(name).await;
        world.until_gone(name).await;
        let asked = world.agents[0].state().deletes.len();
        assert_eq!(asked, 1, "the agent's word comes before its answer: {answers_late}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_by_force_asks_for_no_grace_also_when_a_deletion_is_under_way() {
    let world = World::new(1).await;
    world.create("a").await;
    world.agents[0].state().stop_hangs = true;
    world.delete("a").await;
    eventually("the agent was asked", || !world.agents[0].state().deletes.is_empty()).await;
    assert_eq!(world.agents[0].state().deletes[0].grace_period_seconds, None);
    let force = DeleteRequest { sandbox_id: "a".into(), force: true, ..Default::default() };
    world.client.clone().delete_sandbox(force).await.unwrap();
    eventually("the agent was asked to hurry", || {
        world.agents[0].state().deletes.iter().any(|delete| delete.grace_period_seconds == Some(0))
    })
    .await;
    world.agents[0].state().stop_hangs = false;
    world.until_gone("a").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_logs_go_with_the_claim() {
    let world = World::new(1).await;
    world.create("a").await;
    let first = world.get("a").await.unwrap().instance_id;
    world.reset("a", "2030-01-01T00:00:00Z").await;
    let second =
        world.until("a", "reset", |info| info.instance_id != first && info.phase == "Running").await.instance_id;
    assert!(world.agents[0].state().deletes.iter().all(|delete| !delete.remove_logs), "--previous needs them");
    world.delete("a").await;
    world.until_gone("a").await;
    let last = world.agents[0].state().deletes.last().unwrap().clone();
    assert!(last.remove_logs);
    assert_eq!(last.log_instance_ids, [second, first]);
}

// Rule 3, C1
#[tokio::test(flavor = "multi_thread")]
async fn expiry_removes_the_container_and_keeps_the_claim() {
    let world = World::new(1).await;
    world.create("a").await;
    let now = clock::now_ms() / 1000;
    world.update("a", Update::ExpireTimeSeconds(now + 1)).await.unwrap();
    let info = world.until_phase("a", "Expired").await;
    assert_eq!(info.reason, "Expired");
    eventually("the container is gone", || world.live() == 0).await;
    eventually("its slot is free", || world.used() == 0).await;
    world.pass().await;
    assert_eq!(world.get("a").await.unwrap().phase, "Expired", "the claim is history");
    let status = world.update("a", Update::ResetRevision("2030-01-01T00:00:00Z".into())).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    world.delete("a").await;
    world.until_gone("a").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expire_time_can_be_moved_and_removed() {
    let world = World::new(1).await;
    let soon = clock::now_ms() / 1000 + 2;
    world.try_create(CreateRequest { expire_time_seconds: soon, ..World::request("a") }).await.unwrap();
    world.update("a", Update::ExpireTimeSeconds(0)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(world.get("a").await.unwrap().phase, "Running");
}

// Rule 4, F2
#[tokio::test(flavor = "multi_thread")]
async fn a_reset_gives_a_new_instance_once_per_revision_and_its_status_is_followed() {
    let world = World::new(2).await;
    world.create("a").await;
    let first = world.get("a").await.unwrap();
    world.reset("a", "2030-01-01T00:00:00.000000001Z").await;
    let second = world.until("a", "new", |info| info.phase == "Running" && info.instance_generation == 2).await;
    assert_ne!(second.instance_id, first.instance_id);
    assert_eq!(world.live(), 1, "the old one was removed first");
    for revision in ["2030-01-01T00:00:00.000000001Z", "2029-01-01T00:00:00Z", "2030-01-01T01:00:00.000000001+01:00"] {
        world.reset("a", revision).await;
    }
    world.pass().await;
    assert_eq!(world.get("a").await.unwrap().instance_id, second.instance_id, "once per revision");
    for agent in &world.agents {
        agent.state().end(&second.instance_id, 7, "Exited");
    }
    let ended = world.until_phase("a", "Failed").await;
    assert_eq!(ended.exit_code, Some(7));
    world.reset("a", "2030-01-01T00:00:00.000000002Z").await;
    let third = world.until("a", "new", |info| info.phase == "Running" && info.instance_generation == 3).await;
    assert_eq!((third.exit_code, third.finished_at_ms), (None, 0));
    eventually("one runs and holds a slot", || world.live() == 1 && world.used() == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_that_is_no_time_is_refused() {
    let world = World::new(1).await;
    world.create("a").await;
    let status = world.update("a", Update::ResetRevision("tomorrow".into())).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().starts_with("reset_revision"), "{}", status.message());
}

// Rule 5, F1
#[tokio::test(flavor = "multi_thread")]
async fn with_manual_a_lost_sandbox_waits_for_its_agent_and_is_never_started_again() {
    let mut world = World::new(2).await;
    world.try_create(CreateRequest { recovery_timeout_seconds: 1, ..World::request("a") }).await.unwrap();
    let before = world.until("a", "persisted", |info| info.persisted).await;
    world.agent_of(&before).kill();
    let lost = world.until_phase("a", "Lost").await;
    assert_eq!(lost.reason, "AgentLost");
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(world.get("a").await.unwrap().phase, "Lost");
    let creates: usize = world.agents.iter().map(|agent| agent.state().creates.len()).sum();
    assert_eq!(creates, 1);
    world.agent_of(&before).serve();
    let back = world.until_phase("a", "Running").await;
    assert_eq!((back.instance_id, back.reason.as_str()), (before.instance_id, ""));
}

// Rule 5, F1
#[tokio::test(flavor = "multi_thread")]
async fn with_auto_recreate_it_starts_elsewhere_after_the_recovery_timeout_and_not_before() {
    let mut world = World::new(2).await;
    world.try_create(auto("a", 1)).await.unwrap();
    let before = world.until("a", "persisted", |info| info.persisted).await;
    world.agent_of(&before).kill();
    let waiting = world.until("a", "AgentLost", |info| info.reason == "AgentLost").await;
    assert_eq!((waiting.phase.as_str(), waiting.instance_generation), ("Running", 1), "it waits first");
    let moved = world.until("a", "moved", |info| info.phase == "Running" && info.instance_generation == 2).await;
    assert_ne!(moved.agent_pod, before.agent_pod);
    assert_eq!(world.live(), 2, "the old one could not be asked");
    world.agent_of(&before).serve();
    eventually("the old generation is told to go", || world.live() == 1).await;
    world.pass().await;
    let still = world.get("a").await.unwrap();
    assert_eq!((still.instance_id, still.phase.as_str()), (moved.instance_id, "Running"));
    eventually("one slot is used", || world.used() == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_back_in_time_keeps_its_sandboxes() {
    let mut world = World::new(2).await;
    world.try_create(auto("a", 60)).await.unwrap();
    let before = world.get("a").await.unwrap();
    world.agent_of(&before).kill();
    world.until("a", "AgentLost", |info| info.reason == "AgentLost").await;
    world.agent_of(&before).serve();
    let back = world.until("a", "back", |info| info.reason.is_empty()).await;
    assert_eq!((back.instance_id, back.instance_generation), (before.instance_id, 1));
}

// Rule 5
#[tokio::test(flavor = "multi_thread")]
async fn what_a_cut_off_agent_has_stopped_by_itself_is_started_again_and_not_taken_for_an_end() {
    let mut world = World::new(1).await;
    world.try_create(auto("a", 1)).await.unwrap();
    let before = world.until("a", "persisted", |info| info.persisted).await;
    world.agents[0].kill();
    world.agents[0].state().end(&before.instance_id, 0, "AgentLost");
    world.agents[0].serve();
    world.until("a", "new", |info| info.phase == "Running" && info.instance_generation == 2).await;
}

// Rule 5
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_comes_back_without_a_sandbox_has_lost_it_at_once() {
    let mut world = World::new(1).await;
    world.timing.agent_lost_after = Duration::from_secs(60);
    world.restart().await;
    world.create("m").await;
    world.try_create(auto("r", 60)).await.unwrap();
    for name in ["m", "r"] {
        world.until(name, "persisted", |info| info.persisted).await;
    }
    world.agents[0].reborn();
    let manual = world.until_phase("m", "Lost").await;
    assert_eq!(manual.reason, "AgentRestarted");
    let recreated = world.until("r", "new", |info| info.phase == "Running" && info.instance_generation == 2).await;
    assert!(!recreated.instance_id.is_empty());
    eventually("only that one holds a slot", || world.used() == 1).await;
    world.delete("m").await;
    world.until_gone("m").await;
    world.reset("r", "2030-01-01T00:00:00Z").await;
    world.until("r", "reset", |info| info.phase == "Running" && info.instance_generation == 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_sandbox_can_be_reset_onto_another_agent() {
    let mut world = World::new(2).await;
    world.create("a").await;
    let before = world.until("a", "persisted", |info| info.persisted).await;
    world.agent_of(&before).kill();
    world.until_phase("a", "Lost").await;
    world.reset("a", "2030-01-01T00:00:00Z").await;
    let after = world.until_phase("a", "Running").await;
    assert_ne!(after.agent_pod, before.agent_pod);
    world.agent_of(&before).serve();
    eventually("the old one goes when its agent is back", || world.live() == 1).await;
}

// Rule 6
#[tokio::test(flavor = "multi_thread")]
async fn the_same_name_works_again_and_again_and_no_late_write_revives_it() {
    let world = World::new(1).await;
    for _ in 0..30 {
        world.create("a").await;
        world.delete("a").await;
        world.until_gone("a").await;
    }
    world.pass().await;
    assert!(world.list().await.is_empty());
    assert_eq!((world.live(), world.used()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_and_reasons_are_kept_and_the_agent_may_forget() {
    let world = World::new(1).await;
    for (name, code, reason, phase) in [
        ("ok", 0, "Exited", "Succeeded"),
        ("bad", 2, "Exited", "Failed"),
        ("killed", 137, "Signaled", "Failed"),
        ("oom", 137, "OOMKilled", "Failed"),
    ] {
        world.create(name).await;
        let id = world.get(name).await.unwrap().instance_id;
        world.agents[0].state().end(&id, code, reason);
        let info = world.until_phase(name, phase).await;
        assert_eq!((info.exit_code, info.reason.as_str()), (Some(code), reason));
        assert!(info.finished_at_ms > 0);
        eventually("the agent may forget it", || world.agents[0].state().forgotten.contains(&id)).await;
        let info = world.get(name).await.unwrap();
        assert_eq!((info.phase.as_str(), info.persisted), (phase, true), "it is forgotten after it was written");
    }
    eventually("what has ended holds nothing", || world.used() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_is_not_forgotten_by_the_agent_before_it_is_written() {
    let world = World::new(1).await;
    world.create("a").await;
    let id = world.until("a", "persisted", |info| info.persisted).await.instance_id;
    world.faults.transient.store(true, Ordering::SeqCst);
    world.agents[0].state().end(&id, 5, "Exited");
    world.until_phase("a", "Failed").await;
    world.pass().await;
    assert!(world.agents[0].state().forgotten.is_empty());
    world.faults.transient.store(false, Ordering::SeqCst);
    eventually("now it may", || world.agents[0].state().forgotten.contains(&id)).await;
}

// T2
#[tokio::test(flavor = "multi_thread")]
async fn an_update_changes_the_claim_and_what_the_agent_has_to_know() {
    let world = World::new(1).await;
    world.create("a").await;
    let answer = world.update("a", Update::FailurePolicy(FailurePolicy::AutoRecreate as i32)).await.unwrap();
    assert!(answer.success);
    assert_eq!(answer.sandbox.unwrap().failure_policy, FailurePolicy::AutoRecreate as i32);
    eventually("the agent knows the policy", || {
        world.agents[0].state().updates.last().is_some_and(|update| update.failure_policy == 1)
    })
    .await;
    world.update("a", Update::RecoveryTimeoutSeconds(5)).await.unwrap();
    eventually("and the timeout", || {
        world.agents[0].state().updates.last().is_some_and(|update| update.recovery_timeout_seconds == 5)
    })
    .await;
    let labels = |pairs: &[(&str, &str)]| UpdateRequest {
        sandbox_id: "a".into(),
        labels: pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
        ..Default::default()
    };
    world.client.clone().update_sandbox(labels(&[("a", "1"), ("b", "2")])).await.unwrap();
    let answer = world.client.clone().update_sandbox(labels(&[("a", ""), ("c", "3")])).await.unwrap().into_inner();
    let kept: Vec<_> = answer.sandbox.unwrap().labels.into_iter().collect();
    assert_eq!(kept, [("b".to_owned(), "2".to_owned()), ("c".to_owned(), "3".to_owned())]);
    assert_eq!(world.update("nobody", Update::ExpireTimeSeconds(0)).await.unwrap_err().code(), Code::NotFound);
}

// C5
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_agent_is_noticed_in_time_however_slow_the_others_are() {
    let mut world = World::new(60).await;
    world.ready().await;
    for agent in &world.agents {
        agent.state().info.capacity = 5;
    }
    world.create("a").await;
    let info = world.until("a", "persisted", |info| info.persisted).await;
    for agent in &world.agents {
        if agent.name() != info.agent_pod {
            agent.state().mute = true;
        }
    }
    // Keeps calls to slow agents under way.
    let busy: Vec<_> = (0..20)
        .map(|number| {
            let mut client = world.client.clone();
            tokio::spawn(async move { client.create_sandbox(World::request(&format!("s{number}"))).await })
        })
        .collect();
    world.agent_of(&info).kill();
    world.until_phase("a", "Lost").await;
    busy.iter().for_each(|call| call.abort());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_falls_silent_is_lost() {
    let world = World::new(1).await;
    world.create("a").await;
    world.agents[0].state().silent = true;
    world.until_phase("a", "Lost").await;
    world.agents[0].state().silent = false;
    world.until_phase("a", "Running").await;
}

// R5
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_never_answers_holds_up_no_call_and_no_other_agent() {
    let world = World::new(2).await;
    world.create("a").await;
    let info = world.get("a").await.unwrap();
    for agent in &world.agents {
        if agent.name() == info.agent_pod {
            agent.state().mute = true;
        }
    }
    world.delete("a").await;
    assert_eq!(world.get("a").await.unwrap().phase, "Terminating");
    for agent in &world.agents {
        agent.state().mute = false;
    }
    world.until_gone("a").await;
}

// R7
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_kept_of_sandboxes_that_are_gone() {
    let world = World::with(1, &[], |agent| agent.state().info.capacity = 0).await;
    for round in 0..20 {
        let names: Vec<String> = (0..25).map(|number| format!("s{round}-{number}")).collect();
        for name in &names {
            world.create(name).await;
        }
        for name in &names {
            world.delete(name).await;
        }
        for name in &names {
            world.until_gone(name).await;
        }
    }
    let core = world.controller.as_ref().unwrap().core().clone();
    eventually("no claim waits for the store", || core.metrics.claims_waiting.get() == 0).await;
    eventually("no claim has a time", || core.wakeups.is_empty()).await;
    assert_eq!(core.registry.used("agent-1"), 0);
    assert_eq!(core.agents.get("agent-1").unwrap().view().instances().count(), 0);
    assert!(world.list().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_waits_for_and_cannot_start_fails_with_its_reason() {
    let world = World::new(1).await;
    world.create("a").await;
    world.agents[0].state().next.push_back(super::fake::Next::Refuse(fsb_proto::Refusal::Start, "execve: ENOENT"));
    world.reset("a", "2030-01-01T00:00:00Z").await;
    let info = world.until_phase("a", "Failed").await;
    assert_eq!((info.reason.as_str(), info.message.as_str()), ("StartError", "execve: ENOENT"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_finds_no_room_waits_and_starts_when_there_is_some() {
    let world = World::with(1, &[], |agent| agent.state().info.capacity = 1).await;
    world.create("a").await;
    let id = world.get("a").await.unwrap().instance_id;
    world.agents[0].state().end(&id, 0, "Exited");
    world.until_phase("a", "Succeeded").await;
    world.create("b").await;
    world.reset("a", "2030-01-01T00:00:00Z").await;
    let info = world.until("a", "Unschedulable", |info| info.reason == "Unschedulable").await;
    assert_eq!(info.phase, "Pending");
    world.delete("b").await;
    world.until_phase("a", "Running").await;
}
