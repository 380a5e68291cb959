//! Several agents: slots, ports, pools and namespaces.

use crate::node::{Calls, Node, PATIENCE, block_on, shell};
use fsb_proto::agent::agent_service_client::AgentServiceClient;
use fsb_proto::agent::{Source, StatusRequest};
use fsb_proto::fastpath::watch_event::Event;
use fsb_proto::fastpath::{
    ConsistencyMode, CreateRequest, DeleteRequest, FailurePolicy, GetRequest, ListAgentsRequest, ListRequest,
    LogsRequest, UpdateRequest, WatchRequest,
};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use tonic::Code;
use tonic::transport::Channel;

#[test]
fn three_agents_share_the_load_and_a_full_pool_says_so() {
    let node = Node::up(&["--agents", "3", "--capacity", "2"]);
    block_on(async {
        let mut client = node.client().await;
        let agents = client.list_agents(ListAgentsRequest {}).await.unwrap().into_inner().items;
        assert_eq!(agents.iter().filter(|agent| agent.healthy).count(), 3);
        let mut used = BTreeSet::new();
        for i in 0..6 {
            used.insert(client.create(&format!("s{i}"), "sleep 100").await.unwrap().agent_pod);
        }
        assert_eq!(used.len(), 3, "{used:?}");
        let full = client.create("s6", "sleep 100").await.unwrap_err();
        assert_eq!(full.code(), Code::ResourceExhausted, "{full:?}");
        assert!(full.message().contains('6'), "it says capacity and use: {}", full.message());
        assert_eq!(client.info("s6").await.unwrap_err().code(), Code::NotFound);
        client.remove("s0").await;
        client.create("s6", "sleep 100").await.unwrap();
    });
    node.finish();
}

