use std::os::fd::AsFd;
use std::sync::mpsc;
use std::time::Instant;

use block::{Buffer, Store};

use super::*;
use crate::{RingStore, SendError, mailbox};

fn ring(kind: Kind) -> Ring {
    Ring::of_kind(kind, 8).expect("this host has io_uring")
}

/// Has each of these tests run over each engine.
macro_rules! on_each_engine {
    ($($test:ident)*) => {
        mod io_uring {
            $(#[test]
            fn $test() {
                super::$test(super::ring(super::Kind::IoUring));
            })*
        }
        mod threads {
            $(#[test]
            fn $test() {
                super::$test(super::ring(super::Kind::Threads));
            })*
        }
    };
}

on_each_engine! {
    tasks_run_in_turns_and_more_of_them_than_the_queue_has_entries
    a_message_from_another_thread_wakes_an_idle_owner
    readable_ends_when_data_arrives_and_a_dropped_wait_leaves_nothing_behind
    writable_ends_when_there_is_room_again_or_nobody_reads_any_more
    polls_and_sleeps_of_one_descriptor_end_each_by_itself
    a_dropped_read_keeps_its_memory_until_the_kernel_is_done
    a_dropped_sync_keeps_its_file_until_the_kernel_is_done
    a_sleep_takes_its_time
}

fn tasks_run_in_turns_and_more_of_them_than_the_queue_has_entries(ring: Ring) {
    let order = Rc::new(RefCell::new(Vec::new()));
    for task in 0..100 {
        let (inner, order) = (ring.clone(), Rc::clone(&order));
        ring.spawn(async move {
            inner.yield_now().await;
            inner.sleep(Duration::from_millis(1)).await;
            order.borrow_mut().push(task);
        });
    }
    ring.block_on(async {
        while order.borrow().len() < 100 {
            ring.sleep(Duration::from_millis(1)).await;
        }
    });
    let mut seen = order.borrow().clone();
    seen.sort_unstable();
    assert_eq!(seen, (0..100).collect::<Vec<_>>());
}

fn a_message_from_another_thread_wakes_an_idle_owner(ring: Ring) {
    let (sender, inbox) = mailbox(4);
    let (answer, answered) = mpsc::channel();
    let other = std::thread::spawn(move || {
        for n in 0..1000_u32 {
            sender.send(n).expect("one at a time");
            answered.recv().expect("an answer to each");
        }
    });
    let sum = ring.block_on(async {
        let mut sum = 0;
        while let Some(n) = inbox.recv().await {
            sum += n;
            answer.send(()).expect("the other waits");
        }
        sum
    });
    other.join().expect("no panic");
    assert_eq!(sum, 999 * 1000 / 2);
}

#[test]
fn a_full_mailbox_gives_the_message_back() {
    let (sender, inbox) = mailbox(1);
    sender.send(1).expect("room for one");
    assert!(matches!(sender.send(2), Err(SendError::Full(2))));
    drop(inbox);
    assert!(matches!(sender.send(3), Err(SendError::Closed(3))));
}

fn readable_ends_when_data_arrives_and_a_dropped_wait_leaves_nothing_behind(ring: Ring) {
    let (read, write) = rustix::pipe::pipe().expect("a pipe");
    ring.block_on(async {
        {
            let mut wait = pin!(ring.readable(read.as_fd()));
            let pending = poll_fn(|cx| Poll::Ready(wait.as_mut().poll(cx).is_pending())).await;
            assert!(pending);
        }
        rustix::io::write(&write, b"x").expect("room");
        ring.readable(read.as_fd()).await.expect("readable");
        while !ring.0.slots.borrow().is_empty() {
            ring.sleep(Duration::from_millis(1)).await;
            ring.yield_now().await;
            // The sleep's own slot is gone by now.
        }
    });
}

