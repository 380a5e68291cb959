//! The keeper: PID 1 of an agent, or the root of its pid namespace on a node without Kubernetes.
//!
//! It starts the spawner and the agent and starts them again when they die, passes requests between them, and owns
//! what must outlive both: the record, the pidfd, the pipes and the exit code of every sandbox. One thread; it parses
//! nothing that comes from outside the node. When it dies, its sandboxes die with it.
//!
//! | module | is about |
//! |---|---|
//! | `settings` | the environment |
//! | `setup` | directories, cgroups and limits, before there is a runtime |
//! | `keeper` | what all tasks share, and the life of the program |
//! | `daemon`, `link`, `backoff`, `watch` | a child with a socket: start, serve, restart |
//! | `spawner`, `agent` | what the two daemons say and hear |
//! | `table` | records and what may become of them (pure) |
//! | `instance`, `started`, `store` | carrying that out: adopt, watch, end; record files |
//! | `reaper`, `retention`, `sweep`, `stop` | children, old records, leftovers, the end |
//! | `log` | pipes to files |
#![cfg_attr(not(test), warn(clippy::print_stderr, clippy::print_stdout))]

mod agent;
mod backoff;
mod daemon;
mod instance;
mod keeper;
mod link;
mod log;
mod pins;
mod reaper;
mod retention;
mod settings;
mod setup;
mod spawner;
mod started;
mod stop;
mod store;
mod sweep;
mod table;
mod tracees;
mod watch;

use anyhow::Context;
use std::process::ExitCode;

fn main() -> ExitCode {
    fsb_log::init("");
    fsb_log::exit("fsb-keeper", run())
}

fn run() -> anyhow::Result<()> {
    let settings = settings::Settings::from_env(|key| std::env::var(key).ok())?;
    let ground = setup::prepare(&settings).context("cannot prepare this machine for an agent")?;
    let (choice, rotation) = (settings.engine, settings.rotation);
    let done = log::run(choice, rotation, async move |logs| {
        let result = keeper::run(settings, ground, logs).await;
        if let Err(error) = &result {
            tracing::error!("{error:#}");
        }
        // Not by returning: the ring's drop waits for reads of pipes that somebody else may hold open.
        std::process::exit(i32::from(result.is_err()));
    });
    done.context("no runtime for the logs; hint: FSB_LOG_ENGINE=epoll works without io_uring")
}
