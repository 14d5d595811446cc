//! Descriptors that clients and backends cannot take: an agent needs some, to connect and for what it sends.
//!
//! A worker without any for them is of no use to its agent, which ends it, with all its connections. The kernel looks at
//! the limit of open files only where one is opened. So the limit is lower than it may be, but while an agent is heard.

use std::{cell::Cell, future::poll_fn, io, pin::pin};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// One of so many: of a million, two for each listener there can be, and as many again.
const SHARE: u64 = 16;

/// The limit is the process's: only a worker that has one of its own sets something aside.
#[derive(Default)]
pub struct Reserve {
    is_set_aside: Cell<bool>,
}

impl Reserve {
    pub fn set_aside(&self) -> io::Result<()> {
        limit(|most| most - most / SHARE)?;
        self.is_set_aside.set(true);
        Ok(())
    }

    /// Does something that may open descriptors of the reserve. Nothing else runs meanwhile: there is one thread.
    pub fn with<T>(&self, work: impl FnOnce() -> T) -> T {
        if !self.is_set_aside.get() {
            return work();
        }
        // Anybody may lower their limit, and raise it up to the hard one.
        let _ = limit(|most| most);
        let result = work();
        let _ = limit(|most| most - most / SHARE);
        result
    }

    /// The same for a future, whenever it is polled.
    pub async fn within<T>(&self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        poll_fn(|cx| self.with(|| future.as_mut().poll(cx))).await
    }
}

/// The hard limit stays as it is. Without one there is none at all.
fn limit(of: impl FnOnce(u64) -> u64) -> io::Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: maximum.map(of), maximum })?)
}
