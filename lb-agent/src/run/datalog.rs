//! Carries the rare events which the data plane itself logs (aya-log) into the agent's log.

use aya::Ebpf;
use aya_log::{EbpfLogger, Error};
use tokio::{io::unix::AsyncFd, task::JoinHandle};

/// Reads a program's log until the task is aborted. A program without one is silent.
///
/// The buffer is the program's own and not pinned: an agent that takes over brings a program with another one.
pub fn start(ebpf: &mut Ebpf) -> Option<JoinHandle<()>> {
    match EbpfLogger::init(ebpf) {
        // SAFETY: the logger owns its ring buffer, whose descriptor stays the same and open for as long as it lives.
        Ok(logger) => match unsafe { AsyncFd::register(logger) } {
            Ok(mut logger) => Some(tokio::spawn(async move {
                while let Ok(mut ready) = logger.readable_mut().await {
                    ready.get_inner_mut().flush();
                    ready.clear_ready();
                }
            })),
            Err(error) => unread(&error),
        },
        Err(Error::MapNotFound) => None,
        Err(error) => unread(&error),
    }
}

fn unread(error: &dyn std::fmt::Display) -> Option<JoinHandle<()>> {
    tracing::warn!(%error, "the data plane's log cannot be read");
    None
}
