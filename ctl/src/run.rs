//! `run [NAME] [flags] [--] [CMD ARG…]`.

use crate::config::Settings;
use crate::error::{Context, Failure, Result};
use crate::output::{self, Format, FormatArg};
use crate::{client, editor, hints, spec_file, units, wait};
use fsb_proto::SandboxSpec;
use fsb_proto::fastpath::{CreateRequest, CreateResponse, PullPolicy, Resources};
use serde::Serialize;
use std::ffi::OsString;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// Start a sandbox.
#[derive(clap::Args)]
#[command(after_help = "\
With neither --image nor --file, and on a terminal, an editor opens on a template.
Sandboxes of one agent share its network: they reach each other's ports and trust each other on it.

Examples:
  fsb-ctl run --image busybox -- echo hello
  fsb-ctl run web --image python:3.12 --ports 8080 -e MODE=dev --expire 1h -- python -m http.server 8080
  fsb-ctl run --image busybox --rm -- sh -c 'exit 3'; echo $?
  fsb-ctl run -f sandbox.yaml")]
pub(crate) struct Args {
    /// The sandbox's name; generated if left out
    name: Option<String>,
    /// The command and its arguments, in place of the image's own
    #[arg(value_name = "CMD", trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
    /// The image: a name on the node or in a registry
    #[arg(long)]
    image: Option<String>,
    /// The pool of agents to take one from [default: default-pool]
    #[arg(long)]
    pool: Option<String>,
    /// fast: answer when the process runs; strong: write the claim first
    #[arg(long, value_parser = ["fast", "strong"])]
    mode: Option<String>,
    /// TCP ports that are this sandbox's alone on its agent
    #[arg(long, value_delimiter = ',', value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    ports: Vec<u16>,
    /// Set a variable; K alone passes on yours
    #[arg(short, long = "env", value_name = "K=V")]
    env: Vec<String>,
    /// Read variables from a file, one K=V a line
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Working directory
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Stop and remove it then: a duration, or a time like 2026-01-02T03:04:05Z
    #[arg(long, value_name = "WHEN", value_parser = units::moment)]
    expire: Option<units::Moment>,
    /// What to do when its agent is lost: manual or auto-recreate
    #[arg(long, value_name = "POLICY", value_parser = spec_file::failure_policy)]
    failure_policy: Option<i32>,
    /// How long auto-recreate waits for the agent [default: 60s]
    #[arg(long, value_name = "TIME", value_parser = units::seconds)]
    recovery_timeout: Option<i32>,
    /// Add a label
    #[arg(long, value_name = "K=V", value_parser = pair)]
    label: Vec<(String, String)>,
    /// Memory limit, like 256m [default: 512m]
    #[arg(long, value_name = "BYTES", value_parser = units::bytes)]
    memory: Option<i64>,
    /// CPU limit in cores, like 0.5
    #[arg(long, value_name = "CORES", value_parser = units::cpus)]
    cpus: Option<i64>,
    /// Limit of processes and threads [default: 512]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..))]
    pids: Option<i64>,
    /// Size of the writable layer, like 1g
    #[arg(long, value_name = "BYTES", value_parser = units::bytes)]
    disk: Option<i64>,
    /// Limit of files in the writable layer [default: 1000000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..))]
    inodes: Option<i64>,
    /// user, user:group, uid or uid:gid [default: the image's]
    #[arg(long, short)]
    user: Option<String>,
    /// Time between SIGTERM and SIGKILL [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = units::seconds)]
    grace: Option<i32>,
    /// When to ask a registry for the image [default: missing]
    #[arg(long, value_parser = ["missing", "never", "always"])]
    pull: Option<String>,
    /// Read the sandbox from a YAML file, `-` for stdin; flags win over it
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Show its output until it ends and exit with its code
    #[arg(long)]
    wait: bool,
    /// Delete it when it has ended, also if fsb-ctl is killed meanwhile; implies --wait
    #[arg(long)]
    rm: bool,
    #[command(flatten)]
    format: FormatArg,
}

