use super::*;
use crate::claims::Key;
use Phase::*;
use fsb_proto::SandboxSpec;
use std::collections::BTreeSet;
use std::sync::LazyLock;

static NOW: LazyLock<Instant> = LazyLock::new(Instant::now);
const WALL_MS: i64 = 1_000_000_000;

fn ago(seconds: u64) -> Instant {
    *NOW - Duration::from_secs(seconds)
}

fn lost_agent() -> Standing {
    Standing::Lost { since: ago(100) }
}

fn agent() -> Arc<AgentRef> {
    Arc::new(AgentRef { name: "agent-1".into(), uid: "u1".into(), node: "node".into(), ip: "10.0.0.1".into() })
}

fn claim(phase: Phase, failure: FailurePolicy) -> Claim {
    let spec = Arc::new(SandboxSpec { image: "busybox".into(), ..Default::default() });
    let policy = Policy { failure, recovery_seconds: 60, ..Policy::default() };
    let mut claim = Claim::new(Key::new("n", "a"), "uid".into(), spec, policy, 1);
    claim.status.phase = phase;
    if phase != Pending {
        claim.status.agent = Some(agent());
    }
    if !matches!(phase, Pending | Bound) {
        claim.status.instance_id = "i1".into();
        claim.status.started_at_ms = 5;
    }
    claim.status.released = matches!(phase, Succeeded | Failed);
    claim
}

fn seen(life: Life, exit_code: Option<i32>, reason: &str) -> Standing {
    Standing::Present(Observed {
        instance_id: "i1".into(),
        life,
        exit_code,
        reason: reason.into(),
        message: String::new(),
        started_at_ms: 5,
        finished_at_ms: if life == Life::Ended { 9 } else { 0 },
    })
}

fn facts<'a>(claim: &'a Claim, current: Option<Standing>, leftovers: &'a [Standing]) -> Facts<'a> {
    Facts {
        claim,
        durable: true,
        refused: None,
        current,
        leftovers,
        pushed: None,
        confirmed_gone: false,
        lost_since: None,
        removal: None,
        expires: None,
        now: *NOW,
        wall_ms: WALL_MS,
        orphan_timeout: Duration::from_secs(10),
    }
}

fn next(claim: &Claim, current: Option<Standing>) -> Step {
    decide(&facts(claim, current, &[]))
}

fn changed(step: Step) -> Claim {
    match step {
        Step::Change(claim) => *claim,
        other => panic!("no change: {other:?}"),
    }
}

fn running() -> Standing {
    seen(Life::Running, None, "")
}

#[test]
fn a_running_sandbox_follows_what_its_agent_reports() {
    let manual = claim(Running, FailurePolicy::Manual);
    let auto = claim(Running, FailurePolicy::AutoRecreate);
    let cases: [(&str, &Claim, Standing, Phase, &str, i64); 9] = [
        ("exit 0", &manual, seen(Life::Ended, Some(0), "Exited"), Succeeded, "Exited", 1),
        ("exit 1", &manual, seen(Life::Ended, Some(1), "Exited"), Failed, "Exited", 1),
        ("signal", &manual, seen(Life::Ended, Some(137), "Signaled"), Failed, "Signaled", 1),
        ("memory", &manual, seen(Life::Ended, Some(137), "OOMKilled"), Failed, "OOMKilled", 1),
        ("memory, 0", &manual, seen(Life::Ended, Some(0), "OOMKilled"), Failed, "OOMKilled", 1),
        ("lost, manual", &manual, lost_agent(), Lost, "AgentLost", 1),
        ("lost, auto", &auto, lost_agent(), Running, "AgentLost", 1),
        ("restarted, manual", &manual, Standing::Restarted, Lost, "AgentRestarted", 1),
        ("restarted, auto", &auto, Standing::Missing, Pending, "AgentRestarted", 2),
    ];
    for (what, claim, standing, phase, reason, generation) in cases {
        let after = changed(next(claim, Some(standing)));
        assert_eq!(
            (after.status.phase, &*after.status.reason, after.status.generation),
            (phase, reason, generation),
            "{what}"
        );
    }
}

