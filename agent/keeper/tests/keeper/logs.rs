//! Every byte that a sandbox writes is in its file once, whatever else happens.

use crate::node::{Node, eventually};
use fsb_host::confine::refusing;
use fsb_host::pidfd;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;
use std::path::PathBuf;

const ENGINES: [&str; 2] = ["uring", "epoll"];
/// Its number is the same on every architecture (linux/unistd.h).
const IO_URING_SETUP: i64 = 425;

#[test]
fn every_line_is_there_once_over_agent_kills_and_rotation() {
    for engine in ENGINES {
        let node = Node::start(&[("FSB_LOG_ENGINE", engine), ("LOG_MAX_SIZE", "64Ki"), ("LOG_MAX_FILES", "1000")]);
        let (mut agent, _, _) = node.agent();
        let script =
            "i=0; while [ $i -lt 20000 ]; do echo line $i of some length; i=$((i+1)); done; echo last >&2; exit 6";
        let writers: Vec<_> = (0..4).map(|_| node.start_shell(&agent, script)).collect();
        let mut ended: usize = 0;
        for _ in 0..3 {
            agent.kill();
            let known;
            (agent, known, _) = node.agent();
            ended = known.iter().filter(|(record, _)| matches!(record.stage, fsb_host::wire::Stage::Ended(_))).count();
        }
        eventually("all have ended", || {
            let is_ended = |id: &str| {
                node.record_file(id).is_some_and(
                    |record| matches!(record.stage, fsb_host::wire::Stage::Ended(end) if end.code == Some(6)),
                )
            };
            writers.iter().all(|writer| is_ended(&writer.id))
        });
        assert!(ended <= writers.len());
        let expected: String = (0..20_000).map(|i| format!("line {i} of some length\n")).collect();
        for writer in &writers {
            assert!(node.texts(&writer.id, "stdout") == expected, "{engine}: a line is missing or changed");
            assert_eq!(node.texts(&writer.id, "stderr"), "last\n");
            let rotated = PathBuf::from(format!("{}.3", node.paths.log(&writer.id).display()));
            assert!(rotated.exists(), "{engine}: it was rotated");
            let text = std::fs::read(&rotated).unwrap();
            assert!(text.len() <= 64 << 10 && text.ends_with(b"\n"), "files end at the end of a line");
        }
    }
}

#[test]
fn where_rings_are_refused_logs_go_through_epoll() {
    // Kernels without io_uring say ENOSYS; container engines and `kernel.io_uring_disabled` say EPERM.
    for refusal in [Errno::EPERM, Errno::ENOSYS] {
        let filter = refusing(IO_URING_SETUP, refusal as i32);
        let node = Node::start_below(&[("LOG_MAX_SIZE", "16Ki"), ("LOG_MAX_FILES", "1000")], Some(filter));
        let (agent, _, _) = node.agent();
        let script = "i=0; while [ $i -lt 5000 ]; do echo line $i; i=$((i+1)); done; echo last >&2";
        let writer = node.start_shell(&agent, script);
        assert_eq!(agent.ended(&writer.id).code, Some(0));
        let expected: String = (0..5000).map(|i| format!("line {i}\n")).collect();
        assert!(node.texts(&writer.id, "stdout") == expected, "{refusal}: a line is missing or changed");
        assert_eq!(node.texts(&writer.id, "stderr"), "last\n");
        assert!(node.stderr().contains("no io_uring here"), "{refusal}: {}", node.stderr());
        // Whoever insists on the ring is told why there is none, and what to do.
        let mut strict =
            Node::start_below(&[("FSB_LOG_ENGINE", "uring")], Some(refusing(IO_URING_SETUP, refusal as i32)));
        assert_eq!(strict.wait().code(), Some(1));
        assert!(strict.stderr().contains("FSB_LOG_ENGINE=epoll works without io_uring"), "{}", strict.stderr());
    }
}

#[test]
fn only_so_many_files_are_kept() {
    let node = Node::start(&[("LOG_MAX_SIZE", "4Ki"), ("LOG_MAX_FILES", "3")]);
    let (agent, _, _) = node.agent();
    let writer = node.start_shell(&agent, "i=0; while [ $i -lt 1000 ]; do echo line $i; i=$((i+1)); done");
    agent.ended(&writer.id);
    let mut names: Vec<String> = std::fs::read_dir(node.paths.logs())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().replace(&writer.id, ""))
        .collect();
    names.sort();
    assert_eq!(names, [".log", ".log.1", ".log.2", ".log.base"], "and where they begin in the whole");
    assert!(node.texts(&writer.id, "stdout").ends_with("line 998\nline 999\n"));
}

#[test]
fn hostile_bytes_and_open_lines_are_kept_as_they_are() {
    for engine in ENGINES {
        let node = Node::start(&[("FSB_LOG_ENGINE", engine)]);
        let (agent, _, _) = node.agent();
        let script = "printf 'a\\000b\\r\\377\\n\\n'; printf 'open' >&2; printf 'end'";
        let writer = node.start_shell(&agent, script);
        agent.ended(&writer.id);
        let log = std::fs::read(node.paths.log(&writer.id)).unwrap();
        let mut records: Vec<&[u8]> =
            log.split(|byte| *byte == b'\n').map(|line| line.get(31..).unwrap_or(b"")).collect();
        records.sort();
        let expected: [&[u8]; 5] = [b"", b"stderr P open", b"stdout F ", b"stdout F a\0b\r\xff", b"stdout P end"];
        assert_eq!(records, expected, "{engine}");
    }
}

