use super::*;
use crate::claims::{Deletion, Policy};
use fsb_proto::SandboxSpec;
use fsb_proto::agent::InstancePhase;

fn agent(name: &str) -> Arc<AgentRef> {
    Arc::new(AgentRef { name: name.into(), uid: "u1".into(), node: "node".into(), ip: "10.0.0.1".into() })
}

fn claim(uid: &str) -> Claim {
    let spec = Arc::new(SandboxSpec { image: "busybox".into(), ..Default::default() });
    let mut claim = Claim::new(Key::new("default", "a"), uid.into(), spec, Policy::default(), 1);
    claim.status.phase = Phase::Running;
    claim.status.agent = Some(agent("agent-1"));
    claim
}

fn instance(of: &Claim, generation: i64, phase: InstancePhase) -> agent::Instance {
    let mut document = of.clone();
    document.status.generation = generation;
    document.status.phase = Phase::Bound;
    agent::Instance {
        claim: Some(of.to_agent(generation)),
        instance_id: "i1".into(),
        phase: phase as i32,
        started_at_ms: 7,
        claim_document: document.to_document(),
        ..Default::default()
    }
}

fn verdict(instance: &agent::Instance, existing: Option<&Claim>, entombed: bool) -> Verdict {
    judge(instance, &agent("agent-1"), "default", existing, entombed)
}

use InstancePhase::{Creating, Ended, Running, Stopping};

// R3
#[test]
fn a_sandbox_without_a_claim_is_adopted_where_its_document_says_whose_it_is() {
    let unknown = claim("u");
    for phase in [Running, Stopping, Ended] {
        let Verdict::Adopt(adopted) = verdict(&instance(&unknown, 1, phase), None, false) else { panic!("{phase:?}") };
        assert_eq!((adopted.status.phase, &*adopted.status.instance_id), (Phase::Running, "i1"));
        assert_eq!(adopted.uid, unknown.uid);
    }
    assert_eq!(verdict(&instance(&unknown, 1, Creating), None, false), Verdict::Ignore, "somebody creates it now");
    let mut mute = instance(&unknown, 1, Running);
    mute.claim_document = b"{}".to_vec();
    assert_eq!(verdict(&mute, None, false), Verdict::Ignore);
    let mut liar = instance(&unknown, 1, Running);
    liar.claim.as_mut().unwrap().name = "b".into();
    assert_eq!(verdict(&liar, None, false), Verdict::Ignore, "the document is another claim's");
}

#[test]
fn a_sandbox_of_another_namespace_than_its_agents_is_nobodys() {
    let foreign = instance(&claim("u"), 1, Running);
    assert_eq!(judge(&foreign, &agent("agent-1"), "other", None, false), Verdict::Ignore);
}

#[test]
fn a_removed_claim_is_not_revived() {
    let gone = claim("u");
    assert_eq!(verdict(&instance(&gone, 1, Running), None, true), Verdict::Evict { reason: "Removed" });
    assert_eq!(verdict(&instance(&gone, 1, Ended), None, true), Verdict::Forget);
}

#[test]
fn the_first_uid_of_a_name_wins() {
    let (first, second) = (claim("first"), claim("second"));
    let late = instance(&second, 1, Running);
    assert_eq!(verdict(&late, Some(&first), false), Verdict::Evict { reason: "DuplicateName" });
    let mut leaving = first;
    leaving.status.phase = Phase::Terminating;
    assert_eq!(verdict(&late, Some(&leaving), false), Verdict::Ignore, "the name is about to be free");
}

#[test]
fn only_the_current_generation_on_its_own_agent_may_run() {
    let mut current = claim("u");
    current.status.generation = 3;
    let key = current.key.clone();
    assert_eq!(verdict(&instance(&current, 3, Running), Some(&current), false), Verdict::Look(key));
    for old in [1, 2] {
        let step = verdict(&instance(&current, old, Running), Some(&current), false);
        assert_eq!(step, Verdict::Evict { reason: "OldGeneration" });
        assert_eq!(verdict(&instance(&current, old, Ended), Some(&current), false), Verdict::Forget);
    }
    let twin = judge(&instance(&current, 3, Running), &agent("agent-2"), "default", Some(&current), false);
    assert_eq!(twin, Verdict::Evict { reason: "OldGeneration" });
}

#[test]
fn a_generation_that_was_started_and_not_written_down_is_taken_over() {
    let written = claim("u");
    let started = instance(&written, 2, Running);
    let Verdict::Adopt(adopted) = verdict(&started, Some(&written), false) else { panic!() };
    assert_eq!((adopted.status.generation, adopted.status.phase), (2, Phase::Running));
    let mut deleted = written;
    deleted.deletion = Some(Deletion { requested_at_ms: 1, grace_seconds: None });
    assert_eq!(verdict(&started, Some(&deleted), false), Verdict::Evict { reason: "Removed" });
}

#[test]
fn an_instance_of_nobody_is_left_alone() {
    let mut bare = instance(&claim("u"), 1, Running);
    bare.claim = None;
    assert_eq!(verdict(&bare, None, false), Verdict::Ignore);
    bare.claim = Some(agent::Claim { uid: "x".into(), ..Default::default() });
    assert_eq!(verdict(&bare, None, false), Verdict::Ignore);
}
