//! `run --wait`: the sandbox's output, then its exit code as ours.

use crate::client::{self, CALL, FastPath};
use crate::config::Settings;
use crate::error::{Failure, Result};
use crate::logs::{self, Broken, Printer};
use crate::output;
use fsb_proto::fastpath::{DeleteRequest, GetRequest, LogsRequest, SandboxInfo, WatchRequest, watch_event::Event};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
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

/// Shows the output of the sandbox `name` until it has ended and returns its exit code.
pub(crate) async fn run(
    client: &mut FastPath,
    settings: &Settings,
    name: &str,
    remove: bool,
    interrupted: Option<u8>,
) -> Result<u8> {
    let mut whole = true;
    let ended = async {
        match interrupted {
            Some(code) => Err(code),
            None => {
                let mut following = client.clone();
                tokio::select! {
                    ended = follow(&mut following, settings, name, remove, &mut whole) => Ok(ended),
                    code = interruption() => Err(code),
                }
            }
        }
    }
    .await;
    let (code, ended) = match ended {
        // It was said what is missing: the sandbox stays, and its log with it.
        Ok(info) if !whole => return info.and_then(|info| verdict(&info)).map(|code| code.max(1)),
        Ok(info) => (info.and_then(|info| verdict(&info)), true),
        Err(code) if !remove => {
            output::hint(&format!("{name} goes on running: fsb-ctl logs -f {name}, fsb-ctl rm {name}"));
            return Ok(code);
        }
        Err(code) => (Ok(code), false),
    };
    if remove {
        let removed = delete(client, settings, name, false).await;
        if let Err(failure) = removed {
            output::warning(&format!("{name} is not removed: {failure}"));
        } else if ended {
            // Its name is free when we end. One that was interrupted goes by itself, when its grace period is over.
            let _ = tokio::time::timeout(REMOVAL, until_gone(client, settings, name)).await;
        }
    }
    code
}

/// Prints the log and waits for the end. A reset in between goes on with the next instance. What was cut off is said, and
/// the output is not `whole` then; `remove`: it would have been removed.
async fn follow(
    client: &mut FastPath,
    settings: &Settings,
    name: &str,
    remove: bool,
    whole: &mut bool,
) -> Result<SandboxInfo> {
    let mut printer = Printer::new(false);
    let mut instance = String::new();
    loop {
        let request = LogsRequest {
            sandbox_id: name.to_owned(),
            namespace: settings.namespace.clone(),
            follow: true,
            ..LogsRequest::default()
        };
        match logs::stream(client, request, &mut printer).await {
            Ok(()) => {}
            Err(Broken::Output(failure)) => {
                *whole = false;
                return Err(failure.hint(stays(name, remove)));
            }
            Err(Broken::Call(status)) => {
                *whole = false;
                let why = client::failure(settings, &status);
                output::failure(
                    &Failure::new(format!("the output of {name} is cut off: {why}")).hint(stays(name, remove)),
                );
            }
        }
        let info = until(client, settings, name, |info| {
            over(info) || (info.phase == "Running" && !instance.is_empty() && info.instance_id != instance)
        })
        .await?;
        if over(&info) {
            return Ok(info);
        }
        instance = info.instance_id;
    }
}

/// What to do where output was cut off.
fn stays(name: &str, remove: bool) -> String {
    let removal = if remove { format!("; it is not removed: fsb-ctl rm {name}") } else { String::new() };
    format!("fsb-ctl logs {name} shows all of it{removal}")
}

/// Whether nothing more will come of it by itself.
fn over(info: &SandboxInfo) -> bool {
    matches!(info.phase.as_str(), "Succeeded" | "Failed" | "Expired" | "Lost")
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

/// Waits until the sandbox is as wanted.
pub(crate) async fn until(
    client: &mut FastPath,
    settings: &Settings,
    name: &str,
    wanted: impl Fn(&SandboxInfo) -> bool,
) -> Result<SandboxInfo> {
    let gone = || Failure::new(format!("{name} was deleted meanwhile"));
    let request =
        WatchRequest { sandbox_id: name.to_owned(), namespace: settings.namespace.clone(), all_namespaces: false };
    let mut events = match client.watch(request).await {
        Ok(events) => events.into_inner(),
        // It has none, or too many others watch.
        Err(status) if matches!(status.code(), Code::Unimplemented | Code::ResourceExhausted) => {
            return ask(client, settings, name, wanted).await;
        }
        Err(status) => return Err(client::failure(settings, &status)),
    };
    let mut seen = false;
    loop {
        let event = events.message().await.map_err(|status| client::failure(settings, &status))?;
        match event.map(|event| event.event) {
            Some(Some(Event::Changed(info))) if wanted(&info) => return Ok(info),
            Some(Some(Event::Changed(_))) => seen = true,
            Some(Some(Event::Synced(_))) if !seen => return Err(gone()),
            Some(Some(Event::Removed(_))) => return Err(gone()),
            Some(_) => {}
            None => return ask(client, settings, name, wanted).await,
        }
    }
}

/// Asks again and again, for controllers that have no Watch or ended it.
async fn ask(
    client: &mut FastPath,
    settings: &Settings,
    name: &str,
    wanted: impl Fn(&SandboxInfo) -> bool,
) -> Result<SandboxInfo> {
    loop {
        let info = get(client, settings, name).await.map_err(|status| client::failure(settings, &status))?;
        if wanted(&info) {
            return Ok(info);
        }
        tokio::time::sleep(ASK_AGAIN).await;
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
