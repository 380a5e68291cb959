//! Refusals that say when to try again, as `google.rpc.RetryInfo` in the status details.

use std::time::Duration;
use tonic::{Code, Status};

/// FAILED_PRECONDITION with a pause after which it may be different.
pub fn failed_precondition(message: String, pause: Duration) -> Status {
    let details = details(Code::FailedPrecondition, &message, pause);
    Status::with_details(Code::FailedPrecondition, message, details.into())
}

/// A `google.rpc.Status` with one `RetryInfo`, encoded by hand: three messages of two fields each do not need a crate.
fn details(code: Code, message: &str, pause: Duration) -> Vec<u8> {
    let mut duration = Vec::new();
    integer(&mut duration, 1, pause.as_secs());
    integer(&mut duration, 2, u64::from(pause.subsec_nanos()));
    let mut retry_info = Vec::new();
    bytes(&mut retry_info, 1, &duration);
    let mut any = Vec::new();
    bytes(&mut any, 1, b"type.googleapis.com/google.rpc.RetryInfo");
    bytes(&mut any, 2, &retry_info);
    let mut status = Vec::new();
    integer(&mut status, 1, code as u64);
    bytes(&mut status, 2, message.as_bytes());
    bytes(&mut status, 3, &any);
    status
}

/// Protocol buffers, wire type 0; zero is left out.
fn integer(out: &mut Vec<u8>, field: u8, value: u64) {
    if value != 0 {
        out.push(field << 3);
        varint(out, value);
    }
}

/// Protocol buffers, wire type 2.
fn bytes(out: &mut Vec<u8>, field: u8, value: &[u8]) {
    out.push(field << 3 | 2);
    varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_details_are_the_bytes_that_a_protobuf_library_writes() {
        let mut expected = vec![8, 9, 18, 2];
        expected.extend(b"no");
        expected.extend([26, 48, 10, 40]);
        expected.extend(b"type.googleapis.com/google.rpc.RetryInfo");
        expected.extend([18, 4, 10, 2, 8, 1]);
        assert_eq!(details(Code::FailedPrecondition, "no", Duration::from_secs(1)), expected);
    }
}