#[test]
fn a_prompt_is_seen_while_its_process_waits() {
    for engine in ENGINES {
        let node = Node::start(&[("FSB_LOG_ENGINE", engine)]);
        let (agent, _, _) = node.agent();
        let prompt = node.start_shell(&agent, "printf 'name? '; sleep 1000");
        eventually("the prompt", || node.texts(&prompt.id, "stdout") == "name? ");
        assert!(prompt.is_alive());
    }
}

#[test]
fn the_file_is_there_before_there_is_output() {
    let node = Node::start(&[]);
    let (agent, _, _) = node.agent();
    let silent = node.start_shell(&agent, "sleep 1000");
    eventually("an empty log", || node.paths.log(&silent.id).exists());
    assert!(silent.is_alive());
}

#[test]
fn chatty_writers_starve_neither_a_quiet_one_nor_control_messages() {
    for engine in ENGINES {
        let node = Node::start(&[("FSB_LOG_ENGINE", engine), ("LOG_MAX_SIZE", "1Mi"), ("LOG_MAX_FILES", "1")]);
        let (agent, _, _) = node.agent();
        let chatty: Vec<_> = (0..8).map(|_| node.start_shell(&agent, "exec yes")).collect();
        eventually("floods", || chatty.iter().all(|one| !node.log(&one.id).is_empty()));
        for round in 0..5 {
            let quiet = node.start_shell(&agent, &format!("echo quiet {round}; sleep 1000"));
            agent.started(&quiet.id);
            eventually("the quiet line", || node.texts(&quiet.id, "stdout") == format!("quiet {round}\n"));
        }
        assert!(chatty.iter().all(|one| one.is_alive()));
        for one in &chatty {
            pidfd::kill(&one.pidfd, Signal::SIGKILL).unwrap();
            assert_eq!(agent.ended(&one.id).signal, Some(Signal::SIGKILL as i32));
        }
    }
}

#[test]
fn an_end_is_not_held_up_by_somebody_else_who_holds_its_pipes() {
    for engine in ENGINES {
        let node = Node::start(&[("FSB_LOG_ENGINE", engine)]);
        let (agent, _, _) = node.agent();
        let pid_file = node.dir().join("flood");
        let silent = node.start_shell(&agent, "sleep 1000 & echo $! >&2; echo done; exit 3");
        let flood = node.start_shell(&agent, &format!("yes & echo $! > {}; exit 4", pid_file.display()));
        assert_eq!(agent.ended(&silent.id).code, Some(3));
        assert_eq!(agent.ended(&flood.id).code, Some(4));
        assert_eq!(node.texts(&silent.id, "stdout"), "done\n");
        let holder = node.texts(&silent.id, "stderr");
        assert!(PathBuf::from(format!("/proc/{}", holder.trim())).exists(), "the holder lives");
        // Its pipe is closed, so the flood ends by SIGPIPE.
        let flooder = PathBuf::from(format!("/proc/{}", std::fs::read_to_string(&pid_file).unwrap().trim()));
        eventually("the flood's end", || !flooder.exists());
    }
}

/// Unmounts, also when the test fails.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_full_disk_stops_the_writer_and_loses_nothing() {
    for engine in ENGINES {
        let disk = tempfile::Builder::new().prefix("fsbd").tempdir_in("/tmp").unwrap();
        let mounted = Mounted(disk.path().to_owned());
        mount(Some("tmpfs"), disk.path(), Some("tmpfs"), MsFlags::empty(), Some("size=256k")).unwrap();
        let node = Node::start(&[("FSB_LOG_ENGINE", engine), ("FSB_LOG_DIR", disk.path().to_str().unwrap())]);
        let (agent, _, _) = node.agent();
        let writer = node.start_shell(&agent, "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done");
        eventually("a complaint", || node.stderr().contains("the log cannot be written"));
        let other = node.paused(&agent);
        assert!(writer.is_alive() && other.is_alive(), "the writer waits, and nobody else");
        assert_eq!(node.stderr().matches("the log cannot be written").count(), 1);
        let flags = MsFlags::MS_REMOUNT;
        mount(Some("tmpfs"), disk.path(), None::<&str>, flags, Some("size=64m")).unwrap();
        assert_eq!(agent.ended(&writer.id).code, Some(0));
        let expected: String = (0..20_000).map(|i| format!("line {i}\n")).collect();
        let log = std::fs::read_to_string(disk.path().join(format!("{}.log", writer.id))).unwrap();
        let texts: String = log.lines().map(|line| format!("{}\n", &line[40..])).collect();
        assert!(texts == expected, "{engine}: a line is missing or changed");
        drop(node);
        drop(mounted);
    }
}
