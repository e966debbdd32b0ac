//! What QEMU and its guest may give a disk: messages, descriptors and requests, the in-flight area.
//!
//! How bytes become these is said in `diskd::vhost_user::fuzzing`.

pub use diskd::vhost_user::fuzzing::{inflight, messages, request as requests};

const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// Messages that a front end begins with, by their codes; with bodies of eight bytes.
#[must_use]
pub fn message_seeds() -> Vec<Vec<u8>> {
    let message = |code: u8| [&[code, 1, 0, 8][..], &u64::from(code).to_le_bytes()].concat();
    let begin: Vec<u8> = [3, 1, 15, 2, 16].into_iter().flat_map(message).collect();
    let queue: Vec<u8> = [8, 10, 9, 12, 13, 18]
        .into_iter()
        .flat_map(message)
        .collect();
    vec![
        [&[0][..], &begin].concat(),
        [&[1][..], &begin, &queue].concat(),
        [&[1][..], &queue, &message(11)].concat(),
    ]
}

fn descriptor(address: u64, len: u32, flags: u16, next: u16) -> Vec<u8> {
    let mut bytes = address.to_le_bytes().to_vec();
    bytes.extend(len.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes.extend(next.to_le_bytes());
    bytes
}

/// A read, a write, a discard and a question for the serial number, of three descriptors each.
#[must_use]
pub fn request_seeds() -> Vec<Vec<u8>> {
    [0_u32, 1, 4, 8, 11, 13]
        .into_iter()
        .map(|kind| {
            let data = if kind == 0 || kind == 8 { WRITE } else { 0 };
            let len = if kind == 8 {
                20
            } else if kind > 8 {
                16
            } else {
                512
            };
            let mut bytes = vec![0, 0];
            bytes.extend(descriptor(256, 16, NEXT, 1));
            bytes.extend(descriptor(512, len, NEXT | data, 2));
            bytes.extend(descriptor(288, 1, WRITE, 0));
            bytes.resize(2 + 256, 0);
            bytes.extend(kind.to_le_bytes());
            bytes.resize(2 + 512, 0);
            bytes.extend([8, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0]);
            bytes.resize(2 + 1024, 0);
            bytes
        })
        .collect()
}

/// Areas of a queue of 16 in which nothing, or some, were taken and not answered (vhost-user
/// specification, "Inflight I/O tracking").
#[must_use]
pub fn inflight_seeds() -> Vec<Vec<u8>> {
    [0_u16, 0b1010, 0xffff]
        .into_iter()
        .map(|taken| {
            let mut bytes = vec![0, 0];
            bytes.extend(0_u64.to_le_bytes());
            // Version, number of descriptors, head of the last batch, index of the used ring.
            for word in [1_u16, 16, 0, 0] {
                bytes.extend(word.to_le_bytes());
            }
            for number in 0..16_u16 {
                bytes.extend([u8::from(taken >> number & 1 == 1), 0, 0, 0, 0, 0, 0, 0]);
                bytes.extend(u64::from(number).to_le_bytes());
            }
            bytes
        })
        .collect()
}
