//! `list` and `get`.

use crate::client::{self, CALL};
use crate::config::Settings;
use crate::error::Result;
use crate::output::{self, Format, FormatArg, or_dash};
use crate::{units, wait};
use comfy_table::Table;
use fsb_proto::fastpath::{FailurePolicy, ListRequest, SandboxInfo};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Show the sandboxes of a namespace.
#[derive(clap::Args)]
pub(crate) struct ListArgs {
    /// Of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    #[command(flatten)]
    format: FormatArg,
}

/// Show one sandbox.
#[derive(clap::Args)]
pub(crate) struct GetArgs {
    /// The sandbox
    name: String,
    #[command(flatten)]
    format: FormatArg,
}

pub(crate) async fn list(args: ListArgs, settings: &Settings) -> Result<u8> {
    let mut client = client::connect(settings).await?;
    let request = ListRequest { namespace: settings.namespace.clone(), all_namespaces: args.all_namespaces };
    let answer = client.list_sandboxes(client::request(request, CALL)).await;
    let mut items: Vec<View> = answer
        .map_err(|status| client::failure(settings, &status))?
        .into_inner()
        .items
        .into_iter()
        .map(View::from)
        .collect();
    items.sort_by(|a, b| (&a.namespace, &a.sandbox_id).cmp(&(&b.namespace, &b.sandbox_id)));
    if items.is_empty() && matches!(args.format.output, Format::Table | Format::Wide) {
        let place =
            if args.all_namespaces { "any namespace".into() } else { format!("namespace {}", settings.namespace) };
        output::talk(&format!("no sandboxes in {place}"));
        return Ok(0);
    }
    let listing = Listing { items };
    output::show(args.format.output, &listing, |wide| rows(&listing.items, wide, args.all_namespaces))?;
    Ok(0)
}

pub(crate) async fn get(args: GetArgs, settings: &Settings) -> Result<u8> {
    let mut client = client::connect(settings).await?;
    let info = wait::get(&mut client, settings, &args.name).await;
    show_one(args.format.output, info.map_err(|status| client::failure(settings, &status))?)?;
    Ok(0)
}

/// Shows one sandbox.
pub(crate) fn show_one(format: Format, info: SandboxInfo) -> Result<()> {
    let view = View::from(info);
    output::show(format, &view, |wide| rows(std::slice::from_ref(&view), wide, false))?;
    if matches!(format, Format::Table | Format::Wide) && !view.message.is_empty() {
        output::talk(&format!("{}: {}", or_dash(&view.reason), view.message));
    }
    Ok(())
}

#[derive(Serialize)]
struct Listing {
    items: Vec<View>,
}

/// A sandbox for programs: the wire's names, all of them always there.
#[derive(Serialize)]
struct View {
    sandbox_id: String,
    namespace: String,
    phase: String,
    reason: String,
    message: String,
    exit_code: Option<i32>,
    image: String,
    pool_ref: String,
    agent_pod: String,
    node: String,
    instance_id: String,
    instance_generation: i64,
    endpoints: Vec<String>,
    exposed_ports: Vec<i32>,
    command: Vec<String>,
    args: Vec<String>,
    envs: BTreeMap<String, String>,
    working_dir: String,
    user: String,
    resources: Limits,
    labels: BTreeMap<String, String>,
    failure_policy: &'static str,
    recovery_timeout_seconds: i32,
    /// Unix seconds, 0 = never.
    expire_time_seconds: i64,
    created_at: i64,
    started_at_ms: i64,
    finished_at_ms: i64,
    persisted: bool,
}

/// 0 = the default.
#[derive(Serialize, Default)]
struct Limits {
    cpu_millis: i64,
    memory_bytes: i64,
    pids: i64,
    disk_bytes: i64,
    inodes: i64,
}

impl From<SandboxInfo> for View {
    fn from(info: SandboxInfo) -> Self {
        let limits = info.resources.unwrap_or_default();
        Self {
            failure_policy: match info.failure_policy() {
                FailurePolicy::Manual => "Manual",
                FailurePolicy::AutoRecreate => "AutoRecreate",
            },
            sandbox_id: if info.sandbox_id.is_empty() { info.sandbox_name } else { info.sandbox_id },
            namespace: info.namespace,
            phase: info.phase,
            reason: info.reason,
            message: info.message,
            exit_code: info.exit_code,
            image: info.image,
            pool_ref: info.pool_ref,
            agent_pod: info.agent_pod,
            node: info.node,
            instance_id: info.instance_id,
            instance_generation: info.instance_generation,
            endpoints: info.endpoints,
            exposed_ports: info.exposed_ports,
            command: info.command,
            args: info.args,
            envs: info.envs,
            working_dir: info.working_dir,
            user: info.user,
            resources: Limits {
                cpu_millis: limits.cpu_millis,
                memory_bytes: limits.memory_bytes,
                pids: limits.pids,
                disk_bytes: limits.disk_bytes,
                inodes: limits.inodes,
            },
            labels: info.labels,
            recovery_timeout_seconds: info.recovery_timeout_seconds,
            expire_time_seconds: info.expire_time_seconds,
            created_at: info.created_at,
            started_at_ms: info.started_at_ms,
            finished_at_ms: info.finished_at_ms,
            persisted: info.persisted,
        }
    }
}

/// The table of sandboxes.
fn rows(items: &[View], wide: bool, namespaces: bool) -> Table {
    let mut header = vec!["NAME", "PHASE", "IMAGE", "AGENT", "ENDPOINTS", "AGE"];
    if namespaces {
        header.insert(0, "NAMESPACE");
    }
    if wide {
        header.extend(["POOL", "NODE", "EXIT", "REASON", "EXPIRES", "POLICY", "INSTANCE"]);
    }
    let mut table = output::table(header);
    for item in items {
        let mut row = vec![
            item.sandbox_id.clone(),
            item.phase.clone(),
            or_dash(&item.image),
            or_dash(&item.agent_pod),
            or_dash(&item.endpoints.join(",")),
            since(item.created_at),
        ];
        if namespaces {
            row.insert(0, item.namespace.clone());
        }
        if wide {
            row.extend([
                or_dash(&item.pool_ref),
                or_dash(&item.node),
                item.exit_code.map_or("-".into(), |code| code.to_string()),
                or_dash(&item.reason),
                until(item.expire_time_seconds),
                item.failure_policy.to_owned(),
                or_dash(&item.instance_id),
            ]);
        }
        table.add_row(row);
    }
    output::tight(&mut table);
    table
}

fn since(unix_seconds: i64) -> String {
    if unix_seconds <= 0 {
        return "-".into();
    }
    let then = UNIX_EPOCH + Duration::from_secs(unix_seconds as u64);
    units::age(SystemTime::now().duration_since(then).unwrap_or_default())
}

fn until(unix_seconds: i64) -> String {
    if unix_seconds <= 0 {
        return "never".into();
    }
    let then = UNIX_EPOCH + Duration::from_secs(unix_seconds as u64);
    match then.duration_since(SystemTime::now()) {
        Ok(left) => format!("in {}", units::age(left)),
        Err(_) => "passed".into(),
    }
}
