//! Starting, and what a start that fails leaves behind: nothing.

use crate::node::{IMAGE, Node, claim, eventually, request};
use fsb_agent::{Error, Stage};
use fsb_host::paths::REMOVED;
use fsb_proto::Refusal;
use fsb_proto::agent::{InstancePhase, Source};
use fsb_proto::fastpath::Resources;
use std::collections::BTreeMap;
use std::time::Duration;
use tonic::{Code, Status};

#[tokio::test(flavor = "multi_thread")]
async fn a_warm_start_takes_any_command_environment_and_directory() {
    let node = Node::new(&[("WARM_IMAGES", IMAGE), ("POOL_PER_IMAGE", "2")]).await;
    node.stocked(2).await;
    let mut request = request("serve --port 80");
    request.envs = BTreeMap::from([("FROM".to_owned(), "request".to_owned())]);
    let dir = node.dir.path().join("made/by/the/start");
    request.working_dir = dir.to_str().unwrap().to_owned();
    let started = node.agent.start(request).await.unwrap();
    assert_eq!((started.source, started.existed), (Source::Stock, false));
    let handed = node.keeper.handed(&started.instance_id);
    assert_eq!(handed.argv, ["serve", "--port", "80"]);
    assert_eq!(handed.cwd, dir.to_str().unwrap());
    assert!(dir.is_dir(), "a missing working directory is created");
    let hostname = format!("HOSTNAME={}", &started.instance_id[..12]);
    for entry in ["FROM=request", "HOME=/root", hostname.as_str()] {
        assert!(handed.env.iter().any(|have| have == entry), "{entry} in {:?}", handed.env);
    }
    node.stocked(2).await;
    // The image is known by now: this one is roused before its hand-off comes.
    let roused = node.agent.start(self::request("next")).await.unwrap();
    assert_eq!(node.keeper.handed(&roused.instance_id).argv, ["next"]);
    node.stocked(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_images_command_and_the_users_home_are_honoured() {
    let node = Node::new(&[("FSB_MAKE", "libcontainer")]).await;
    let mut of_user = request("");
    of_user.user = "app".into();
    let started = node.agent.start(of_user).await.unwrap();
    assert_eq!(started.source, Source::Libcontainer);
    let handed = node.keeper.handed(&started.instance_id);
    assert_eq!(handed.argv, ["run", "for", "ever"]);
    assert!(handed.env.contains(&"HOME=/home/app".to_owned()), "{:?}", handed.env);
    let unknown = fsb_proto::agent::CreateRequest { user: "nobody-here".into(), ..request("x") };
    let error = node.agent.start(unknown).await.unwrap_err();
    assert_eq!(Refusal::of(&Status::from(error)), Some(Refusal::Start));
    assert_eq!(node.used(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_execve_that_fails_says_why_and_leaves_nothing_behind() {
    let node = Node::new(&[("FSB_MAKE", "cast")]).await;
    for errno in [nix::errno::Errno::ENOENT, nix::errno::Errno::EACCES, nix::errno::Errno::ENOEXEC] {
        let mut request = request(&format!("fail {}", errno as i32));
        request.exposed_ports = vec![80];
        let error = node.agent.start(request).await.unwrap_err();
        assert_eq!((error.stage, &error.cleanup), (Stage::Exec, &None));
        assert!(error.to_string().contains("hint: "), "{error}");
        let status = Status::from(error);
        assert_eq!((status.code(), Refusal::of(&status)), (Code::FailedPrecondition, Some(Refusal::Start)));
        // Its layer goes behind the answer, and nobody finds it under its id.
        let left = node.keeper.left_behind();
        assert!(left.iter().all(|name| name.ends_with(REMOVED)), "{left:?}");
        assert_eq!(node.used(), 0);
    }
    node.empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_image_is_refused_and_a_pull_is_visible_while_it_lasts() {
    use futures_util::StreamExt;
    let node = Node::new(&[]).await;
    let mut events = Box::pin(node.agent.watch(true));
    events.next().await.unwrap().unwrap();
    let absent = fsb_proto::agent::CreateRequest { image: "127.0.0.1:1/absent".into(), ..request("x") };
    let error = node.agent.start(absent.clone()).await.unwrap_err();
    assert_eq!((error.stage, Refusal::of(&Status::from(error))), (Stage::Image, Some(Refusal::Image)));
    let mut seen = Vec::new();
    loop {
        match events.next().await.unwrap().unwrap().event.unwrap() {
            fsb_proto::agent::event::Event::Instance(instance) => seen.push(instance),
            fsb_proto::agent::event::Event::Removed(_) => break,
            _ => {}
        }
    }
    assert_eq!((seen[0].phase(), seen[0].reason.as_str()), (InstancePhase::Creating, "PullingImage"));
    let never = fsb_proto::agent::CreateRequest { pull_policy: 1, ..absent };
    let error = node.agent.start(never).await.unwrap_err();
    assert!(matches!(error.cause, Error::Image { .. }), "{error}");
    node.empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_died_while_it_was_paused_is_replaced() {
    let node = Node::new(&[("FSB_MAKE", "cast")]).await;
    node.keeper.set(|mood| mood.dead_at_bind = 2);
    let started = node.agent.start(request("run")).await.unwrap();
    assert_eq!(node.keeper.binds(), 3);
    eventually("the dead ones are cleaned up", || node.keeper.ids() == [started.instance_id.clone()]).await;
    node.keeper.set(|mood| mood.dead_at_bind = 99);
    let error = node.agent.start(request("run")).await.unwrap_err();
    assert!(matches!(error.cause, Error::Unavailable(_)), "{error}");
    assert_eq!(node.used(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_dies_before_its_program_runs_is_not_taken_for_a_started_one() {
    let node = Node::new(&[("FSB_MAKE", "cast")]).await;
    let error = node.agent.start(request("die")).await.unwrap_err();
    assert!(matches!(error.cause, Error::Unavailable(_)), "{error}");
    node.empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_is_over_at_once_has_started_and_keeps_its_exit_code() {
    let node = Node::new(&[("FSB_MAKE", "cast")]).await;
    for code in [0, 3] {
        let started = node.agent.start(request(&format!("exit {code}"))).await.unwrap();
        let ended = node.agent.wait_ended(&started.instance_id).await.unwrap();
        assert_eq!((ended.exit_code, ended.reason.as_str()), (Some(code), "Exited"));
        assert_eq!(node.used(), 0);
    }
    let started = node.agent.start(request("oom")).await.unwrap();
    let ended = node.agent.wait_ended(&started.instance_id).await.unwrap();
    assert_eq!((ended.exit_code, ended.reason.as_str()), (Some(137), "OOMKilled"));
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_written_before_the_program_runs() {
    let node = Node::new(&[("FSB_MAKE", "cast")]).await;
    let mut limited = request("run");
    limited.resources = Some(Resources { cpu_millis: 250, memory_bytes: 64 << 20, pids: 7, disk_bytes: 0, inodes: 0 });
    let started = node.agent.start(limited).await.unwrap();
    let read = |file: &str| std::fs::read_to_string(node.keeper.cgroups.join(&started.instance_id).join(file)).unwrap();
    assert_eq!(read("memory.max"), (64 << 20).to_string());
    assert_eq!(read("pids.max"), "7");
    assert_eq!(read("cpu.max"), "25000 100000");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_create_many_times_at_once_starts_one_sandbox() {
    let node = Node::new(&[("FSB_MAKE", "cast")]).await;
    let same = request("run");
    let calls = (0..30).map(|_| node.agent.start(same.clone()));
    let results = futures_util::future::join_all(calls).await;
    let started: Vec<_> = results.into_iter().map(|result| result.unwrap()).collect();
    assert_eq!(started.iter().filter(|started| !started.existed).count(), 1);
    assert!(started.iter().all(|other| other.instance_id == started[0].instance_id));
    assert_eq!((node.keeper.binds(), node.used()), (1, 1));
    let other = fsb_proto::agent::CreateRequest { args: vec!["else".into()], ..same };
    let error = node.agent.start(other).await.unwrap_err();
    assert_eq!(Status::from(error).code(), Code::AlreadyExists);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_slot_and_a_port_go_to_one_of_many_creates_at_once() {
    let node = Node::new(&[("FSB_MAKE", "cast"), ("AGENT_CAPACITY", "3")]).await;
    let results = futures_util::future::join_all((0..20).map(|_| node.agent.start(request("run")))).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 3);
    for error in results.into_iter().filter_map(Result::err) {
        assert!(matches!(error.cause, Error::Full { capacity: 3 }), "{error}");
    }
    for instance in node.agent.snapshot().instances {
        node.agent.stop_and_remove(&instance.instance_id).await.unwrap();
    }
    assert_eq!(node.used(), 0);
    let with_port = |_| node.agent.start(fsb_proto::agent::CreateRequest { exposed_ports: vec![80], ..request("run") });
    let results = futures_util::future::join_all((0..10).map(with_port)).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    assert!(
        results.iter().filter_map(|r| r.as_ref().err()).all(|e| matches!(e.cause, Error::PortTaken { port: 80, .. }))
    );
    assert_eq!(node.used(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_hangs_when_no_answer_comes() {
    let node = Node::new(&[("FSB_MAKE", "cast")]).await;
    node.keeper.set(|mood| mood.ignores_makes = true);
    let error = node.agent.start_within(request("run"), Duration::from_millis(100)).await.unwrap_err();
    assert_eq!((error.stage, Status::from(error).code()), (Stage::Take, Code::DeadlineExceeded));
    assert_eq!(node.used(), 0);
    node.keeper.set(|mood| {
        mood.ignores_makes = false;
        mood.ignores_handoffs = true;
    });
    let error = node.agent.start_within(request("run"), Duration::from_secs(3)).await.unwrap_err();
    assert_eq!((error.stage, Status::from(error).code()), (Stage::Exec, Code::DeadlineExceeded));
    node.empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_cannot_be_used_is_told_at_once_and_removed() {
    let node = Node::new(&[("FSB_MAKE", "cast")]).await;
    node.keeper.set(|mood| mood.loses_descriptors = true);
    let error = node.agent.start_within(request("run"), Duration::from_secs(60)).await.unwrap_err();
    assert!(error.to_string().contains("without its descriptors"), "{error}");
    node.empty().await;
    node.keeper.set(|mood| mood.loses_descriptors = false);
    node.agent.start(request("run")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_goes_away_never_leaves_half_a_sandbox() {
    let node = Node::new(&[("FSB_MAKE", "cast"), ("AGENT_CAPACITY", "0")]).await;
    let mut claims = Vec::new();
    for n in 0..20u32 {
        let request = request("run");
        claims.push(request.claim.clone().unwrap().uid);
        let agent = node.agent.clone();
        let call = tokio::spawn(async move { agent.start(request).await });
        tokio::time::sleep(Duration::from_micros(u64::from(n) * 100)).await;
        call.abort();
        let _ = call.await;
    }
    // The one that was aborted before it began never was.
    eventually("what began is running", || {
        let snapshot = node.agent.snapshot();
        snapshot.instances.iter().all(|instance| instance.phase() == InstancePhase::Running)
            && snapshot.used_slots as usize == snapshot.instances.len()
            && node.keeper.ids().len() == snapshot.instances.len()
    })
    .await;
    assert!(node.agent.snapshot().instances.iter().all(|i| claims.contains(&i.claim.as_ref().unwrap().uid)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recipe_that_cannot_be_made_backs_off_and_is_counted() {
    let node = Node::new(&[("WARM_IMAGES", IMAGE)]).await;
    node.stocked(5).await;
    node.keeper.set(|mood| mood.makes_fail = Some("disk full".into()));
    let started = node.agent.start(request("run")).await.unwrap();
    assert_eq!(started.source, Source::Stock);
    let counted = "fsb_agent_refill_failures_total{image=\"docker.io/library/tools:latest\"} ";
    eventually("the failure is counted", || node.agent.metrics_text().contains(counted)).await;
    let makes = node.keeper.makes();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(node.keeper.makes() <= makes + 1, "it does not try again at once");
    node.keeper.set(|mood| mood.makes_fail = None);
    node.stocked(5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_generation_ends_the_older_one_before_it_starts() {
    let node = Node::new(&[("FSB_MAKE", "cast"), ("AGENT_CAPACITY", "1")]).await;
    let mut first = request("run");
    first.claim = Some(claim("box", 1));
    let old = node.agent.start(first.clone()).await.unwrap();
    let mut second = first.clone();
    second.claim = Some(claim("box", 2));
    let new = node.agent.start(second).await.unwrap();
    assert_ne!(old.instance_id, new.instance_id);
    assert_eq!(node.phase(&old.instance_id), Some(InstancePhase::Ended));
    let error = node.agent.start(first).await.unwrap_err();
    assert!(matches!(error.cause, Error::Stale { asked: 1, known: 2, .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn plugins_are_part_of_the_recipe_and_may_wrap_the_command() {
    let node = Node::with(&[("FSB_MAKE", "cast"), ("FSB_PLUGIN_WRAP", "helper")], |dir| {
        std::fs::create_dir(dir.join("infra")).unwrap();
        std::fs::write(dir.join("infra/helper"), "").unwrap();
        std::os::unix::fs::symlink("/etc/shadow", dir.join("infra/shadow")).unwrap();
    })
    .await;
    let started = node.agent.start(request("serve now")).await.unwrap();
    assert_eq!(node.keeper.handed(&started.instance_id).argv, ["/.fs/helper", "--", "serve", "now"]);
    let plugins = node.keeper.recipe(&started.instance_id).plugins;
    assert_eq!(plugins.len(), 1, "what leads out of the allowed paths is not mounted: {plugins:?}");
    assert_eq!(plugins[0].target.to_str(), Some("/.fs/helper"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capped_writable_layer_is_never_taken_from_the_usual_stock() {
    let node = Node::new(&[("WARM_IMAGES", IMAGE), ("POOL_PER_IMAGE", "1")]).await;
    node.stocked(1).await;
    let mut capped = request("run");
    capped.resources = Some(Resources { disk_bytes: 1 << 20, ..Default::default() });
    let started = node.agent.start(capped).await.unwrap();
    assert_eq!(started.source, Source::Cast);
    let overlay = node.keeper.recipe(&started.instance_id).overlay;
    assert_eq!(overlay, fsb_host::wire::Overlay::Tmpfs { bytes: 1 << 20, inodes: 1_000_000 });
}

/// Runs on one thread, so that the subscriber of this thread hears everything.
#[tokio::test]
async fn every_event_of_a_start_carries_its_request_and_its_claim() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .json()
        .with_max_level(tracing::Level::DEBUG)
        .with_writer(move || writer.clone())
        .finish();
    let _heard = tracing::subscriber::set_default(subscriber);
    let node = Node::new(&[("FSB_MAKE", "cast")]).await;
    let traced = |command: &str| {
        let request = request(command);
        fsb_proto::agent::CreateRequest { request_id: "request-7".into(), ..request }
    };
    let id = node.agent.start(traced("run")).await.unwrap().instance_id;
    node.agent.start(traced("fail 2")).await.unwrap_err();
    eventually("both are logged", || log.text().contains("a start was refused")).await;
    let text = log.text();
    for wanted in ["\"started\"", "a start was refused"] {
        let line = text.lines().find(|line| line.contains(wanted)).unwrap();
        assert!(line.contains("request-7") && line.contains("uid-box-"), "{line}");
    }
    assert!(text.lines().any(|line| line.contains("\"started\"") && line.contains(&id)));
}

#[derive(Clone, Default)]
struct Log(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
