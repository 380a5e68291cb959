//! `reset NAME`: a new revision, so a new instance.

use crate::client::{self, CALL};
use crate::config::Settings;
use crate::error::{Failure, Result};
use crate::output::FormatArg;
use crate::{list, units};
use fsb_proto::fastpath::{UpdateRequest, update_request::Update};
use std::time::SystemTime;

/// Stop the instance of a sandbox and start a new one.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The sandbox
    name: String,
    #[command(flatten)]
    format: FormatArg,
}

pub(crate) async fn run(args: Args, settings: &Settings) -> Result<u8> {
    let mut client = client::connect(settings).await?;
    let request = UpdateRequest {
        sandbox_id: args.name.clone(),
        namespace: settings.namespace.clone(),
        update: Some(Update::ResetRevision(units::rfc3339_nanos(SystemTime::now()))),
        ..UpdateRequest::default()
    };
    let answer = client.update_sandbox(client::request(request, CALL)).await;
    let answer = answer.map_err(|status| client::failure(settings, &status))?.into_inner();
    if !answer.success {
        return Err(Failure::new(format!("{} was not reset: {}", args.name, answer.message)));
    }
    if let Some(info) = answer.sandbox {
        list::show_one(args.format.output, info)?;
    }
    Ok(0)
}
