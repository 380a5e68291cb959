//! The environment of the node's programs: what the node says, and what the user may add. Nothing else of the
//! user's environment gets through.

use super::dirs::Dirs;
use super::record::{Agent, Node};
use std::collections::BTreeMap;
use std::ffi::OsString;

/// Marks every process of a node, so that none is overlooked when the record is lost.
pub(crate) const MARK: &str = "FSB_NODE";

/// What the help says of it.
pub(crate) const HELP: &str = "\
Its programs get from your environment: POOL_*, LOG_*, OTEL_*, FSB_*, ALLOWED_PLUGIN_PATHS, INFRA_DIR_IN_POD,
AGENT_TOKEN_FILE, RUNTIME_TYPE, DOCKER_CONFIG, the proxy variables, SSL_CERT_FILE and SSL_CERT_DIR.";

/// Passed on as they are. Those of a registry: where it is reached, who we are there, whom we trust.
const PASSED: [&str; 17] = [
    "PATH",
    "HOME",
    "ALLOWED_PLUGIN_PATHS",
    "INFRA_DIR_IN_POD",
    "AGENT_TOKEN_FILE",
    "RUNTIME_TYPE",
    "DOCKER_CONFIG",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "RUST_BACKTRACE",
    "RUST_LIB_BACKTRACE",
];
const PASSED_BEGINNINGS: [&str; 4] = ["POOL_", "LOG_", "OTEL_", "FSB_"];
/// Ours alone: they tell fsb-ctl where to go, and one of them is a secret.
const KEPT: [&str; 6] = ["FSB_ENDPOINT", "FSB_TOKEN", "FSB_NAMESPACE", "FSB_CONFIG", "FSB_EDITOR", "FSB_ROOT"];

/// What of the user's environment a program of the node gets.
fn passed(user: impl Iterator<Item = (OsString, OsString)>) -> BTreeMap<OsString, OsString> {
    let allowed = |key: &str| {
        !KEPT.contains(&key)
            && (PASSED.contains(&key) || PASSED_BEGINNINGS.iter().any(|beginning| key.starts_with(beginning)))
    };
    user.filter(|(key, _)| key.to_str().is_some_and(allowed)).collect()
}

/// The mark of this node's processes.
pub(crate) fn mark(dirs: &Dirs) -> String {
    format!("{MARK}={}", dirs.run.display())
}

/// The environment of the controller.
pub(crate) fn of_controller(dirs: &Dirs) -> BTreeMap<OsString, OsString> {
    let mut all = passed(std::env::vars_os());
    all.insert(MARK.into(), dirs.run.clone().into());
    all
}

/// The environment of a keeper, which passes it on to its agent and spawner.
pub(crate) fn of_keeper(dirs: &Dirs, node: &Node, agent: &Agent) -> BTreeMap<OsString, OsString> {
    let mut all = passed(std::env::vars_os());
    let host = nix::unistd::gethostname().unwrap_or_else(|_| "localhost".into());
    let own: [(&str, OsString); 17] = [
        (MARK, dirs.run.clone().into()),
        ("FSB_RUN_DIR", dirs.run.clone().into()),
        ("FSB_STATE_DIR", dirs.state.clone().into()),
        ("FSB_LOG_DIR", dirs.log.clone().into()),
        ("FSB_CGROUP", node.place.below(&dirs.agent_cgroup(&agent.name)).into()),
        ("FSB_POOL", agent.pool.clone().into()),
        ("POD_NAME", agent.name.clone().into()),
        ("POD_UID", uid().into()),
        ("POD_IP", node.ip(agent).map(|ip| ip.to_string()).unwrap_or_default().into()),
        ("NODE_NAME", host),
        ("NAMESPACE", agent.namespace.clone().into()),
        ("AGENT_NETNS", dirs.netns(&agent.name).into()),
        ("AGENT_CAPACITY", agent.capacity.to_string().into()),
        ("AGENT_SOCKET", dirs.agent_socket(&agent.name).into()),
        ("AGENT_PORT", "0".into()),
        ("WARM_IMAGES", node.warm_images.join(",").into()),
        ("TMPDIR", "/tmp".into()),
    ];
    all.extend(own.map(|(key, value)| (key.into(), value)));
    all
}

/// A random UUID: a keeper's life is what a Pod's is elsewhere.
fn uid() -> String {
    let random = rand::random::<u128>();
    // Version 4, variant 1 (RFC 9562).
    let hex = format!("{:032x}", random & !(0xf000 << 64) & !(0xc000 << 48) | (0x4000 << 64) | (0x8000 << 48));
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_environment_passes_only_where_it_is_meant_to() {
        let user = ["POOL_MEMORY", "LOG_LEVEL", "FSB_X", "FSB_TOKEN", "SECRET", "LD_PRELOAD", "PATH"];
        let kept = passed(user.into_iter().map(|key| (key.into(), "v".into())));
        let keys: Vec<_> = kept.keys().map(|key| key.to_str().unwrap()).collect();
        assert_eq!(keys, ["FSB_X", "LOG_LEVEL", "PATH", "POOL_MEMORY"]);
    }

    #[test]
    fn a_uid_is_a_version_4_uuid() {
        let uid = uid();
        assert_eq!((uid.len(), uid.as_bytes()[14]), (36, b'4'));
        assert!(b"89ab".contains(&uid.as_bytes()[19]), "{uid}");
        assert_ne!(uid, super::uid());
    }
}
