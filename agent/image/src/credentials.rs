//! Credentials for registries, from where Docker keeps them.

use crate::error::{At, Error, Result};
use oci_client::secrets::RegistryAuth;
use serde::Deserialize;
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

/// Docker's config.json, as far as it holds credentials itself. Credential helpers are programs and are not run.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct DockerConfig {
    auths: HashMap<String, Entry>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    registrytoken: Option<String>,
}

/// What to show the registry: from the file that `FSB_REGISTRY_AUTH` names, else from Docker's own.
pub(crate) fn credentials(registry: &str) -> Result<RegistryAuth> {
    let var = |key| std::env::var_os(key).filter(|value| !value.is_empty()).map(PathBuf::from);
    let (path, named) = match var("FSB_REGISTRY_AUTH") {
        Some(path) => (path, true),
        None => {
            let folder = var("DOCKER_CONFIG").or_else(|| var("HOME").map(|home| home.join(".docker")));
            let Some(folder) = folder else { return Ok(RegistryAuth::Anonymous) };
            (folder.join("config.json"), false)
        }
    };
    match std::fs::read(&path) {
        Ok(text) => from_config(&path, &text, registry),
        Err(error) if !named && error.kind() == io::ErrorKind::NotFound => Ok(RegistryAuth::Anonymous),
        Err(error) => Err(error).at("read", path),
    }
}

fn from_config(path: &Path, text: &[u8], registry: &str) -> Result<RegistryAuth> {
    let corrupt = |why: String| Error::corrupt(path.display().to_string(), why);
    let config: DockerConfig = serde_json::from_slice(text).map_err(|error| corrupt(error.to_string()))?;
    let hub = registry == "docker.io";
    let fits = |key: &str| {
        let host = key.trim_start_matches("https://").trim_start_matches("http://");
        let host = host.split('/').next().unwrap_or(host);
        host == registry || (hub && matches!(host, "index.docker.io" | "registry-1.docker.io"))
    };
    let Some((_, entry)) = config.auths.into_iter().find(|(key, _)| fits(key)) else {
        return Ok(RegistryAuth::Anonymous);
    };
    if let Some(token) = entry.registrytoken.filter(|token| !token.is_empty()) {
        return Ok(RegistryAuth::Bearer(token));
    }
    if let (Some(username), Some(password)) = (entry.username, entry.password) {
        return Ok(RegistryAuth::Basic(username, password));
    }
    let Some(auth) = entry.auth.filter(|auth| !auth.is_empty()) else { return Ok(RegistryAuth::Anonymous) };
    let pair = base64(&auth).and_then(|bytes| String::from_utf8(bytes).ok());
    match pair.as_deref().and_then(|pair| pair.split_once(':')) {
        Some((username, password)) => Ok(RegistryAuth::Basic(username.into(), password.into())),
        None => Err(corrupt(format!("the auth of {registry} is not user:password in base64"))),
    }
}

/// RFC 4648, padding optional.
fn base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let (mut bits, mut count) = (0u32, 0);
    for byte in text.trim_end().trim_end_matches('=').bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, registry: &str) -> Result<RegistryAuth> {
        from_config(Path::new("config.json"), text.as_bytes(), registry)
    }

    #[test]
    fn credentials_are_those_of_the_registry() {
        // user:pass:word
        let text = r#"{"auths": {"https://index.docker.io/v1/": {"auth": "dXNlcjpwYXNzOndvcmQ="},
            "reg.io:5000": {"username": "a", "password": "b"}, "tok.io": {"registrytoken": "t"}}, "credsStore": "x"}"#;
        assert_eq!(read(text, "docker.io").unwrap(), RegistryAuth::Basic("user".into(), "pass:word".into()));
        assert_eq!(read(text, "reg.io:5000").unwrap(), RegistryAuth::Basic("a".into(), "b".into()));
        assert_eq!(read(text, "tok.io").unwrap(), RegistryAuth::Bearer("t".into()));
        assert_eq!(read(text, "other.io").unwrap(), RegistryAuth::Anonymous);
    }

    #[test]
    fn broken_credentials_are_an_error_that_does_not_show_them() {
        let error = read(r#"{"auths": {"r.io": {"auth": "c2VjcmV0"}}}"#, "r.io").unwrap_err().to_string();
        assert!(!error.contains("secret") && !error.contains("c2VjcmV0"), "{error}");
        assert!(read("{", "r.io").is_err());
    }
}
