//! One spelling for an image reference, so that `busybox` finds an agent that says `docker.io/library/busybox:latest`.

use std::borrow::Cow;

/// The short canonical form: no default registry, no `library/`, and a tag or a digest.
#[inline]
pub fn canonical(reference: &str) -> Cow<'_, str> {
    let short = ["docker.io/", "index.docker.io/", "registry-1.docker.io/"]
        .iter()
        .find_map(|registry| reference.strip_prefix(registry))
        .unwrap_or(reference);
    let short = short.strip_prefix("library/").unwrap_or(short);
    let named = short.bytes().rfind(|byte| matches!(byte, b'/' | b':' | b'@')).is_some_and(|byte| byte != b'/');
    if named { Cow::Borrowed(short) } else { Cow::Owned(format!("{short}:latest")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_image_are_the_same() {
        for same in ["busybox", "busybox:latest", "library/busybox", "docker.io/library/busybox:latest"] {
            assert_eq!(canonical(same), "busybox:latest", "{same}");
        }
        assert_eq!(canonical("host:5000/a/b"), "host:5000/a/b:latest");
        assert_eq!(canonical("a/b@sha256:00"), "a/b@sha256:00");
        assert_eq!(canonical("sha256:00"), "sha256:00");
    }
}
