//! The commented file that `run` opens in an editor.

/// What a new sandbox may say.
pub(crate) fn template(name: Option<&str>) -> String {
    let what = name.map_or("a new sandbox".to_owned(), |name| format!("the sandbox {name}"));
    format!("# Describe {what}, save and leave the editor. Nothing is started if image stays empty.\n{FIELDS}")
}

const FIELDS: &str = r#"
# The image: a name that `fsb-ctl image ls` shows, or one that a registry knows.
image: ""

# Replaces the image's entrypoint and drops its default arguments.
# command: [sh, -c]
# Replaces the image's default arguments.
# args: ["echo hello"]

# pool_ref: default-pool
# fast: answer when the process runs. strong: write the claim first.
# consistency_mode: fast
# envs:
#   KEY: value
# working_dir: /tmp
# TCP ports that are this sandbox's alone on its agent.
# exposed_ports: [8080]
# labels:
#   key: value
# resources: {cpu: 500m, memory: 256Mi, pids: 128, disk: 1Gi, inodes: 100000}
# user: "1000:1000"
# A duration, a time like 2026-01-02T03:04:05Z, or never.
# expire_time: 10m
# manual, or auto-recreate: start again elsewhere when the agent is lost.
# failure_policy: manual
# recovery_timeout_seconds: 60
# Seconds between SIGTERM and SIGKILL.
# grace_period_seconds: 30
# Remove it so many seconds after its end; left out: it is kept.
# ttl_seconds_after_finished: 60
"#;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec_file;
    use std::time::SystemTime;

    #[test]
    fn the_template_is_a_file_that_run_reads() {
        assert_eq!(spec_file::parse(&template(None), SystemTime::now()).unwrap().image, "");
    }

    #[test]
    fn every_field_that_the_template_offers_is_one() {
        let offered: String = template(Some("a"))
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(field)
                    if field.split(':').next().is_some_and(|key| !key.contains(' ')) && field.contains(": ") =>
                {
                    field
                }
                Some("envs:") => "envs:",
                Some("labels:") => "labels:",
                Some(nested) if nested.starts_with("  ") => nested,
                _ if line.starts_with('#') => "",
                _ => line,
            })
            .map(|line| format!("{line}\n"))
            .filter(|line| !line.starts_with("fast: ") && !line.starts_with("manual"))
            .collect();
        let request = spec_file::parse(&offered, SystemTime::now()).unwrap();
        assert_eq!((request.args.len(), request.envs.len(), request.exposed_ports), (1, 1, vec![8080]));
        assert_eq!((request.user.as_str(), request.grace_period_seconds), ("1000:1000", Some(30)));
    }
}
