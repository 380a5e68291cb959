//! Listening sockets, made before anything is served, so that a bad address is an error at the start.

use crate::config::Bind;
use crate::error::Error;
use fsb_files::Access;
use std::path::{Path, PathBuf};
use tokio::net::{TcpListener, UnixListener, UnixStream};

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

/// Listens on a unix socket, mode 0660, of the group `fsb` where the machine has it; `None` where the path is `off`. A socket that nobody serves is replaced.
pub async fn unix(path: &Path) -> Result<Option<(UnixListener, Socket)>, Error> {
    if path == Path::new("off") {
        return Ok(None);
    }
    let wrong = |source| Error::Listen { address: path.display().to_string(), source };
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty() && !parent.is_dir()) {
        fsb_files::create_dir(parent, Access::Group).map_err(wrong)?;
    }
    if path.exists() {
        if UnixStream::connect(path).await.is_ok() {
            return Err(Error::SocketInUse { path: path.to_owned() });
        }
        std::fs::remove_file(path).map_err(wrong)?;
    }
    let listener = fsb_files::listen(path, Access::Group).map_err(wrong)?;
    listener.set_nonblocking(true).map_err(wrong)?;
    let listener = UnixListener::from_std(listener).map_err(wrong)?;
    Ok(Some((listener, Socket { path: path.to_owned() })))
}
