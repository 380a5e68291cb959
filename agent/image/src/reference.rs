//! Image references, normalised as Docker does it.

use crate::digest::{Digest, is_hex};
use crate::error::{Error, Result};
use std::fmt;

const HUB: &str = "docker.io";
const HUB_LIBRARY: &str = "library";
const DEFAULT_TAG: &str = "latest";

/// A reference in full: `registry/repository:tag` or `registry/repository@digest`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<String>,
}

impl Reference {
    /// Reads `text` by Docker's rules: no registry is `docker.io`, one word there is below `library/`, neither tag nor
    /// digest is `latest`. A digest makes the tag beside it meaningless, so it is dropped.
    pub fn parse(text: &str) -> Result<Self> {
        let invalid =
            |rule: &str| Error::InvalidReference { reference: text.chars().take(200).collect(), rule: rule.to_owned() };
        if text.is_empty() || text.len() > 512 {
            return Err(invalid("it must have 1 to 512 bytes"));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (text, None),
        };
        if digest.is_some_and(|digest| Digest::parse(digest).is_err()) {
            return Err(invalid("what follows '@' must be sha256: and 64 lower-case hexadecimal digits"));
        }
        let (registry, rest) = match rest.split_once('/') {
            Some((first, rest)) if is_registry(first) => (first, rest),
            _ => (HUB, rest),
        };
        if !valid_registry(registry) {
            return Err(invalid("the registry must be a host name, with a port if need be"));
        }
        let (repository, tag) = match rest.rsplit_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (rest, None),
        };
        if tag.is_some_and(|tag| !valid_tag(tag)) {
            return Err(invalid("a tag has at most 128 letters, digits, '_', '.', '-', not beginning with '.' or '-'"));
        }
        if repository.len() > 255 || !repository.split('/').all(valid_component) {
            return Err(invalid(
                "the name must be lower-case letters and digits, separated by '.', '_', '__', '-' or '/'",
            ));
        }
        let registry = if registry == "index.docker.io" { HUB } else { registry };
        let repository = if registry == HUB && !repository.contains('/') {
            format!("{HUB_LIBRARY}/{repository}")
        } else {
            repository.to_owned()
        };
        let digest = digest.map(str::to_owned);
        let tag = if digest.is_some() { None } else { Some(tag.unwrap_or(DEFAULT_TAG).to_owned()) };
        Ok(Self { registry: registry.to_owned(), repository, tag, digest })
    }

    /// Host, with the port if one is given.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The host without its port and without the brackets of an IPv6 address.
    pub(crate) fn host(&self) -> &str {
        match self.registry.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or(rest),
            None => self.registry.split(':').next().unwrap_or(&self.registry),
        }
    }

    /// The name at the registry.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `None` = by digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if it names one.
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }

    /// As short as Docker shows it: `busybox:latest`.
    pub fn familiar(&self) -> String {
        let name = match self.registry.as_str() {
            HUB => match self.repository.strip_prefix("library/") {
                Some(name) if !name.contains('/') => name.to_owned(),
                _ => self.repository.clone(),
            },
            registry => format!("{registry}/{}", self.repository),
        };
        format!("{name}{}", self.suffix())
    }

    /// All the ways to write it that mean the same, the full one first. For indexes that are asked without normalising.
    pub fn spellings(&self) -> Vec<String> {
        let mut names = vec![format!("{}/{}", self.registry, self.repository)];
        if self.registry == HUB {
            names.push(self.repository.clone());
            if let Some(name) = self.repository.strip_prefix("library/").filter(|name| !name.contains('/')) {
                names.push(name.to_owned());
                names.push(format!("{HUB}/{name}"));
            }
        }
        let suffix = self.suffix();
        let mut all: Vec<String> = names.iter().map(|name| format!("{name}{suffix}")).collect();
        if self.tag() == Some(DEFAULT_TAG) {
            all.extend(names);
        }
        all
    }

    fn suffix(&self) -> String {
        match (&self.tag, &self.digest) {
            (_, Some(digest)) => format!("@{digest}"),
            (Some(tag), None) => format!(":{tag}"),
            (None, None) => String::new(),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}{}", self.registry, self.repository, self.suffix())
    }
}

