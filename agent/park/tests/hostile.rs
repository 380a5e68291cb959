//! Whatever bytes the parked program is given, its readers neither panic nor read past them, and what they accept is
//! what it says it is.

use fsb_park::cast::{FIXED_FDS, Request};
use fsb_park::handoff::{HEADER, Header, Strings};
use fsb_park::plan::Plan;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn a_hand_off_of_any_bytes_is_refused_or_whole(message in proptest::collection::vec(any::<u8>(), 0..200)) {
        read_handoff(&message);
    }

    #[test]
    fn a_hand_off_with_a_right_beginning_is_refused_or_whole(
        argc in 0u32..6, envc in 0u32..6, bytes in 0u32..80, body in proptest::collection::vec(0u8..3, 0..80),
    ) {
        let mut message = Header { argc: argc as usize, envc: envc as usize, bytes: bytes as usize }.to_bytes().to_vec();
        message.extend(&body);
        if let Some((args, envs)) = read_handoff(&message) {
            prop_assert_eq!((args, envs), (argc as usize, envc as usize));
            prop_assert_eq!(bytes as usize, body.len());
        }
    }

    #[test]
    fn a_plan_of_any_bytes_is_refused_or_read(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        read_plan(&bytes);
        let mut right = fsb_park::plan::MAGIC.to_le_bytes().to_vec();
        right.push(bytes.first().copied().unwrap_or(0) & 1);
        right.extend(&bytes);
        read_plan(&right);
    }

    #[test]
    fn a_cast_of_any_bytes_is_refused_or_has_the_descriptors_that_it_names(
        bytes in proptest::collection::vec(any::<u8>(), 0..100), fds in 0usize..40,
    ) {
        let mut right = fsb_park::cast::MAGIC.to_le_bytes().to_vec();
        right.extend(&bytes);
        for message in [&bytes, &right] {
            if let Some(request) = Request::read(message, fds) {
                prop_assert_eq!(fds, FIXED_FDS + request.plugins + request.cgroups);
                prop_assert_eq!(request.targets().count(), request.plugins);
            }
        }
    }
}

fn read_handoff(message: &[u8]) -> Option<(usize, usize)> {
    let header = Header::read(message)?;
    let strings = Strings::read(header, &message[HEADER..])?;
    Some((strings.args().count(), strings.envs().count()))
}

fn read_plan(bytes: &[u8]) {
    if let Some(plan) = Plan::read(bytes) {
        let _ = (plan.groups().count(), plan.masked().count(), plan.readonly().count());
    }
}
