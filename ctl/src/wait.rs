//! `run --wait`: the sandbox's output, then its exit code as ours.

use crate::client::{self, CALL, FastPath};
use crate::config::Settings;
use crate::error::{Failure, Result};
use crate::logs::{self, Broken, Printer, RESUME};
use crate::output;
use fsb_proto::fastpath::{DeleteRequest, GetRequest, LogsRequest, SandboxInfo, WatchRequest, watch_event::Event};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::{Code, Status};

/// How often a controller without Watch is asked.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// How long `--rm` waits for the removal of a sandbox that has ended.
const REMOVAL: Duration = Duration::from_secs(10);

/// Runs `work` to its end. With `guard` a Ctrl-C during it does not end the program but is told afterwards: what the
/// work made has to be taken back.
pub(crate) async fn to_the_end<T>(work: impl Future<Output = T>, guard: bool) -> (T, Option<u8>) {
    if !guard {
        return (work.await, None);
    }
    tokio::pin!(work);
    tokio::select! {
        result = &mut work => (result, None),
        code = interruption() => (work.await, Some(code)),
    }
}

/// Ends with 130 at Ctrl-C and 143 at SIGTERM.
async fn interruption() -> u8 {
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => 130,
        _ = terminate.recv() => 143,
    }
}

/// Shows the output of the sandbox `name` until it has ended and returns its exit code. `remove`: the server removes it
/// then.
pub(crate) async fn run(
    client: &mut FastPath,
    settings: &Settings,
    name: &str,
    remove: bool,
    interrupted: Option<u8>,
) -> Result<u8> {
    let mut whole = true;
    let mut sight = Sight::of(client.clone(), name, settings);
    let ended = async {
        match interrupted {
            Some(code) => Err(code),
            None => {
                let mut following = client.clone();
                tokio::select! {
                    ended = follow(&mut following, settings, name, remove, &mut sight, &mut whole) => Ok(ended),
                    code = interruption() => Err(code),
                }
            }
        }
    }
    .await;
    let code = match ended {
        // It was said what is missing.
        Ok(info) if !whole => info.and_then(|info| verdict(&info)).map(|code| code.max(1)),
        Ok(info) => info.and_then(|info| verdict(&info)),
        Err(code) if !remove => {
            output::hint(&format!("{name} goes on running: fsb-ctl logs -f {name}, fsb-ctl rm {name}"));
            return Ok(code);
        }
        // It goes when its grace period is over.
        Err(code) => {
            if let Err(failure) = delete(client, settings, name, false).await {
                output::warning(&format!("{name} is not removed before it has ended: {failure}"));
            }
            return Ok(code);
        }
    };
    // Its name is free when we end. One that was there before and was not created to be removed is asked to go.
    if remove && tokio::time::timeout(REMOVAL, sight.until_gone()).await.is_err() {
        let deleted = delete(client, settings, name, false).await;
        if let Err(failure) = deleted {
            output::warning(&format!("{name} is not removed: {failure}"));
        }
    }
    code
}

/// Prints the log and waits for the end. A reset in between goes on with the next instance. What was cut off is said, and
/// the output is not `whole` then; `remove`: it is removed when it has ended.
async fn follow(
    client: &mut FastPath,
    settings: &Settings,
    name: &str,
    remove: bool,
    sight: &mut Sight,
    whole: &mut bool,
) -> Result<SandboxInfo> {
    let mut printer = Printer::new(false);
    let mut instance = String::new();
    loop {
        let request = LogsRequest {
            sandbox_id: name.to_owned(),
            namespace: settings.namespace.clone(),
            follow: true,
            attached: true,
            // All of it: what is missing at its beginning is said, too.
            from_offset: Some(0),
            ..LogsRequest::default()
        };
        let all = match remove {
            true => "without --rm it stays, and fsb-ctl logs shows all of it".to_owned(),
            false => format!("fsb-ctl logs {name} shows all of it"),
        };
        match logs::stream(client, request, &mut printer).await {
            Ok(()) => {}
            Err(Broken::Output(failure)) => {
                *whole = false;
                return Err(failure.hint(all));
            }
            Err(Broken::Call(status)) => {
                *whole = false;
                let why = client::failure(settings, &status);
                output::failure(&Failure::new(format!("the output of {name} is cut off: {why}")).hint(all));
            }
        }
        *whole &= !printer.skipped;
        let info = sight
            .until(|info| {
                over(info) || (info.phase == "Running" && !instance.is_empty() && info.instance_id != instance)
            })
            .await?;
        if over(&info) {
            return Ok(info);
        }
        instance = info.instance_id;
    }
}

