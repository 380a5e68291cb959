//! Tokens of callers.

use http::{HeaderMap, header};

/// The bearer token that a request shows (RFC 6750, 2.1).
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("Bearer").then(|| token.trim())
}

/// Compares tokens in a time that does not tell how much of one is right.
pub fn same_token(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_the_same_only_if_every_byte_is() {
        assert!(same_token("secret", "secret"));
        for other in ["", "secre", "secreT", "secret ", "xecret"] {
            assert!(!same_token(other, "secret"));
        }
    }

    #[test]
    fn a_bearer_token_is_read_from_its_header_and_nothing_else_is() {
        let shown = |value: &'static str| {
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())]);
            bearer(&headers).map(str::to_owned)
        };
        for good in ["Bearer secret", "bearer secret", "Bearer  secret "] {
            assert_eq!(shown(good).as_deref(), Some("secret"), "{good}");
        }
        for bad in ["secret", "Basic secret", "Bearersecret", ""] {
            assert_eq!(shown(bad), None, "{bad}");
        }
        assert_eq!(bearer(&HeaderMap::new()), None);
    }
}
