//! The agent's settings. Parsing is a pure function of a variable lookup; all bad variables are reported at once.

use crate::quantity;
use fsb_host::cgroup::Tree;
use fsb_host::paths::Paths;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The most paused containers per image where nothing else is said.
const MOST_PER_IMAGE: usize = 32;

/// How sandboxes get their container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MakeMode {
    /// From the stock; a miss is a cast.
    #[default]
    Stock,
    /// No stock: each start casts its own.
    Cast,
    /// No stock: each start has libcontainer make its own.
    Libcontainer,
}

/// How much memory paused containers may take together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolMemory {
    /// Of the agent's own memory limit.
    Percent(u64),
    Bytes(u64),
}

/// What an agent is told from outside.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where it keeps what.
    pub paths: Paths,
    /// `POD_NAME`.
    pub name: String,
    /// `NAMESPACE`.
    pub namespace: String,
    /// `FSB_POOL`.
    pub pool: String,
    /// `NODE_NAME`.
    pub node: String,
    /// `POD_UID`; `None` = the keeper's incarnation.
    pub uid: Option<String>,
    /// `POD_IP`: the address under which ports of its sandboxes are reached.
    pub ip: String,
    /// `AGENT_CAPACITY`; 0 = no limit.
    pub capacity: u32,
    /// `AGENT_PORT`; 0 = no TCP.
    pub port: u16,
    /// `AGENT_SOCKET`.
    pub socket: PathBuf,
    /// `AGENT_TOKEN_FILE`: without it there is no TCP.
    pub token_file: Option<PathBuf>,
    /// `MEMORY_LIMIT` in bytes; `None` = its cgroup's, else the machine's.
    pub memory_limit: Option<u64>,
    /// `INFRA_DIR_IN_POD`.
    pub plugin_dir: PathBuf,
    /// `ALLOWED_PLUGIN_PATHS`.
    pub plugin_roots: Vec<PathBuf>,
    /// `FSB_PLUGIN_WRAP`: the plugin that every command is run through.
    pub plugin_wrap: Option<String>,
    /// `WARM_IMAGES`, separated by commas or white space.
    pub warm_images: Vec<String>,
    /// `POOL_PER_IMAGE`.
    pub per_image: usize,
    /// `POOL_MEMORY`: bytes or `N%`.
    pub pool_memory: PoolMemory,
    /// `FSB_MAKE`: stock, cast or libcontainer.
    pub make: MakeMode,
    /// `FSB_CGROUP_TREE`, from the keeper; `None` = nothing of its own to sweep.
    pub cgroups: Option<Tree>,
}

/// Every variable that could not be understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadConfig(pub Vec<String>);

impl fmt::Display for BadConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bad settings: {}", self.0.join("; "))
    }
}

impl std::error::Error for BadConfig {}

impl Config {
    /// From variables as `get` knows them. An empty value is as good as none.
    pub fn parse(get: impl Fn(&str) -> Option<String>) -> Result<Self, BadConfig> {
        let mut reader = Reader { get, bad: Vec::new() };
        let name = reader.text("POD_NAME", "agent");
        let paths = Paths::new(
            reader.text("FSB_RUN_DIR", "/run/fast-sandbox"),
            reader.text("FSB_STATE_DIR", "/var/lib/fast-sandbox"),
            reader.text("FSB_LOG_DIR", "/var/log/fast-sandbox"),
            &name,
        );
        let capacity = reader.number("AGENT_CAPACITY", 5);
        let most = if capacity == 0 { MOST_PER_IMAGE } else { (capacity as usize).min(MOST_PER_IMAGE) };
        let plugin_dir = PathBuf::from(reader.text("INFRA_DIR_IN_POD", "/opt/fast-sandbox/infra"));
        let plugin_roots = match reader.var("ALLOWED_PLUGIN_PATHS") {
            Some(list) => list.split(':').filter(|path| !path.is_empty()).map(PathBuf::from).collect(),
            None => vec![plugin_dir.clone()],
        };
        match reader.var("RUNTIME_TYPE").as_deref() {
            None | Some("container") => {}
            Some(other) => reader.bad.push(format!("RUNTIME_TYPE must be container, is {other:?}")),
        }
        let make = match reader.var("FSB_MAKE").as_deref() {
            None | Some("stock") => MakeMode::Stock,
            Some("cast") => MakeMode::Cast,
            Some("libcontainer") => MakeMode::Libcontainer,
            Some(other) => {
                reader.bad.push(format!("FSB_MAKE must be stock, cast or libcontainer, is {other:?}"));
                MakeMode::Stock
            }
        };
        let cgroups = reader.var("FSB_CGROUP_TREE").and_then(|json| match Tree::from_json(&json) {
            Ok(tree) => Some(tree),
            Err(error) => {
                reader.bad.push(format!("FSB_CGROUP_TREE: {error}"));
                None
            }
        });
        let config = Self {
            namespace: reader.text("NAMESPACE", "default"),
            pool: reader.text("FSB_POOL", fsb_proto::domain::DEFAULT_POOL),
            node: reader.text("NODE_NAME", ""),
            uid: reader.var("POD_UID"),
            ip: reader.text("POD_IP", "127.0.0.1"),
            capacity,
            port: reader.number("AGENT_PORT", 5758),
            socket: PathBuf::from(reader.text("AGENT_SOCKET", "/run/fast-sandbox/agent.sock")),
            token_file: reader.var("AGENT_TOKEN_FILE").map(PathBuf::from),
            memory_limit: reader.quantity("MEMORY_LIMIT"),
            plugin_dir,
            plugin_roots,
            plugin_wrap: reader.var("FSB_PLUGIN_WRAP"),
            warm_images: reader
                .text("WARM_IMAGES", "")
                .split(|c: char| c == ',' || c.is_whitespace())
                .filter(|image| !image.is_empty())
                .map(str::to_owned)
                .collect(),
            per_image: reader.number("POOL_PER_IMAGE", most),
            pool_memory: reader.pool_memory(),
            make,
            cgroups,
            paths,
            name,
        };
        if reader.bad.is_empty() { Ok(config) } else { Err(BadConfig(reader.bad)) }
    }

