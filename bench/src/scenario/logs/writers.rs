//! The programs that write, and what their logs must hold in the end.

use crate::image::Image;
use anyhow::{Context, bail};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/lines"));
/// Where it lies in the image.
const PATH: &str = "bin/lines";
/// Bytes of a line, its newline included.
pub(super) const LINE: u64 = 100;

/// What every writer of a round does.
#[derive(Debug, Clone, Copy)]
pub(super) struct Work {
    pub(super) writers: usize,
    /// Lines of each.
    pub(super) lines: u64,
    /// Lines of each write(2).
    pub(super) together: u64,
    /// Lines per second of each; 0 = as fast as it can.
    pub(super) per_second: u64,
}

impl Work {
    /// The words that start writer `number`, which waits until `begin_ns` of the monotonic clock.
    pub(super) fn words(&self, number: usize, begin_ns: u64) -> Vec<String> {
        let numbers = [number as u64, self.lines, self.together, begin_ns, self.per_second];
        std::iter::once(format!("/{PATH}")).chain(numbers.iter().map(u64::to_string)).collect()
    }

    /// Bytes that all of them write, without the last lines.
    pub(super) fn bytes(&self) -> u64 {
        self.writers as u64 * self.lines * LINE
    }
}

/// Puts the program into an image and archives it anew. Returns where the program lies outside.
pub(super) fn install(image: &Image) -> anyhow::Result<PathBuf> {
    let program = image.rootfs.join(PATH);
    std::fs::write(&program, PROGRAM)?;
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))?;
    let mut tar = tar::Builder::new(std::fs::File::create(&image.archive)?);
    tar.append_dir_all(".", &image.rootfs)?;
    tar.finish()?;
    Ok(program)
}

/// What the logs of a round hold.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Found {
    /// Lines that are missing, in the wrong place, or changed.
    pub(super) lost: u64,
    /// The longest write(2) of any writer.
    pub(super) stall_ns: u64,
    /// When the last of the files was last written, in nanoseconds since 1970.
    pub(super) written_ns: u64,
}

impl Found {
    /// Reads the log of writer `number` at `path`, with what was rotated away from it.
    pub(super) fn read(&mut self, work: &Work, number: usize, path: &Path) -> anyhow::Result<()> {
        let numbered = |number: usize| PathBuf::from(format!("{}.{number}", path.display()));
        let mut files: Vec<PathBuf> = (1..).map(numbered).take_while(|path| path.exists()).collect();
        files.reverse();
        files.push(path.to_owned());
        let (mut next, mut end) = (0, None);
        let mut log = Log { work: *work, number, next: &mut next, end: &mut end };
        for file in files {
            let text = std::fs::read(&file).with_context(|| file.display().to_string())?;
            log.look(&text);
            let written = file.metadata()?.modified()?.duration_since(UNIX_EPOCH)?.as_nanos() as u64;
            self.written_ns = self.written_ns.max(written);
        }
        let Some(stall_ns) = end else { bail!("writer {number} did not come to its end; see {}", path.display()) };
        self.stall_ns = self.stall_ns.max(stall_ns);
        self.lost += work.lines - next;
        Ok(())
    }
}

/// The log of one writer, read from its beginning.
struct Log<'a> {
    work: Work,
    number: usize,
    /// The place of the line that is expected; it does not move on a line that is not expected.
    next: &'a mut u64,
    end: &'a mut Option<u64>,
}

impl Log<'_> {
    fn look(&mut self, records: &[u8]) {
        let mut expected = vec![b'.'; LINE as usize - 1];
        for record in records.split(|byte| *byte == b'\n') {
            // `2026-01-02T03:04:05.000000006Z stdout F text`
            let Some((head, text)) = record.split_at_checked(40) else { continue };
            if !head.ends_with(b" stdout F ") {
                continue;
            }
            let head = format!("{:06} {:010} ", self.number, self.next);
            expected[..head.len()].copy_from_slice(head.as_bytes());
            if text == expected && *self.next < self.work.lines {
                *self.next += 1;
            } else if let Some(rest) = text.strip_prefix(b"end ") {
                let stall = rest.split(|byte| *byte == b' ').next().unwrap_or_default();
                *self.end = std::str::from_utf8(stall).ok().and_then(|stall| stall.parse().ok());
            }
        }
    }
}

/// Nanoseconds since 1970.
pub(super) fn real_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORK: Work = Work { writers: 1, lines: 3, together: 1, per_second: 0 };

    fn line(place: u64) -> String {
        let text = format!("000007 {place:010} ");
        format!("2026-01-02T03:04:05.000000006Z stdout F {text}{}\n", ".".repeat(99 - text.len()))
    }

    fn found(log: &str) -> Found {
        let file = tempfile::NamedTempFile::new().unwrap();
        let end = "2026-01-02T03:04:05.000000006Z stdout F end 55 99\n";
        std::fs::write(file.path(), format!("{log}{end}")).unwrap();
        let mut found = Found::default();
        found.read(&WORK, 7, file.path()).unwrap();
        found
    }

    #[test]
    fn a_missing_a_doubled_and_a_changed_line_are_seen() {
        let whole = found(&[line(0), line(1), line(2)].concat());
        assert_eq!((whole.lost, whole.stall_ns), (0, 55));
        assert_eq!(found(&[line(0), line(2)].concat()).lost, 2);
        assert_eq!(found(&[line(0), line(1), line(2).replace("...", "..x")].concat()).lost, 1);
        assert_eq!(found("").lost, 3);
    }
}
