//! Tasks of one thread take turns.

use std::future::poll_fn;
use std::task::Poll;

/// Lets everybody who is ready now go first.
pub(crate) async fn give_way() {
    let mut given = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut given, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
