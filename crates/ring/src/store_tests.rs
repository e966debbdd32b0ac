use testkit::store_conformance;

use super::*;
use crate::Kind;

const KINDS: [Kind; 2] = [Kind::IoUring, Kind::Threads];

#[test]
fn a_file_conforms_direct_and_buffered_behind_each_engine() {
    let disk = tempfile::tempdir().expect("scratch");
    // Buffered: tmpfs takes O_DIRECT only by ignoring it.
    let memory = tempfile::tempdir_in("/dev/shm").expect("scratch in memory");
    for (kind, folder) in KINDS
        .into_iter()
        .flat_map(|kind| [(kind, &disk), (kind, &memory)])
    {
        let ring = Ring::of_kind(kind, 8).expect("this host has io_uring");
        let path = folder.path().join(kind.to_string());
        let store = RingStore::open(&ring, &path, false, true).expect("made");
        ring.block_on(store_conformance(&store, 3, 300));
        assert!(store.len().expect("asked") <= 1 << 20);
    }
}

#[test]
fn memory_in_more_pieces_than_one_call_takes_moves_whole() {
    let disk = tempfile::tempdir().expect("scratch");
    let memory = tempfile::tempdir_in("/dev/shm").expect("scratch in memory");
    for (kind, folder) in KINDS
        .into_iter()
        .flat_map(|kind| [(kind, &disk), (kind, &memory)])
    {
        let ring = Ring::of_kind(kind, 8).expect("this host has io_uring");
        many_pieces(&ring, &folder.path().join(kind.to_string()));
    }
}

fn many_pieces(ring: &Ring, path: &Path) {
    let mut store = RingStore::open(ring, path, false, true).expect("made");
    // The pieces have no alignment.
    store.file = Rc::new(
        File::options()
            .read(true)
            .write(true)
            .open(path)
            .expect("made")
            .into(),
    );
    let owner = std::sync::Arc::new([7_u8; 100]);
    let pieces = (0..3000)
        .map(|n| libc::iovec {
            iov_base: owner.as_ptr().wrapping_add(n % 50).cast_mut().cast(),
            iov_len: 1 + n % 50,
        })
        .collect();
    // SAFETY: inside the array that `owner` keeps; a write only reads it.
    let from = unsafe { Buffer::borrowed(pieces, owner) };
    let len = from.len();
    ring.block_on(async {
        store.write(3, from).await.outcome.expect("written");
        let done = store.read(3, Buffer::zeroed(len)).await;
        done.outcome.expect("read");
        assert!(done.buffer.expect("given back").to_vec() == vec![7; len]);
    });
}
