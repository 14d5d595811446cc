//! When a connection is closed whose client has said nothing yet.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep_until};

use crate::client::Client;

/// So long a client's first words may be on their way: whoever has just been accepted is not idle, and is answered, although
/// its worker retires.
const ON_THEIR_WAY: Duration = Duration::from_secs(1);

/// Since when nothing has come.
pub struct Fresh {
    since: Instant,
    /// Only there if the connection is to end: most never need it.
    over: Option<Pin<Box<Sleep>>>,
}

impl Fresh {
    pub fn new() -> Self {
        Self { since: Instant::now(), over: None }
    }

    /// Ready once the connection is to end and its client has had its time.
    pub fn poll_close(&mut self, client: &Client, cx: &mut Context<'_>) -> Poll<()> {
        if !client.closing.get() {
            return Poll::Pending;
        }
        let since = self.since;
        let over = self.over.get_or_insert_with(|| Box::pin(sleep_until(since + ON_THEIR_WAY)));
        ready!(over.as_mut().poll(cx));
        client.closing.set(false);
        Poll::Ready(())
    }
}
