//! `run`: what it asks for, what it prints, and how it ends.

mod common;

use common::{Controller, line, stderr, stdout};
use fsb_proto::fastpath::{ConsistencyMode, LogStream, PullPolicy};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::Write;
use std::process::Stdio;
use std::time::Duration;
use tonic::Status;

#[test]
fn every_flag_reaches_the_controller() {
    let controller = Controller::start();
    std::fs::write(controller.directory.path().join("env"), "A=file\nC=3\n").unwrap();
    let words = "run web --image busybox --pool p --mode strong --ports 8080,9090 -e A=1 -e B --env-file env -w /w \
                 --expire 2030-01-01T00:00:00Z --failure-policy auto-recreate --recovery-timeout 2m --label k=v \
                 --memory 256m --cpus 0.5 --pids 7 --disk 1g --inodes 9000 --user 1000:1000 --grace 10s --pull never -n ns -- \
                 sh -c -x";
    let output = controller.ctl(&words.split_whitespace().collect::<Vec<_>>()).env("B", "ours").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = stdout(&output);
    for word in ["web", "agent-1", "10.213.1.2:8080,10.213.1.2:9090", "TIME"] {
        assert!(text.contains(word), "{text}");
    }
    let asked = controller.state().calls.creates.remove(0);
    assert_eq!((asked.name.as_str(), asked.namespace.as_str(), asked.pool_ref.as_str()), ("web", "ns", "p"));
    assert_eq!(asked.consistency_mode, ConsistencyMode::Strong as i32);
    assert_eq!(asked.exposed_ports, [8080, 9090]);
    let envs: Vec<_> = asked.envs.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(envs, ["A=1", "B=ours", "C=3"], "a flag wins over the file");
    assert_eq!((asked.working_dir.as_str(), asked.user.as_str()), ("/w", "1000:1000"));
    assert_eq!(asked.expire_time_seconds, 1_893_456_000);
    assert_eq!((asked.failure_policy, asked.recovery_timeout_seconds), (1, 120));
    assert_eq!(asked.labels.get("k").map(String::as_str), Some("v"));
    let limits = asked.resources.unwrap();
    assert_eq!((limits.memory_bytes, limits.cpu_millis, limits.pids), (256 << 20, 500, 7));
    assert_eq!((limits.disk_bytes, limits.inodes), (1 << 30, 9_000));
    assert_eq!((asked.grace_period_seconds, asked.pull_policy), (Some(10), PullPolicy::Never as i32));
    assert_eq!(asked.command, ["sh", "-c", "-x"]);
    assert_eq!(asked.request_id.len(), 32);
}

#[test]
fn a_command_needs_no_dashes_before_it_once_there_is_a_name() {
    let controller = Controller::start();
    for words in [&["run", "n", "--image", "b", "ls", "-la"][..], &["run", "--image", "b", "--", "n", "ls"]] {
        assert_eq!(controller.run(words).status.code(), Some(0));
    }
    let creates = &controller.state().calls.creates;
    assert_eq!((creates[0].name.as_str(), creates[0].command.join(" ").as_str()), ("n", "ls -la"));
    assert_eq!((creates[1].name.as_str(), creates[1].command.join(" ").as_str()), ("", "n ls"));
}

#[test]
fn a_program_gets_json() {
    let controller = Controller::start();
    let output = controller.run(&["run", "a", "--image", "b", "--ports", "80", "-o", "json"]);
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&answer["sandbox_id"], &answer["endpoints"][0]), (&"a".into(), &"10.213.1.2:80".into()));
    assert!(answer["elapsed_us"].as_u64().unwrap() > 0);
}

