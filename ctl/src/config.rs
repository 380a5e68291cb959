//! Settings: flags, then `FSB_*` variables, then `./.fsb/config.json`, then `~/.fsb/config.json`.

use crate::cli::Global;
use crate::error::{Context, Failure, Result};
use crate::{output, tokens};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Where the machine's own local node keeps its sockets.
pub(crate) const DEFAULT_RUN_DIR: &str = "/run/fast-sandbox";
const DEFAULT_PORT: u16 = 9090;

/// The address of a controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Unix(PathBuf),
    /// `host:port`.
    Tcp(String),
}

impl Endpoint {
    /// Reads `unix:PATH`, an absolute path, `host:port` or `host`.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let bad = |why: &str| {
            Failure::usage(format!("endpoint {text:?}: {why}")).hint("an endpoint is HOST:PORT or unix:/PATH")
        };
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.starts_with('/') {
                Ok(Self::Unix(path.into()))
            } else {
                Err(bad("the path is not absolute"))
            };
        }
        if text.starts_with('/') {
            return Ok(Self::Unix(text.into()));
        }
        if text.starts_with("https:") {
            return Err(bad("TLS is not spoken here"));
        }
        let address = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
        if address.is_empty() || address.contains(|c: char| c.is_whitespace() || c == '/') {
            return Err(bad("this is no address"));
        }
        match address.rsplit_once(':') {
            // The colons of a bare IPv6 address are not a port's.
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
                port.parse::<u16>().map_err(|_| bad("the port is not a number between 1 and 65535"))?;
                Ok(Self::Tcp(address.to_owned()))
            }
            Some(_) if !address.ends_with(']') => Ok(Self::Tcp(format!("[{address}]:{DEFAULT_PORT}"))),
            _ => Ok(Self::Tcp(format!("{address}:{DEFAULT_PORT}"))),
        }
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "{address}"),
        }
    }
}

/// One configuration file.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct File {
    endpoint: Option<String>,
    namespace: Option<String>,
    editor: Option<String>,
    #[serde(flatten)]
    unknown: std::collections::BTreeMap<String, serde_json::Value>,
}

impl File {
    /// `None` if there is no such file.
    fn read(path: &Path) -> Result<Option<Self>> {
        let text = match std::fs::read_to_string(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.context(|| format!("cannot read {}", path.display()))?,
        };
        let file: Self = serde_json::from_str(&text).map_err(|error| {
            Failure::new(format!("{}: {error}", path.display()))
                .hint(r#"a configuration is like {"endpoint": "localhost:9090", "namespace": "default"}"#)
        })?;
        for key in file.unknown.keys() {
            output::warning(&format!("{}: unknown key {key:?}, not used", path.display()));
        }
        Ok(Some(file))
    }
}

/// What the flags, the environment and the files say together.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) endpoint: Endpoint,
    pub(crate) namespace: String,
    pub(crate) token: Option<String>,
    /// Where else a token may be: the controller's own file, if it is one of this machine.
    pub(crate) token_file: Option<PathBuf>,
    /// A shell command.
    pub(crate) editor: Option<String>,
    /// The local node's directory; `None` = the machine's own node.
    pub(crate) root: Option<PathBuf>,
    pub(crate) verbose: bool,
}

/// Reads environment and files.
pub(crate) fn load(flags: &Global) -> Result<Settings> {
    let env = |key: &str| std::env::var(key).ok().filter(|value| !value.is_empty());
    let files = match flags.config.clone().or_else(|| env("FSB_CONFIG").map(PathBuf::from)) {
        Some(path) => match File::read(&path)? {
            Some(file) => vec![file],
            None => return Err(Failure::new(format!("there is no configuration file {}", path.display()))),
        },
        None => {
            let home = env("HOME").map(|home| Path::new(&home).join(".fsb/config.json"));
            let mut files = Vec::new();
            for path in [Some(PathBuf::from(".fsb/config.json")), home].into_iter().flatten() {
                files.extend(File::read(&path)?);
            }
            files
        }
    };
    // Who may not even look is told so, and not that another address does not answer.
    let socket = Path::new(DEFAULT_RUN_DIR).join("controller.sock").try_exists().unwrap_or(true);
    resolve(flags, &env, &files, socket)
}

