//! The direction of dependencies: products are leaves, and each crate knows only what ARCHITECTURE.md says.

use std::collections::BTreeMap;
use std::process::Command;

/// Crate → the crates of this workspace that it may depend on.
const MAY: [(&str, &[&str]); 14] = [
    ("fsb-proto", &[]),
    ("fsb-files", &[]),
    ("fsb-park", &[]),
    ("fsb-log", &[]),
    ("fsb-telemetry", &["fsb-log"]),
    ("fsb-rpc", &[]),
    ("fsb-host", &["fsb-park"]),
    ("fsb-image", &["fsb-proto", "fsb-files", "fsb-host"]),
    ("fsb-spawner", &["fsb-files", "fsb-host", "fsb-log"]),
    ("fsb-keeper", &["fsb-files", "fsb-host", "fsb-log"]),
    // The parked program for its tests only, which play one.
    (
        "fsb-agent",
        &["fsb-proto", "fsb-files", "fsb-host", "fsb-image", "fsb-log", "fsb-park", "fsb-telemetry", "fsb-rpc"],
    ),
    ("fsb-controller", &["fsb-proto", "fsb-files", "fsb-log", "fsb-telemetry", "fsb-rpc"]),
    ("fsb-ctl", &["fsb-proto", "fsb-files", "fsb-host", "fsb-log", "fsb-rpc"]),
    ("fsb-bench", &["fsb-proto", "fsb-host", "fsb-image", "fsb-agent", "fsb-controller", "fsb-rpc"]),
];

/// Crate → outside crates that it must not depend on, even by way of others.
const MUST_NOT: [(&str, &[&str]); 4] = [
    // A threaded runtime and a clone do not go together.
    ("fsb-spawner", &["tokio", "tonic", "axum"]),
    ("fsb-keeper", &["tonic", "axum", "libcontainer"]),
    ("fsb-agent", &["libcontainer"]),
    ("fsb-controller", &["libcontainer", "kube"]),
];

fn metadata() -> serde_json::Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline"])
        // Crates of other platforms have never been downloaded.
        .args(["--filter-platform", env!("FSB_BENCH_TARGET")])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn crates_depend_only_on_what_they_may() {
    let metadata = metadata();
    let packages = metadata["packages"].as_array().unwrap();
    let own: Vec<&serde_json::Value> =
        packages.iter().filter(|package| package["name"].as_str().unwrap().starts_with("fsb-")).collect();
    assert_eq!(own.len(), MAY.len(), "a new crate needs its line here");
    for package in own {
        let name = package["name"].as_str().unwrap();
        let (_, may) = MAY.iter().find(|entry| entry.0 == name).unwrap_or_else(|| panic!("{name} needs its line here"));
        for dependency in package["dependencies"].as_array().unwrap() {
            let dependency = dependency["name"].as_str().unwrap();
            assert!(
                !dependency.starts_with("fsb-") || may.contains(&dependency),
                "{name} must not depend on {dependency}"
            );
        }
    }
}

#[test]
fn what_must_not_meet_does_not_meet() {
    let metadata = metadata();
    let mut edges: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for node in metadata["resolve"]["nodes"].as_array().unwrap() {
        let normal = |dependency: &&serde_json::Value| {
            dependency["dep_kinds"].as_array().unwrap().iter().any(|kind| kind["kind"].is_null())
        };
        let targets = node["deps"].as_array().unwrap().iter().filter(normal).map(|d| d["pkg"].as_str().unwrap());
        edges.insert(node["id"].as_str().unwrap(), targets.collect());
    }
    let name = |id: &str| {
        let package = metadata["packages"].as_array().unwrap().iter().find(|package| package["id"] == id).unwrap();
        package["name"].as_str().unwrap().to_owned()
    };
    for (crate_name, forbidden) in MUST_NOT {
        let start = *edges.keys().find(|id| name(id) == crate_name).unwrap();
        let (mut seen, mut queue) = (vec![start], vec![start]);
        while let Some(id) = queue.pop() {
            for next in &edges[id] {
                if !seen.contains(next) {
                    seen.push(next);
                    queue.push(next);
                }
            }
        }
        for id in seen {
            let reached = name(id);
            assert!(!forbidden.contains(&reached.as_str()), "{crate_name} reaches {reached}");
        }
    }
}

/// Every file of the tests and sources below a folder.
fn sources(dir: &std::path::Path, text: &mut String) {
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        match path.file_name().and_then(|name| name.to_str()) {
            Some("target" | ".git") | None => {}
            Some(_) if path.is_dir() => sources(&path, text),
            Some(name) if name.ends_with(".rs") => text.push_str(&std::fs::read_to_string(&path).unwrap()),
            Some(_) => {}
        }
    }
}

/// Who makes directories that are not the node's own: those that containers see, cgroups, and mount points in a private
/// view.
const MAKES_DIRECTORIES: [&str; 7] = [
    "files/src/lib.rs",
    "agent/host/src/cgroup.rs",
    "agent/host/src/mount.rs",
    "agent/image/src/layer.rs",
    "agent/spawner/src/layer.rs",
    "agent/spawner/src/view.rs",
    "ctl/src/local/cgroups.rs",
];

/// Sources of the programs that make a directory by themselves.
fn makers(root: &std::path::Path, dir: &std::path::Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() && !["target", ".git", "bench", "tests"].contains(&name) {
            makers(root, &path, found);
        } else if name.ends_with(".rs") && !path.ends_with("tests.rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap();
            if ["fs::create_dir", "DirBuilder", "mkdir("].iter().any(|call| code.contains(call)) {
                found.push(path.strip_prefix(root).unwrap().display().to_string());
            }
        }
    }
}

#[test]
fn the_directories_of_a_node_are_made_by_one_function() {
    let root = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let mut found = Vec::new();
    makers(root, root, &mut found);
    // The parked program makes those of a container, and has no library.
    found.retain(|path| !MAKES_DIRECTORIES.contains(&path.as_str()) && !path.starts_with("agent/park/"));
    assert!(found.is_empty(), "use fsb-files' create_dir in {found:?}");
}

#[test]
fn every_test_that_the_specification_names_exists() {
    let root = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let mut text = String::new();
    sources(root, &mut text);
    let specification = std::fs::read_to_string(root.join("SPECIFICATION.md")).unwrap();
    let named = specification.split('`').skip(1).step_by(2);
    // Sentences: neither variables nor fields of a bench's cells.
    let is_test = |name: &&str| name.matches('_').count() > 3 && !name.contains(' ') && **name == name.to_lowercase();
    let tests: Vec<&str> = named.filter(is_test).collect();
    assert!(tests.len() > 30, "{tests:?}");
    for test in tests {
        assert!(text.contains(&format!("fn {test}(")), "no test is called {test}");
    }
}
