//! The token file of a local node whose Fast-Path is served over TCP. It lies beside the controller's socket and is read
//! by those who may use that one: root, and the group `fsb` where the machine has it.

use crate::error::{Context, Result};
use fsb_files::Access;
use std::path::{Path, PathBuf};

const HEADER: &str = "# Made by fsb-ctl local up --tcp, for as long as the node is up: TOKEN NAMESPACE[,NAMESPACE]…\n";

/// The token file of the controller with this socket.
pub(crate) fn beside(socket: &Path) -> PathBuf {
    socket.with_file_name("tokens")
}

/// A token for every namespace out of this file; `None` if there is none, or it is not for our eyes.
pub(crate) fn read(file: &Path) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| line.split_once(char::is_whitespace))
        .find_map(|(token, namespaces)| (namespaces.trim() == "*").then(|| token.to_owned()))
}

/// Makes the file with a new token, unless it is there: what clients were given stays good when the controller is
/// started again.
pub(crate) fn ensure(file: &Path) -> Result<()> {
    if file.exists() {
        return Ok(());
    }
    let wrong = || format!("cannot make {}", file.display());
    let next = file.with_extension("next");
    let token = format!("{:032x}{:032x}", rand::random::<u128>(), rand::random::<u128>());
    fsb_files::write(&next, format!("{HEADER}{token} *\n"), Access::Group).context(wrong)?;
    std::fs::rename(&next, file).context(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_token_is_made_once_and_for_root_and_its_group_alone() {
        let directory = tempfile::tempdir().unwrap();
        let file = beside(&directory.path().join("controller.sock"));
        assert_eq!(read(&file), None);
        ensure(&file).unwrap();
        let token = read(&file).unwrap();
        assert!(token.len() == 64 && token.bytes().all(|byte| byte.is_ascii_hexdigit()), "{token}");
        let mode = if nix::unistd::Group::from_name("fsb").unwrap().is_some() { 0o640 } else { 0o600 };
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o7777, mode);
        ensure(&file).unwrap();
        assert_eq!(read(&file), Some(token), "the same as before");
    }

    #[test]
    fn only_a_token_for_every_namespace_is_ours() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "# a *\nred-token red\nroot-token \t*\n").unwrap();
        assert_eq!(read(file.path()).as_deref(), Some("root-token"));
    }
}
