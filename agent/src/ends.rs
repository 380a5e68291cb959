//! What the end of an instance means. Pure.

use fsb_host::wire::End;
use nix::errno::Errno;
use nix::sys::signal::Signal;

/// How an instance ended, as it is reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// 0–255, or 128 + signal; `None` where no program ran.
    pub(crate) exit_code: Option<i32>,
    /// `Exited`, `Signaled`, `OOMKilled`, `StartError`, or `AgentLost` where the agent stopped it by itself.
    pub(crate) reason: &'static str,
    /// The same in words.
    pub(crate) message: String,
}

/// Classifies an end. A sandbox that went on and ended well after the OOM killer took one of its children has exited;
/// where the end is a failure, memory was the reason.
pub(crate) fn verdict(end: &End, cut_off: bool) -> Verdict {
    if let Some(errno) = end.start_errno {
        let message = format!("the program could not be started: {}", Errno::from_raw(errno).desc());
        return Verdict { exit_code: None, reason: "StartError", message };
    }
    let exit_code = end.code.or(end.signal.map(|signal| 128 + signal));
    if cut_off {
        let message = "its agent stopped it: no controller was there for its recovery timeout".to_owned();
        return Verdict { exit_code, reason: "AgentLost", message };
    }
    if end.oom_killed && exit_code != Some(0) {
        let message = "it needed more memory than its limit; hint: raise resources.memory_bytes".to_owned();
        return Verdict { exit_code, reason: "OOMKilled", message };
    }
    match (end.code, end.signal) {
        (Some(code), _) => Verdict { exit_code, reason: "Exited", message: format!("exit code {code}") },
        (None, Some(number)) => {
            let name = Signal::try_from(number).map_or_else(|_| String::new(), |signal| format!(" ({signal})"));
            Verdict { exit_code, reason: "Signaled", message: format!("ended by signal {number}{name}") }
        }
        (None, None) => Verdict { exit_code: None, reason: "Exited", message: "its exit code is not known".to_owned() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end() -> End {
        End { code: None, signal: None, oom_killed: false, start_errno: None, started_at_ms: 0, finished_at_ms: 0 }
    }

    #[test]
    fn ends_are_told_apart() {
        let case = |end: End| {
            let verdict = verdict(&end, false);
            (verdict.reason, verdict.exit_code)
        };
        assert_eq!(case(End { code: Some(3), ..end() }), ("Exited", Some(3)));
        assert_eq!(case(End { signal: Some(15), ..end() }), ("Signaled", Some(143)));
        assert_eq!(case(End { signal: Some(9), oom_killed: true, ..end() }), ("OOMKilled", Some(137)));
        assert_eq!(case(End { code: Some(137), oom_killed: true, ..end() }), ("OOMKilled", Some(137)));
        assert_eq!(case(End { code: Some(0), oom_killed: true, ..end() }), ("Exited", Some(0)));
        assert_eq!(verdict(&End { signal: Some(15), ..end() }, true).reason, "AgentLost");
        assert_eq!(case(End { code: Some(127), start_errno: Some(2), ..end() }), ("StartError", None));
    }
}
