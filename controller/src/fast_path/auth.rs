//! Who may do what in which namespace.

use crate::error::Error;
use std::collections::BTreeSet;
use std::path::Path;
use tonic::Status;
use tonic::codegen::http::HeaderMap;
use tonic::metadata::MetadataMap;

/// What a token opens.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Scope {
    Everything,
    Namespaces(BTreeSet<String>),
}

/// The tokens of a file.
#[derive(Debug, Clone, Default)]
pub struct Tokens {
    tokens: Vec<(String, Scope)>,
}

impl Tokens {
    /// Reads the file: lines `token namespace[,namespace]`, `*` for all of them; `#` begins a comment line.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let wrong = |why: String| Error::TokenFile { path: path.to_owned(), why };
        let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
        Self::parse(&text).map_err(wrong)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut tokens = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let words: Vec<&str> = line.split_whitespace().collect();
            let [token, namespaces] = words[..] else {
                return Err(format!("line {}: must be `token namespace[,namespace]` or `token *`", number + 1));
            };
            let scope = if namespaces == "*" {
                Scope::Everything
            } else {
                Scope::Namespaces(namespaces.split(',').map(str::to_owned).collect())
            };
            tokens.push((token.to_owned(), scope));
        }
        if tokens.is_empty() { Err("holds no token".into()) } else { Ok(Self { tokens }) }
    }

    /// Checks the caller's token against a namespace, or against all of them.
    pub fn allow(&self, metadata: &MetadataMap, namespace: Option<&str>) -> Result<(), Status> {
        let scope = self.scope(metadata.as_ref())?;
        match (scope, namespace) {
            (Scope::Everything, _) => Ok(()),
            (Scope::Namespaces(allowed), Some(namespace)) if allowed.contains(namespace) => Ok(()),
            (Scope::Namespaces(_), Some(namespace)) => {
                Err(Status::permission_denied(format!("this token is not for namespace {namespace:?}")))
            }
            (Scope::Namespaces(allowed), None) => {
                let list: Vec<&str> = allowed.iter().map(String::as_str).collect();
                Err(Status::permission_denied(format!(
                    "this token is for the namespaces {} only; hint: name one of them",
                    list.join(", ")
                )))
            }
        }
    }

    /// Whether the caller may see this namespace.
    pub fn sees(&self, metadata: &MetadataMap, namespace: &str) -> Result<bool, Status> {
        Ok(match self.scope(metadata.as_ref())? {
            Scope::Everything => true,
            Scope::Namespaces(allowed) => allowed.contains(namespace),
        })
    }

    /// Whether these are the headers of somebody who may ask at all.
    pub fn knows(&self, headers: &HeaderMap) -> Result<(), Status> {
        self.scope(headers).map(|_| ())
    }

    /// Whether these are the headers of somebody who may see what is of no namespace.
    pub fn see_all(&self, headers: &HeaderMap) -> Result<(), Status> {
        match self.scope(headers)? {
            Scope::Everything => Ok(()),
            Scope::Namespaces(_) => Err(Status::permission_denied("only a token for every namespace opens this")),
        }
    }

    fn scope(&self, headers: &HeaderMap) -> Result<&Scope, Status> {
        let given = fsb_rpc::bearer(headers)
            .ok_or_else(|| Status::unauthenticated("a token is needed; hint: fsb-ctl --token TOKEN"))?;
        // All are compared, each to its end, so that the time says nothing about them.
        let mut found = None;
        for (token, scope) in &self.tokens {
            if fsb_rpc::same_token(token, given) {
                found = Some(scope);
            }
        }
        found.ok_or_else(|| Status::unauthenticated("this token is not known"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(token: &str) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        metadata.insert("authorization", format!("Bearer {token}").parse().unwrap());
        metadata
    }

    #[test]
    fn a_token_opens_its_own_namespaces_only() {
        let tokens = Tokens::parse("# clients\nabc a,b\nroot *\n").unwrap();
        assert!(tokens.allow(&with("abc"), Some("a")).is_ok());
        assert_eq!(tokens.allow(&with("abc"), Some("c")).unwrap_err().code(), tonic::Code::PermissionDenied);
        assert_eq!(tokens.allow(&with("abc"), None).unwrap_err().code(), tonic::Code::PermissionDenied);
        assert!(tokens.allow(&with("root"), None).is_ok());
        for metadata in [with("other"), with("ab"), MetadataMap::new()] {
            assert_eq!(tokens.allow(&metadata, Some("a")).unwrap_err().code(), tonic::Code::Unauthenticated);
        }
    }

    #[test]
    fn a_file_that_says_nothing_clear_is_refused() {
        for bad in ["", "# nothing\n", "token\n", "token a b\n"] {
            assert!(Tokens::parse(bad).is_err(), "{bad:?}");
        }
    }
}
