//! Names of archive entries, which are hostile until they have come through here. Pure.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// NAME_MAX of every Linux file system.
const MAX_COMPONENT: usize = 255;
/// PATH_MAX without its NUL (path_resolution(7)).
const MAX_PATH: usize = 4095;
/// Deeper than any real image, shallow enough that removing it again needs few descriptors.
pub(crate) const MAX_DEPTH: usize = 256;

/// Turns an entry's name into a relative path of plain components, empty for the root itself. Says which rule a name
/// breaks that cannot be one.
pub(crate) fn clean(name: &[u8]) -> Result<PathBuf, String> {
    if name.is_empty() {
        return Err("its name is empty".into());
    }
    if name.len() > MAX_PATH {
        return Err(format!("its name has {} bytes, {MAX_PATH} are possible", name.len()));
    }
    if name.contains(&0) {
        return Err("its name has a NUL byte".into());
    }
    if name[0] == b'/' {
        return Err("its name is an absolute path".into());
    }
    let mut path = PathBuf::new();
    let mut depth = 0;
    for component in name.split(|b| *b == b'/') {
        match component {
            b"" | b"." => {}
            b".." => return Err("its name leads out of a directory with '..'".into()),
            _ if component.len() > MAX_COMPONENT => {
                return Err(format!("a part of its name has more than {MAX_COMPONENT} bytes"));
            }
            _ => {
                depth += 1;
                path.push(OsStr::from_bytes(component));
            }
        }
    }
    if depth > MAX_DEPTH {
        return Err(format!("it lies more than {MAX_DEPTH} directories deep"));
    }
    Ok(path)
}

/// What an entry's last component means in a layer (OCI image specification, "Layer changesets").
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Name<'n> {
    /// A file of that name.
    Plain(&'n OsStr),
    /// `.wh.NAME`: lower layers' NAME is gone.
    Whiteout(&'n OsStr),
    /// `.wh..wh..opq`: nothing of lower layers is seen in this directory.
    Opaque,
    /// Book-keeping of aufs, without a meaning.
    Bookkeeping,
}

/// Tells whiteouts from files. The error says which rule a whiteout breaks.
pub(crate) fn name(path: &Path) -> Result<Name<'_>, String> {
    let hidden_parent = path.parent().into_iter().flat_map(Path::components);
    if hidden_parent.into_iter().any(|c| c.as_os_str().as_bytes().starts_with(b".wh.")) {
        return Err("it lies below a whiteout".into());
    }
    let name = path.file_name().expect("a clean path that is not the root has a last component");
    match name.as_bytes().strip_prefix(b".wh.") {
        None => Ok(Name::Plain(name)),
        Some(b".wh..opq") => Ok(Name::Opaque),
        Some(rest) if rest.starts_with(b".wh.") => Ok(Name::Bookkeeping),
        Some(b"" | b"." | b"..") => Err("it is a whiteout of nothing".into()),
        Some(rest) => Ok(Name::Whiteout(OsStr::from_bytes(rest))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::Component;

    #[test]
    fn names_that_lead_out_are_refused() {
        for bad in ["/etc/passwd", "..", "../x", "a/../../x", "a/..", "./../x", "", "a\0b", &"x".repeat(256), "//"] {
            assert!(clean(bad.as_bytes()).is_err(), "{bad:?}");
        }
        assert!(clean("a/".repeat(257).as_bytes()).is_err());
        assert!(clean(&[b'x'; 5000]).is_err());
    }

    #[test]
    fn honest_names_lose_only_their_decoration() {
        for (given, cleaned) in
            [("./a", "a"), ("a//b/", "a/b"), ("./", ""), (".", ""), ("...", "..."), ("a/.b", "a/.b")]
        {
            assert_eq!(clean(given.as_bytes()).unwrap(), Path::new(cleaned));
        }
    }

    #[test]
    fn whiteouts_are_told_from_files() {
        assert_eq!(name(Path::new("a/.wh.b")).unwrap(), Name::Whiteout(OsStr::new("b")));
        assert_eq!(name(Path::new(".wh..wh..opq")).unwrap(), Name::Opaque);
        assert_eq!(name(Path::new(".wh..wh.plnk")).unwrap(), Name::Bookkeeping);
        assert_eq!(name(Path::new("a/wh.b")).unwrap(), Name::Plain(OsStr::new("wh.b")));
        for bad in [".wh.", ".wh..", ".wh...", ".wh.a/b"] {
            assert!(name(Path::new(bad)).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_cleaned_name_has_only_plain_components(name in proptest::collection::vec(
            prop_oneof![Just(b'/'), Just(b'.'), Just(0u8), any::<u8>()], 0..64)) {
            if let Ok(path) = clean(&name) {
                prop_assert!(path.components().all(|c| matches!(c, Component::Normal(_))));
                prop_assert!(!path.as_os_str().as_bytes().contains(&0));
                prop_assert_eq!(clean(b"./").unwrap().join(&path), path.clone());
                if !path.as_os_str().is_empty() {
                    // Once more changes nothing, and a whiteout's target is a plain component too.
                    prop_assert_eq!(clean(path.as_os_str().as_bytes()).unwrap(), path.clone());
                    if let Ok(Name::Whiteout(target)) = super::name(&path) {
                        prop_assert_eq!(Path::new(target).components().count(), 1);
                    }
                }
            }
        }
    }
}
