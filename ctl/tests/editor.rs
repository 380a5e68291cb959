//! `run` with neither image nor file, on a terminal: the editor.

mod common;

use common::Controller;
use nix::pty::openpty;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// An editor that does what a shell script says with the file `$1`.
fn editor(directory: &Path, script: &str) -> String {
    let path = directory.join("edit.sh");
    std::fs::write(&path, script).unwrap();
    format!("sh {}", path.display())
}

/// Runs a command on a terminal and returns its exit code and all that it wrote.
fn on_terminal(mut command: Command) -> (Option<i32>, String) {
    let pty = openpty(None, None).unwrap();
    let end = |fd: &OwnedFd| Stdio::from(fd.try_clone().unwrap());
    command.stdin(end(&pty.slave)).stdout(end(&pty.slave)).stderr(end(&pty.slave));
    let mut child = command.spawn().unwrap();
    drop((pty.slave, command));
    let mut text = Vec::new();
    // The other side is closed at the end: EIO.
    let _ = File::from(pty.master).read_to_end(&mut text);
    (child.wait().unwrap().code(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn the_editor_opens_on_a_template_and_the_last_edit_is_remembered() {
    let controller = Controller::start();
    let home = controller.directory.path();
    let run = |script: &str, words: &[&str]| {
        let mut command = controller.ctl(words);
        command.env("EDITOR", editor(home, script));
        on_terminal(command)
    };
    let (code, text) = run("grep -q '^# command' \"$1\" || exit 9; echo 'image: first' > \"$1\"", &["run", "web"]);
    assert_eq!(code, Some(0), "{text}");
    let remembered = home.join(".fsb-ctl/cache/web.yaml");
    assert_eq!(std::fs::read_to_string(&remembered).unwrap(), "image: first\n");
    for (path, mode) in [(remembered.as_path(), 0o600), (remembered.parent().unwrap(), 0o700)] {
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, mode, "it may hold secrets: {path:?}");
    }
    let (code, text) =
        run("grep -q first \"$1\" || exit 9; sed -i s/first/second/ \"$1\"", &["run", "web", "--pool", "p"]);
    assert_eq!(code, Some(0), "{text}");
    let (code, text) = run("grep -q 'image: second' \"$1\" && exit 9; echo 'image: third' > \"$1\"", &["run"]);
    assert_eq!(code, Some(0), "another name begins anew: {text}");
    let state = controller.state();
    let asked: Vec<_> =
        state.calls.creates.iter().map(|r| (r.name.as_str(), r.image.as_str(), r.pool_ref.as_str())).collect();
    assert_eq!(asked, [("web", "first", ""), ("web", "second", "p"), ("", "third", "")]);
}

#[test]
fn nothing_is_started_when_the_edit_is_given_up_or_wrong() {
    let controller = Controller::start();
    for (script, word) in [("true", "image is empty"), ("exit 1", "editor"), ("echo 'imag: x' > \"$1\"", "imag")] {
        let mut command = controller.ctl(&["run", "web"]);
        command.env("FSB_EDITOR", editor(controller.directory.path(), script)).env("EDITOR", "false");
        let (code, text) = on_terminal(command);
        assert_eq!(code, Some(1), "{text}");
        assert!(text.contains(word), "{text}");
    }
    let mut command = controller.ctl(&["run", "../../etc/x"]);
    command.env("EDITOR", "true");
    assert_eq!(on_terminal(command).0, Some(2), "a name with path tricks has no cache");
    assert!(controller.state().calls.creates.is_empty());
}

#[test]
fn an_edit_that_was_not_understood_is_there_again() {
    let controller = Controller::start();
    let home = controller.directory.path();
    for (script, code) in
        [("echo 'image: [' > \"$1\"", Some(1)), ("grep -q '\\[' \"$1\" && echo 'image: x' > \"$1\"", Some(0))]
    {
        let mut command = controller.ctl(&["run", "web"]);
        command.env("EDITOR", editor(home, script));
        assert_eq!(on_terminal(command).0, code);
    }
}

#[test]
fn without_a_terminal_it_is_wrong_usage() {
    let controller = Controller::start();
    let output = controller.ctl(&["run", "web"]).env("EDITOR", "false").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(common::stderr(&output).contains("hint: fsb-ctl run --image web"));
}
