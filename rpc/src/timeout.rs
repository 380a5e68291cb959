//! How long a caller waits: the header `grpc-timeout` (gRPC over HTTP/2, "Timeout").

use http::HeaderMap;
use std::time::Duration;

/// What the request says; `None` if it says nothing, or nothing that can be understood.
pub fn timeout_of(headers: &HeaderMap) -> Option<Duration> {
    headers.get("grpc-timeout").and_then(|value| parse(value.to_str().ok()?))
}

/// At most eight digits and a unit.
fn parse(text: &str) -> Option<Duration> {
    let unit = text.chars().last().filter(char::is_ascii)?;
    let digits = &text[..text.len() - 1];
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    Some(match unit {
        'H' => Duration::from_secs(value * 3600),
        'M' => Duration::from_secs(value * 60),
        'S' => Duration::from_secs(value),
        'm' => Duration::from_millis(value),
        'u' => Duration::from_micros(value),
        'n' => Duration::from_nanos(value),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_a_number_and_a_unit() {
        let mut headers = HeaderMap::new();
        assert_eq!(timeout_of(&headers), None);
        headers.insert("grpc-timeout", "100m".parse().unwrap());
        assert_eq!(timeout_of(&headers), Some(Duration::from_millis(100)));
        for bad in ["", "S", "1x", "123456789S", "-1S"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