/// What is known of a sandbox, all the time: one that is removed after its end tells how it ended before.
struct Sight {
    name: String,
    seen: watch::Receiver<Seen>,
    task: JoinHandle<()>,
}

#[derive(Debug, Clone, Default)]
enum Seen {
    #[default]
    Nothing,
    There(Box<SandboxInfo>),
    /// Removed; how it had ended, where that was seen.
    Gone(Option<Box<SandboxInfo>>),
    Failed(Status),
}

impl Sight {
    fn of(client: FastPath, name: &str, settings: &Settings) -> Self {
        let (sender, seen) = watch::channel(Seen::Nothing);
        let request =
            WatchRequest { sandbox_id: name.to_owned(), namespace: settings.namespace.clone(), all_namespaces: false };
        let task = tokio::spawn(look(client, request, sender));
        Self { name: name.to_owned(), seen, task }
    }

    /// Waits until it is as wanted.
    async fn until(&mut self, wanted: impl Fn(&SandboxInfo) -> bool) -> Result<SandboxInfo> {
        let name = &self.name;
        let seen = self.seen.wait_for(|seen| match seen {
            Seen::Nothing => false,
            Seen::There(info) => wanted(info),
            Seen::Gone(_) | Seen::Failed(_) => true,
        });
        match seen.await.map(|seen| seen.clone()) {
            Ok(Seen::There(info) | Seen::Gone(Some(info))) => Ok(*info),
            Ok(Seen::Failed(status)) => {
                Err(Failure::new(format!("the end of {name} is not known: {}", status.message())))
            }
            _ => Err(Failure::new(format!("{name} was deleted meanwhile"))),
        }
    }

    /// Waits until nothing of it is left.
    async fn until_gone(&mut self) {
        let _ = self.seen.wait_for(|seen| matches!(seen, Seen::Gone(_) | Seen::Failed(_))).await;
    }
}