/// The flag `--label`.
fn pair(text: &str) -> std::result::Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("must be KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

pub(crate) async fn run(args: Args, arguments: &[OsString], settings: &Settings) -> Result<u8> {
    let (name, command, separated) = split(args.name.clone(), args.command.clone(), arguments);
    let mut request = base(&args, settings, name.as_deref(), &command)?;
    apply(&mut request, &args, name.as_deref(), &command)?;
    if request.namespace.is_empty() {
        request.namespace.clone_from(&settings.namespace);
    }
    request.request_id = format!("{:032x}", rand::random::<u128>());
    // What follows its output misses nothing, and `--rm` holds also where this program is killed.
    request.attached |= args.wait || args.rm;
    if args.rm {
        request.ttl_seconds_after_finished = Some(0);
    }
    check(&request)?;
    // The namespace may have come from the file: everything after goes there too.
    let settings = &Settings { namespace: request.namespace.clone(), ..settings.clone() };

    let mut client = client::connect(settings).await?;
    let spinner = output::spinner("starting");
    let begin = Instant::now();
    let create = async {
        let answer = client.create_sandbox(client::request(request.clone(), client::CREATE)).await;
        answer.map(tonic::Response::into_inner)
    };
    let (answer, interrupted) = wait::to_the_end(create, args.rm).await;
    let took = begin.elapsed();
    spinner.finish_and_clear();
    let answer = answer.map_err(|status| {
        let failure = client::failure(settings, &status);
        // `run --image busybox echo hi` takes echo for the name.
        if status.code() == tonic::Code::FailedPrecondition && !separated && !command.is_empty() && name.is_some() {
            let words: Vec<String> = name.iter().cloned().chain(command.iter().cloned()).collect();
            return failure.hint(format!("fsb-ctl run --image {} -- {}", request.image, hints::shell_words(&words)));
        }
        failure
    })?;
    if args.wait || args.rm {
        let name = if answer.sandbox_id.is_empty() { &answer.sandbox_name } else { &answer.sandbox_id };
        return wait::run(&mut client, settings, name, args.rm, interrupted).await;
    }
    show(args.format.output, &answer, took)?;
    Ok(0)
}

/// Tells the name from the command: what stands after `--` is never the name.
fn split(name: Option<String>, command: Vec<String>, arguments: &[OsString]) -> (Option<String>, Vec<String>, bool) {
    let after: Option<Vec<&OsString>> =
        arguments.iter().position(|word| word == "--").map(|at| arguments[at + 1..].iter().collect());
    let words: Vec<&String> = name.iter().chain(&command).collect();
    match after {
        Some(after) if after.len() == words.len() && after.iter().zip(&words).all(|(a, w)| *a == w.as_str()) => {
            (None, words.into_iter().cloned().collect(), true)
        }
        after => (name, command, after.is_some()),
    }
}

/// What the file, the editor or nothing but the flags says.
fn base(args: &Args, settings: &Settings, name: Option<&str>, command: &[String]) -> Result<CreateRequest> {
    if let Some(path) = &args.file {
        return from_file(path);
    }
    if args.image.is_some() {
        return Ok(CreateRequest::default());
    }
    let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    if !command.is_empty() || !terminal {
        return Err(Failure::usage("no image was given").hint(hints::image_as_name(name, command)));
    }
    editor::edit(settings, name)
}

fn from_file(path: &Path) -> Result<CreateRequest> {
    let mut text = String::new();
    if path == Path::new("-") {
        std::io::stdin().read_to_string(&mut text).context(|| "cannot read stdin".into())?;
    } else {
        text = std::fs::read_to_string(path).context(|| format!("cannot read {}", path.display()))?;
    }
    spec_file::parse(&text, SystemTime::now()).map_err(|why| Failure::usage(format!("{}: {why}", path.display())))
}

/// Puts the flags over what is there.
fn apply(request: &mut CreateRequest, args: &Args, name: Option<&str>, command: &[String]) -> Result<()> {
    fn put<T>(field: &mut T, flag: Option<T>) {
        if let Some(value) = flag {
            *field = value;
        }
    }
    put(&mut request.image, args.image.clone());
    put(&mut request.name, name.map(str::to_owned));
    put(&mut request.pool_ref, args.pool.clone());
    put(&mut request.working_dir, args.workdir.clone());
    put(&mut request.user, args.user.clone());
    put(&mut request.failure_policy, args.failure_policy);
    put(&mut request.recovery_timeout_seconds, args.recovery_timeout);
    put(&mut request.expire_time_seconds, args.expire.map(|when| when.ahead(SystemTime::now())));
    if let Some(mode) = &args.mode {
        request.consistency_mode = spec_file::consistency(mode).map_err(Failure::usage)?;
    }
    if !command.is_empty() {
        request.command = command.to_vec();
        request.args.clear();
    }
    if !args.ports.is_empty() {
        request.exposed_ports = args.ports.iter().map(|port| i32::from(*port)).collect();
    }
    for path in &args.env_file {
        let text = std::fs::read_to_string(path).context(|| format!("cannot read {}", path.display()))?;
        request
            .envs
            .extend(variables(text.lines()).map_err(|why| Failure::usage(format!("{}: {why}", path.display())))?);
    }
    request.envs.extend(variables(args.env.iter().map(String::as_str)).map_err(Failure::usage)?);
    request.labels.extend(args.label.iter().cloned());
    let mut resources = request.resources.unwrap_or_default();
    put(&mut resources.memory_bytes, args.memory);
    put(&mut resources.cpu_millis, args.cpus);
    put(&mut resources.pids, args.pids);
    put(&mut resources.disk_bytes, args.disk);
    put(&mut resources.inodes, args.inodes);
    request.resources = (resources != Resources::default()).then_some(resources);
    if args.grace.is_some() {
        request.grace_period_seconds = args.grace;
    }
    request.pull_policy = match args.pull.as_deref() {
        Some("never") => PullPolicy::Never,
        Some("always") => PullPolicy::Always,
        _ => PullPolicy::Missing,
    } as i32;
    Ok(())
}

/// `K=V` lines; empty lines and comments are skipped, `K` alone is taken from our own environment.
fn variables<'a>(lines: impl Iterator<Item = &'a str>) -> std::result::Result<Vec<(String, String)>, String> {
    let mut found = Vec::new();
    for line in lines {
        let trimmed = line.trim_start();
        if trimmed.is_empty() || trimmed.starts_with('#') {
            continue;
        }
        match line.split_once('=') {
            Some(("", _)) => return Err(format!("{line:?} has no name before the '='")),
            Some((key, value)) => found.push((key.to_owned(), value.to_owned())),
            None => {
                if let Ok(value) = std::env::var(line) {
                    found.push((line.to_owned(), value));
                }
            }
        }
    }
    Ok(found)
}

