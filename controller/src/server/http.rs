//! The plain HTTP sides: metrics, health, and what the process does.

use crate::core::Core;
use crate::fast_path::Tokens;
use axum::Router;
use axum::extract::{Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use fsb_rpc::{Bounds, Listener};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

/// Connections of a listener at a time, where there are descriptors for so many. Nobody shows anything here: all are
/// strangers, and the oldest one makes room for the next.
pub const CONNECTIONS: Bounds = Bounds { strangers: 128, known: 0 };
/// The longest that a connection lasts: longer than a profile takes.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(75);

/// Serves pages until `stop` is cancelled and the last request is answered.
pub async fn serve(listener: impl Listener, bounds: Bounds, pages: Router, stop: CancellationToken) {
    let connection = |stream, _| {
        let (pages, stopped) = (pages.clone(), stop.clone().cancelled_owned());
        async move {
            if let Err(error) = fsb_rpc::serve_http1(stream, pages, stopped).await {
                tracing::debug!(%error, "a connection ended");
            }
        }
    };
    fsb_rpc::accept(listener, bounds, CONNECTION_DEADLINE, stop.cancelled(), connection).await;
}

/// `/metrics`, in the text format of OpenMetrics.
pub fn metrics(core: Arc<Core>) -> Router {
    Router::new().route("/metrics", get(render)).with_state(core)
}

async fn render(State(core): State<Arc<Core>>) -> impl IntoResponse {
    let text = core.metrics.render(&core.table, &core.registry, core.agents.healthy());
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
}

/// `/healthz`: it lives. `/readyz`: it admits creates.
pub fn health(core: Arc<Core>) -> Router {
    Router::new().route("/healthz", get(async || "ok\n")).route("/readyz", get(ready)).with_state(core)
}

async fn ready(State(core): State<Arc<Core>>) -> impl IntoResponse {
    if core.stop.is_cancelled() {
        (StatusCode::SERVICE_UNAVAILABLE, "stopping\n")
    } else if *core.ready.borrow() {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "waiting for the agents' reports\n")
    }
}

/// What the process does: `/debug/pprof/profile?seconds=N` (CPU time of each thread over that time),
/// `/debug/pprof/threads`, `/debug/pprof/tasks`, `/debug/pprof/heap` (memory as the kernel counts it). Where there are
/// tokens, only one for every namespace opens it: what the process does tells of all tenants.
pub fn profiling(core: Arc<Core>, tokens: Option<Arc<Tokens>>) -> Router {
    let guard = middleware::from_fn(move |request: Request, next: Next| {
        let refused = tokens.as_ref().and_then(|tokens| tokens.see_all(request.headers()).err());
        async move {
            match refused {
                Some(status) => refusal(&status),
                None => next.run(request).await,
            }
        }
    });
    Router::new()
        .route("/debug/pprof/profile", get(profile))
        .route("/debug/pprof/threads", get(async || threads_text()))
        .route("/debug/pprof/tasks", get(tasks))
        .route("/debug/pprof/heap", get(async || heap()))
        .layer(guard)
        .with_state(core)
}

fn refusal(status: &Status) -> Response {
    let code = match status.code() {
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        _ => StatusCode::UNAUTHORIZED,
    };
    (code, format!("{}\n", status.message())).into_response()
}

async fn profile(Query(query): Query<BTreeMap<String, String>>) -> impl IntoResponse {
    let seconds = query.get("seconds").and_then(|seconds| seconds.parse().ok()).unwrap_or(5u64).clamp(1, 60);
    let before = cpu_ticks();
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let mut text = format!("ticks of CPU time (user, system) by thread over {seconds} s\n");
    for (id, (name, user, system)) in cpu_ticks() {
        let (user_before, system_before) = before.get(&id).map_or((0, 0), |(_, user, system)| (*user, *system));
        // Writing into a string does not fail.
        let _ = writeln!(text, "{id}\t{name}\t{}\t{}", user - user_before, system - system_before);
    }
    text
}

/// By thread: its name and the ticks that it has run (proc_pid_stat(5), fields 14 and 15).
fn cpu_ticks() -> BTreeMap<u32, (String, u64, u64)> {
    let mut all = BTreeMap::new();
    for (id, stat) in threads("stat") {
        let Some((head, tail)) = stat.rsplit_once(')') else { continue };
        let name = head.split_once('(').map_or("", |(_, name)| name).to_owned();
        let fields: Vec<&str> = tail.split_whitespace().collect();
        let ticks = |index: usize| fields.get(index).and_then(|field| field.parse().ok()).unwrap_or(0);
        all.insert(id, (name, ticks(11), ticks(12)));
    }
    all
}

fn threads(file: &str) -> Vec<(u32, String)> {
    let Ok(entries) = std::fs::read_dir("/proc/self/task") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let id = entry.file_name().to_str()?.parse().ok()?;
            Some((id, std::fs::read_to_string(entry.path().join(file)).ok()?))
        })
        .collect()
}

fn threads_text() -> String {
    let mut text = String::new();
    for (id, status) in threads("status") {
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_once('\t')).map_or("", |(_, value)| value.trim()).to_owned()
        };
        let (voluntary, forced) = (field("voluntary_ctxt_switches:"), field("nonvoluntary_ctxt_switches:"));
        let _ = writeln!(text, "{id}\t{}\t{}\t{voluntary}\t{forced}", field("Name:"), field("State:"));
    }
    text
}

async fn tasks(State(core): State<Arc<Core>>) -> String {
    let runtime = tokio::runtime::Handle::current().metrics();
    format!(
        "workers {}\nalive tasks {}\ntracked tasks {}\nqueued tasks {}\nclaims that want a look {}\n",
        runtime.num_workers(),
        runtime.num_alive_tasks(),
        core.tracker.len(),
        runtime.global_queue_depth(),
        core.wakeups.len(),
    )
}

fn heap() -> String {
    std::fs::read_to_string("/proc/self/smaps_rollup").unwrap_or_default()
        + &std::fs::read_to_string("/proc/self/status").unwrap_or_default()
}
