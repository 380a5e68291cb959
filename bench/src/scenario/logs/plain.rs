//! The peer: the same writers below the same filter, without a sandbox, and a plain copier on a thread.

use super::writers::{Found, Work, real_ns};
use super::{Round, lead_ns};
use crate::floor::copier::{self, Rotation};
use crate::{clock, interrupt};
use anyhow::{Context, anyhow, bail};
use fsb_host::confine::confine;
use fsb_host::seccomp::default_filter;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Writers that are killed if they do not come to their end.
struct Writers(Vec<Child>);

impl Drop for Writers {
    fn drop(&mut self) {
        for writer in &mut self.0 {
            let _ = writer.kill();
            let _ = writer.wait();
        }
    }
}

/// One round; the logs lie in `dir` meanwhile.
pub(super) fn round(work: &Work, program: &Path, dir: &Path, rotation: Rotation) -> anyhow::Result<Round> {
    std::fs::create_dir_all(dir)?;
    let begin_ns = clock::now_ns() + lead_ns(work.writers);
    let mut writers = Writers(Vec::with_capacity(work.writers));
    let mut pipes: Vec<(_, PathBuf)> = Vec::with_capacity(work.writers);
    let log = |number: usize| dir.join(format!("{number}.log"));
    for number in 0..work.writers {
        interrupt::check()?;
        let mut command = Command::new(program);
        command.args(&work.words(number, begin_ns)[1..]).env_clear().stdin(Stdio::null()).stdout(Stdio::piped());
        // As in a sandbox, where a filter makes every system call a little slower.
        confine(&mut command, default_filter());
        let mut writer = command.spawn().context("start a writer")?;
        pipes.push((writer.stdout.take().context("a writer without output")?, log(number)));
        writers.0.push(writer);
    }
    let (now, real) = (clock::now_ns(), real_ns());
    if now >= begin_ns {
        bail!("{} writers could not be started in time", work.writers);
    }
    let copying = std::thread::spawn(move || copier::copy(pipes, rotation));
    while !copying.is_finished() {
        std::thread::sleep(Duration::from_millis(100));
        interrupt::check()?;
    }
    let cpu_ns = copying.join().map_err(|_| anyhow!("the copier panicked"))??;
    let mut found = Found::default();
    for number in 0..work.writers {
        found.read(work, number, &log(number))?;
    }
    std::fs::remove_dir_all(dir)?;
    Ok(Round { cpu_ns, took_ns: found.written_ns.saturating_sub(real + (begin_ns - now)), found })
}