#[test]
fn what_is_not_certain_changes_nothing() {
    for phase in [Bound, Running, Lost, Expired] {
        for failure in [FailurePolicy::Manual, FailurePolicy::AutoRecreate] {
            let step = next(&claim(phase, failure), Some(Standing::Unknown));
            assert_eq!(step, Step::Wait { until: None }, "{phase}");
        }
    }
    assert_eq!(next(&claim(Running, FailurePolicy::Manual), Some(Standing::Unreported)), WAIT);
}

// Rule 5, F1
#[test]
fn auto_recreate_waits_for_its_timeout_from_the_moment_of_the_loss() {
    let mut waiting = claim(Running, FailurePolicy::AutoRecreate);
    let after = |claim: &Claim, seconds| {
        decide(&Facts { lost_since: Some(ago(seconds)), ..facts(claim, Some(lost_agent()), &[]) })
    };
    let noted = changed(after(&waiting, 20));
    assert_eq!(noted.status.agent_lost_at_ms, Some(WALL_MS - 20_000), "for people");
    // Whatever was written down by a clock that has been set since: the steady one counts.
    for wall in [i64::MIN, 0, WALL_MS, i64::MAX] {
        waiting.status.agent_lost_at_ms = Some(wall);
        assert_eq!(after(&waiting, 59), Step::Wait { until: Some(*NOW + Duration::from_secs(1)) });
    }
    let moved = changed(after(&waiting, 60));
    assert_eq!((moved.status.phase, moved.status.generation), (Pending, 2));
    assert_eq!(moved.status.leftovers.len(), 1, "the old one is still to be removed");
    assert_eq!(moved.status.previous.as_ref().unwrap().instance_id, "i1");
    // It starts although the old one cannot be asked: that is what the timeout and the generation are for.
    assert_eq!(decide(&facts(&moved, None, &[lost_agent()])), Step::Start);
    assert_eq!(decide(&facts(&moved, None, &[Standing::Unknown])), WAIT);
    assert_eq!(decide(&facts(&moved, None, &[running()])), Step::Remove(Which::Leftover(0)));
    let tidied = changed(decide(&facts(&moved, None, &[Standing::Missing])));
    assert!(tidied.status.leftovers.is_empty());
}

#[test]
fn a_sandbox_that_its_cut_off_agent_has_stopped_goes_on_elsewhere() {
    let after = |failure, code, reason| {
        let after = changed(next(&claim(Running, failure), Some(seen(Life::Ended, Some(code), reason))));
        (after.status.phase, after.status.generation)
    };
    let (auto, manual) = (FailurePolicy::AutoRecreate, FailurePolicy::Manual);
    assert_eq!(after(auto, 143, "AgentLost"), (Pending, 2));
    assert_eq!(after(auto, 0, "AgentLost"), (Pending, 2), "it handled the signal");
    assert_eq!(after(auto, 0, "Exited"), (Succeeded, 1), "it ended by itself");
    assert_eq!(after(auto, 143, "Signaled"), (Failed, 1));
    assert_eq!(after(manual, 143, "AgentLost"), (Failed, 1));
}

// F1
#[test]
fn manual_never_starts_again_by_itself() {
    let mut lost = claim(Lost, FailurePolicy::Manual);
    lost.status.agent_lost_at_ms = Some(1);
    for standing in [lost_agent(), Standing::Unknown, Standing::Retired, Standing::Unreported] {
        assert_eq!(next(&lost, Some(standing)), WAIT);
    }
    let back = changed(next(&lost, Some(running())));
    assert_eq!((back.status.phase, back.status.agent_lost_at_ms), (Running, None));
    let gone = changed(next(&lost, Some(Standing::Restarted)));
    assert_eq!((gone.status.phase, gone.status.released), (Lost, true));
    assert_eq!(next(&gone, Some(Standing::Restarted)), WAIT);
}

