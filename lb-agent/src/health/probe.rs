//! One probe of one backend, from the first SYN to the verdict.
//!
//! The backend is not trusted: heads, bodies and messages are limited to [`READ_LIMIT`], and everything has to
//! happen within the check's timeout. Sockets are made in the network namespace of the calling process.
//!
//! [`READ_LIMIT`]: super::spec::READ_LIMIT

mod http;
mod tcp;
#[cfg(test)]
mod tests;
mod tls;
mod websocket;

use std::{net::SocketAddr, time::Duration};

use tokio::{io::AsyncWriteExt as _, time::Instant};

use super::{
    failure::{Failure, Stage},
    source_ports::SourcePorts,
    spec::{Check, Kind},
};

/// Probes the backend at `addr` once, as [`Prober::probe`] does. To probe again and again, keep a [`Prober`].
///
/// # Errors
/// If the backend is not healthy, or the edge could not find out ([`Failure::is_local`]).
pub async fn probe(check: &Check, addr: SocketAddr, source: &SourcePorts) -> Result<(), Failure> {
    Prober::new(source.clone()).probe(check, addr).await
}

/// Carries out probes and keeps between them what is costly to make: the TLS configurations.
#[derive(Debug)]
pub struct Prober {
    source: SourcePorts,
    tls: tls::Configs,
}

impl Prober {
    /// A prober whose connections come from `source`.
    #[must_use]
    pub fn new(source: SourcePorts) -> Self {
        Self { source, tls: tls::Configs::default() }
    }

    /// Probes the backend at `addr` once, at the check's own port if it has one. Ends within `check.timeout`.
    ///
    /// # Errors
    /// If the backend is not healthy, or the edge could not find out ([`Failure::is_local`]).
    pub async fn probe(&self, check: &Check, addr: SocketAddr) -> Result<(), Failure> {
        if check.kind == Kind::None {
            return Ok(());
        }
        let deadline = Deadline::after(check.timeout);
        let addr = check.address(addr);
        let mut stream = deadline.wait(Stage::Connect, self.source.connect(addr)).await??;
        if check.kind != Kind::Tcp {
            let written = deadline.wait(Stage::Connect, stream.write_all(&check.preamble)).await?;
            written.map_err(|error| Failure::broken(Stage::Connect, &error))?;
        }
        match &check.kind {
            Kind::None => Ok(()),
            Kind::Tcp => tcp::finish(stream, deadline).await,
            Kind::Http(spec) => http::exchange(stream, spec, addr, deadline).await,
            Kind::Https(spec, tls) => {
                let stream = self.tls.connect(stream, spec, tls, addr, deadline).await?;
                http::exchange(stream, spec, addr, deadline).await
            }
            Kind::WebSocket(spec) => websocket::exchange(stream, spec, addr, deadline).await,
        }
    }
}

/// When the whole probe must be over.
#[derive(Clone, Copy, Debug)]
struct Deadline {
    at: Instant,
    after: Duration,
}

impl Deadline {
    fn after(after: Duration) -> Self {
        Self { at: Instant::now() + after, after }
    }

    /// Waits for `future`, or reports that `stage` was missing when the time was over.
    async fn wait<F: Future>(self, stage: Stage, future: F) -> Result<F::Output, Failure> {
        let timeout = Failure::Timeout { stage, after: self.after };
        tokio::time::timeout_at(self.at, future).await.map_err(|_| timeout)
    }
}
