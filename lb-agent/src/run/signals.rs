//! The signals that an operator or a service manager sends.

use anyhow::{Context, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Taken over for as long as this lives.
pub struct Signals {
    hangup: Signal,
    interrupt: Signal,
    terminate: Signal,
}

/// What is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// SIGHUP: read the configuration anew.
    Reload,
    /// SIGTERM or SIGINT.
    Stop,
}

impl Signals {
    /// From now on no signal ends the process by itself. Needs a tokio runtime.
    pub fn new() -> Result<Self> {
        let take = |kind| signal(kind).context("cannot handle signals");
        Ok(Self {
            hangup: take(SignalKind::hangup())?,
            interrupt: take(SignalKind::interrupt())?,
            terminate: take(SignalKind::terminate())?,
        })
    }

    /// Waits for a request. May be dropped while it waits.
    pub async fn next(&mut self) -> Request {
        tokio::select! {
            _ = self.terminate.recv() => Request::Stop,
            _ = self.interrupt.recv() => Request::Stop,
            _ = self.hangup.recv() => Request::Reload,
        }
    }

    /// Waits until the process is to end; requests to reload are for naught before there is something to reload.
    pub async fn stop(&mut self) {
        while self.next().await != Request::Stop {}
    }
}