/// Puts the settings together; `files` with the strongest first.
fn resolve(
    flags: &Global,
    env: &dyn Fn(&str) -> Option<String>,
    files: &[File],
    default_socket: bool,
) -> Result<Settings> {
    let file = |key: fn(&File) -> &Option<String>| files.iter().find_map(|file| key(file).clone());
    let socket = |root: &Path| Endpoint::Unix(root.join("run/controller.sock"));
    let env_root = env("FSB_ROOT").map(PathBuf::from);
    let root = flags.root.clone().or_else(|| env_root.clone()).map(absolute).transpose()?;
    let own = Path::new(DEFAULT_RUN_DIR).join("controller.sock");
    let mut token_file = None;
    let endpoint = match (&flags.endpoint, &flags.root, env("FSB_ENDPOINT"), &root, file(|f| &f.endpoint)) {
        (Some(flag), ..) => Endpoint::parse(flag)?,
        (None, Some(_), _, Some(root), _) => socket(root),
        (None, _, Some(variable), ..) => Endpoint::parse(&variable)?,
        (None, _, None, Some(root), _) => socket(root),
        (None, _, None, None, Some(file)) => Endpoint::parse(&file)?,
        (None, ..) if default_socket => Endpoint::Unix(own),
        _ => {
            token_file = Some(tokens::beside(&own));
            Endpoint::Tcp(format!("localhost:{DEFAULT_PORT}"))
        }
    };
    // A named address may be anybody's: no token is sent there that was not given for it.
    if let Endpoint::Unix(socket) = &endpoint {
        token_file = Some(tokens::beside(socket));
    }
    let namespace = flags.namespace.clone().or_else(|| env("FSB_NAMESPACE")).or_else(|| file(|f| &f.namespace));
    let editor = env("FSB_EDITOR").or_else(|| file(|f| &f.editor)).or_else(|| env("VISUAL")).or_else(|| env("EDITOR"));
    Ok(Settings {
        endpoint,
        namespace: namespace.unwrap_or_else(|| fsb_proto::domain::DEFAULT_NAMESPACE.to_owned()),
        token: flags.token.clone().or_else(|| env("FSB_TOKEN")),
        token_file,
        editor,
        root,
        verbose: flags.verbose,
    })
}

fn absolute(path: PathBuf) -> Result<PathBuf> {
    std::path::absolute(&path).context(|| format!("--root {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(endpoint: &str, namespace: &str) -> File {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        File { endpoint: some(endpoint), namespace: some(namespace), ..File::default() }
    }

    fn endpoint(flags: &Global, env: &[(&str, &str)], files: &[File], socket: bool) -> String {
        let env = |key: &str| env.iter().find(|(k, _)| *k == key).map(|(_, v)| (*v).to_owned());
        resolve(flags, &env, files, socket).unwrap().endpoint.to_string()
    }

    #[test]
    fn flags_win_over_variables_over_the_near_file_over_the_home_file_over_the_socket() {
        let flags = Global { endpoint: Some("flag:1".into()), ..Global::default() };
        let env = [("FSB_ENDPOINT", "env:2")];
        let files = || vec![file("", "near"), file("home:4", "home")];
        assert_eq!(endpoint(&flags, &env, &files(), true), "flag:1");
        assert_eq!(endpoint(&Global::default(), &env, &files(), true), "env:2");
        assert_eq!(endpoint(&Global::default(), &[], &files(), true), "home:4");
        assert_eq!(endpoint(&Global::default(), &[], &[], true), "unix:/run/fast-sandbox/controller.sock");
        assert_eq!(endpoint(&Global::default(), &[], &[], false), "localhost:9090");
        let settings = resolve(&Global::default(), &|_| None, &files(), true).unwrap();
        assert_eq!(settings.namespace, "near");
    }

    #[test]
    fn a_nodes_own_token_goes_to_that_node_alone() {
        let file = |flags: &Global, socket| resolve(flags, &|_| None, &[], socket).unwrap().token_file;
        let own = Some(PathBuf::from("/run/fast-sandbox/tokens"));
        assert_eq!(file(&Global::default(), true), own);
        assert_eq!(file(&Global::default(), false), own, "localhost:9090");
        let at = |endpoint: &str| Global { endpoint: Some(endpoint.into()), ..Global::default() };
        assert_eq!(file(&at("unix:/tmp/n/run/controller.sock"), true), Some("/tmp/n/run/tokens".into()));
        assert_eq!(file(&at("elsewhere:9090"), true), None);
        assert_eq!(file(&at("localhost:9090"), true), None);
    }

    #[test]
    fn a_root_picks_that_nodes_socket() {
        let flags = Global { root: Some("/tmp/n".into()), ..Global::default() };
        assert_eq!(endpoint(&flags, &[("FSB_ENDPOINT", "env:2")], &[], true), "unix:/tmp/n/run/controller.sock");
        let env = [("FSB_ROOT", "/tmp/m")];
        assert_eq!(endpoint(&Global::default(), &env, &[file("f:1", "")], true), "unix:/tmp/m/run/controller.sock");
    }

    #[test]
    fn an_endpoint_is_a_socket_or_a_host_and_port() {
        for (text, read) in [
            ("unix:/a/b", "unix:/a/b"),
            ("unix:///a/b", "unix:/a/b"),
            ("/a/b", "unix:/a/b"),
            ("localhost:80", "localhost:80"),
            ("http://localhost:80/", "localhost:80"),
            ("node", "node:9090"),
            ("::1", "[::1]:9090"),
            ("[::1]:80", "[::1]:80"),
        ] {
            assert_eq!(Endpoint::parse(text).unwrap().to_string(), read, "{text}");
        }
        for bad in ["", "unix:a", "https://x:1", "x:99999", "x:y", "a b:1"] {
            assert!(Endpoint::parse(bad).is_err(), "{bad}");
        }
    }
}
