//! `fsb-ctl`: starts, shows and removes sandboxes, and runs the local node.
#![warn(clippy::print_stderr, clippy::print_stdout)]

mod cli;
mod client;
mod completion;
mod config;
mod delete;
mod doctor;
mod editor;
mod error;
mod hints;
mod image;
mod list;
mod local;
mod logs;
mod output;
mod reset;
mod run;
mod spec_file;
mod template;
mod tokens;
mod units;
mod update;
mod wait;

use clap::Parser;
use cli::{Cli, Command};
use client::online;
use error::Result;
use std::ffi::OsString;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => {
            let code = error.exit_code();
            let _ = error.print();
            if let Some(hint) = hints::for_words(&arguments).filter(|_| code != 0) {
                output::hint(&hint);
            }
            return ExitCode::from(code as u8);
        }
    };
    match dispatch(cli, &arguments) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            output::failure(&failure);
            ExitCode::from(failure.code)
        }
    }
}

/// Runs the command and says with which code to exit.
fn dispatch(cli: Cli, arguments: &[OsString]) -> Result<u8> {
    let settings = || config::load(&cli.global);
    match cli.command {
        Command::Run(args) => online(run::run(*args, arguments, &settings()?)),
        Command::List(args) => online(list::list(args, &settings()?)),
        Command::Get(args) => online(list::get(args, &settings()?)),
        Command::Logs(args) => online(logs::run(args, &settings()?)),
        Command::Rm(args) => online(delete::run(args, &settings()?)),
        Command::Update(args) => online(update::run(args, &settings()?)),
        Command::Reset(args) => online(reset::run(args, &settings()?)),
        Command::Image(args) => online(image::run(args, &settings()?)),
        Command::Local(args) => local::run(args, &settings()?),
        Command::Doctor(args) => doctor::run(args, &settings()?),
        Command::Completion(args) => completion::run(args),
    }
}
