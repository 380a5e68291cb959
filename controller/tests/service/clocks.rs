//! The wall clock is set at any moment, by an hour and by years, forward and back: what fences does not notice.

use super::world::{World, eventually};
use fsb_controller::clock::{self, Clock};
use fsb_proto::fastpath::{CreateRequest, FailurePolicy, update_request::Update};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const HOUR_MS: i64 = 3_600_000;
const YEARS_MS: i64 = 5 * 365 * 24 * HOUR_MS;
const STEPS_MS: [i64; 4] = [HOUR_MS, -HOUR_MS, YEARS_MS, -YEARS_MS];

/// Somebody who sets the clock all the time, until this is dropped: then it is right again.
struct Setting(tokio::task::JoinHandle<()>, Arc<Clock>);

impl Setting {
    fn begin(world: &World) -> Self {
        let clock = world.timing.clock.clone();
        let setting = clock.clone();
        let task = tokio::spawn(async move {
            loop {
                let by = STEPS_MS[rand::random_range(0..STEPS_MS.len())];
                setting.set_ahead(by);
                tokio::time::sleep(Duration::from_micros(rand::random_range(0..2_000))).await;
            }
        });
        Self(task, clock)
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        self.0.abort();
        while !self.0.is_finished() {
            std::thread::yield_now();
        }
        self.1.set_ahead(0);
    }
}

fn auto(name: &str, seconds: i32) -> CreateRequest {
    CreateRequest {
        failure_policy: FailurePolicy::AutoRecreate as i32,
        recovery_timeout_seconds: seconds,
        ..World::request(name)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn however_the_clock_is_set_no_second_copy_starts_before_the_recovery_timeout_and_one_starts_after_it() {
    let mut world = World::new(2).await;
    world.try_create(auto("a", 1)).await.unwrap();
    let before = world.until("a", "persisted", |info| info.persisted).await;
    let setting = Setting::begin(&world);
    let cut_off = Instant::now();
    world.agent_of(&before).kill();
    world.until("a", "moved", |info| info.phase == "Running" && info.instance_generation == 2).await;
    // Lost after 0.3 s, then the recovery timeout.
    assert!(cut_off.elapsed() >= Duration::from_millis(1300), "after {:?}", cut_off.elapsed());
    drop(setting);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_set_once_between_loss_and_recovery_changes_nothing() {
    for by in STEPS_MS {
        let mut world = World::new(2).await;
        world.try_create(auto("a", 1)).await.unwrap();
        let before = world.until("a", "persisted", |info| info.persisted).await;
        let cut_off = Instant::now();
        world.agent_of(&before).kill();
        world.until("a", "AgentLost", |info| info.reason == "AgentLost").await;
        world.timing.clock.set_ahead(by);
        world.until("a", "moved", |info| info.phase == "Running" && info.instance_generation == 2).await;
        assert!(cut_off.elapsed() >= Duration::from_millis(1300), "{by}: after {:?}", cut_off.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn over_a_restart_the_wall_clock_counts_for_no_more_than_the_recovery_timeout() {
    for by in STEPS_MS {
        let mut world = World::new(2).await;
        world.timing.settle = Duration::from_millis(300);
        world.try_create(auto("a", 1)).await.unwrap();
        let before = world.until("a", "persisted", |info| info.persisted).await;
        world.agent_of(&before).kill();
        world.until("a", "AgentLost", |info| info.reason == "AgentLost").await;
        world.stop().await;
        world.timing.clock.set_ahead(by);
        world.start().await;
        // Behind: it waits its timeout once more. Ahead: the timeout is over. Neither waits for years.
        world.until("a", "moved", |info| info.phase == "Running" && info.instance_generation == 2).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn however_the_clock_is_set_a_sandbox_expires_when_it_was_due_as_it_was_asked_for() {
    let world = World::new(1).await;
    for name in ["created", "updated"] {
        // At the beginning of a second, so that the next but one is more than a second ahead.
        let ms = clock::now_ms().rem_euclid(1000) as u64;
        tokio::time::sleep(Duration::from_millis(1000 - ms)).await;
        let (began, at) = (Instant::now(), clock::now_ms() / 1000 + 2);
        match name {
            "created" => {
                let request = CreateRequest { expire_time_seconds: at, ..World::request(name) };
                world.try_create(request).await.unwrap();
            }
            _ => {
                world.create(name).await;
                world.update(name, Update::ExpireTimeSeconds(at)).await.unwrap();
            }
        }
        let setting = Setting::begin(&world);
        world.until_phase(name, "Expired").await;
        let took = began.elapsed();
        assert!(took >= Duration::from_millis(1800), "{name} after {took:?}");
        drop(setting);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expire_time_that_is_given_again_is_read_by_the_clock_as_it_stands_now() {
    let world = World::new(1).await;
    world.create("a").await;
    let at = clock::now_ms() / 1000 + 3600;
    world.update("a", Update::ExpireTimeSeconds(at)).await.unwrap();
    world.timing.clock.set_ahead(2 * HOUR_MS);
    world.pass().await;
    assert_eq!(world.get("a").await.unwrap().phase, "Running");
    world.update("a", Update::ExpireTimeSeconds(at)).await.unwrap();
    world.until_phase("a", "Expired").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn however_the_clock_is_set_a_refused_claims_sandbox_ends_after_the_orphan_timeout() {
    let mut world = World::new(1).await;
    world.timing.orphan_timeout = Duration::from_millis(500);
    world.restart().await;
    world.faults.refuse.store(true, Ordering::SeqCst);
    let setting = Setting::begin(&world);
    let began = Instant::now();
    world.create("a").await;
    world.until_gone("a").await;
    assert!(began.elapsed() >= Duration::from_millis(500), "after {:?}", began.elapsed());
    eventually("its container is gone", || world.live() == 0).await;
    drop(setting);
}