impl Drop for Sight {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Looks at a sandbox until it is gone; where a stream breaks, it begins another.
async fn look(mut client: FastPath, request: WatchRequest, sender: watch::Sender<Seen>) {
    let mut ended: Option<Box<SandboxInfo>> = None;
    let mut broken_since = None;
    loop {
        let failed = match looked(&mut client, &request, &sender, &mut ended, &mut broken_since).await {
            Ok(()) => return drop(sender.send(Seen::Gone(ended))),
            Err(status) => status,
        };
        let passing =
            client::is_passing(&failed) || matches!(failed.code(), Code::Unimplemented | Code::ResourceExhausted);
        if !passing || broken_since.get_or_insert_with(Instant::now).elapsed() > RESUME {
            return drop(sender.send(Seen::Failed(failed)));
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

/// One stream of what becomes of a sandbox; `Ok` = it is gone. Controllers without Watch, or with too many watchers, are
/// asked once.
async fn looked(
    client: &mut FastPath,
    request: &WatchRequest,
    sender: &watch::Sender<Seen>,
    ended: &mut Option<Box<SandboxInfo>>,
    broken_since: &mut Option<Instant>,
) -> std::result::Result<(), Status> {
    let mut see = |info: SandboxInfo| {
        *broken_since = None;
        // One that is being removed has ended before.
        if over(&info) {
            *ended = Some(Box::new(info.clone()));
        } else if info.phase != "Terminating" {
            *ended = None;
        }
        let shown = ended.clone().filter(|_| info.phase == "Terminating").unwrap_or_else(|| Box::new(info));
        let _ = sender.send(Seen::There(shown));
    };
    let mut events = match client.watch(request.clone()).await {
        Ok(events) => events.into_inner(),
        Err(status) if status.code() == Code::NotFound => return Ok(()),
        Err(status) if matches!(status.code(), Code::Unimplemented | Code::ResourceExhausted) => {
            let get = GetRequest { sandbox_id: request.sandbox_id.clone(), namespace: request.namespace.clone() };
            return match client.get_sandbox(client::request(get, CALL)).await {
                Ok(info) => {
                    see(info.into_inner());
                    Err(status)
                }
                Err(status) if status.code() == Code::NotFound => Ok(()),
                Err(status) => Err(status),
            };
        }
        Err(status) => return Err(status),
    };
    let mut seen = false;
    while let Some(event) = events.message().await? {
        match event.event {
            Some(Event::Changed(info)) => {
                seen = true;
                see(info);
            }
            Some(Event::Removed(_)) => return Ok(()),
            Some(Event::Synced(_)) if !seen => return Ok(()),
            _ => {}
        }
    }
    Err(Status::unavailable("the controller ended the stream"))
}

/// Whether nothing more will come of it by itself.
fn over(info: &SandboxInfo) -> bool {
    matches!(info.phase.as_str(), "Succeeded" | "Failed" | "Expired" | "Lost")
        || info.phase == "Terminating" && info.exit_code.is_some()
}

/// The exit code that an end means for us.
fn verdict(info: &SandboxInfo) -> Result<u8> {
    let name = &info.sandbox_id;
    let why = if info.message.is_empty() { &info.reason } else { &info.message };
    match (info.phase.as_str(), info.exit_code) {
        ("Lost", _) => Err(Failure::new(format!("the agent of {name} is lost: {why}"))
            .hint(format!("`fsb-ctl reset {name}` starts it on another"))),
        ("Expired", code) => {
            output::warning(&format!("{name} was stopped: it expired"));
            Ok(code.map_or(1, |code| code.clamp(0, 255) as u8))
        }
        (_, Some(code)) => {
            if matches!(info.reason.as_str(), "OOMKilled" | "InodesExceeded" | "StartError") {
                let (what, hint) = client::split_hint(why);
                output::warning(&format!("{name}: {}: {what}", info.reason));
                hint.into_iter().for_each(output::hint);
            }
            Ok(code.clamp(0, 255) as u8)
        }
        ("Succeeded", None) => Ok(0),
        (phase, None) => Err(Failure::new(format!("{name} is {phase}: {why}"))),
    }
}

/// One sandbox.
pub(crate) async fn get(
    client: &mut FastPath,
    settings: &Settings,
    name: &str,
) -> std::result::Result<SandboxInfo, Status> {
    let request = GetRequest { sandbox_id: name.to_owned(), namespace: settings.namespace.clone() };
    Ok(client.get_sandbox(client::request(request, CALL)).await?.into_inner())
}

/// Waits until nothing of the sandbox is left.
pub(crate) async fn until_gone(client: &mut FastPath, settings: &Settings, name: &str) -> Result<()> {
    let request =
        WatchRequest { sandbox_id: name.to_owned(), namespace: settings.namespace.clone(), all_namespaces: false };
    match client.watch(request).await {
        Err(status) if status.code() == Code::NotFound => return Ok(()),
        Err(_) => {}
        Ok(events) => {
            let mut events = events.into_inner();
            let mut seen = false;
            while let Ok(Some(event)) = events.message().await {
                match event.event {
                    Some(Event::Removed(_)) => return Ok(()),
                    Some(Event::Changed(_)) => seen = true,
                    Some(Event::Synced(_)) if !seen => return Ok(()),
                    _ => {}
                }
            }
        }
    }
    loop {
        match get(client, settings, name).await {
            Err(status) if status.code() == Code::NotFound => return Ok(()),
            Err(status) => return Err(client::failure(settings, &status)),
            Ok(_) => tokio::time::sleep(ASK_AGAIN).await,
        }
    }
}

/// Asks for the deletion.
pub(crate) async fn delete(client: &mut FastPath, settings: &Settings, name: &str, force: bool) -> Result<()> {
    let request = DeleteRequest { sandbox_id: name.to_owned(), namespace: settings.namespace.clone(), force };
    let answer = client.delete_sandbox(client::request(request, CALL)).await;
    let answer = answer.map_err(|status| client::failure(settings, &status))?.into_inner();
    if answer.success { Ok(()) } else { Err(Failure::new(format!("the controller did not delete {name}"))) }
}
