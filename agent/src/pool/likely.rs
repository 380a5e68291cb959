//! Which programs of an image are likely to be started next. Pure.

use crate::command;
use std::collections::VecDeque;
use std::path::PathBuf;

/// So many programs of an image are looked up ahead.
const MOST: usize = 3;
/// Longer ones nobody can open (path_resolution(7)).
const PATH_MAX: usize = 4096;
/// Bytes of their paths, together.
const LONGEST: usize = 16 << 10;

/// Programs that were started lately, the last one first, and where each may lie.
#[derive(Debug, Default)]
pub(crate) struct Likely(VecDeque<(String, Vec<PathBuf>)>);

impl Likely {
    /// This program was started, or will be; it is searched for along the PATH of `env`.
    pub(crate) fn expect(&mut self, program: &str, env: &[String]) {
        if program.len() >= PATH_MAX {
            return;
        }
        let known = self.0.iter().position(|(known, _)| known == program);
        if known == Some(0) {
            return;
        }
        let new = || (program.to_owned(), command::candidates(program, env));
        let entry = known.and_then(|at| self.0.remove(at)).unwrap_or_else(new);
        self.0.push_front(entry);
        self.0.truncate(MOST);
    }

    /// Where they may lie.
    pub(crate) fn lookups(&self) -> Vec<PathBuf> {
        let mut room = LONGEST;
        let paths = self.0.iter().flat_map(|(_, paths)| paths);
        // A guess must not make the request for a container too long to be sent.
        let fitting = paths.take_while(|path| {
            let length = path.as_os_str().len();
            let fits = length <= room;
            room = room.saturating_sub(length);
            fits
        });
        fitting.cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_that_were_started_lately_are_looked_up_the_last_one_first() {
        let mut likely = Likely::default();
        let mut after = |program: &str| {
            likely.expect(program, &["PATH=/bin".to_owned()]);
            likely.lookups().iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(after("sh"), "/bin/sh");
        assert_eq!(after("/opt/a"), "/opt/a /bin/sh");
        assert_eq!(after("sh"), "/bin/sh /opt/a", "again, not twice");
        assert_eq!(after("/opt/b"), "/opt/b /bin/sh /opt/a");
        assert_eq!(after("/opt/c"), "/opt/c /opt/b /bin/sh", "not all that ever were");
    }

    #[test]
    fn what_nobody_can_start_takes_no_room_and_long_names_take_little() {
        let mut likely = Likely::default();
        likely.expect("sh", &["PATH=/bin".to_owned()]);
        likely.expect(&"x".repeat(30_000), &["PATH=/bin".to_owned()]);
        assert_eq!(likely.lookups(), [PathBuf::from("/bin/sh")]);
        let long: Vec<String> = (0..100).map(|number| format!("/{number}{}", "p".repeat(1000))).collect();
        likely.expect("a", &[format!("PATH={}", long.join(":"))]);
        let bytes: usize = likely.lookups().iter().map(|path| path.as_os_str().len()).sum();
        assert!(bytes > 10_000 && bytes <= LONGEST);
    }
}
