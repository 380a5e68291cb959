//! What a sandbox may not do: the same as in a sandbox of ours, as numbers.

use fsb_host::profile;
use std::ffi::CString;

/// Docker's default capabilities without NET_RAW.
pub(super) const CAPABILITIES: u64 = profile::DEFAULT_MASK;

/// Masked paths that exist here, each with whether it is a directory.
pub(super) fn masked() -> Vec<(CString, bool)> {
    profile::masked()
        .iter()
        .filter_map(|path| {
            let kind = std::fs::metadata(path).ok()?;
            Some((CString::new(path.as_str()).ok()?, kind.is_dir()))
        })
        .collect()
}

/// Read-only paths that exist here.
pub(super) fn read_only() -> Vec<CString> {
    profile::READONLY
        .iter()
        .filter(|path| std::path::Path::new(path).exists())
        .filter_map(|path| CString::new(*path).ok())
        .collect()
}
