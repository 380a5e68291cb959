//! `completion SHELL`.

use crate::cli::Cli;
use crate::error::Result;
use crate::output;
use clap::CommandFactory;
use clap_complete::Shell;

/// Load it with `source <(fsb-ctl completion bash)`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

pub(crate) fn run(args: Args) -> Result<u8> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "fsb-ctl", &mut script);
    output::bytes(&script)?;
    Ok(0)
}