// Rule 1, C2
#[test]
fn a_claim_goes_only_when_nothing_can_be_left() {
    let mut deleted = claim(Running, FailurePolicy::Manual);
    deleted.deletion = Some(Deletion { requested_at_ms: 1, grace_seconds: None });
    let terminating = changed(next(&deleted, Some(running())));
    assert_eq!(terminating.status.phase, Terminating);
    let ask = Step::Remove(Which::Current { with_logs: true });
    for standing in [running(), seen(Life::Ended, Some(0), "Exited"), Standing::Unreported, Standing::Missing] {
        assert_eq!(next(&terminating, Some(standing)), ask);
    }
    for standing in [Standing::Unknown, lost_agent()] {
        assert_eq!(next(&terminating, Some(standing)), WAIT, "it cannot be asked and may be back");
    }
    assert_eq!(next(&terminating, Some(Standing::Restarted)), Step::Drop { entomb: false });
    assert_eq!(next(&terminating, Some(Standing::Retired)), Step::Drop { entomb: true });
    let confirmed = Facts { confirmed_gone: true, ..facts(&terminating, Some(running()), &[]) };
    assert_eq!(decide(&confirmed), Step::Drop { entomb: false });
    let mut over = terminating.clone();
    over.status.released = true;
    assert_eq!(next(&over, Some(lost_agent())), Step::Drop { entomb: false });
    let mut nowhere = terminating;
    nowhere.status.agent = None;
    assert_eq!(next(&nowhere, None), Step::Drop { entomb: false });
}

#[test]
fn a_claim_with_an_instance_out_of_reach_is_remembered_when_it_goes() {
    let mut deleted = claim(Terminating, FailurePolicy::AutoRecreate);
    deleted.deletion = Some(Deletion { requested_at_ms: 1, grace_seconds: None });
    deleted.status.leftovers.push(Leftover { agent: agent(), instance_id: "i0".into(), generation: 0 });
    let lost = [lost_agent()];
    let step = decide(&Facts { confirmed_gone: true, ..facts(&deleted, Some(running()), &lost) });
    assert_eq!(step, Step::Drop { entomb: true });
}

// Rule 3, C1
#[test]
fn expiry_keeps_the_claim_and_removes_the_instance() {
    let mut expiring = claim(Running, FailurePolicy::Manual);
    expiring.policy.expire_at_seconds = Some(1);
    let at = |claim: &Claim, expires| decide(&Facts { expires: Some(expires), ..facts(claim, Some(running()), &[]) });
    let soon = *NOW + Duration::from_secs(5);
    assert_eq!(at(&expiring, soon), Step::Wait { until: Some(soon) });
    let expired = changed(at(&expiring, *NOW));
    assert_eq!(expired.status.phase, Expired);
    assert_eq!(next(&expired, Some(running())), Step::Remove(Which::Current { with_logs: false }));
    let over = changed(next(&expired, Some(Standing::Missing)));
    assert!(over.status.released && !over.holds(1));
    assert_eq!(next(&over, Some(Standing::Missing)), WAIT);
    for phase in [Succeeded, Failed] {
        let mut over = claim(phase, FailurePolicy::Manual);
        over.policy.expire_at_seconds = Some(1);
        let step = decide(&Facts { expires: Some(ago(1)), ..facts(&over, Some(Standing::Missing), &[]) });
        assert_eq!(step, WAIT, "{phase} stays");
    }
    expiring.deletion = Some(Deletion { requested_at_ms: 1, grace_seconds: None });
    assert_eq!(changed(at(&expiring, *NOW)).status.phase, Terminating, "deletion goes first");
}

