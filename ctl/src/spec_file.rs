//! The file of `run -f`: the Go CLI's YAML, or a Sandbox object.

use crate::units;
use fsb_proto::fastpath::{ConsistencyMode, CreateRequest, FailurePolicy, Resources};
use serde::Deserialize;
use serde::de::Error as _;
use std::collections::BTreeMap;
use std::time::SystemTime;

/// A string that may stand in YAML without quotes though it looks like a number or a truth value.
#[derive(Debug, Clone)]
struct Word(String);

impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match serde_yaml_ng::Value::deserialize(deserializer)? {
            serde_yaml_ng::Value::String(text) => Ok(Self(text)),
            serde_yaml_ng::Value::Bool(value) => Ok(Self(value.to_string())),
            serde_yaml_ng::Value::Number(number) if !number.is_f64() => Ok(Self(number.to_string())),
            other => Err(D::Error::custom(format!("expected a string, found {}; put it in quotes", kind(&other)))),
        }
    }
}

fn kind(value: &serde_yaml_ng::Value) -> &'static str {
    match value {
        serde_yaml_ng::Value::Null => "nothing",
        serde_yaml_ng::Value::Number(_) => "a fraction",
        serde_yaml_ng::Value::Sequence(_) => "a list",
        serde_yaml_ng::Value::Mapping(_) => "a mapping",
        _ => "something else",
    }
}

/// An environment: a mapping, or Kubernetes' list of names and values.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Environment {
    Map(BTreeMap<String, Word>),
    List(Vec<Variable>),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Variable {
    name: String,
    #[serde(default)]
    value: Option<Word>,
}

impl Environment {
    fn into_map(self) -> BTreeMap<String, String> {
        match self {
            Self::Map(map) => map.into_iter().map(|(key, value)| (key, value.0)).collect(),
            Self::List(list) => {
                list.into_iter().map(|v| (v.name, v.value.map(|word| word.0).unwrap_or_default())).collect()
            }
        }
    }
}

/// Limits as Kubernetes writes amounts.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Limits {
    cpu: Option<Amount>,
    memory: Option<Amount>,
    pids: Option<i64>,
    disk: Option<Amount>,
    inodes: Option<i64>,
}

/// An amount: a number or a string.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Amount {
    Number(f64),
    Text(String),
}

impl Amount {
    fn text(&self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Text(text) => text.clone(),
        }
    }
}

impl Limits {
    fn wire(&self) -> Result<Resources, String> {
        let amount = |name: &str, amount: &Option<Amount>, read: fn(&str) -> Result<i64, String>| {
            amount.as_ref().map_or(Ok(0), |a| read(&a.text()).map_err(|why| format!("resources.{name}: {why}")))
        };
        Ok(Resources {
            cpu_millis: amount("cpu", &self.cpu, units::cpus)?,
            memory_bytes: amount("memory", &self.memory, units::quantity)?,
            pids: self.pids.unwrap_or(0),
            disk_bytes: amount("disk", &self.disk, units::quantity)?,
            inodes: self.inodes.unwrap_or(0),
        })
    }
}

/// The fields of both shapes: snake case as the Go CLI has them, camel case as Sandbox objects have them.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Spec {
    image: Option<String>,
    #[serde(alias = "poolRef")]
    pool_ref: Option<String>,
    #[serde(alias = "consistencyMode")]
    consistency_mode: Option<String>,
    command: Option<Vec<Word>>,
    args: Option<Vec<Word>>,
    #[serde(alias = "exposedPorts")]
    exposed_ports: Option<Vec<i32>>,
    envs: Option<Environment>,
    #[serde(alias = "workingDir")]
    working_dir: Option<String>,
    #[serde(alias = "expireTime")]
    expire_time: Option<Word>,
    #[serde(alias = "failurePolicy")]
    failure_policy: Option<String>,
    #[serde(alias = "recoveryTimeoutSeconds")]
    recovery_timeout_seconds: Option<i32>,
    resources: Option<Limits>,
    #[serde(alias = "terminationGracePeriodSeconds")]
    grace_period_seconds: Option<i32>,
    #[serde(alias = "ttlSecondsAfterFinished")]
    ttl_seconds_after_finished: Option<i32>,
    user: Option<Word>,
    /// Only in the Go CLI's shape; an object has it in its metadata.
    name: Option<String>,
    namespace: Option<String>,
    labels: Option<BTreeMap<String, Word>>,
    /// Of an object that was read back: it means nothing to a new one.
    #[serde(rename = "reset_revision", alias = "resetRevision")]
    _reset_revision: Option<serde::de::IgnoredAny>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Object {
    api_version: String,
    kind: String,
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
}

