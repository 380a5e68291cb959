//! A busy loop beside what is measured, as a process of its own: it ends with the bench, whatever happens to that.

use crate::helper::Process;
use std::path::Path;
use std::process::Command;

/// What it is told.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The bench's process id: when somebody else is its parent, it ends.
    #[arg(long)]
    pub parent: u32,
}

/// Computes until the bench is gone.
pub fn run(args: &Args) {
    let mut value = 1u64;
    while std::os::unix::process::parent_id() == args.parent {
        for _ in 0..10_000_000 {
            value = std::hint::black_box(value.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        }
    }
}

/// Starts `count` of them, with their output in `dir`. They end when they are dropped.
pub fn start(count: usize, dir: &Path) -> anyhow::Result<Vec<Process>> {
    (0..count)
        .map(|_| {
            let mut command = Command::new(std::env::current_exe()?);
            command.args(["busy", "--parent", &std::process::id().to_string()]);
            Process::start(&mut command, "a busy loop", &dir.join("busy.out"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_when_somebody_else_is_its_parent() {
        run(&Args { parent: u32::MAX });
    }
}
