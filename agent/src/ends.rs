//! What the end of an instance means. Pure.

use fsb_host::wire::{Binding, End};
use nix::errno::Errno;
use nix::sys::signal::Signal;

/// How an instance ended, as it is reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// 0–255, or 128 + signal; `None` where no program ran.
    pub(crate) exit_code: Option<i32>,
    /// `Exited`, `Signaled`, `OOMKilled`, `StartError`, or, where the agent ended it by itself, `AgentLost` and
    /// `InodesExceeded`.
    pub(crate) reason: &'static str,
    /// The same in words.
    pub(crate) message: String,
}

/// Classifies an end. A sandbox that went on and ended well after the OOM killer took one of its children has exited;
/// where the end is a failure, memory was the reason.
pub(crate) fn verdict(end: &End, binding: &Binding) -> Verdict {
    if let Some(errno) = end.start_errno {
        let message = format!("the program could not be started: {}", Errno::from_raw(errno).desc());
        return Verdict { exit_code: None, reason: "StartError", message };
    }
    let exit_code = end.code.or(end.signal.map(|signal| 128 + signal));
    if binding.inodes_exceeded > 0 {
        let message = format!(
            "it had {} files in its writable layer and may have {}; hint: raise resources.inodes",
            binding.inodes_exceeded, binding.inodes
        );
        return Verdict { exit_code, reason: "InodesExceeded", message };
    }
    if binding.cut_off {
        let message = "its agent stopped it: no controller was there for its recovery timeout".to_owned();
        return Verdict { exit_code, reason: "AgentLost", message };
    }
    if end.oom_killed && exit_code != Some(0) {
        let message = "it needed more memory than its limit; hint: raise resources.memory_bytes".to_owned();
        return Verdict { exit_code, reason: "OOMKilled", message };
    }
    if end.stops_too_often && end.signal.is_some() {
        let message =
            "killed: PTRACE_TRACEME gave it a tracer from outside the sandbox, and it stopped for that one more \
                       than 100 times in a second; hint: trace it from inside"
                .to_owned();
        return Verdict { exit_code, reason: "Signaled", message };
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
        End::default()
    }

    #[test]
    fn ends_are_told_apart() {
        let case = |end: End| {
            let verdict = verdict(&end, &Binding::default());
            (verdict.reason, verdict.exit_code)
        };
        assert_eq!(case(End { code: Some(3), ..end() }), ("Exited", Some(3)));
        assert_eq!(case(End { signal: Some(15), ..end() }), ("Signaled", Some(143)));
        assert_eq!(case(End { signal: Some(9), oom_killed: true, ..end() }), ("OOMKilled", Some(137)));
        assert_eq!(case(End { code: Some(137), oom_killed: true, ..end() }), ("OOMKilled", Some(137)));
        assert_eq!(case(End { code: Some(0), oom_killed: true, ..end() }), ("Exited", Some(0)));
        let by_agent = |binding: Binding| verdict(&End { signal: Some(9), ..end() }, &binding);
        assert_eq!(by_agent(Binding { cut_off: true, ..Default::default() }).reason, "AgentLost");
        let full = by_agent(Binding { inodes: 10, inodes_exceeded: 12, ..Default::default() });
        assert_eq!((full.reason, full.exit_code), ("InodesExceeded", Some(137)));
        assert!(full.message.contains("12 files") && full.message.contains("may have 10"), "{}", full.message);
        assert_eq!(case(End { code: Some(127), start_errno: Some(2), ..end() }), ("StartError", None));
    }
}
