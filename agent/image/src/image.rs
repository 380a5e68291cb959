//! An image as the agent needs it.

use crate::error::{Error, Result};
use crate::reference::Reference;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// An image that is on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Digest of its manifest, `sha256:…`.
    pub digest: String,
    /// The names it is known by, in full (`docker.io/library/busybox:latest`), sorted.
    pub references: Vec<String>,
    /// How to run it.
    pub config: ImageConfig,
    /// Unpacked layers, the topmost first, as overlayfs takes lower directories. Never empty.
    pub lowers: Vec<PathBuf>,
    /// Size of the files in all layers, in bytes.
    pub size_bytes: u64,
    /// When it came to this node, in Unix milliseconds.
    pub created_ms: i64,
}

impl Image {
    /// All that it is known by: its digest, and each of its names in every spelling that means the same (`busybox`).
    pub fn names(&self) -> Vec<String> {
        let spellings =
            self.references.iter().filter_map(|name| Reference::parse(name).ok()).flat_map(|r| r.spellings());
        std::iter::once(self.digest.clone()).chain(spellings).collect()
    }
}

/// The part of an image's configuration that starting it needs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// Goes before the command; empty = none.
    pub entrypoint: Vec<String>,
    /// The command of a start that gives none.
    pub cmd: Vec<String>,
    /// In the image's order, each key once.
    pub env: Vec<(String, String)>,
    /// Absolute; empty = `/`.
    pub working_dir: String,
    /// By Docker's rules; empty = root.
    pub user: String,
    /// `amd64`, `arm64`, …
    pub architecture: String,
    /// `linux`.
    pub os: String,
    /// TCP ports it says it listens on.
    pub exposed_ports: Vec<u16>,
}

/// How to import: what is empty is the image's own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Import {
    /// The name to give it; also picks one image out of an archive that holds several.
    pub reference: String,
    /// Replaces the entrypoint, and drops the image's command.
    pub entrypoint: Vec<String>,
    /// Replaces the command.
    pub cmd: Vec<String>,
    /// `KEY=VALUE`, over the image's own.
    pub env: Vec<String>,
    /// Absolute.
    pub working_dir: String,
    /// By Docker's rules.
    pub user: String,
}

impl Import {
    /// Checks every rule that needs no image.
    pub(crate) fn validate(&self) -> Result<()> {
        for env in &self.env {
            if env.split_once('=').is_none_or(|(key, _)| key.is_empty()) {
                return Err(Error::Invalid(format!("env {env:?} must be KEY=VALUE")));
            }
        }
        if !self.working_dir.is_empty() && !self.working_dir.starts_with('/') {
            return Err(Error::Invalid(format!("working directory {:?} must be absolute", self.working_dir)));
        }
        let strings = self.entrypoint.iter().chain(&self.cmd).chain(&self.env).chain([&self.working_dir, &self.user]);
        if strings.into_iter().any(|s| s.contains('\0')) {
            return Err(Error::Invalid(
                "entrypoint, command, env, working directory and user must not contain NUL".into(),
            ));
        }
        Ok(())
    }

    /// Whether it changes the image's configuration.
    pub(crate) fn changes_config(&self) -> bool {
        let Self { reference: _, entrypoint, cmd, env, working_dir, user } = self;
        !(entrypoint.is_empty() && cmd.is_empty() && env.is_empty() && working_dir.is_empty() && user.is_empty())
    }
}

/// This machine's platform as images name it: `linux/amd64`.
pub fn platform() -> (&'static str, &'static str) {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        "loongarch64" => "loong64",
        other => other,
    };
    ("linux", architecture)
}
