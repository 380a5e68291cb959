//! The commands that look at sandboxes and change them, and where they go.

mod common;

use common::{Controller, SILENCE, ctl, line, sandbox, stderr, stdout};
use fsb_proto::fastpath::update_request::Update;
use fsb_proto::fastpath::{LogStream, SandboxInfo};
use std::process::Stdio;
use std::time::Duration;

#[test]
fn list_shows_a_namespace_or_all_of_them() {
    let controller = Controller::start();
    controller.add(sandbox("b", "Running"));
    controller.add(sandbox("a", "Failed"));
    controller.add(SandboxInfo { namespace: "other".into(), ..sandbox("c", "Running") });
    let text = stdout(&controller.run(&["list"]));
    let names: Vec<_> = text.lines().map(|line| line.split_whitespace().next().unwrap()).collect();
    assert_eq!(names, ["NAME", "a", "b"], "sorted, of this namespace:\n{text}");
    assert!(!text.contains("INSTANCE") && stdout(&controller.run(&["ls", "-o", "wide"])).contains("INSTANCE"));
    let all = stdout(&controller.run(&["list", "-A"]));
    assert!(all.starts_with("NAMESPACE") && all.contains("other"), "{all}");
    assert!(stdout(&controller.run(&["list", "-n", "other"])).contains("\nc "));
    let empty = controller.run(&["list", "-n", "empty"]);
    assert_eq!((stdout(&empty).as_str(), empty.status.code()), ("", Some(0)), "talk is not data");
}

#[test]
fn programs_get_every_field_in_json_and_yaml() {
    let controller = Controller::start();
    controller.add(SandboxInfo { exit_code: Some(3), ..sandbox("a", "Failed") });
    let json: serde_json::Value = serde_json::from_slice(&controller.run(&["list", "-o", "json"]).stdout).unwrap();
    assert_eq!((&json["items"][0]["sandbox_id"], &json["items"][0]["exit_code"]), (&"a".into(), &3.into()));
    let yaml: serde_yaml_ng::Value =
        serde_yaml_ng::from_slice(&controller.run(&["get", "a", "-o", "yaml"]).stdout).unwrap();
    assert_eq!((yaml["phase"].as_str(), yaml["failure_policy"].as_str()), (Some("Failed"), Some("Manual")));
    let empty: serde_json::Value =
        serde_json::from_slice(&controller.run(&["list", "-n", "x", "-o", "json"]).stdout).unwrap();
    assert_eq!(empty["items"].as_array().map(Vec::len), Some(0), "a program gets an empty list");
}

