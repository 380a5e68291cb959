//! Namespaces and tokens.

use super::world::World;
use fsb_proto::fastpath::fast_path_service_server::SERVICE_NAME;
use fsb_proto::fastpath::*;
use fsb_rpc::{Address, Channel};
use std::time::Duration;
use tonic::codegen::{Service, http};
use tonic::{Code, Request};

/// agent-1 stands in namespace `red`, agent-2 in `blue`.
async fn two_namespaces(flags: &[&str]) -> World {
    World::with(2, flags, |agent| {
        let namespace = if agent.name() == "agent-1" { "red" } else { "blue" };
        agent.state().info.namespace = namespace.into();
    })
    .await
}

fn create(name: &str, namespace: &str) -> CreateRequest {
    CreateRequest { namespace: namespace.into(), ..World::request(name) }
}

// Rule 7, C4
#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_runs_only_on_agents_of_its_own_namespace() {
    let world = two_namespaces(&[]).await;
    for number in 0..5 {
        assert_eq!(world.try_create(create(&format!("s{number}"), "red")).await.unwrap().agent_pod, "agent-1");
    }
    let status = world.try_create(create("one-more", "red")).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "the free slots of blue are not red's");
    assert_eq!(world.try_create(create("s0", "blue")).await.unwrap().agent_pod, "agent-2", "names are a namespace's");
    assert_eq!(world.try_create(create("a", "default")).await.unwrap_err().code(), Code::NotFound);
}

// C7
#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_another_namespace_is_not_there() {
    let world = two_namespaces(&[]).await;
    world.try_create(create("a", "red")).await.unwrap();
    let mut client = world.client.clone();
    let (sandbox_id, namespace) = (|| "a".to_owned(), || "blue".to_owned());
    let codes = [
        client.get_sandbox(GetRequest { sandbox_id: sandbox_id(), namespace: namespace() }).await.map(|_| ()),
        client
            .delete_sandbox(DeleteRequest { sandbox_id: sandbox_id(), namespace: namespace(), force: true })
            .await
            .map(|_| ()),
        client
            .update_sandbox(UpdateRequest { sandbox_id: sandbox_id(), namespace: namespace(), ..Default::default() })
            .await
            .map(|_| ()),
        client
            .logs(LogsRequest { sandbox_id: sandbox_id(), namespace: namespace(), ..Default::default() })
            .await
            .map(|_| ()),
    ];
    for result in codes {
        assert_eq!(result.unwrap_err().code(), Code::NotFound);
    }
    let list = |namespace: &str| ListRequest { namespace: namespace.into(), all_namespaces: false };
    assert!(client.list_sandboxes(list("blue")).await.unwrap().into_inner().items.is_empty());
    assert_eq!(client.list_sandboxes(list("red")).await.unwrap().into_inner().items.len(), 1);
    assert_eq!(world.list().await.len(), 1);
    assert_eq!(world.live(), 1);
}

// C7
#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_good_for_its_namespaces_only() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "red-token red\nroot-token *\n").unwrap();
    let flag = format!("--auth-token-file={}", file.path().display());
    let world = two_namespaces(&[&flag]).await;
    let mut client = world.client.clone();
    fn with<T>(token: &str, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        request
    }
    client.create_sandbox(with("red-token", create("a", "red"))).await.unwrap();
    client.create_sandbox(with("root-token", create("a", "blue"))).await.unwrap();
    let refused = client.create_sandbox(with("red-token", create("b", "blue"))).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(client.create_sandbox(create("b", "red")).await.unwrap_err().code(), Code::Unauthenticated);
    let everywhere = || ListRequest { all_namespaces: true, ..Default::default() };
    assert_eq!(
        client.list_sandboxes(with("red-token", everywhere())).await.unwrap_err().code(),
        Code::PermissionDenied
    );
    assert_eq!(client.list_sandboxes(with("root-token", everywhere())).await.unwrap().into_inner().items.len(), 2);
    let agents = client.list_agents(with("red-token", ListAgentsRequest {})).await.unwrap().into_inner().items;
    assert_eq!(agents.iter().map(|agent| agent.name.as_str()).collect::<Vec<_>>(), ["agent-1"]);
    let watch = WatchRequest { all_namespaces: true, ..Default::default() };
    assert_eq!(client.watch(with("red-token", watch)).await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_a_token_is_refused_before_its_body_is_read() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "root-token *\n").unwrap();
    let world = two_namespaces(&[&format!("--auth-token-file={}", file.path().display())]).await;
    let mut channel = Channel::new(Address::Unix(world.path("c.sock")), Duration::from_secs(5), None);
    // Whoever reads it answers that it is no message.
    for (token, code) in [("", Code::Unauthenticated), ("Bearer other", Code::Unauthenticated)] {
        let request = http::Request::post(format!("/{SERVICE_NAME}/CreateSandbox"))
            .header("content-type", "application/grpc")
            .header("authorization", token)
            .body(tonic::body::Body::new(axum::body::Body::from(&[0, 0, 0, 0, 1, 0xff][..])));
        let answer = channel.call(request.unwrap()).await.unwrap();
        assert_eq!(answer.headers()["grpc-status"], (code as i32).to_string());
    }
}