/// What a word may mean besides a name: a digest with or without `sha256:`, in full or its beginning (4 digits at
/// least). Returns the hexadecimal digits.
pub(crate) fn digest_prefix(text: &str) -> Option<&str> {
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    ((4..=64).contains(&hex.len()) && is_hex(hex)).then_some(hex)
}

/// Docker's rule: the first component is a registry if it could not be part of a name there.
fn is_registry(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':', '[']) || first.bytes().any(|b| b.is_ascii_uppercase())
}

fn valid_registry(registry: &str) -> bool {
    let (host, port) = match registry.strip_prefix('[') {
        Some(rest) => {
            let Some((address, port)) = rest.split_once(']') else { return false };
            if address.parse::<std::net::Ipv6Addr>().is_err() || !(port.is_empty() || port.starts_with(':')) {
                return false;
            }
            ("ipv6", port.strip_prefix(':'))
        }
        None => match registry.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (registry, None),
        },
    };
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let port_ok = |port: &str| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok();
    host.split('.').all(label) && port.is_none_or(port_ok)
}

fn valid_tag(tag: &str) -> bool {
    !tag.is_empty()
        && tag.len() <= 128
        && !tag.starts_with(['.', '-'])
        && tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

/// `[a-z0-9]+` joined by `.`, `_`, `__` or any number of `-` (the distribution specification).
fn valid_component(component: &str) -> bool {
    let bytes = component.as_bytes();
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else { return false };
    word(first)
        && word(last)
        && component
            .split(|c: char| c.is_ascii() && word(c as u8))
            .all(|separator| matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_normalised_as_docker_does_it() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (given, full, familiar) in [
            ("busybox", "docker.io/library/busybox:latest", "busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36", "busybox:1.36"),
            ("a/b", "docker.io/a/b:latest", "a/b:latest"),
            ("index.docker.io/busybox", "docker.io/library/busybox:latest", "busybox:latest"),
            ("localhost/x", "localhost/x:latest", "localhost/x:latest"),
            ("127.0.0.1:5000/x:y", "127.0.0.1:5000/x:y", "127.0.0.1:5000/x:y"),
            ("[::1]:5000/x", "[::1]:5000/x:latest", "[::1]:5000/x:latest"),
            ("ghcr.io/a/b/c__d:V1", "ghcr.io/a/b/c__d:V1", "ghcr.io/a/b/c__d:V1"),
        ] {
            let reference = Reference::parse(given).unwrap();
            assert_eq!((reference.to_string().as_str(), reference.familiar().as_str()), (full, familiar));
            assert!(reference.spellings().iter().all(|s| Reference::parse(s).unwrap() == reference));
        }
        let by_digest = Reference::parse(&format!("busybox:1@{digest}")).unwrap();
        assert_eq!(by_digest.to_string(), format!("docker.io/library/busybox@{digest}"));
        assert_eq!(Reference::parse("[::1]:5000/x").unwrap().host(), "::1");
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        for bad in [
            "",
            "Busybox",
            "a b",
            "a//b",
            "/a",
            "a/",
            "../x",
            "a:",
            "a:-x",
            "a@sha256:12",
            "a@",
            "x:y:z",
            "a._b",
            "-a",
            "a-",
            "reg.io:99999/x",
            "reg.io:/x",
            "[zz]/x",
            "é",
            "a\0b",
        ] {
            assert!(Reference::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn every_spelling_of_a_local_name_is_listed() {
        let spellings = Reference::parse("busybox").unwrap().spellings();
        for expected in ["busybox", "busybox:latest", "library/busybox", "docker.io/library/busybox:latest"] {
            assert!(spellings.iter().any(|s| s == expected), "{expected}");
        }
    }
}
