//! `fsb-controller`: flags, runtime, signals.

use fsb_controller::{Config, Controller, privileges};
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    let config = Config::of_process();
    if let Err(error) = privileges::drop_others() {
        eprintln!("fsb-controller: {error}");
        return ExitCode::FAILURE;
    }
    // One thread serves: a request passes through several tasks, and each one that is handed to another thread would
    // wake up another processor first. Claims are written by threads of their own.
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = match runtime.worker_threads(1).enable_all().thread_name("controller").build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("fsb-controller: cannot start its runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let _within = runtime.enter();
    let _traces = fsb_telemetry::init("fsb-controller");
    match runtime.block_on(run(&config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
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

fn failed(error: &anyhow::Error) -> ExitCode {
    tracing::error!(error = format!("{error:#}"), "the controller cannot run");
    ExitCode::FAILURE
}
