//! How long a client waits for its answer.

use std::time::Duration;
use tonic::metadata::MetadataMap;

/// The client's `grpc-timeout`, a little shortened so that our sentence is there before the time is over, or
/// `default` where it sent none.
pub fn of(metadata: &MetadataMap, default: Duration) -> Duration {
    let Some(given) = metadata.get("grpc-timeout").and_then(|value| value.to_str().ok()).and_then(parse) else {
        return default;
    };
    given.saturating_sub((given / 10).min(Duration::from_millis(50)))
}

/// At most eight digits and a unit (gRPC over HTTP/2, "Timeout").
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
    fn the_clients_deadline_wins_over_the_default() {
        let mut metadata = MetadataMap::new();
        let default = Duration::from_secs(60);
        assert_eq!(of(&metadata, default), default);
        metadata.insert("grpc-timeout", "2S".parse().unwrap());
        assert_eq!(of(&metadata, default), Duration::from_millis(1950));
        metadata.insert("grpc-timeout", "100m".parse().unwrap());
        assert_eq!(of(&metadata, default), Duration::from_millis(90));
        for bad in ["", "S", "1x", "123456789S", "-1S"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
