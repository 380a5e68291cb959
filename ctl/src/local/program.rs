//! Other programs: where ours are, and running small ones with a deadline.

use crate::error::{Failure, Result};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(15);

/// One of our own programs: beside this one, else on the PATH.
pub(crate) fn ours(name: &str) -> Result<PathBuf> {
    let beside = std::env::current_exe().ok().and_then(|me| Some(me.parent()?.join(name)));
    if let Some(path) = beside.filter(|path| path.is_file()) {
        return Ok(path);
    }
    on_path(name).ok_or_else(|| {
        Failure::new(format!("there is no {name} beside fsb-ctl nor on the PATH"))
            .hint("`make build` puts all programs into target/release")
    })
}

/// A program on the PATH. Administrators' directories count even where a user's PATH leaves them out.
pub(crate) fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let everywhere = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from));
    everywhere.map(|directory| directory.join(name)).find(|path| path.is_file())
}

/// Runs a program of the system to its end and returns its stdout.
pub(crate) fn run<S: AsRef<OsStr>>(name: &str, arguments: impl IntoIterator<Item = S>) -> Result<String> {
    feed(name, arguments, "")
}

/// The same with something on its stdin.
pub(crate) fn feed<S: AsRef<OsStr>>(name: &str, arguments: impl IntoIterator<Item = S>, input: &str) -> Result<String> {
    let path = on_path(name).ok_or_else(|| missing(name))?;
    let arguments: Vec<OsString> = arguments.into_iter().map(|word| word.as_ref().to_owned()).collect();
    let shown = || {
        let words: Vec<_> = arguments.iter().map(|word| word.to_string_lossy()).collect();
        format!("{name} {}", words.join(" "))
    };
    let failed = |why: &str| Failure::new(format!("{}: {why}", shown()));
    // Files and not pipes: nobody has to read while it runs, however much it writes.
    let file = || tempfile::tempfile().map_err(|error| failed(&error.to_string()));
    let (mut out, mut err) = (file()?, file()?);
    let copy = |file: &File| file.try_clone().map_err(|error| failed(&error.to_string()));
    let mut child = Command::new(path)
        .args(&arguments)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(copy(&out)?)
        .stderr(copy(&err)?)
        .spawn()
        .map_err(|error| failed(&error.to_string()))?;
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(input.as_bytes());
    }
    let until = Instant::now() + DEADLINE;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() > until => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(failed("it does not end"));
            }
            Ok(None) => std::thread::sleep(Duration::from_millis(1)),
            Err(error) => return Err(failed(&error.to_string())),
        }
    };
    let read = |file: &mut File| {
        let mut text = Vec::new();
        let _ = file.rewind().and_then(|()| file.read_to_end(&mut text));
        String::from_utf8_lossy(&text).into_owned()
    };
    let (out, err) = (read(&mut out), read(&mut err));
    if status.success() {
        return Ok(out);
    }
    Err(failed(err.trim().lines().last().filter(|line| !line.is_empty()).unwrap_or(&status.to_string())))
}

/// What to say about a program that is not installed.
pub(crate) fn missing(name: &str) -> Failure {
    let package = match name {
        "ip" => "iproute2",
        "nft" => "nftables",
        "unshare" | "nsenter" | "mount" => "util-linux",
        other => other,
    };
    Failure::new(format!("the program {name} is not installed")).hint(format!("apt-get install {package}"))
}

/// The words of a command line, none of which has spaces in it.
pub(crate) fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

/// Runs a program inside a pinned network namespace.
pub(crate) fn inside(netns: &Path, line: &str) -> Result<String> {
    let enter = format!("--net={}", netns.display());
    run("nsenter", std::iter::once(enter.as_str()).chain(words(line)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_fails_tells_its_last_words() {
        let failure = run("sh", ["-c", "echo a; echo first >&2; echo last >&2; exit 3"]).unwrap_err();
        assert!(failure.what.ends_with(": last"), "{failure}");
        assert_eq!(feed("cat", [""; 0], "x").unwrap(), "x");
        assert_eq!(run("head", ["-c", "300000", "/dev/zero"]).unwrap().len(), 300_000, "more than a pipe holds");
        assert!(run("fsb-no-such-program", [""; 0]).unwrap_err().hint.is_some());
    }
}
