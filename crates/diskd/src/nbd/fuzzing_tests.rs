use proptest::prelude::*;

use super::{connection, handshake, is_well_formed, option};

/// A request, mostly with numbers that mean something.
fn request() -> impl Strategy<Value = Vec<u8>> {
    let magic = prop_oneof![50 => Just(0x2560_9513_u32), 1 => any::<u32>()];
    let flags = prop_oneof![5 => Just(0_u16), 1 => 0..64_u16, 1 => any::<u16>()];
    let command = prop_oneof![20 => 0..9_u16, 1 => any::<u16>()];
    let at = prop_oneof![
        9 => (0..2048_u64).prop_map(|sector| sector * 512),
        1 => any::<u64>(),
        1 => (0..512_u64).prop_map(|back| u64::MAX - back),
    ];
    let len = prop_oneof![
        9 => (0..300_u32).prop_map(|sectors| sectors * 512),
        1 => Just(32 << 20),
        1 => any::<u32>(),
    ];
    let data = prop_oneof![3 => Just(true), 1 => Just(false)];
    (magic, flags, command, any::<u64>(), at, len, data).prop_map(
        |(magic, flags, command, cookie, at, len, data)| {
            let mut bytes = magic.to_be_bytes().to_vec();
            bytes.extend(flags.to_be_bytes());
            bytes.extend(command.to_be_bytes());
            bytes.extend(cookie.to_be_bytes());
            bytes.extend(at.to_be_bytes());
            bytes.extend(len.to_be_bytes());
            if command == 1 && data && len <= 1 << 20 {
                bytes.extend(vec![0xa5; len as usize]);
            }
            bytes
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn whatever_is_asked_is_answered_in_whole_replies_or_the_end(
        requests in proptest::collection::vec(request(), 0..20),
        cut in 0..64_usize,
    ) {
        let mut bytes = handshake();
        bytes.extend(requests.concat());
        bytes.truncate(bytes.len().saturating_sub(cut));
        let said = connection(&bytes);
        prop_assert!(is_well_formed(&said));
    }

    #[test]
    fn whatever_is_said_instead_of_a_handshake_ends_the_connection(
        flags in prop_oneof![Just(3_u32), any::<u32>()],
        options in proptest::collection::vec(
            (0..14_u32, proptest::collection::vec(any::<u8>(), 0..64)), 0..8),
        rest in proptest::collection::vec(any::<u8>(), 0..64),
    ) {
        let mut bytes = flags.to_be_bytes().to_vec();
        for (number, data) in options {
            bytes.extend(b"IHAVEOPT");
            bytes.extend(number.to_be_bytes());
            bytes.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
            bytes.extend(data);
        }
        bytes.extend(rest);
        prop_assert!(connection(&bytes).starts_with(b"NBDMAGICIHAVEOPT\0\x03"));
    }

    #[test]
    fn any_option_is_answered(
        number in 0..14_u32,
        data in proptest::collection::vec(prop_oneof![Just(0_u8), 0..8_u8, any::<u8>()], 0..64),
    ) {
        let answer = option(number, &data);
        prop_assert!(number == 1 || answer.len() >= 40, "an acknowledgement, and another answer");
    }
}