// Rule 4, F2
#[test]
fn a_reset_makes_the_old_instance_a_leftover_and_starts_the_next_generation_after_it() {
    for phase in [Running, Lost, Succeeded, Failed] {
        let mut wanted = claim(phase, FailurePolicy::Manual);
        wanted.reset_revision = Some("2024-01-01T00:00:00.000000001Z".into());
        wanted.status.exit_code = Some(1);
        let released = wanted.status.released;
        let after = changed(next(&wanted, Some(Standing::Unknown)));
        let status = &after.status;
        assert_eq!((status.phase, status.generation, &*status.instance_id), (Pending, 2, ""), "{phase}");
        assert_eq!((status.exit_code, status.started_at_ms, status.finished_at_ms), (None, 0, 0));
        assert_eq!(status.accepted_reset_revision, after.reset_revision);
        assert_eq!(status.leftovers.len(), usize::from(!released), "{phase}");
        assert!(!after.reset_due(), "once per revision");
        let left: Vec<_> = status.leftovers.iter().map(|_| Standing::Unreported).collect();
        let step = decide(&facts(&after, None, &left));
        assert_eq!(step, if released { Step::Start } else { Step::Remove(Which::Leftover(0)) });
    }
}

#[test]
fn a_start_that_nobody_waits_for_any_more_is_found_out() {
    let bound = claim(Bound, FailurePolicy::Manual);
    let found = changed(next(&bound, Some(running())));
    assert_eq!((found.status.phase, &*found.status.instance_id), (Running, "i1"));
    let never = changed(next(&bound, Some(Standing::Missing)));
    assert_eq!((never.status.phase, never.status.generation), (Pending, 2), "a late create is too old then");
    assert_eq!(next(&bound, Some(seen(Life::Creating, None, ""))), WAIT);
}

#[test]
fn an_end_is_forgotten_by_the_agent_when_it_is_durable() {
    for phase in [Succeeded, Failed] {
        let over = claim(phase, FailurePolicy::Manual);
        let ended = || Some(seen(Life::Ended, Some(0), "Exited"));
        assert_eq!(next(&over, ended()), Step::Forget);
        assert_eq!(decide(&Facts { durable: false, ..facts(&over, ended(), &[]) }), WAIT);
    }
}

// F4
#[test]
fn a_claim_that_the_store_refuses_ends_after_the_orphan_timeout() {
    let refused = claim(Running, FailurePolicy::Manual);
    let with = |since| Facts { refused: Some((since, "Quota: no")), ..facts(&refused, Some(running()), &[]) };
    assert_eq!(decide(&with(ago(9))), Step::Wait { until: Some(*NOW + Duration::from_secs(1)) });
    let ending = changed(decide(&with(ago(10))));
    assert_eq!((&*ending.status.reason, ending.deletion.is_some()), ("ClaimRefused", true));
}

#[test]
fn a_changed_policy_is_told_to_the_agent() {
    let running_claim = claim(Running, FailurePolicy::AutoRecreate);
    let told = Policy { failure: FailurePolicy::Manual, ..running_claim.policy.clone() };
    let with = |pushed| Facts { pushed, ..facts(&running_claim, Some(running()), &[]) };
    assert_eq!(decide(&with(Some(&told))), Step::Push);
    assert_eq!(decide(&with(Some(&running_claim.policy))), WAIT);
}

/// Section 5 of the specification, with what it says in words: everything that is not over can be deleted, and what
/// waits for an agent expires like what runs.
fn allowed() -> BTreeSet<(Phase, Phase)> {
    let mut allowed = BTreeSet::from([
        (Bound, Running),
        (Bound, Pending),
        (Pending, Expired),
        (Bound, Expired),
        (Running, Succeeded),
        (Running, Failed),
        (Running, Expired),
        (Running, Pending),
        (Running, Lost),
        (Succeeded, Pending),
        (Failed, Pending),
        (Lost, Running),
        (Lost, Pending),
    ]);
    for phase in Phase::ALL {
        allowed.extend([(phase, phase), (phase, Terminating)]);
    }
    allowed
}