/// Kubernetes' own fields that an object read back carries (uid, resourceVersion, …) are not for us.
#[derive(Debug, Default, Deserialize)]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    labels: Option<BTreeMap<String, Word>>,
}

/// Reads a file. The error says where and what, without the file's name. `now` is what relative times count from.
pub(crate) fn parse(text: &str, now: SystemTime) -> Result<CreateRequest, String> {
    let mut documents = serde_yaml_ng::Deserializer::from_str(text);
    let first = documents.next().ok_or("it is empty")?;
    let value = serde_yaml_ng::Value::deserialize(first).map_err(|error| error.to_string())?;
    if documents.next().is_some() {
        return Err("it holds several documents; one sandbox at a time".into());
    }
    let mapping = match &value {
        serde_yaml_ng::Value::Mapping(mapping) => mapping,
        serde_yaml_ng::Value::Null => return Err("it is empty".into()),
        _ => return Err("it holds no fields".into()),
    };
    let has = |key: &str| mapping.contains_key(key);
    if has("kind") || has("apiVersion") || has("spec") {
        let object: Object = serde_yaml_ng::from_value(value).map_err(|error| error.to_string())?;
        if object.kind != "Sandbox" || !object.api_version.starts_with("sandbox.fast.io/") {
            let (kind, version) = (object.kind, object.api_version);
            return Err(format!("it is a {kind} of {version}, not a Sandbox of sandbox.fast.io/v1alpha1"));
        }
        let Metadata { name, namespace, labels } = object.metadata;
        return request(Spec { name, namespace, labels, ..object.spec }, now);
    }
    // From the text again: errors then say the line.
    request(serde_yaml_ng::from_str(text).map_err(|error| error.to_string())?, now)
}

fn request(spec: Spec, now: SystemTime) -> Result<CreateRequest, String> {
    let words = |words: Option<Vec<Word>>| words.unwrap_or_default().into_iter().map(|word| word.0).collect();
    Ok(CreateRequest {
        image: spec.image.unwrap_or_default(),
        pool_ref: spec.pool_ref.unwrap_or_default(),
        exposed_ports: spec.exposed_ports.unwrap_or_default(),
        command: words(spec.command),
        args: words(spec.args),
        namespace: spec.namespace.unwrap_or_default(),
        consistency_mode: spec.consistency_mode.as_deref().map_or(Ok(0), consistency)?,
        name: spec.name.unwrap_or_default(),
        envs: spec.envs.map(Environment::into_map).unwrap_or_default(),
        working_dir: spec.working_dir.unwrap_or_default(),
        expire_time_seconds: match spec.expire_time {
            Some(text) => units::moment(&text.0).map_err(|why| format!("expire_time: {why}"))?.ahead(now),
            None => 0,
        },
        failure_policy: spec.failure_policy.as_deref().map_or(Ok(0), failure_policy)?,
        recovery_timeout_seconds: spec.recovery_timeout_seconds.unwrap_or_default(),
        labels: spec.labels.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0)).collect(),
        resources: spec.resources.as_ref().map(Limits::wire).transpose()?,
        grace_period_seconds: spec.grace_period_seconds,
        ttl_seconds_after_finished: spec.ttl_seconds_after_finished,
        user: spec.user.map(|word| word.0).unwrap_or_default(),
        ..CreateRequest::default()
    })
}

