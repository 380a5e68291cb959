//! `fsb-controller`: flags, runtime, signals.
#![cfg_attr(not(test), warn(clippy::print_stderr, clippy::print_stdout))]

use anyhow::Context;
use fsb_controller::{Config, Controller, privileges};
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    fsb_log::exit("fsb-controller", start())
}

fn start() -> anyhow::Result<()> {
    let config = Config::of_process();
    privileges::drop_others()?;
    // One thread serves: a request passes through several tasks, and each one that is handed to another thread would
    // wake up another processor first. Claims are written by threads of their own.
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(1).enable_all().thread_name("controller").build();
    let runtime = runtime.context("cannot start its runtime")?;
    let _within = runtime.enter();
    let _traces = fsb_telemetry::init("fsb-controller");
    runtime.block_on(run(&config))
}

async fn run(config: &Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let controller = Controller::start(config).await?;
    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
        _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
    }
    controller.stop(config.shutdown_timeout).await;
    Ok(())
}