/// Refuses here what the controller would refuse, and what might be too large to send.
fn check(request: &CreateRequest) -> Result<()> {
    let wrong = |why: fsb_proto::Invalid| Failure::usage(why.to_string());
    if !request.name.is_empty() {
        fsb_proto::domain::validate_dns_name("name", &request.name).map_err(wrong)?;
    }
    for (key, value) in &request.labels {
        fsb_proto::domain::validate_label(key, value).map_err(wrong)?;
    }
    SandboxSpec::from_fastpath(request).map(drop).map_err(wrong)
}

/// What a start is shown as.
#[derive(Serialize)]
struct Started<'a> {
    sandbox_id: &'a str,
    agent_pod: &'a str,
    endpoints: &'a [String],
    /// From the call to its answer, on an open connection; the process runs by then.
    elapsed_us: u64,
}

fn show(format: Format, answer: &CreateResponse, took: Duration) -> Result<()> {
    let started = Started {
        sandbox_id: &answer.sandbox_id,
        agent_pod: &answer.agent_pod,
        endpoints: &answer.endpoints,
        elapsed_us: took.as_micros() as u64,
    };
    output::show(format, &started, |_| {
        output::pairs([
            ("NAME", answer.sandbox_id.clone()),
            ("AGENT", output::or_dash(&answer.agent_pod)),
            ("ENDPOINTS", output::or_dash(&answer.endpoints.join(","))),
            ("TIME", units::took(took)),
        ])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split_line(line: &str, name: Option<&str>, command: &[&str]) -> (Option<String>, Vec<String>) {
        let arguments: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let (name, command, _) =
            split(name.map(str::to_owned), command.iter().map(|w| (*w).to_owned()).collect(), &arguments);
        (name, command)
    }

    #[test]
    fn what_stands_after_two_dashes_is_never_the_name() {
        let echo = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        assert_eq!(
            split_line("fsb-ctl run --image b -- echo hi", Some("echo"), &["hi"]),
            (None, echo(&["echo", "hi"]))
        );
        assert_eq!(
            split_line("fsb-ctl run n --image b -- echo hi", Some("n"), &["echo", "hi"]),
            (Some("n".into()), echo(&["echo", "hi"]))
        );
        assert_eq!(
            split_line("fsb-ctl run n echo -- hi", Some("n"), &["echo", "--", "hi"]),
            (Some("n".into()), echo(&["echo", "--", "hi"]))
        );
    }

    #[test]
    fn variables_come_from_lines_with_comments() {
        let read = variables("A=1\n# no\n\nB=x=y\nFSB_SURELY_NOT_SET".lines()).unwrap();
        assert_eq!(read, [("A".into(), "1".into()), ("B".into(), "x=y".into())]);
        assert!(variables("=1".lines()).is_err());
    }
}
