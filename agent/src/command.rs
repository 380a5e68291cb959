//! What the first process is started with: arguments and environment, and what an errno means to its user. Pure.

use crate::error::Error;
use fsb_proto::Invalid;
use nix::errno::Errno;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// PATH where the image has none: Docker's.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Entries of PATH that [`candidates`] looks at.
const MOST_DIRS: usize = 16;

/// The argument list, by Kubernetes' rule: `command` replaces ENTRYPOINT and drops CMD, `args` replaces CMD.
pub fn argv<'a>(
    wrapper: &'a [String],
    entrypoint: &'a [String],
    cmd: &'a [String],
    command: &'a [String],
    args: &'a [String],
) -> Result<Vec<&'a str>, Invalid> {
    let (first, rest) = match (command.is_empty(), args.is_empty()) {
        (false, _) => (command, args),
        (true, false) => (entrypoint, args),
        (true, true) => (entrypoint, cmd),
    };
    if first.is_empty() && rest.is_empty() {
        return Err(Invalid::new("command", "must not be empty: the image has neither ENTRYPOINT nor CMD"));
    }
    Ok(wrapper.iter().chain(first).chain(rest).map(String::as_str).collect())
}

/// The part of the environment that is the same for every start of an image by one user: PATH, the image's own, HOME.
pub fn base_env(image: &[String], home: &str) -> Vec<String> {
    let has = |key: &str| image.iter().any(|entry| key_of(entry) == key);
    let mut env = Vec::with_capacity(image.len() + 3);
    if !has("PATH") {
        env.push(format!("PATH={DEFAULT_PATH}"));
    }
    env.extend(image.iter().filter(|entry| !key_of(entry).is_empty() && key_of(entry) != "HOSTNAME").cloned());
    if !has("HOME") {
        env.push(format!("HOME={home}"));
    }
    env
}

/// The whole environment: the base, HOSTNAME, and the request's own on top.
pub fn env(base: &[String], hostname: &str, request: &BTreeMap<String, String>) -> Vec<String> {
    let mut env = Vec::with_capacity(base.len() + request.len() + 1);
    env.extend(base.iter().filter(|entry| request.is_empty() || !request.contains_key(key_of(entry))).cloned());
    if !request.contains_key("HOSTNAME") {
        env.push(format!("HOSTNAME={hostname}"));
    }
    env.extend(request.iter().map(|(key, value)| format!("{key}={value}")));
    env
}

/// Where a program may lie, in the order in which execvp(3) looks. None for a path that depends on the working
/// directory.
pub fn candidates(program: &str, env: &[String]) -> Vec<PathBuf> {
    if program.contains('/') {
        return if program.starts_with('/') { vec![program.into()] } else { Vec::new() };
    }
    let path = env.iter().rev().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    let dirs = path.split(':').filter(|dir| dir.starts_with('/'));
    dirs.take(MOST_DIRS).map(|dir| Path::new(dir).join(program)).collect()
}

fn key_of(entry: &str) -> &str {
    entry.split_once('=').map_or("", |(key, _)| key)
}

/// An execve that failed, in words.
pub fn exec_error(program: &str, env: &[String], errno: i32) -> Error {
    let errno = Errno::from_raw(errno);
    let path = env.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or("");
    let hint = match errno {
        Errno::ENOENT if program.contains('/') => {
            "the image has no such program, or not the interpreter or loader that it names".to_owned()
        }
        Errno::ENOENT => format!("the image has no program of that name in PATH={path}"),
        Errno::EACCES => "it is not executable for this user, or is a directory".to_owned(),
        Errno::ENOEXEC => "it is built for another architecture, or is a script without a #! line".to_owned(),
        Errno::E2BIG => "arguments and environment are too long together".to_owned(),
        Errno::ENOTDIR => "a part of its path is not a directory".to_owned(),
        Errno::ENOMEM => "the memory limit is too small for it".to_owned(),
        _ => "see execve(2) for what this error means".to_owned(),
    };
    Error::Start(format!("exec {:?}: {}; hint: {hint}", shown(program), errno.desc()))
}

/// A working directory that could not be entered, in words.
pub fn chdir_error(dir: &str, errno: i32) -> Error {
    let errno = Errno::from_raw(errno);
    let hint = match errno {
        Errno::ENOTDIR => "it, or a part of its path, is a file in the image",
        Errno::EACCES => "this user may not enter it",
        Errno::ENOSPC => "the writable layer is full",
        Errno::ELOOP => "the image has a circle of symbolic links there",
        _ => "it could not be created or entered inside the sandbox",
    };
    Error::Start(format!("working directory {:?}: {}; hint: {hint}", shown(dir), errno.desc()))
}

fn shown(text: &str) -> String {
    text.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn command_and_args_follow_the_rule_of_kubernetes() {
        let case = |command: &str, args: &str| {
            let (e, c, command, args) = (words("entry e"), words("cmd c"), words(command), words(args));
            argv(&[], &e, &c, &command, &args).unwrap().join(" ")
        };
        assert_eq!(case("", ""), "entry e cmd c");
        assert_eq!(case("", "a"), "entry e a");
        assert_eq!(case("x y", ""), "x y");
        assert_eq!(case("x", "a b"), "x a b");
        assert_eq!(argv(&[], &[], &words("sh -c true"), &[], &[]).unwrap().join(" "), "sh -c true");
        assert_eq!(argv(&[], &[], &[], &[], &[]).unwrap_err().field, "command");
        let wrapper = words("/.fs/helper --");
        assert_eq!(argv(&wrapper, &[], &[], &words("x"), &[]).unwrap().join(" "), "/.fs/helper -- x");
    }

    #[test]
    fn the_environment_has_defaults_then_the_image_then_the_request() {
        let base = base_env(&words("A=1 B=2 HOSTNAME=build"), "/root");
        assert_eq!(base, [format!("PATH={DEFAULT_PATH}"), "A=1".into(), "B=2".into(), "HOME=/root".into()]);
        let request = BTreeMap::from([("B".to_owned(), "x=y".to_owned()), ("PATH".to_owned(), "/bin".to_owned())]);
        assert_eq!(env(&base, "0123", &request), ["A=1", "HOME=/root", "HOSTNAME=0123", "B=x=y", "PATH=/bin"]);
        assert_eq!(base_env(&words("PATH=/x HOME=/y"), "/root"), ["PATH=/x", "HOME=/y"]);
    }

    #[test]
    fn a_program_is_looked_for_where_execvp_would() {
        let paths = |program: &str, env: &str| {
            let candidates = candidates(program, &words(env));
            candidates.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(paths("sh", "PATH=/usr/bin:/bin"), "/usr/bin/sh /bin/sh");
        assert_eq!(paths("sh", "PATH=.::/bin"), "/bin/sh", "what the working directory decides is not known yet");
        assert_eq!(paths("/opt/x", "PATH=/bin"), "/opt/x");
        assert_eq!(paths("./x", "PATH=/bin"), "");
        assert_eq!(paths("sh", "A=1").split(' ').count(), DEFAULT_PATH.split(':').count());
    }

    #[test]
    fn an_execve_that_fails_says_what_to_do() {
        let env = words("PATH=/bin");
        let text = |program, errno: Errno| exec_error(program, &env, errno as i32).to_string();
        assert!(text("nope", Errno::ENOENT).contains("in PATH=/bin"));
        assert!(text("/nope", Errno::ENOENT).contains("no such program"));
        assert!(text("/x", Errno::ENOEXEC).contains("another architecture"));
        assert!(text("/x", Errno::EACCES).contains("not executable"));
    }
}
