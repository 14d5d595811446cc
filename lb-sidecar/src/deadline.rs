//! The one timer of a client connection.
//!
//! A connection waits for one thing at a time, so one deadline is enough. Whoever begins to wait says for what and how
//! long; the connection's task sleeps until the earliest deadline it has seen and looks again: deadlines that move
//! further away, as they do with every byte, cost no timer operation.

use std::{
    cell::{Cell, RefCell},
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::time::{Instant, Sleep};

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// The rest of a TLS handshake.
    Tls,
    /// The rest of a request's head.
    Head,
    /// The next request.
    Idle,
    /// The next bytes of a request's body.
    Body,
    /// A backend's leave to send the body.
    Continue,
    /// A backend to accept a connection.
    Connect,
    /// A backend's answer, or more of it.
    Response,
    /// The client to take its answer.
    Write,
}

pub struct Deadline {
    wait: Cell<Wait>,
    at: Cell<Instant>,
    /// When the task's timer goes off; no earlier than it has to.
    armed: Cell<Instant>,
    expired: Cell<Option<Wait>>,
    task: RefCell<Option<Waker>>,
}

impl Deadline {
    pub fn new(wait: Wait, timeout: Duration) -> Self {
        let at = Instant::now() + timeout;
        Self {
            wait: Cell::new(wait),
            at: Cell::new(at),
            armed: Cell::new(at),
            expired: Cell::new(None),
            task: RefCell::new(None),
        }
    }

    /// From now on this is waited for.
    pub fn set(&self, wait: Wait, timeout: Duration) {
        let at = Instant::now() + timeout;
        self.wait.set(wait);
        self.at.set(at);
        self.expired.set(None);
        if at < self.armed.get() {
            self.wake();
        }
    }

    /// What is waited for is waited for no longer than this from now on.
    pub fn bring_near(&self, timeout: Duration) {
        let left = self.at.get().saturating_duration_since(Instant::now());
        if timeout < left {
            self.set(self.wait.get(), timeout);
        }
    }

    /// Has the connection's task look around.
    pub fn wake(&self) {
        if let Some(task) = &*self.task.borrow() {
            task.wake_by_ref();
        }
    }

    pub fn wait(&self) -> Wait {
        self.wait.get()
    }

    /// What did not come in time; tells it once.
    pub fn take_expired(&self) -> Option<Wait> {
        self.expired.take()
    }

    /// When the task's timer is to be made for.
    pub fn armed(&self) -> Instant {
        self.armed.get()
    }

    /// For the connection's task, before its work: `true` when the deadline has passed just now. Then
    /// [`take_expired`](Self::take_expired) says so to whoever waited.
    pub fn poll(&self, sleep: Pin<&mut Sleep>, cx: &mut Context<'_>) -> bool {
        if !self.task.borrow().as_ref().is_some_and(|task| task.will_wake(cx.waker())) {
            *self.task.borrow_mut() = Some(cx.waker().clone());
        }
        self.rearm(sleep, cx)
    }

    /// For the connection's task, after its work, which may have moved the deadline.
    pub fn rearm(&self, mut sleep: Pin<&mut Sleep>, cx: &mut Context<'_>) -> bool {
        if self.at.get() < self.armed.get() {
            self.armed.set(self.at.get());
            sleep.as_mut().reset(self.at.get());
        }
        while let Poll::Ready(()) = sleep.as_mut().poll(cx) {
            let at = self.at.get();
            if at <= Instant::now() {
                // Whoever waited says how it goes on. Until then the timer must not spin.
                let later = Instant::now() + Duration::from_secs(3600);
                self.at.set(later);
                self.armed.set(later);
                sleep.as_mut().reset(later);
                self.expired.set(Some(self.wait.get()));
                return true;
            }
            self.armed.set(at);
            sleep.as_mut().reset(at);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    async fn expired(deadline: &Deadline) -> (Wait, Duration) {
        let start = Instant::now();
        let mut sleep = Box::pin(tokio::time::sleep_until(deadline.armed()));
        poll_fn(
            |cx| if deadline.poll(sleep.as_mut(), cx) { Poll::Ready(()) } else { Poll::Pending },
        )
        .await;
        (deadline.take_expired().unwrap(), start.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn passes_at_its_time() {
        let deadline = Deadline::new(Wait::Head, SECOND);
        let (wait, after) = expired(&deadline).await;
        assert_eq!(wait, Wait::Head);
        assert!(after >= SECOND && after < 2 * SECOND, "{after:?}");
        assert_eq!(deadline.take_expired(), None, "told once");
    }

    #[tokio::test(start_paused = true)]
    async fn moves_away_and_nearer() {
        let deadline = Deadline::new(Wait::Head, SECOND);
        deadline.set(Wait::Response, 10 * SECOND);
        let (wait, after) = expired(&deadline).await;
        assert_eq!(wait, Wait::Response);
        assert!(after >= 10 * SECOND && after < 11 * SECOND, "{after:?}");

        deadline.set(Wait::Idle, 5 * SECOND);
        let (wait, after) = expired(&deadline).await;
        assert_eq!(wait, Wait::Idle);
        assert!(after >= 5 * SECOND && after < 6 * SECOND, "{after:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn is_brought_near_and_never_moved_away() {
        let deadline = Deadline::new(Wait::Idle, 60 * SECOND);
        deadline.bring_near(2 * SECOND);
        tokio::time::sleep(SECOND).await;
        deadline.bring_near(2 * SECOND);
        let (wait, after) = expired(&deadline).await;
        assert_eq!(wait, Wait::Idle);
        assert!(after < 2 * SECOND, "{after:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn another_task_may_bring_it_nearer() {
        let deadline = std::rc::Rc::new(Deadline::new(Wait::Response, 100 * SECOND));
        let local = tokio::task::LocalSet::new();
        let other = deadline.clone();
        local.spawn_local(async move {
            tokio::time::sleep(SECOND).await;
            other.set(Wait::Body, SECOND);
        });
        let (wait, after) = local.run_until(expired(&deadline)).await;
        assert_eq!(wait, Wait::Body);
        assert!(after >= 2 * SECOND && after < 3 * SECOND, "{after:?}");
    }
}
