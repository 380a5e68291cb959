//! The right command for a near miss.

use std::ffi::OsString;

/// Words that users of other tools type, and what they are here.
const ELSEWHERE: [(&[&str], &str); 10] = [
    (&["ps", "status", "sandboxes", "top"], "fsb-ctl list"),
    (&["create", "start", "launch", "apply", "new"], "fsb-ctl run --image IMAGE -- COMMAND"),
    (&["kill", "stop", "remove", "del", "destroy", "down-sandbox"], "fsb-ctl rm NAME"),
    (&["describe", "inspect", "show", "info"], "fsb-ctl get NAME -o yaml"),
    (&["log", "attach", "output"], "fsb-ctl logs -f NAME"),
    (&["up", "serve"], "fsb-ctl local up"),
    (&["down"], "fsb-ctl local down"),
    (&["pull", "import", "load", "images", "rmi"], "fsb-ctl image import|pull|ls|rm"),
    (&["edit", "patch", "set", "label", "expire"], "fsb-ctl update NAME --expire-time 10m --labels k=v"),
    (&["check", "preflight"], "fsb-ctl doctor"),
];

/// A hint for a command line that was not understood, from its words alone.
pub(crate) fn for_words(arguments: &[OsString]) -> Option<String> {
    let mut words = arguments.iter().skip(1).filter_map(|word| word.to_str());
    let first = words.find(|word| !word.starts_with('-'))?;
    if first == "exec" {
        return Some("exec is not there yet; `fsb-ctl run --image IMAGE --wait -- COMMAND` runs a command".into());
    }
    if first == "run" {
        let rest: Vec<&str> = words.collect();
        return rest.iter().any(|word| matches!(*word, "-it" | "-ti" | "-i" | "-t" | "-d" | "--detach" | "-p")).then(
            || {
                "a sandbox has no terminal and always runs detached: --wait shows its output, --ports opens ports"
                    .into()
            },
        );
    }
    ELSEWHERE.iter().find(|(words, _)| words.contains(&first)).map(|(_, right)| (*right).to_owned())
}

/// `run busybox echo hi`: the image was given where the name belongs.
pub(crate) fn image_as_name(name: Option<&str>, command: &[String]) -> String {
    let image = name.unwrap_or("IMAGE");
    if command.is_empty() {
        format!("fsb-ctl run --image {image}")
    } else {
        format!("fsb-ctl run --image {image} -- {}", shell_words(command))
    }
}

/// Words as a shell reads them back.
pub(crate) fn shell_words(words: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
    let quoted = words.iter().map(|word| {
        if !word.is_empty() && word.chars().all(plain) {
            word.clone()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hint(line: &str) -> Option<String> {
        for_words(&line.split(' ').map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn words_of_other_tools_lead_to_ours() {
        assert_eq!(hint("fsb-ctl ps -a").as_deref(), Some("fsb-ctl list"));
        assert_eq!(hint("fsb-ctl --verbose kill x").as_deref(), Some("fsb-ctl rm NAME"));
        assert!(hint("fsb-ctl exec -it x sh").unwrap().contains("--wait"));
        assert!(hint("fsb-ctl run -it busybox").unwrap().contains("no terminal"));
        assert_eq!(hint("fsb-ctl"), None);
    }

    #[test]
    fn an_image_in_the_place_of_the_name_is_put_right() {
        let words = ["echo", "it's me"].map(str::to_owned);
        assert_eq!(image_as_name(Some("busybox"), &words), r"fsb-ctl run --image busybox -- echo 'it'\''s me'");
        assert_eq!(image_as_name(None, &[]), "fsb-ctl run --image IMAGE");
    }
}