#[test]
fn every_phase_is_left_only_as_the_specification_says_and_every_look_ends() {
    let standings = [
        None,
        Some(Standing::Unknown),
        Some(lost_agent()),
        Some(Standing::Retired),
        Some(Standing::Restarted),
        Some(Standing::Unreported),
        Some(Standing::Missing),
        Some(seen(Life::Creating, None, "PullingImage")),
        Some(running()),
        Some(seen(Life::Ended, Some(0), "Exited")),
        Some(seen(Life::Ended, Some(137), "Signaled")),
    ];
    let allowed = allowed();
    let mut looks = 0;
    for phase in Phase::ALL {
        for failure in [FailurePolicy::Manual, FailurePolicy::AutoRecreate] {
            for flags in 0u32..64 {
                for standing in &standings {
                    let mut start = claim(phase, failure);
                    if flags & 1 != 0 || phase == Terminating {
                        start.deletion = Some(Deletion { requested_at_ms: 1, grace_seconds: None });
                    }
                    start.reset_revision = (flags & 2 != 0).then(|| "2024-01-01T00:00:00Z".into());
                    start.policy.expire_at_seconds = (flags & 4 != 0).then_some(1);
                    start.status.agent_lost_at_ms = (flags & 8 != 0).then_some(WALL_MS - 100_000);
                    start.status.released |= flags & 16 != 0;
                    if flags & 32 != 0 {
                        start.status.leftovers.push(Leftover {
                            agent: agent(),
                            instance_id: String::new(),
                            generation: 0,
                        });
                    }
                    looks += 1;
                    look(start, standing, &allowed);
                }
            }
        }
    }
    assert!(looks > 10_000);
}

const YEARS_MS: i64 = 5 * 365 * 24 * 3_600_000;
const CLOCK_STEPS_MS: [i64; 4] = [-3_600_000, 3_600_000, -YEARS_MS, YEARS_MS];

/// Follows the decisions until nothing changes any more.
fn look(start: Claim, standing: &Option<Standing>, allowed: &BTreeSet<(Phase, Phase)>) {
    let mut now = start.clone();
    for _ in 0..10 {
        let leftovers = vec![standing.clone().unwrap_or(Standing::Unknown); now.status.leftovers.len()];
        let current = now.status.agent.is_some().then(|| standing.clone().unwrap_or(Standing::Unknown));
        let facts = Facts {
            expires: now.policy.expire_at_seconds.map(|_| ago(0)),
            lost_since: Some(ago(100)),
            ..facts(&now, current, &leftovers)
        };
        let step = decide(&facts);
        for by in CLOCK_STEPS_MS {
            let set = decide(&Facts { wall_ms: WALL_MS + by, ..facts.clone() });
            assert_eq!(std::mem::discriminant(&set), std::mem::discriminant(&step), "the wall clock decides nothing");
            match (&set, &step) {
                (Step::Change(set), Step::Change(step)) => assert_eq!(set.status.phase, step.status.phase),
                _ => assert_eq!(set, step),
            }
        }
        let Step::Change(next) = step else { return };
        let step = (now.status.phase, next.status.phase);
        assert!(allowed.contains(&step), "{step:?} from {start:?} with {standing:?}");
        assert!(next.status.generation - now.status.generation <= 1);
        now = *next;
    }
    panic!("no end: {start:?} with {standing:?}");
}

#[test]
fn what_has_ended_is_removed_when_its_time_is_over_unless_a_reset_came_before() {
    let later = *NOW + Duration::from_secs(5);
    for phase in [Succeeded, Failed, Expired] {
        let mut over = claim(phase, FailurePolicy::Manual);
        over.status.released = true;
        let at = |claim: &Claim, removal| decide(&Facts { removal, ..facts(claim, Some(Standing::Missing), &[]) });
        assert_eq!(at(&over, None), WAIT, "{phase}");
        assert_eq!(at(&over, Some(later)), Step::Wait { until: Some(later) }, "{phase}");
        assert!(changed(at(&over, Some(*NOW))).deletion.is_some(), "{phase}");
        over.reset_revision = Some("2026-01-01T00:00:00Z".into());
        let after = changed(at(&over, Some(*NOW)));
        // What has expired is not reset.
        assert_eq!((after.status.phase == Pending, after.deletion.is_some()), (phase != Expired, phase == Expired));
    }
}