fn writable_ends_when_there_is_room_again_or_nobody_reads_any_more(ring: Ring) {
    let (read, write) = rustix::pipe::pipe().expect("a pipe");
    let nonblocking = rustix::fs::OFlags::NONBLOCK;
    rustix::fs::fcntl_setfl(&write, nonblocking).expect("a pipe takes it");
    let fill = || while rustix::io::write(&write, &[0; 4096]).is_ok() {};
    ring.block_on(async {
        ring.writable(write.as_fd()).await.expect("empty");
        fill();
        let mut wait = pin!(ring.writable(write.as_fd()));
        let pending = poll_fn(|cx| Poll::Ready(wait.as_mut().poll(cx).is_pending())).await;
        assert!(pending);
        ring.sleep(Duration::from_millis(1)).await;
        rustix::io::read(&read, &mut [0; 65536]).expect("full");
        wait.await.expect("room");
        fill();
        drop(read);
        ring.writable(write.as_fd()).await.expect("told by writing");
    });
}

fn a_dropped_read_keeps_its_memory_until_the_kernel_is_done(ring: Ring) {
    let scratch = tempfile::tempdir().expect("scratch");
    let store = RingStore::open(&ring, &scratch.path().join("disk"), false, true).expect("made");
    ring.block_on(async {
        let done = store.write(0, Buffer::from_slice(&[7; 65536])).await;
        done.outcome.expect("written");
        for _ in 0..100 {
            let mut read = pin!(store.read(0, Buffer::zeroed(65536)));
            poll_fn(|cx| {
                assert!(read.as_mut().poll(cx).is_pending());
                Poll::Ready(())
            })
            .await;
        }
        assert!(!ring.0.slots.borrow().is_empty(), "still with the kernel");
        ring.sleep(Duration::from_millis(1)).await;
    });
    drop(store);
    drop(ring); // Waits for what is left.
}

fn a_dropped_sync_keeps_its_file_until_the_kernel_is_done(ring: Ring) {
    let scratch = tempfile::tempdir().expect("scratch");
    let path = scratch.path().join("disk");
    for _ in 0..20 {
        let store = RingStore::open(&ring, &path, false, true).expect("made");
        let ring = ring.clone();
        ring.clone().block_on(async move {
            let written = store.write(0, Buffer::from_slice(&[7; 65536])).await;
            written.outcome.expect("written");
            let mut sync = pin!(store.sync());
            poll_fn(|cx| {
                assert!(sync.as_mut().poll(cx).is_pending());
                Poll::Ready(())
            })
            .await;
        });
        // The store is gone; its file is open until the sync is done.
        assert!(ring.0.slots.borrow().iter().any(|(_, slot)| slot.is_owed()));
    }
    drop(ring); // Waits for what is left.
}

fn polls_and_sleeps_of_one_descriptor_end_each_by_itself(ring: Ring) {
    let (here, there) = std::os::unix::net::UnixStream::pair().expect("a pair");
    ring.block_on(async {
        let mut readable = pin!(ring.readable(here.as_fd()));
        let mut never = pin!(ring.sleep(Duration::from_secs(3600)));
        let pending = poll_fn(|cx| {
            let read = readable.as_mut().poll(cx).is_pending();
            Poll::Ready(read && never.as_mut().poll(cx).is_pending())
        })
        .await;
        assert!(pending);
        ring.writable(here.as_fd()).await.expect("room");
        ring.sleep(Duration::from_millis(1)).await;
        let pending = poll_fn(|cx| Poll::Ready(readable.as_mut().poll(cx).is_pending())).await;
        assert!(pending, "only writable so far");
        drop(there);
        readable.await.expect("told by reading");
        let pending = poll_fn(|cx| Poll::Ready(never.as_mut().poll(cx).is_pending())).await;
        assert!(pending);
    });
}

fn a_sleep_takes_its_time(ring: Ring) {
    let start = Instant::now();
    ring.block_on(ring.yield_now());
    ring.block_on(ring.sleep(Duration::from_millis(20)));
    assert!(start.elapsed() >= Duration::from_millis(20));
}
