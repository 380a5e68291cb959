//! The files of one log: `ID.log` is written, `ID.log.1` is the one before it, and so on. All of them together are the
//! end of the whole log: where they begin in it says `ID.log.base`, once the first of them has been removed.
//!
//! The keeper writes them, the agent reads them, and neither waits for the other: `ID.log.base` names a file by its inode,
//! and is written before the file that is older than this one goes. Whoever has opened that file knows from it where each
//! of the files begins; whoever has not looks again.

use std::io;
use std::path::{Path, PathBuf};

/// More files than a log ever has: LOG_MAX_FILES is 1,000 at most, a writer may keep one more, and has another one while it
/// begins a new one.
pub const MOST_FILES: usize = 1 << 11;

/// The file of the log at `log` that is `number` rotations old.
pub fn numbered(log: &Path, number: usize) -> PathBuf {
    match number {
        0 => log.to_owned(),
        number => with_suffix(log, &number.to_string()),
    }
}

/// The file that says where the files begin.
pub fn base_path(log: &Path) -> PathBuf {
    with_suffix(log, "base")
}

fn with_suffix(log: &Path, suffix: &str) -> PathBuf {
    let mut path = log.as_os_str().to_owned();
    path.push(".");
    path.push(suffix);
    path.into()
}

/// Where one of the files begins in the whole log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Base {
    /// The file.
    pub inode: u64,
    /// How many bytes of the log come before it.
    pub at: u64,
}

impl Base {
    /// As it is written: always of the same length, so that it can be overwritten also where the disk is full.
    pub fn to_text(self) -> String {
        format!("{:020} {:020} {:020}\n", self.inode, self.at, self.inode)
    }

    /// What is written at [`base_path`]; `None` where there is nothing, or it is being written.
    pub fn read(log: &Path) -> io::Result<Option<Self>> {
        match std::fs::read_to_string(base_path(log)) {
            Ok(text) => Ok(Self::parse(&text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.strip_suffix('\n')?.split(' ').map(|number| number.parse::<u64>().ok());
        let (inode, at, again) = (numbers.next()??, numbers.next()??, numbers.next()??);
        (inode == again).then_some(Self { inode, at })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_is_read_as_it_was_written_and_not_half() {
        let base = Base { inode: 7, at: u64::MAX };
        let text = base.to_text();
        assert_eq!(Base::parse(&text), Some(base));
        assert_eq!(text.len(), Base { inode: u64::MAX, at: 0 }.to_text().len());
        for bad in ["", "1 2\n", "1 2 3\n", &text[..text.len() - 1], "x y x\n"] {
            assert_eq!(Base::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn names_of_files() {
        let log = Path::new("/l/a.log");
        assert_eq!(numbered(log, 0), log);
        assert_eq!(numbered(log, 12), Path::new("/l/a.log.12"));
        assert_eq!(base_path(log), Path::new("/l/a.log.base"));
    }
}
