//! Flags, with their defaults, and the times that everything goes by.

use crate::clock::Clock;
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, ValueEnum};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

/// What CreateSandbox does when a request leaves it open.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Consistency {
    /// The claim is written right after the answer.
    #[default]
    Fast,
    /// The claim is written first.
    Strong,
}

/// Who may use the Fast-Path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Auth {
    /// Anybody who reaches it.
    None,
    /// Who shows a token of the token file.
    Tokens,
}

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bind {
    /// Not at all.
    Off,
    /// `host:port`; an empty host is every address.
    Address(String),
}

impl FromStr for Bind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Bind::Off);
        }
        let port = text.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
        if port.is_none() {
            return Err("must be 'off', ':port' or 'host:port'".into());
        }
        Ok(Bind::Address(text.to_owned()))
    }
}

/// The controller of Fast Sandbox: takes sandboxes over the Fast-Path and finds an agent for each.
#[derive(Debug, Clone, Parser)]
#[command(name = "fsb-controller", version)]
pub struct Config {
    /// TCP address of the Fast-Path, or 'off'; listened on only with --auth-token-file or --auth none
    #[arg(long, default_value = ":9090", value_name = "ADDRESS")]
    pub fastpath_bind_address: Bind,
    /// Unix socket of the Fast-Path (mode 0660, group fsb if it exists), or 'off'
    #[arg(long, default_value = "/run/fast-sandbox/controller.sock", value_name = "PATH")]
    pub fastpath_socket: PathBuf,
    /// Address of /metrics, or 'off'
    #[arg(long, default_value = ":9091", value_name = "ADDRESS")]
    pub metrics_bind_address: Bind,
    /// Address of /healthz and /readyz, or 'off'
    #[arg(long, default_value = ":5758", value_name = "ADDRESS")]
    pub health_probe_bind_address: Bind,
    /// What a create does whose request says nothing
    #[arg(long, value_enum, default_value_t = Consistency::Fast)]
    pub fastpath_consistency_mode: Consistency,
    /// How long the sandbox of a claim that the store refuses may run
    #[arg(long, default_value = "10s", value_parser = duration, value_name = "TIME")]
    pub fastpath_orphan_timeout: Duration,
    /// Who may use the Fast-Path over TCP [default: tokens with --auth-token-file, else there is no TCP]
    #[arg(long, value_enum)]
    pub auth: Option<Auth>,
    /// Tokens of clients: one line `token namespace[,namespace]` each, `*` = every namespace
    #[arg(long, value_name = "PATH", required_if_eq("auth", "tokens"))]
    pub auth_token_file: Option<PathBuf>,
    /// Let --auth none listen on addresses that other machines reach
    #[arg(long)]
    pub insecure_bind: bool,
    /// Unix socket of an agent; give it once for each agent
    #[arg(long = "agent-socket", value_name = "PATH")]
    pub agent_sockets: Vec<PathBuf>,
    /// Address of an agent, `http://host[:port]`; give it once for each agent
    #[arg(long = "agent-address", value_name = "URL")]
    pub agent_addresses: Vec<String>,
    /// Port of agents whose address has none
    #[arg(long, default_value_t = 5758, value_name = "PORT")]
    pub agent_port: u16,
    /// Bearer token for agents that are reached over TCP
    #[arg(long, value_name = "PATH")]
    pub agent_token_file: Option<PathBuf>,
    /// File of the embedded claim store
    #[arg(long, default_value = "/var/lib/fast-sandbox/claims.redb", value_name = "PATH")]
    pub claims: PathBuf,
    /// Serve threads, memory and tasks of this process: on localhost:6060 to tokens for every namespace, and on the socket
    #[arg(long)]
    pub profiling: bool,
    /// Where they are served to tokens
    #[arg(long, default_value = "localhost:6060", hide = true)]
    pub profiling_bind_address: Bind,
    /// How long an agent may be out of reach before it is lost
    #[arg(long, default_value = "10s", value_parser = duration, hide = true)]
    pub agent_lost_after: Duration,
    /// How long to wait for the agents' reports at the start
    #[arg(long, default_value = "10s", value_parser = duration, hide = true)]
    pub settle_timeout: Duration,
    /// Deadline of a create that brings none, image pull included
    #[arg(long, default_value = "60s", value_parser = duration, hide = true)]
    pub create_deadline: Duration,
    /// How long calls in flight may take after SIGTERM
    #[arg(long, default_value = "10s", value_parser = duration, hide = true)]
    pub shutdown_timeout: Duration,
}

