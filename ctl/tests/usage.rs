//! Words that are not understood, and the help.

mod common;

use common::{ctl, stderr, stdout};
use std::path::Path;
use std::process::Output;

fn run(words: &[&str]) -> Output {
    let home = tempfile::tempdir().unwrap();
    ctl(home.path(), words).output().unwrap()
}

#[test]
fn a_near_miss_is_answered_with_the_right_command() {
    for (words, hint) in [
        ("run busybox echo hi", "hint: fsb-ctl run --image busybox -- echo hi\n"),
        ("ps", "hint: fsb-ctl list\n"),
        ("stop web", "hint: fsb-ctl rm NAME\n"),
        ("up", "hint: fsb-ctl local up\n"),
        ("exec web -- sh", "--wait"),
        ("run -it --image busybox", "no terminal"),
    ] {
        let output = run(&words.split(' ').collect::<Vec<_>>());
        assert_eq!(output.status.code(), Some(2), "{words}");
        assert!(stderr(&output).contains(hint), "{words}: {}", stderr(&output));
        assert_eq!(stdout(&output), "", "talk goes to stderr");
    }
}

#[test]
fn wrong_usage_is_2_and_a_failure_is_1() {
    for words in ["", "list --nonsense", "get", "rm", "rm a --all", "update a", "list --endpoint https://x:1"] {
        let words: Vec<_> = words.split(' ').filter(|word| !word.is_empty()).collect();
        assert_eq!(run(&words).status.code(), Some(2), "{words:?}");
    }
    let output = run(&["list", "--endpoint", "unix:/nowhere/at/all.sock"]);
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    assert!(text.starts_with("error: cannot reach the controller at unix:/nowhere/at/all.sock: "), "{text}");
    assert!(text.contains("hint: ") && text.contains("local up"), "{text}");
    assert_eq!(text.lines().count(), 2, "{text}");
}

#[test]
fn colours_are_for_terminals() {
    assert!(!stderr(&run(&["list", "--endpoint", "unix:/nowhere.sock"])).contains('\x1b'));
}

#[test]
fn every_shell_gets_its_completion() {
    for (shell, word) in [("bash", "complete -F"), ("zsh", "#compdef fsb-ctl"), ("fish", "complete -c fsb-ctl")] {
        let output = run(&["completion", shell]);
        assert_eq!(output.status.code(), Some(0));
        assert!(stdout(&output).contains(word), "{shell}");
    }
}

/// `UPDATE_GOLDEN=1 cargo test` writes the file anew.
#[test]
fn the_help_is_what_the_golden_file_says() {
    let commands = [
        "",
        "run",
        "list",
        "get",
        "logs",
        "rm",
        "update",
        "reset",
        "image",
        "image import",
        "image pull",
        "image ls",
        "image rm",
        "local",
        "local up",
        "local down",
        "local status",
        "local serve",
        "doctor",
        "completion",
    ];
    let mut text = String::new();
    for command in commands {
        let words: Vec<_> = command.split(' ').filter(|word| !word.is_empty()).chain(["--help"]).collect();
        let output = run(&words);
        assert_eq!(output.status.code(), Some(0), "{command}");
        text += &format!("$ fsb-ctl {}\n{}\n", words.join(" "), stdout(&output));
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/help.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(golden == text, "the help has changed: look at the difference after UPDATE_GOLDEN=1 cargo test");
}