    /// The budget of the pool in bytes, of an agent whose memory limit is `limit` bytes.
    pub fn pool_bytes(&self, limit: u64) -> u64 {
        match self.pool_memory {
            PoolMemory::Bytes(bytes) => bytes,
            PoolMemory::Percent(percent) => limit / 100 * percent,
        }
    }
}

struct Reader<F> {
    get: F,
    bad: Vec<String>,
}

impl<F: Fn(&str) -> Option<String>> Reader<F> {
    fn var(&self, key: &str) -> Option<String> {
        (self.get)(key).filter(|value| !value.is_empty())
    }

    fn text(&self, key: &str, default: &str) -> String {
        self.var(key).unwrap_or_else(|| default.to_owned())
    }

    fn number<N: FromStr + Copy>(&mut self, key: &str, default: N) -> N {
        let Some(value) = self.var(key) else { return default };
        value.trim().parse().unwrap_or_else(|_| {
            self.bad.push(format!("{key} must be a number in range, is {value:?}"));
            default
        })
    }

    fn quantity(&mut self, key: &str) -> Option<u64> {
        let value = self.var(key)?;
        let bytes = quantity::bytes(&value);
        if bytes.is_none() {
            self.bad.push(format!("{key} must be an amount such as 512Mi, is {value:?}"));
        }
        // The downward API writes 0 where the container has no limit.
        bytes.filter(|bytes| *bytes > 0)
    }

    fn pool_memory(&mut self) -> PoolMemory {
        let Some(value) = self.var("POOL_MEMORY") else { return PoolMemory::Percent(10) };
        let parsed = match value.strip_suffix('%') {
            Some(percent) => percent.parse().ok().filter(|percent| *percent <= 100).map(PoolMemory::Percent),
            None => quantity::bytes(&value).map(PoolMemory::Bytes),
        };
        parsed.unwrap_or_else(|| {
            self.bad.push(format!("POOL_MEMORY must be bytes or N%, is {value:?}"));
            PoolMemory::Percent(10)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(vars: &[(&str, &str)]) -> Result<Config, BadConfig> {
        Config::parse(|key| vars.iter().find(|(k, _)| *k == key).map(|(_, v)| v.to_string()))
    }

    #[test]
    fn the_defaults_are_those_of_the_specification() {
        let config = parse(&[]).unwrap();
        assert_eq!((config.capacity, config.port, config.per_image), (5, 5758, 5));
        assert_eq!(config.socket, PathBuf::from("/run/fast-sandbox/agent.sock"));
        assert_eq!(config.plugin_roots, [PathBuf::from("/opt/fast-sandbox/infra")]);
        assert_eq!(config.pool_bytes(1000), 100);
        assert_eq!(config.make, MakeMode::Stock);
        assert_eq!(parse(&[("AGENT_CAPACITY", "0")]).unwrap().per_image, 32);
    }

    #[test]
    fn all_bad_variables_are_reported_at_once() {
        let bad = parse(&[
            ("AGENT_PORT", "70000"),
            ("AGENT_CAPACITY", "many"),
            ("POOL_MEMORY", "200%"),
            ("MEMORY_LIMIT", "lots"),
            ("FSB_MAKE", "magic"),
            ("RUNTIME_TYPE", "vm"),
        ])
        .unwrap_err();
        assert_eq!(bad.0.len(), 6, "{bad}");
    }

    #[test]
    fn lists_are_taken_apart() {
        let config = parse(&[("WARM_IMAGES", "a, b\nc"), ("ALLOWED_PLUGIN_PATHS", "/x:/y:")]).unwrap();
        assert_eq!(config.warm_images, ["a", "b", "c"]);
        assert_eq!(config.plugin_roots, [PathBuf::from("/x"), PathBuf::from("/y")]);
    }
}