#[test]
fn get_of_nothing_is_a_failure_with_a_hint() {
    let controller = Controller::start();
    let output = controller.run(&["get", "x"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stderr(&output), "error: there is no sandbox x in default\nhint: fsb-ctl list -n default\n");
}

#[test]
fn logs_asks_for_what_the_flags_say_and_keeps_the_streams_apart() {
    let controller = Controller::start();
    controller.add(sandbox("a", "Running"));
    controller.state().script.lines = vec![line(LogStream::Stdout, "o"), line(LogStream::Stderr, "e")];
    let output = controller.run(&["logs", "a", "--tail", "5", "--since", "1970-01-01T00:00:09Z", "--previous"]);
    assert_eq!((stdout(&output).as_str(), stderr(&output).as_str()), ("o\n", "e\n"));
    let output = controller.run(&["logs", "a", "--timestamps", "--since", "10m"]);
    assert_eq!(stdout(&output), "2023-11-14T22:13:20.000000001Z o\n");
    let logs = &controller.state().calls.logs;
    assert_eq!((logs[0].tail_lines, logs[0].since_ms, logs[0].previous, logs[0].follow), (Some(5), 9000, true, false));
    assert!(logs[1].since_ms > 1_700_000_000_000 && logs[1].tail_lines.is_none());
}

#[test]
fn a_reader_that_goes_away_ends_the_log_without_a_word_and_not_as_a_success() {
    let controller = Controller::start();
    controller.add(sandbox("a", "Running"));
    controller.state().script.lines = vec![line(LogStream::Stdout, "0123456789"); 20_000];
    let mut command = std::process::Command::new("sh");
    let ctl = controller.ctl(&[]);
    let program = ctl.get_program().to_string_lossy();
    command
        .args(["-c", &format!("{{ {program} logs a; echo $? >code; }} | head -n 1")])
        .current_dir(controller.directory.path());
    command.envs(ctl.get_envs().filter_map(|(k, v)| Some((k, v?))));
    let output = command.output().unwrap();
    assert_eq!((stdout(&output).as_str(), stderr(&output).as_str()), ("0123456789\n", ""));
    assert_eq!(std::fs::read_to_string(controller.directory.path().join("code")).unwrap(), "141\n");
}

#[test]
fn a_reader_that_stalls_gets_the_whole_log_however_long_it_waits() {
    let controller = Controller::start();
    controller.add(sandbox("a", "Running"));
    let text = "0123456789".repeat(10).leak();
    controller.state().script.lines = vec![line(LogStream::Stdout, text); 20_000];
    let child = controller.ctl(&["logs", "a"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(2 * SILENCE);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(output.stdout.len(), 20_000 * 101);
}

#[test]
fn rm_tells_what_it_deleted_and_goes_on_after_a_failure() {
    let controller = Controller::start();
    controller.add(sandbox("a", "Running"));
    controller.add(sandbox("b", "Running"));
    let output = controller.run(&["rm", "a", "x", "b"]);
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(1), "a\nb\n"));
    assert!(stderr(&output).contains("no sandbox x"));
}

#[test]
fn rm_with_wait_or_force_returns_when_nothing_is_left() {
    let controller = Controller::start();
    controller.state().script.removal = Duration::from_millis(100);
    for (name, flag, force) in [("a", "--wait", false), ("b", "--force", true)] {
        controller.add(sandbox(name, "Running"));
        assert_eq!(controller.run(&["rm", name, flag]).status.code(), Some(0));
        assert!(controller.state().sandboxes.is_empty(), "{flag}");
        assert_eq!(controller.state().calls.deletes.last().map(|delete| delete.force), Some(force));
    }
}

#[test]
fn rm_all_deletes_a_namespace_and_no_other() {
    let controller = Controller::start();
    controller.add(sandbox("a", "Running"));
    controller.add(SandboxInfo { namespace: "other".into(), ..sandbox("b", "Running") });
    assert_eq!(stdout(&controller.run(&["rm", "--all", "--wait"])), "a\n");
    assert_eq!(controller.state().sandboxes[0].sandbox_id, "b");
}

#[test]
fn update_sends_one_call_for_each_change_and_the_labels_once() {
    let controller = Controller::start();
    controller.add(sandbox("a", "Running"));
    let words = "update a --expire-time never --failure-policy AutoRecreate --recovery-timeout 90 --labels x=1,y=";
    let output = controller.run(&words.split(' ').collect::<Vec<_>>());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let updates: Vec<_> =
        controller.state().calls.updates.drain(..).map(|u| (u.update.unwrap(), u.labels.len())).collect();
    let expected =
        [(Update::ExpireTimeSeconds(0), 2), (Update::FailurePolicy(1), 0), (Update::RecoveryTimeoutSeconds(90), 0)];
    assert_eq!(updates, expected);
    assert_eq!(controller.run(&["update", "a", "--labels", "z=1"]).status.code(), Some(0));
    let only = controller.state().calls.updates.remove(0);
    assert_eq!((only.update, only.labels["z"].as_str()), (None, "1"));
    assert_eq!(controller.run(&["update", "a", "--labels", "z"]).status.code(), Some(2));
}

#[test]
fn every_reset_is_a_later_revision() {
    let controller = Controller::start();
    controller.add(sandbox("a", "Running"));
    for word in ["reset", "restart"] {
        assert_eq!(controller.run(&[word, "a"]).status.code(), Some(0));
    }
    let revisions: Vec<_> = controller.state().calls.updates.drain(..).filter_map(|u| u.update).collect();
    let [Update::ResetRevision(first), Update::ResetRevision(second)] = &revisions[..] else {
        panic!("{revisions:?}");
    };
    assert!(first < second && first.len() == "2026-01-01T00:00:00.000000000Z".len(), "{revisions:?}");
}

#[test]
fn the_token_is_sent_and_the_flag_wins_over_the_variable() {
    let controller = Controller::start();
    controller.ctl(&["list"]).env("FSB_TOKEN", "t1").output().unwrap();
    controller.ctl(&["list", "--token", "t2"]).env("FSB_TOKEN", "t1").output().unwrap();
    controller.ctl(&["list"]).output().unwrap();
    let tokens = controller.state().calls.tokens.clone();
    assert_eq!(tokens, [Some("Bearer t1".into()), Some("Bearer t2".into()), None]);
}

#[test]
fn files_variables_and_flags_are_read_in_their_order() {
    let controller = Controller::start();
    controller.add(SandboxInfo { namespace: "near".into(), ..sandbox("near-box", "Running") });
    controller.add(SandboxInfo { namespace: "variable".into(), ..sandbox("variable-box", "Running") });
    controller.add(SandboxInfo { namespace: "flag".into(), ..sandbox("flag-box", "Running") });
    let home = controller.directory.path();
    let near = home.join("project");
    for (directory, text) in [
        (home.join(".fsb"), format!(r#"{{"endpoint": "unix:{}", "namespace": "home"}}"#, controller.socket.display())),
        (near.join(".fsb"), r#"{"namespace": "near", "colour": "red"}"#.to_owned()),
    ] {
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("config.json"), text).unwrap();
    }
    let names = |words: &[&str], variable: Option<&str>| {
        let mut command = ctl(home, words);
        command.current_dir(&near).envs(variable.map(|value| ("FSB_NAMESPACE", value)));
        let output = command.output().unwrap();
        (stdout(&output), stderr(&output))
    };
    let (text, warning) = names(&["list"], None);
    assert!(text.contains("near-box"), "the endpoint of the home file, the namespace of the near one: {text}{warning}");
    assert!(warning.contains("colour"), "a typing error does not pass in silence: {warning}");
    assert!(names(&["list"], Some("variable")).0.contains("variable-box"));
    assert!(names(&["list", "-n", "flag"], Some("variable")).0.contains("flag-box"));
    std::fs::write(home.join("one.json"), r#"{"namespace": "flag"}"#).unwrap();
    let output = controller.ctl(&["list", "--config", "one.json"]).output().unwrap();
    assert!(stdout(&output).contains("flag-box"));
    assert_eq!(controller.run(&["list", "--config", "none.json"]).status.code(), Some(1));
    std::fs::write(home.join("bad.json"), "{").unwrap();
    assert!(stderr(&controller.run(&["list", "--config", "bad.json"])).contains("bad.json"));
}