#[test]
fn a_file_of_either_shape_describes_the_sandbox_and_flags_win() {
    let controller = Controller::start();
    let directory = controller.directory.path();
    std::fs::write(directory.join("go.yaml"), "image: a\npool_ref: p\nargs: [x]\nenvs: {K: v}\n").unwrap();
    let object = "apiVersion: sandbox.fast.io/v1alpha1\nkind: Sandbox\nmetadata: {name: n, namespace: other}\n\
                  spec: {image: i, poolRef: q, exposedPorts: [1]}\n";
    std::fs::write(directory.join("object.yaml"), object).unwrap();
    assert_eq!(controller.run(&["run", "-f", "go.yaml", "--image", "b", "-e", "K=w"]).status.code(), Some(0));
    assert_eq!(controller.run(&["run", "-f", "object.yaml"]).status.code(), Some(0));
    let mut from_stdin =
        controller.ctl(&["run", "-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    from_stdin.stdin.take().unwrap().write_all(b"image: piped").unwrap();
    assert!(from_stdin.wait().unwrap().success());
    let creates = &controller.state().calls.creates;
    assert_eq!((creates[0].image.as_str(), creates[0].pool_ref.as_str(), creates[0].args[0].as_str()), ("b", "p", "x"));
    assert_eq!(creates[0].envs["K"], "w");
    assert_eq!((creates[1].name.as_str(), creates[1].namespace.as_str()), ("n", "other"));
    assert_eq!((creates[1].pool_ref.as_str(), &creates[1].exposed_ports[..]), ("q", &[1][..]));
    assert_eq!(creates[2].image, "piped");
}

#[test]
fn a_file_that_is_not_understood_starts_nothing_and_names_the_line() {
    let controller = Controller::start();
    std::fs::write(controller.directory.path().join("f.yaml"), "image: a\nimgae: b\n").unwrap();
    let output = controller.run(&["run", "-f", "f.yaml"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("f.yaml") && stderr(&output).contains("imgae"), "{}", stderr(&output));
    assert_eq!(controller.run(&["run", "-f", "not-there.yaml"]).status.code(), Some(1));
    assert!(controller.state().calls.creates.is_empty());
}

#[test]
fn what_the_controller_would_refuse_is_refused_before_the_call() {
    let controller = Controller::start();
    for (words, word) in [
        (&["run", "--image", "a b"][..], "image"),
        (&["run", "../x", "--image", "a"], "name"),
        (&["run", "--image", "a", "--label", "no spaces=x"], "label"),
        (&["run", "--image", "a", "-w", "tmp"], "working_dir"),
        (&["run", "--image", "a", "--ports", "70000"], "70000"),
        (&["run", "--image", "a", "--ports", "1,1"], "twice"),
        (&["run", "--image", "a", "--memory", "lots"], "256m"),
        (&["run", "--image", "a", "--mode", "quick"], "strong"),
    ] {
        let output = controller.run(words);
        assert_eq!(output.status.code(), Some(2), "{words:?}");
        assert!(stderr(&output).contains(word), "{words:?}: {}", stderr(&output));
    }
    assert!(controller.state().calls.creates.is_empty());
}

#[test]
fn wait_shows_both_streams_raw_and_passes_the_exit_code_on() {
    let controller = Controller::start();
    {
        let mut state = controller.state();
        state.script.lines = vec![line(LogStream::Stdout, "out"), line(LogStream::Stderr, "err")];
        state.script.exit_code = Some(7);
    }
    let output = controller.run(&["run", "--image", "b", "--wait", "--", "x"]);
    assert_eq!(output.status.code(), Some(7));
    assert_eq!((stdout(&output).as_str(), stderr(&output).as_str()), ("out\n", "err\n"));
    assert!(controller.state().calls.deletes.is_empty());
    controller.state().script.exit_code = Some(137);
    assert_eq!(controller.run(&["run", "w2", "--image", "b", "--wait"]).status.code(), Some(137));
    controller.state().script.exit_code = Some(0);
    assert_eq!(controller.run(&["run", "w3", "--image", "b", "--wait"]).status.code(), Some(0));
}

#[test]
fn output_that_was_cut_off_is_no_success() {
    let controller = Controller::start();
    {
        let mut state = controller.state();
        state.script.lines = vec![line(LogStream::Stdout, "half")];
        state.script.breaks = Some(Status::unavailable("its agent is gone"));
        state.script.exit_code = Some(0);
    }
    for (words, code) in [
        (&["run", "a", "--image", "b", "--rm"][..], 1),
        (&["run", "b", "--image", "b", "--wait"], 1),
        (&["logs", "b"], 1),
        (&["logs", "-f", "b"], 1),
    ] {
        let output = controller.run(words);
        assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(code), "half\n"), "{words:?}");
        let said = stderr(&output);
        assert_eq!(said.matches("its agent is gone").count(), 1, "{words:?}: {said}");
    }
    assert!(controller.state().calls.deletes.is_empty(), "that is the controller's");
    controller.state().script.exit_code = Some(7);
    let output = controller.run(&["run", "c", "--image", "b", "--rm"]);
    assert_eq!(output.status.code(), Some(7), "the program's own failure goes before");
    let output = controller.run(&["run", "d", "--image", "b", "--wait"]);
    assert!(stderr(&output).contains("hint: fsb-ctl logs d shows all of it"));
}

#[test]
fn a_log_whose_connection_broke_goes_on_where_it_was() {
    let controller = Controller::start();
    {
        let mut state = controller.state();
        state.script.lines = vec![line(LogStream::Stdout, "half")];
        state.script.breaks = Some(Status::unavailable("its agent is gone"));
        state.script.rest = Some((42, vec![line(LogStream::Stdout, "rest")]));
        state.script.exit_code = Some(0);
    }
    for words in
        [&["run", "a", "--image", "b", "--rm"][..], &["run", "c", "--image", "b", "--wait"], &["logs", "-f", "c"]]
    {
        controller.state().calls.logs.clear();
        let output = controller.run(words);
        assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(0), "half\nrest\n"), "{words:?}");
        assert_eq!(stderr(&output), "", "{words:?}");
        let again = controller.state().calls.logs.pop().unwrap();
        assert_eq!((again.from_offset, again.instance_id.as_str()), (Some(42), "i1"), "{words:?}");
    }
}

