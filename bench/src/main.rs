//! `fsb-bench`: see the library's documentation.

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    match fsb_bench::cli::run(fsb_bench::cli::Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("fsb-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
