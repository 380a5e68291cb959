//! `update NAME`: expiry, policies, labels.

use crate::client::{self, CALL};
use crate::config::Settings;
use crate::error::{Failure, Result};
use crate::list;
use crate::output::FormatArg;
use crate::{spec_file, units};
use fsb_proto::fastpath::{UpdateRequest, update_request::Update};
use std::collections::BTreeMap;
use std::time::SystemTime;

/// Change a sandbox.
#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("change").multiple(true).required(true))]
pub(crate) struct Args {
    /// The sandbox
    name: String,
    /// Stop and remove it then: a duration, a time like 2026-01-02T03:04:05Z, or never
    #[arg(long, visible_alias = "expire", value_name = "WHEN", value_parser = units::moment, group = "change")]
    expire_time: Option<units::Moment>,
    /// What to do when its agent is lost: manual or auto-recreate
    #[arg(long, value_name = "POLICY", value_parser = spec_file::failure_policy, group = "change")]
    failure_policy: Option<i32>,
    /// How long auto-recreate waits for the agent
    #[arg(long, value_name = "TIME", value_parser = units::seconds, group = "change")]
    recovery_timeout: Option<i32>,
    /// Set labels; `k=` removes one
    #[arg(long, visible_alias = "label", value_delimiter = ',', value_name = "K=V", group = "change")]
    labels: Vec<String>,
    #[command(flatten)]
    format: FormatArg,
}

pub(crate) async fn run(args: Args, settings: &Settings) -> Result<u8> {
    let mut labels = BTreeMap::new();
    for label in &args.labels {
        let (key, value) = label
            .split_once('=')
            .ok_or_else(|| Failure::usage(format!("--labels {label}: must be KEY=VALUE, or KEY= to remove it")))?;
        fsb_proto::domain::validate_label(key, value).map_err(|why| Failure::usage(why.to_string()))?;
        labels.insert(key.to_owned(), value.to_owned());
    }
    let mut client = client::connect(settings).await?;
    let mut last = None;
    for (update, labels) in calls(&args, labels) {
        let request =
            UpdateRequest { sandbox_id: args.name.clone(), namespace: settings.namespace.clone(), labels, update };
        let answer = client.update_sandbox(client::request(request, CALL)).await;
        let answer = answer.map_err(|status| client::failure(settings, &status))?.into_inner();
        if !answer.success {
            return Err(Failure::new(format!("{} was not changed: {}", args.name, answer.message)));
        }
        last = answer.sandbox.or(last);
    }
    if let Some(info) = last {
        list::show_one(args.format.output, info)?;
    }
    Ok(0)
}

/// A call carries one change, and labels; so several changes are several calls.
fn calls(args: &Args, labels: BTreeMap<String, String>) -> Vec<(Option<Update>, BTreeMap<String, String>)> {
    let changes = [
        args.expire_time.map(|when| Update::ExpireTimeSeconds(when.ahead(SystemTime::now()))),
        args.failure_policy.map(Update::FailurePolicy),
        args.recovery_timeout.map(Update::RecoveryTimeoutSeconds),
    ];
    let mut calls: Vec<_> = changes.into_iter().flatten().map(|change| (Some(change), BTreeMap::new())).collect();
    match calls.first_mut() {
        Some(first) => first.1 = labels,
        None => calls.push((None, labels)),
    }
    calls
}