#[test]
fn lines_that_were_rotated_away_unread_are_said_and_are_no_success() {
    let controller = Controller::start();
    {
        let mut state = controller.state();
        state.script.lines = vec![line(LogStream::Stdout, "rest")];
        state.script.skipped_bytes = 17;
        state.script.exit_code = Some(0);
    }
    for (words, code) in
        [(&["run", "a", "--image", "b", "--wait"][..], 1), (&["logs", "a"], 0), (&["logs", "-f", "a", "--strict"], 1)]
    {
        let output = controller.run(words);
        assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(code), "rest\n"), "{words:?}");
        assert!(stderr(&output).contains("17 bytes"), "{words:?}: {}", stderr(&output));
    }
}

#[test]
fn rm_and_wait_ask_that_the_sandbox_waits_for_its_reader_and_rm_that_it_is_removed() {
    let controller = Controller::start();
    controller.state().script.exit_code = Some(0);
    for (flags, attached, ttl) in [(&["--rm"][..], true, Some(0)), (&["--wait"], true, None), (&[], false, None)] {
        let words: Vec<&str> = ["run", "--image", "b"].iter().chain(flags).copied().collect();
        controller.run(&words);
        let create = controller.state().calls.creates.pop().unwrap();
        assert_eq!((create.attached, create.ttl_seconds_after_finished), (attached, ttl), "{flags:?}");
    }
    assert!(controller.state().calls.logs.iter().all(|logs| logs.attached));
}

#[test]
fn wait_works_with_a_controller_that_has_no_watch() {
    let controller = Controller::start();
    controller.state().script.exit_code = Some(3);
    controller.state().script.no_watch = true;
    controller.state().script.removal = Duration::from_millis(500);
    assert_eq!(controller.run(&["run", "--image", "b", "--rm"]).status.code(), Some(3));
    assert!(controller.state().sandboxes.is_empty());
}

#[test]
fn a_sandbox_that_ran_out_of_memory_says_so() {
    let controller = Controller::start();
    controller.state().script.exit_code = Some(137);
    controller.state().script.reason = "OOMKilled".into();
    let output = controller.run(&["run", "--image", "b", "--wait"]);
    assert_eq!(output.status.code(), Some(137));
    assert!(stderr(&output).contains("OOMKilled"));
}

#[test]
fn rm_waits_and_leaves_nothing() {
    let controller = Controller::start();
    controller.state().script.exit_code = Some(5);
    controller.state().script.removal = Duration::from_millis(100);
    let output = controller.run(&["run", "--image", "b", "--rm"]);
    assert_eq!(output.status.code(), Some(5), "{}", stderr(&output));
    assert!(controller.state().sandboxes.is_empty(), "the name is free when the program ends");
}

/// Starts `run` with a sandbox that does not end, interrupts it when its log was read, and returns the exit code.
fn interrupt(controller: &Controller, words: &[&str]) -> Option<i32> {
    let child = controller.ctl(words).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    while controller.state().calls.logs.is_empty() {
        std::thread::sleep(Duration::from_millis(5));
    }
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    child.wait_with_output().unwrap().status.code()
}

#[test]
fn an_interrupted_rm_deletes_the_sandbox_and_an_interrupted_wait_does_not() {
    let controller = Controller::start();
    assert_eq!(interrupt(&controller, &["run", "a", "--image", "b", "--rm"]), Some(130));
    assert_eq!(controller.state().calls.deletes[0].sandbox_id, "a");
    controller.state().calls.logs.clear();
    assert_eq!(interrupt(&controller, &["run", "c", "--image", "b", "--wait"]), Some(130));
    assert_eq!(controller.state().calls.deletes.len(), 1);
}

#[test]
fn a_refusal_is_one_sentence_and_a_hint() {
    let controller = Controller::start();
    let refused = |status: Status, words: &[&str]| {
        controller.state().script.refuse = Some(status);
        let output = controller.run(words);
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(stdout(&output), "");
        stderr(&output)
    };
    let run = &["run", "a", "--image", "b"];
    let text = refused(Status::already_exists("a exists and has ended; hint: fsb-ctl rm a"), run);
    assert_eq!(text, "error: a exists and has ended\nhint: fsb-ctl rm a\n");
    let text = refused(Status::resource_exhausted("pool p is full: 5 of 5 in use"), run);
    assert!(text.starts_with("error: pool p is full: 5 of 5 in use\nhint: "), "{text}");
    let text = refused(Status::failed_precondition("hi: no such file"), &["run", "echo", "--image", "b", "hi"]);
    assert!(text.contains("hint: fsb-ctl run --image b -- echo hi"), "{text}");
}
