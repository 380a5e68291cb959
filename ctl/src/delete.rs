//! `rm NAME…`.

use crate::client::{self, CALL};
use crate::config::Settings;
use crate::error::{Failure, Result};
use crate::{output, wait};
use fsb_proto::fastpath::ListRequest;
use std::time::Duration;

/// The grace period of a sandbox has no upper end; a removal that takes longer than this is stuck.
const WAIT: Duration = Duration::from_secs(3600);

/// Delete sandboxes: SIGTERM, the grace period, SIGKILL.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The sandboxes
    #[arg(required_unless_present = "all")]
    names: Vec<String>,
    /// Return when nothing of them is left
    #[arg(long)]
    wait: bool,
    /// Do not wait for the grace period: SIGKILL at once; returns when nothing of them is left
    #[arg(long, short)]
    force: bool,
    /// All sandboxes of the namespace
    #[arg(long, conflicts_with = "names")]
    all: bool,
}

pub(crate) async fn run(args: Args, settings: &Settings) -> Result<u8> {
    let mut client = client::connect(settings).await?;
    let names = if args.all {
        let request = ListRequest { namespace: settings.namespace.clone(), all_namespaces: false };
        let answer = client.list_sandboxes(client::request(request, CALL)).await;
        let items = answer.map_err(|status| client::failure(settings, &status))?.into_inner().items;
        items.into_iter().map(|info| info.sandbox_id).collect()
    } else {
        args.names
    };
    let mut asked = Vec::new();
    let mut failures = Vec::new();
    for name in names {
        match wait::delete(&mut client, settings, &name, args.force).await {
            Ok(()) => asked.push(name),
            Err(failure) => failures.push(failure),
        }
    }
    for name in &asked {
        if args.wait || args.force {
            let gone = tokio::time::timeout(WAIT, wait::until_gone(&mut client, settings, name)).await;
            if let Err(failure) =
                gone.unwrap_or_else(|_| Err(Failure::new(format!("{name} is still being removed after an hour"))))
            {
                failures.push(failure);
                continue;
            }
        }
        output::line(name)?;
    }
    // Everything that could be done is done; the last failure is the program's own, the others are told before.
    let last = failures.pop();
    for failure in &failures {
        output::failure(failure);
    }
    last.map_or(Ok(0), Err)
}