/// `fast` or `strong`.
pub(crate) fn consistency(text: &str) -> Result<i32, String> {
    match text.to_ascii_lowercase().as_str() {
        "" | "fast" => Ok(ConsistencyMode::Fast as i32),
        "strong" => Ok(ConsistencyMode::Strong as i32),
        _ => Err(format!("consistency_mode: {text:?} is neither fast nor strong")),
    }
}

/// `Manual` or `AutoRecreate`, however it is written.
pub(crate) fn failure_policy(text: &str) -> Result<i32, String> {
    match text.to_ascii_lowercase().replace(['-', '_'], "").as_str() {
        "" | "manual" => Ok(FailurePolicy::Manual as i32),
        "autorecreate" => Ok(FailurePolicy::AutoRecreate as i32),
        _ => Err(format!("failure_policy: {text:?} is neither manual nor auto-recreate")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    fn read(text: &str) -> Result<CreateRequest, String> {
        parse(text, UNIX_EPOCH + Duration::from_secs(1000))
    }

    #[test]
    fn the_go_clis_file_is_read() {
        let request = read(
            "image: busybox\npool_ref: p\nconsistency_mode: strong\ncommand: [sleep, 3600]\nargs: [true]\n\
             exposed_ports: [8080]\nenvs:\n  A: 1\nworking_dir: /tmp\n",
        )
        .unwrap();
        assert_eq!((request.image.as_str(), request.pool_ref.as_str()), ("busybox", "p"));
        assert_eq!(request.consistency_mode, ConsistencyMode::Strong as i32);
        assert_eq!((request.command, request.args), (vec!["sleep".into(), "3600".into()], vec!["true".into()]));
        assert_eq!((request.exposed_ports, request.working_dir.as_str()), (vec![8080], "/tmp"));
        assert_eq!(request.envs.get("A").map(String::as_str), Some("1"));
    }

    #[test]
    fn a_sandbox_object_is_read() {
        let request = read(
            "apiVersion: sandbox.fast.io/v1alpha1\nkind: Sandbox\n\
             metadata: {name: a, namespace: n, labels: {x: y}, uid: z}\n\
             spec:\n  image: i\n  poolRef: p\n  envs: [{name: A, value: b}, {name: E}]\n  failurePolicy: AutoRecreate\n  \
             terminationGracePeriodSeconds: 3\n  ttlSecondsAfterFinished: 5\n  resources: {memory: 64Mi, cpu: 500m, pids: 9, inodes: 7}\n  \
             expireTime: 1970-01-01T01:00:00Z\nstatus: {phase: Running}\n",
        )
        .unwrap();
        assert_eq!((request.name.as_str(), request.namespace.as_str()), ("a", "n"));
        assert_eq!(request.envs, BTreeMap::from([("A".into(), "b".into()), ("E".into(), String::new())]));
        assert_eq!((request.failure_policy, request.grace_period_seconds), (1, Some(3)));
        assert_eq!(request.ttl_seconds_after_finished, Some(5));
        let limits = request.resources.unwrap();
        assert_eq!((limits.memory_bytes, limits.cpu_millis, limits.pids, limits.inodes), (64 << 20, 500, 9, 7));
        assert_eq!(request.expire_time_seconds, 3600);
    }

    #[test]
    fn what_is_not_understood_is_an_error_and_not_left_out() {
        for (bad, word) in [
            ("imag: busybox", "imag"),
            ("image: a\ncommand: [1.5]", "quotes"),
            ("image: a\nconsistency_mode: maybe", "maybe"),
            ("image: a\nfailure_policy: never", "never"),
            ("kind: Pod\napiVersion: v1\nspec: {}", "Pod"),
            ("a: 1\n---\nb: 2", "several"),
            ("", "empty"),
            ("just words", "no fields"),
            ("image: [", "line"),
        ] {
            let error = read(bad).unwrap_err();
            assert!(error.contains(word), "{bad:?}: {error}");
        }
    }

    #[test]
    fn a_relative_expiry_counts_from_now() {
        assert_eq!(read("image: a\nexpire_time: 10m").unwrap().expire_time_seconds, 1600);
    }
}
