//! What a client may say to an NBD server: from its first byte, and as an option of the negotiation.

use diskd::nbd::fuzzing;

/// Everything that a client says: with an odd first byte it is past the negotiation already.
pub fn connection(data: &[u8]) {
    let Some((first, said)) = data.split_first() else {
        return;
    };
    let mut bytes = if first % 2 == 1 {
        fuzzing::handshake()
    } else {
        Vec::new()
    };
    let negotiated = !bytes.is_empty();
    bytes.extend(said);
    let answers = fuzzing::connection(&bytes);
    if negotiated {
        assert!(fuzzing::is_well_formed(&answers), "whole replies only");
    }
}

/// An option: its number, then its data.
pub fn option(data: &[u8]) {
    if let Some((number, data)) = data.split_first_chunk::<4>() {
        let _answer = fuzzing::option(u32::from_le_bytes(*number), data);
    }
}

fn request(flags: u16, kind: u16, at: u64, len: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(7_u64.to_be_bytes());
    bytes.extend(at.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

/// A negotiation; then each kind of request, and the end.
#[must_use]
pub fn connection_seeds() -> Vec<Vec<u8>> {
    let mut all = vec![1];
    all.extend(request(1, 1, 4096, 512));
    all.extend([7; 512]);
    for (kind, len) in [(0, 512), (3, 0), (4, 4096), (6, 4096), (7, 8192), (2, 0)] {
        all.extend(request(0, kind, 4096, len));
    }
    let mut begun = vec![0];
    begun.extend(fuzzing::handshake());
    vec![begun, all]
}

/// Options that clients set.
#[must_use]
pub fn option_seeds() -> Vec<Vec<u8>> {
    let options: [(u32, &[u8]); 5] = [
        (1, b"guest"),
        (3, b""),
        (7, b"\0\0\0\x05guest\0\x01\0\x03"),
        (9, b"\0\0\0\x05guest\0\0\0\0"),
        (10, b"\0\0\0\x05guest\0\0\0\x01\0\0\0\x0fbase:allocation"),
    ];
    let option = |(number, data): (u32, &[u8])| [&number.to_le_bytes()[..], data].concat();
    options.into_iter().map(option).collect()
}