impl Config {
    /// The flags of this process. Wrong ones end it, with the usual exit code 2.
    pub fn of_process() -> Self {
        let config = Self::parse();
        if config.auth == Some(Auth::None) && config.auth_token_file.is_some() {
            let why = "the argument '--auth none' cannot be used with '--auth-token-file <PATH>'";
            Self::command().error(ErrorKind::ArgumentConflict, why).exit();
        }
        config
    }

    /// The times that these flags stand for.
    pub fn timing(&self) -> Timing {
        Timing {
            agent_lost_after: self.agent_lost_after,
            settle: self.settle_timeout,
            create_deadline: self.create_deadline,
            orphan_timeout: self.fastpath_orphan_timeout,
            ..Timing::default()
        }
    }
}

/// Every time that the controller goes by.
#[derive(Debug, Clone)]
pub struct Timing {
    /// An agent whose stream is down, or silent, for so long is lost.
    pub agent_lost_after: Duration,
    /// At the start: how long to wait for each agent's first report.
    pub settle: Duration,
    /// Deadline of a create that brings none.
    pub create_deadline: Duration,
    /// Deadline of every other call to an agent.
    pub call: Duration,
    /// First pause before another try.
    pub retry_least: Duration,
    /// Longest pause before another try.
    pub retry_most: Duration,
    /// How long the sandbox of a claim that the store refuses may run.
    pub orphan_timeout: Duration,
    /// How long an answer waits for its write where it has to be durable.
    pub durable_wait: Duration,
    /// How often logs without a claim are looked for.
    pub log_round: Duration,
    /// How long logs without a claim are kept.
    pub log_retention: Duration,
    /// The wall clock.
    pub clock: Arc<Clock>,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            agent_lost_after: Duration::from_secs(10),
            settle: Duration::from_secs(10),
            create_deadline: Duration::from_secs(60),
            call: Duration::from_secs(5),
            retry_least: Duration::from_millis(100),
            retry_most: Duration::from_secs(10),
            orphan_timeout: Duration::from_secs(10),
            durable_wait: Duration::from_secs(2),
            log_round: Duration::from_secs(600),
            log_retention: Duration::from_secs(3600),
            clock: Arc::default(),
        }
    }
}

fn duration(text: &str) -> Result<Duration, humantime::DurationError> {
    humantime::parse_duration(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_those_of_the_specification() {
        let config = Config::try_parse_from(["fsb-controller"]).unwrap();
        assert_eq!(config.fastpath_bind_address, Bind::Address(":9090".into()));
        assert_eq!((config.auth, config.insecure_bind), (None, false));
        assert_eq!(config.metrics_bind_address, Bind::Address(":9091".into()));
        assert_eq!(config.health_probe_bind_address, Bind::Address(":5758".into()));
        assert_eq!(config.fastpath_consistency_mode, Consistency::Fast);
        assert_eq!(config.timing().orphan_timeout, Duration::from_secs(10));
        assert_eq!(config.timing().agent_lost_after, Duration::from_secs(10));
        assert_eq!(config.agent_port, 5758);
    }

    #[test]
    fn an_address_is_off_or_has_a_port() {
        for good in ["off", ":0", "127.0.0.1:9090", "[::1]:1", "localhost:80"] {
            assert!(Bind::from_str(good).is_ok(), "{good}");
        }
        for bad in ["", "9090", "host", "host:", "host:99999"] {
            assert!(Bind::from_str(bad).is_err(), "{bad}");
        }
    }
}
