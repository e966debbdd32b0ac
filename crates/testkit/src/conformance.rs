//! What every device, every store and every image has to do, whatever runs them.

mod device;
mod image;
mod store;

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

pub use device::{crooked, device_conformance, power_cut_conformance, read_only_conformance};
pub use image::image_conformance;
pub use store::store_conformance;

const SECTOR: u64 = 512;

/// Runs all `futures` at once and waits for all of them.
pub async fn join<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut futures: Vec<Pin<Box<F>>> = futures.into_iter().map(Box::pin).collect();
    let mut outputs: Vec<Option<F::Output>> = futures.iter().map(|_| None).collect();
    poll_fn(|cx| {
        for (future, output) in futures.iter_mut().zip(&mut outputs) {
            if output.is_none() {
                if let Poll::Ready(value) = future.as_mut().poll(cx) {
                    *output = Some(value);
                }
            }
        }
        if outputs.iter().all(Option::is_some) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
    outputs.into_iter().flatten().collect()
}

/// The outcome of a future that never waits.
///
/// # Panics
/// When it does.
pub fn ready<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("it waits"),
    }
}

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).expect("small")
}
