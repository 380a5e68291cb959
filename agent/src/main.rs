//! fsb-agent: settings, runtime, signals. What it does is in the library.
#![cfg_attr(not(test), warn(clippy::print_stderr, clippy::print_stdout))]

use anyhow::Context;
use caps::Capability;
use clap::Parser;
use fsb_agent::{Agent, Config, Listeners, serve};
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// How long requests under way may take when the agent is told to end.
const DRAIN: Duration = Duration::from_secs(10);

/// To unpack images as they are (ownership, modes, device nodes, overlayfs' attributes), to signal and reach into
/// sandboxes, and nothing else.
const NEEDED: [Capability; 10] = [
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_DAC_READ_SEARCH,
    Capability::CAP_FOWNER,
    Capability::CAP_FSETID,
    Capability::CAP_KILL,
    Capability::CAP_MKNOD,
    Capability::CAP_SETFCAP,
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_SYS_PTRACE,
];

/// The node agent of Fast Sandbox. Started by fsb-keeper.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// The unix socket to listen on.
    #[arg(long, env = "AGENT_SOCKET")]
    socket: Option<String>,
    /// The TCP port to listen on, with AGENT_TOKEN_FILE; 0 = none.
    #[arg(long, env = "AGENT_PORT")]
    http_port: Option<String>,
}

fn main() -> ExitCode {
    fsb_log::exit("fsb-agent", start())
}

fn start() -> anyhow::Result<()> {
    let keeper = fsb_host::process::keeper_socket().context("no keeper; hint: fsb-keeper starts the agent")?;
    let args = Args::parse();
    fsb_host::privileges::keep(&NEEDED).context("drop privileges")?;
    // One provider for everything that speaks TLS, before anything does.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = Config::parse(|key| match key {
        "AGENT_SOCKET" => args.socket.clone(),
        "AGENT_PORT" => args.http_port.clone(),
        key => std::env::var(key).ok(),
    })?;
    let runtime = fsb_agent::runtime().context("start the runtime")?;
    let _within = runtime.enter();
    let _traces = fsb_telemetry::init("fsb-agent");
    runtime.block_on(run(config, keeper))
}

async fn run(config: Config, keeper: std::os::fd::OwnedFd) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let agent = Agent::open(config.clone(), keeper).await?;
    let listeners = Listeners::bind(&config.socket, config.port, config.token_file.as_deref()).await?;
    tracing::info!(agent = config.name, socket = %config.socket.display(), port = listeners.port(), "serving");
    let stop = CancellationToken::new();
    let server = tokio::spawn(serve(agent.clone(), listeners, stop.clone()));
    tokio::select! {
        _ = terminate.recv() => tracing::info!("told to end"),
        _ = interrupt.recv() => tracing::info!("told to end"),
        () = agent.keeper_gone() => anyhow::bail!("the keeper is gone, and every sandbox with it"),
    }
    stop.cancel();
    agent.close(DRAIN).await;
    let _ = tokio::time::timeout(DRAIN, server).await;
    Ok(())
}
