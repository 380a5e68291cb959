//! The Fast-Path over TCP: only where it is asked for, and then for tokens unless it is said that there are none.

use super::dirs::Dirs;
use crate::error::{Failure, Result};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::net::ToSocketAddrs;

/// The port that clients of the machine's own node know.
const PORT: u16 = 9090;

/// Who may use the Fast-Path over TCP: anybody who reaches it, or who shows a token of the node's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Auth {
    // Not told in the help, which would then take three lines for each flag.
    None,
    Tokens,
}

impl Auth {
    /// Whom it lets in, in words.
    pub(crate) fn open_to(self, dirs: &Dirs) -> String {
        match self {
            Self::None => "open to anybody".to_owned(),
            Self::Tokens => format!("open to the tokens in {}", dirs.tokens().display()),
        }
    }
}

/// The flags of `local up`.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Flags {
    /// Serve the Fast-Path over TCP too [default address: 127.0.0.1:9090; with --root a free port]
    #[arg(long, value_name = "ADDRESS", num_args = 0..=1)]
    tcp: Option<Option<String>>,
    /// Who may use it over TCP: whoever shows a token of RUN/tokens, which is made, or anybody [default: tokens]
    #[arg(long, value_enum, requires = "tcp")]
    auth: Option<Auth>,
    /// Let --auth none listen on an address that other machines reach
    #[arg(long, requires = "tcp")]
    insecure_bind: bool,
}

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tcp {
    /// `host:port`; an empty host is every address, port 0 a free one.
    pub(crate) asked: String,
    pub(crate) auth: Auth,
    pub(crate) insecure_bind: bool,
}

impl Flags {
    /// The same flags for `local serve`.
    pub(crate) fn to_arguments(&self) -> Vec<String> {
        let mut words = Vec::new();
        words.extend(self.tcp.as_ref().map(|address| match address {
            Some(address) => format!("--tcp={address}"),
            None => "--tcp".to_owned(),
        }));
        let auth = self.auth.and_then(|auth| auth.to_possible_value());
        words.extend(auth.map(|auth| format!("--auth={}", auth.get_name())));
        words.extend(self.insecure_bind.then(|| "--insecure-bind".to_owned()));
        words
    }

    /// What they ask for; `None` = no TCP.
    pub(crate) fn asked(&self, dirs: &Dirs) -> Result<Option<Tcp>> {
        let Some(address) = &self.tcp else { return Ok(None) };
        let asked = match address {
            Some(address) => address.clone(),
            None => format!("127.0.0.1:{}", if dirs.root.is_none() { PORT } else { 0 }),
        };
        let tcp = Tcp { asked, auth: self.auth.unwrap_or(Auth::Tokens), insecure_bind: self.insecure_bind };
        tcp.check()?;
        Ok(Some(tcp))
    }
}

impl Tcp {
    /// Said before anything is started, and not in a log: the controller would refuse it again and again.
    fn check(&self) -> Result<()> {
        let usage = |why: String| Failure::usage(format!("--tcp {}: {why}", self.asked));
        let port = self.asked.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
        let Some((host, port)) = port else {
            return Err(usage("this is no address".into()).hint("an address is HOST:PORT or :PORT"));
        };
        if self.auth == Auth::Tokens || self.insecure_bind {
            return Ok(());
        }
        // Names are looked up as the controller does it.
        let addresses = (!host.is_empty()).then(|| (host.trim_matches(['[', ']']), port).to_socket_addrs());
        let addresses: Vec<_> = match addresses.transpose() {
            Ok(addresses) => addresses.into_iter().flatten().collect(),
            Err(error) => return Err(usage(error.to_string())),
        };
        if addresses.is_empty() || !addresses.iter().all(|address| address.ip().to_canonical().is_loopback()) {
            return Err(usage("with --auth none whoever reaches this machine could use the node".into())
                .hint("leave --auth none out, or listen on 127.0.0.1:9090, or add --insecure-bind if that is meant"));
        }
        Ok(())
    }

    /// What is said at every start of a node that anybody may use.
    pub(crate) fn warning(&self, address: &str) -> Option<String> {
        (self.auth == Auth::None).then(|| {
            format!(
                "--auth none: whoever reaches {address} may start sandboxes, see their environment and logs, and delete them"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use std::path::Path;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        flags: Flags,
    }

    fn asked(line: &str) -> Result<Option<Tcp>> {
        let words = std::iter::once("x").chain(line.split_whitespace());
        Line::try_parse_from(words).unwrap().flags.asked(&Dirs::of(Some(Path::new("/tmp/n"))))
    }

    #[test]
    fn without_being_asked_for_there_is_no_tcp_and_then_it_wants_tokens() {
        assert_eq!(asked("").unwrap(), None);
        let tcp = asked("--tcp").unwrap().unwrap();
        assert_eq!((tcp.asked.as_str(), tcp.auth), ("127.0.0.1:0", Auth::Tokens));
        assert_eq!(tcp.warning("a:1"), None);
        let own = Line::try_parse_from(["x", "--tcp"]).unwrap().flags.asked(&Dirs::of(None));
        assert_eq!(own.unwrap().unwrap().asked, "127.0.0.1:9090");
        assert!(asked("--tcp :9090").is_ok(), "every address, with tokens");
        assert!(Line::try_parse_from(["x", "--auth", "none"]).is_err(), "without --tcp it says nothing");
    }

    #[test]
    fn without_tokens_it_is_this_machines_alone_unless_that_is_meant() {
        for good in ["127.0.0.1:9090", "127.0.0.2:0", "[::1]:1", "localhost:80", "[::ffff:127.0.0.1]:9"] {
            let tcp = asked(&format!("--tcp {good} --auth none")).unwrap().unwrap();
            assert!(tcp.warning("a:1").unwrap().contains("a:1"), "{good}");
        }
        for bad in [":9090", "0.0.0.0:9090", "[::]:9090", "10.0.0.1:1", "nowhere", "host:", "off"] {
            assert_eq!(asked(&format!("--tcp {bad} --auth none")).unwrap_err().code, 2, "{bad}");
        }
        assert!(asked("--tcp :9090 --auth none --insecure-bind").is_ok());
    }

    #[test]
    fn the_supervisor_gets_the_same_flags() {
        for line in ["", "--tcp", "--tcp=:1 --auth=none --insecure-bind", "--tcp=127.0.0.1:0 --auth=tokens"] {
            let words = |line: Vec<String>| std::iter::once("x".to_owned()).chain(line).collect::<Vec<_>>();
            let before = words(line.split_whitespace().map(str::to_owned).collect());
            let before = Line::try_parse_from(before).unwrap().flags;
            let again = Line::try_parse_from(words(before.to_arguments())).unwrap().flags;
            assert_eq!(format!("{before:?}"), format!("{again:?}"), "{line}");
        }
    }
}
