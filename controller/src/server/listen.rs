//! Listening sockets, made before anything is served, so that a bad address is an error at the start.

use crate::config::Bind;
use crate::error::Error;
use nix::unistd::{Gid, Group};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use tokio::net::{TcpListener, UnixListener, UnixStream};

/// Group that may use the controller's socket, if the machine has it.
const GROUP: &str = "fsb";

/// Listens on a TCP address; `None` where it is off.
pub async fn tcp(bind: &Bind) -> Result<Option<TcpListener>, Error> {
    let Bind::Address(address) = bind else { return Ok(None) };
    let wrong = |source| Error::Listen { address: address.clone(), source };
    let listener = match address.strip_prefix(':') {
        // Both families where the machine has IPv6.
        Some(port) => match TcpListener::bind(format!("[::]:{port}")).await {
            Ok(listener) => listener,
            Err(_) => TcpListener::bind(format!("0.0.0.0:{port}")).await.map_err(wrong)?,
        },
        None => TcpListener::bind(address).await.map_err(wrong)?,
    };
    Ok(Some(listener))
}

/// A unix socket that goes with the value.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Somebody may have removed it before.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Listens on a unix socket, mode 0660; `None` where the path is `off`. A socket that nobody serves is replaced.
pub async fn unix(path: &Path) -> Result<Option<(UnixListener, Socket)>, Error> {
    if path == Path::new("off") {
        return Ok(None);
    }
    let wrong = |source| Error::Listen { address: path.display().to_string(), source };
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent).map_err(wrong)?;
    }
    if path.exists() {
        if UnixStream::connect(path).await.is_ok() {
            return Err(Error::SocketInUse { path: path.to_owned() });
        }
        std::fs::remove_file(path).map_err(wrong)?;
    }
    // Made under a name that nobody knows, given its mode and group, and only then put in its place: it is never open
    // to more than it should be, and never refuses because nobody listens yet.
    let hidden = path.with_extension(format!("new-{}", std::process::id()));
    // Left over from a process with the same id that died here.
    let _ = std::fs::remove_file(&hidden);
    let listener = UnixListener::bind(&hidden).map_err(wrong)?;
    std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(0o660)).map_err(wrong)?;
    if let Some(group) = group() {
        chown(&hidden, None, Some(group.as_raw())).map_err(wrong)?;
    }
    std::fs::rename(&hidden, path).map_err(wrong)?;
    Ok(Some((listener, Socket { path: path.to_owned() })))
}

fn group() -> Option<Gid> {
    Group::from_name(GROUP).ok().flatten().map(|group| group.gid)
}
