//! How long a client waits for its answer.

use std::time::Duration;
use tonic::metadata::MetadataMap;

/// The client's deadline, a little shortened so that our sentence is there before the time is over, or `default` where
/// it sent none.
pub fn of(metadata: &MetadataMap, default: Duration) -> Duration {
    let Some(given) = fsb_rpc::timeout_of(metadata.as_ref()) else { return default };
    given.saturating_sub((given / 10).min(Duration::from_millis(50)))
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
    }
}
