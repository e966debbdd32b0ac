use std::os::fd::AsFd;
use std::sync::mpsc;
use std::time::Instant;

use block::{Buffer, Store};

use super::*;
use crate::{RingStore, SendError, mailbox};

fn ring() -> Ring {
    Ring::new(8).expect("this host has io_uring")
}

#[test]
fn tasks_run_in_turns_and_more_of_them_than_the_queue_has_entries() {
    let ring = ring();
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

#[test]
fn a_message_from_another_thread_wakes_an_idle_owner() {
    let ring = ring();
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

#[test]
fn readable_ends_when_data_arrives_and_a_dropped_wait_leaves_nothing_behind() {
    let ring = ring();
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

#[test]
fn writable_ends_when_there_is_room_again_or_nobody_reads_any_more() {
    let ring = ring();
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

#[test]
fn a_dropped_read_keeps_its_memory_until_the_kernel_is_done() {
    let scratch = tempfile::tempdir().expect("scratch");
    let ring = ring();
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

#[test]
fn a_sleep_takes_its_time() {
    let start = Instant::now();
    ring().block_on(async { ring().yield_now().await });
    let ring = ring();
    ring.block_on(ring.sleep(Duration::from_millis(20)));
    assert!(start.elapsed() >= Duration::from_millis(20));
}