#[test]
fn a_port_is_one_sandboxs_on_an_agent_and_free_again_when_it_ends() {
    let node = Node::up(&["--agents", "2"]);
    block_on(async {
        let mut client = node.client().await;
        let with_port = |name: &str| {
            let mut request = shell(name, "echo up; nc -l -p 8080 -e echo hello");
            request.exposed_ports = vec![8080];
            request
        };
        let (a, b) = (client.create_as(with_port("a")).await.unwrap(), client.create_as(with_port("b")).await.unwrap());
        assert_ne!(a.agent_pod, b.agent_pod);
        let taken = client.create_as(with_port("c")).await.unwrap_err();
        assert_eq!(taken.code(), Code::FailedPrecondition);
        assert!(taken.message().contains("8080"), "{}", taken.message());
        // The endpoint is where it says it is.
        assert!(a.endpoints[0].ends_with(":8080"), "{:?}", a.endpoints);
        let mut answer = String::new();
        for _ in 0..100 {
            if let Ok(mut stream) = std::net::TcpStream::connect(&a.endpoints[0]) {
                use std::io::Read;
                stream.read_to_string(&mut answer).unwrap();
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(answer, "hello\n");
        client.until("a", "Succeeded").await;
        client.create_as(with_port("c")).await.unwrap();
    });
    node.finish();
}

#[test]
fn namespaces_and_pools_never_mix() {
    let node = Node::up(&[
        "--agent",
        "name=agent-1,namespace=default",
        "--agent",
        "name=blue,namespace=blue",
        "--agent",
        "name=special,namespace=blue,pool=special",
    ]);
    block_on(async {
        let mut client = node.client().await;
        let within = |name: &str, namespace: &str, pool: &str| CreateRequest {
            namespace: namespace.into(),
            pool_ref: pool.into(),
            ..shell(name, "sleep 100")
        };
        assert_eq!(client.create_as(within("x", "default", "")).await.unwrap().agent_pod, "agent-1");
        assert_eq!(client.create_as(within("x", "blue", "")).await.unwrap().agent_pod, "blue");
        assert_eq!(client.create_as(within("y", "blue", "special")).await.unwrap().agent_pod, "special");
        let unknown = client.create_as(within("z", "default", "special")).await.unwrap_err();
        assert_eq!(unknown.code(), Code::NotFound, "{unknown:?}");
        assert_eq!(client.list().await.len(), 3);
        // Nobody sees or changes what is in another namespace, by any call.
        let (name, namespace) = ("y".to_owned(), "default".to_owned());
        let get = GetRequest { sandbox_id: name.clone(), namespace: namespace.clone() };
        assert_eq!(client.get_sandbox(get).await.unwrap_err().code(), Code::NotFound);
        let delete = DeleteRequest { sandbox_id: name.clone(), namespace: namespace.clone(), force: true };
        assert_eq!(client.delete_sandbox(delete).await.unwrap_err().code(), Code::NotFound);
        let update = UpdateRequest {
            sandbox_id: name.clone(),
            namespace: namespace.clone(),
            labels: [("stolen".to_owned(), "yes".to_owned())].into(),
            ..Default::default()
        };
        assert_eq!(client.update_sandbox(update).await.unwrap_err().code(), Code::NotFound);
        let logs = LogsRequest { sandbox_id: name.clone(), namespace: namespace.clone(), ..Default::default() };
        assert_eq!(client.logs(logs).await.unwrap_err().code(), Code::NotFound);
        let list = ListRequest { namespace: namespace.clone(), all_namespaces: false };
        let seen = client.list_sandboxes(list).await.unwrap().into_inner().items;
        assert_eq!(seen.iter().map(|info| info.sandbox_id.as_str()).collect::<Vec<_>>(), ["x"]);
        let watch = WatchRequest { namespace, ..Default::default() };
        let mut changes = client.watch(watch).await.unwrap().into_inner();
        // Of two with one name, one goes: the other, and whoever watches its namespace, hears nothing of it.
        let blue = |name: &str| GetRequest { sandbox_id: name.into(), namespace: "blue".into() };
        let delete = DeleteRequest { sandbox_id: "x".into(), namespace: "blue".into(), force: true };
        client.delete_sandbox(delete).await.unwrap();
        let end = Instant::now() + PATIENCE;
        while client.get_sandbox(blue("x")).await.is_ok() {
            assert!(Instant::now() < end, "blue's x does not go");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let kept = client.get_sandbox(blue("y")).await.unwrap().into_inner();
        assert!(kept.phase == "Running" && kept.labels.is_empty(), "{kept:?}");
        assert_eq!(client.info("x").await.unwrap().phase, "Running");
        client.delete("x").await;
        loop {
            let event = tokio::time::timeout(PATIENCE, changes.message()).await.expect("it is told").unwrap().unwrap();
            match event.event.unwrap() {
                Event::Changed(info) => assert_eq!(info.sandbox_id, "x", "another namespace's"),
                Event::Removed(info) => {
                    assert_eq!((info.sandbox_id.as_str(), info.namespace.as_str()), ("x", "default"));
                    break;
                }
                _ => {}
            }
        }
    });
    node.finish();
}

#[test]
fn creating_the_same_again_answers_the_same_and_another_spec_is_refused() {
    let node = Node::up(&[]);
    block_on(async {
        let mut client = node.client().await;
        let first = client.create("same", "sleep 100").await.unwrap();
        let info = client.info("same").await.unwrap();
        let again = client.create("same", "sleep 100").await.unwrap();
        assert_eq!(first, again);
        assert_eq!(client.info("same").await.unwrap().instance_id, info.instance_id);
        let other = client.create("same", "sleep 200").await.unwrap_err();
        assert_eq!(other.code(), Code::AlreadyExists);
        // Two at once, one sandbox.
        let (mut a, mut b) = (node.client().await, node.client().await);
        let (x, y) = tokio::join!(a.create("twice", "sleep 100"), b.create("twice", "sleep 100"));
        assert!(x.is_ok() || y.is_ok(), "{x:?} {y:?}");
        assert_eq!(client.list().await.iter().filter(|info| info.sandbox_id == "twice").count(), 1);
    });
    node.finish();
}

#[test]
fn strong_mode_has_written_the_claim_when_it_answers() {
    let node = Node::up(&[]);
    block_on(async {
        let mut client = node.client().await;
        let mut request = shell("strong", "sleep 100");
        request.consistency_mode = ConsistencyMode::Strong as i32;
        request.failure_policy = FailurePolicy::AutoRecreate as i32;
        client.create_as(request).await.unwrap();
        assert!(client.info("strong").await.unwrap().persisted);
        let mut broken = shell("broken", "sleep 100");
        broken.consistency_mode = ConsistencyMode::Strong as i32;
        broken.command = vec!["/no/such/program".into()];
        assert_eq!(client.create_as(broken).await.unwrap_err().code(), Code::FailedPrecondition);
        assert_eq!(client.info("broken").await.unwrap_err().code(), Code::NotFound);
    });
    node.finish();
}

#[test]
fn a_warm_image_has_paused_containers_and_a_start_takes_one_and_is_refilled() {
    let node = Node::up(&["--warm-image", "busybox"]);
    block_on(async {
        let mut agent = node.agent("agent-1").await;
        let full = stock(&mut agent, 5).await;
        let mut client = node.client().await;
        client.create("warm", "sleep 100").await.unwrap();
        let snapshot = agent.status(StatusRequest {}).await.unwrap().into_inner();
        assert_eq!(snapshot.instances[0].source, Source::Stock as i32, "{:?}", snapshot.instances);
        stock(&mut agent, full).await;
    });
    node.finish();
}

/// Waits until at least so many containers are paused.
async fn stock(agent: &mut AgentServiceClient<Channel>, least: i32) -> i32 {
    let end = Instant::now() + PATIENCE;
    loop {
        let snapshot = agent.status(StatusRequest {}).await.unwrap().into_inner();
        let paused = snapshot.stock.iter().map(|stock| stock.paused).sum();
        if paused >= least {
            return paused;
        }
        assert!(Instant::now() < end, "{paused} of {least} are paused");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
