//! Programs that could make the keeper, the agent or the spawner wait for them.

use crate::node::{Calls, Node, block_on};
use fsb_proto::fastpath::{CreateRequest, DeleteRequest};
use std::time::{Duration, Instant};

/// Stops in every way that it is asked for.
const STUBBORN: &str = r#"
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
static int heard;
static void hear(int signal) { (void)signal; heard++; }
static void *stop(void *unused)
{
    if (ptrace(PTRACE_TRACEME, 0, 0, 0) != 0)
        exit(9);
    syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGUSR1);
    return unused;
}
static void wait_for_ever(void) { for (;;) pause(); }
int main(int argc, char **argv)
{
    const char *how = argc > 1 ? argv[1] : "";
    pthread_t thread;
    int status;
    signal(SIGUSR1, hear);
    setvbuf(stdout, NULL, _IONBF, 0);
    if (strcmp(how, "exit") == 0) {
        printf("exec'd\n");
        return 7;
    } else if (strcmp(how, "once") == 0) {
        stop(NULL);
        printf("heard %d\n", heard);
        if (ptrace(PTRACE_TRACEME, 0, 0, 0) != 0)
            return 8;
        execl("/main", "/main", "exit", (char *)NULL);
    } else if (strcmp(how, "thread") == 0) {
        pthread_create(&thread, NULL, stop, NULL);
        pthread_join(thread, NULL);
        printf("heard %d\n", heard);
        return 7;
    } else if (strcmp(how, "loop") == 0) {
        for (;;)
            stop(NULL);
    } else if (strcmp(how, "threads") == 0) {
        for (;;) {
            pthread_create(&thread, NULL, stop, NULL);
            pthread_join(thread, NULL);
        }
    } else if (strcmp(how, "stopped") == 0) {
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        raise(SIGSTOP);
        wait_for_ever();
    } else if (strcmp(how, "deaf") == 0) {
        for (int number = 1; number < 65; number++)
            signal(number, SIG_IGN);
        wait_for_ever();
    } else if (strcmp(how, "vfork") == 0) {
        if (vfork() == 0)
            wait_for_ever();
    } else if (strcmp(how, "inside") == 0) {
        pid_t child = fork();
        if (child == 0) {
            ptrace(PTRACE_TRACEME, 0, 0, 0);
            raise(SIGSTOP);
            _exit(3);
        }
        waitpid(child, &status, 0);
        printf("stopped by %d\n", WIFSTOPPED(status) ? WSTOPSIG(status) : 0);
        ptrace(PTRACE_CONT, child, 0, 0);
        waitpid(child, &status, 0);
        return 40 + WEXITSTATUS(status);
    } else if (strcmp(how, "children") == 0) {
        for (int number = 0; number < 500; number++)
            if (fork() == 0) {
                if (number % 3 == 0)
                    ptrace(PTRACE_TRACEME, 0, 0, 0);
                if (number % 3 == 1)
                    for (int each = 1; each < 65; each++)
                        signal(each, SIG_IGN);
                else
                    raise(SIGSTOP);
                wait_for_ever();
            }
        sleep(1);
        return 5;
    }
    return 1;
}
"#;

fn program(name: &str, how: &str) -> CreateRequest {
    CreateRequest {
        image: "stubborn".into(),
        name: name.into(),
        args: vec![how.into()],
        grace_period_seconds: Some(1),
        ..Default::default()
    }
}

#[test]
fn a_program_that_makes_the_keeper_its_tracer_goes_on_and_ends_as_it_would_have() {
    let node = Node::up(&[]);
    node.import_program("stubborn", STUBBORN);
    let ends = [
        ("once", 7, "heard 1\nexec'd\n"),
        ("thread", 7, "heard 1\n"),
        ("inside", 43, "stopped by 19\n"),
        ("children", 5, ""),
    ];
    for (how, code, said) in ends {
        let output = node.ctl(&["run", "--rm", "--image", "stubborn", "--", "/main", how]);
        let heard = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!((output.status.code(), heard.as_str()), (Some(code), said), "{how}: {output:?}");
    }
    node.finish();
}

#[test]
fn a_program_that_stops_for_its_tracer_all_the_time_is_killed_and_keeps_nobody_waiting() {
    let node = Node::up(&[]);
    node.import_program("stubborn", STUBBORN);
    block_on(async {
        let mut client = node.client().await;
        for how in ["loop", "threads"] {
            client.create_as(program(how, how)).await.unwrap();
            let other = node.ctl_ok(&["run", "--rm", "--image", "busybox", "--", "echo", "hello"]);
            assert_eq!(other, "hello\n");
            let end = client.until(how, "Failed").await;
            assert_eq!(end.reason, "Signaled", "{end:?}");
            assert!(end.message.contains("PTRACE_TRACEME"), "{end:?}");
            client.remove(how).await;
        }
    });
    node.finish();
}

#[test]
fn a_program_that_stops_or_hears_nothing_is_killed_after_its_grace_period() {
    let node = Node::up(&[]);
    node.import_program("stubborn", STUBBORN);
    block_on(async {
        let mut client = node.client().await;
        for how in ["stopped", "deaf", "vfork"] {
            client.create_as(program(how, how)).await.unwrap();
            client.create_as(program("forced", how)).await.unwrap();
            tokio::time::sleep(Duration::from_millis(200)).await;
            for name in [how, "forced"] {
                assert_eq!(client.info(name).await.unwrap().phase, "Running", "{name}");
            }
            let asked = Instant::now();
            let force = DeleteRequest { sandbox_id: "forced".into(), force: true, ..Default::default() };
            client.delete_sandbox(force).await.unwrap();
            while client.info("forced").await.is_ok() {
                assert!(asked.elapsed() < Duration::from_secs(2), "{how}: a forced removal takes its time");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            client.remove(how).await;
        }
    });
    node.finish();
}
