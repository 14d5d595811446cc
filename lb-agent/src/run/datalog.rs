//! Carries the rare events which the data plane itself logs (aya-log) into the agent's log.

use aya_log::{EbpfLogger, Error};
use tokio::io::unix::AsyncFd;

use crate::bpf::Loaded;

/// Reads the program's log for as long as the agent runs. A program without one is silent.
///
/// The buffer is the program's own and not pinned: an agent that takes over brings a program with another one.
pub fn start(loaded: &mut Loaded) {
    match EbpfLogger::init(loaded.ebpf_mut()) {
        // SAFETY: the logger owns its ring buffer, whose descriptor stays the same and open for as long as it lives.
        Ok(logger) => match unsafe { AsyncFd::register(logger) } {
            Ok(mut logger) => drop(tokio::spawn(async move {
                while let Ok(mut ready) = logger.readable_mut().await {
                    ready.get_inner_mut().flush();
                    ready.clear_ready();
                }
            })),
            Err(error) => tracing::warn!(%error, "the data plane's log cannot be read"),
        },
        Err(Error::MapNotFound) => {}
        Err(error) => tracing::warn!(%error, "the data plane's log cannot be read"),
    }
}
