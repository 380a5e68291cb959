//! A client of the Go era: the five calls and the numbers of fields that it has compiled in, by hand and not from our
//! own description of the interface.

use std::collections::HashMap;
use tonic::Status;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateRequest {
    #[prost(string, tag = "1")]
    pub image: String,
    #[prost(string, tag = "2")]
    pub pool_ref: String,
    #[prost(int32, repeated, tag = "3")]
    pub exposed_ports: Vec<i32>,
    #[prost(string, repeated, tag = "4")]
    pub command: Vec<String>,
    #[prost(string, repeated, tag = "5")]
    pub args: Vec<String>,
    #[prost(string, tag = "6")]
    pub namespace: String,
    /// 1 = the claim is written before the answer.
    #[prost(int32, tag = "7")]
    pub consistency_mode: i32,
    #[prost(string, tag = "8")]
    pub name: String,
    #[prost(map = "string, string", tag = "9")]
    pub envs: HashMap<String, String>,
    #[prost(string, tag = "10")]
    pub working_dir: String,
    #[prost(int64, tag = "11")]
    pub expire_time_seconds: i64,
    /// 1 = AUTO_RECREATE.
    #[prost(int32, tag = "12")]
    pub failure_policy: i32,
    #[prost(int32, tag = "13")]
    pub recovery_timeout_seconds: i32,
    #[prost(map = "string, string", tag = "14")]
    pub labels: HashMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateResponse {
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
    #[prost(string, tag = "2")]
    pub agent_pod: String,
    #[prost(string, repeated, tag = "3")]
    pub endpoints: Vec<String>,
    #[prost(string, tag = "4")]
    pub sandbox_name: String,
}

/// Of a delete and of a get.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Named {
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
    #[prost(string, tag = "2")]
    pub namespace: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct DeleteResponse {
    #[prost(bool, tag = "1")]
    pub success: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ListRequest {
    #[prost(string, tag = "1")]
    pub namespace: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ListResponse {
    #[prost(message, repeated, tag = "1")]
    pub items: Vec<SandboxInfo>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct SandboxInfo {
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
    #[prost(string, tag = "2")]
    pub phase: String,
    #[prost(string, tag = "3")]
    pub agent_pod: String,
    #[prost(string, repeated, tag = "4")]
    pub endpoints: Vec<String>,
    #[prost(int64, tag = "5")]
    pub created_at: i64,
    #[prost(string, tag = "6")]
    pub image: String,
    #[prost(string, tag = "7")]
    pub pool_ref: String,
    #[prost(string, tag = "8")]
    pub sandbox_name: String,
}

/// One of the four changes; on the wire a oneof is a field like any other.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdateRequest {
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
    #[prost(string, tag = "2")]
    pub namespace: String,
    #[prost(int64, optional, tag = "3")]
    pub expire_time_seconds: Option<i64>,
    #[prost(string, optional, tag = "4")]
    pub reset_revision: Option<String>,
    #[prost(int32, optional, tag = "5")]
    pub failure_policy: Option<i32>,
    #[prost(int32, optional, tag = "6")]
    pub recovery_timeout_seconds: Option<i32>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdateResponse {
    #[prost(bool, tag = "1")]
    pub success: bool,
    #[prost(string, tag = "2")]
    pub message: String,
    #[prost(message, optional, tag = "3")]
    pub sandbox: Option<SandboxInfo>,
}

/// What a `grpc.Dial("localhost:9090", insecure)` gives.
pub struct Client(Grpc<Channel>);

impl Client {
    pub async fn dial(address: &str) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        Self(Grpc::new(endpoint.connect().await.unwrap()))
    }

    pub async fn create(&mut self, request: CreateRequest) -> Result<CreateResponse, Status> {
        self.call("CreateSandbox", request).await
    }

    pub async fn delete(&mut self, request: Named) -> Result<DeleteResponse, Status> {
        self.call("DeleteSandbox", request).await
    }

    pub async fn update(&mut self, request: UpdateRequest) -> Result<UpdateResponse, Status> {
        self.call("UpdateSandbox", request).await
    }

    pub async fn list(&mut self, request: ListRequest) -> Result<ListResponse, Status> {
        self.call("ListSandboxes", request).await
    }

    pub async fn get(&mut self, request: Named) -> Result<SandboxInfo, Status> {
        self.call("GetSandbox", request).await
    }

    async fn call<Q, A>(&mut self, method: &str, request: Q) -> Result<A, Status>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        self.0.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let path = PathAndQuery::try_from(format!("/fastpath.v1.FastPathService/{method}")).unwrap();
        let codec = ProstCodec::<Q, A>::default();
        Ok(self.0.unary(tonic::Request::new(request), path, codec).await?.into_inner())
    }
}
