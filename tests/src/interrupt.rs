//! Ctrl-C: a signal must leave no namespace behind, although it runs no destructor.
//!
//! After [`install`], SIGINT, SIGTERM and SIGHUP remove everything that this process owns and end it.
//! A program that wants to end in its own order holds a [`Graceful`]: the first signal is only reported
//! to it, the second one ends the process as above.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Condvar, Mutex, Once, PoisonError};
use std::time::Duration;

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction};

use crate::{process, sweep};

const SIGNALS: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// The writing end of the pipe to the cleaning thread; -1 before [`install`].
static WAKE: AtomicI32 = AtomicI32::new(-1);

struct State {
    listeners: usize,
    requested: bool,
}

static STATE: Mutex<State> = Mutex::new(State { listeners: 0, requested: false });
static CHANGED: Condvar = Condvar::new();

fn state() -> std::sync::MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

extern "C" fn on_signal(signal: nix::libc::c_int) {
    let byte = signal as u8;
    // SAFETY: write(2) is async-signal-safe, the byte is on our stack and the descriptor is never closed.
    unsafe { nix::libc::write(WAKE.load(Ordering::Relaxed), (&raw const byte).cast(), 1) };
}

/// Installs the handlers, once. A program must not install others for these signals afterwards.
pub fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let (mut reader, writer) = std::io::pipe().expect("a pipe for signals");
        WAKE.store(std::os::fd::IntoRawFd::into_raw_fd(writer), Ordering::Relaxed);
        std::thread::Builder::new()
            .name("interrupt".to_owned())
            .spawn(move || {
                let mut byte = [0];
                while reader.read_exact(&mut byte).is_ok() {
                    deliver(i32::from(byte[0]));
                }
            })
            .expect("a thread for signals");
        let action =
            SigAction::new(SigHandler::Handler(on_signal), SaFlags::SA_RESTART, SigSet::empty());
        for signal in SIGNALS {
            // SAFETY: the handler only calls write(2).
            unsafe { sigaction(signal, &action) }.expect("a signal handler");
        }
    });
}

fn deliver(signal: i32) {
    let mut state = state();
    if state.listeners > 0 && !state.requested {
        state.requested = true;
        CHANGED.notify_all();
        return;
    }
    drop(state);
    let _ = writeln!(std::io::stderr(), "testbed: interrupted, cleaning up");
    process::kill_all();
    sweep::remove_all_of(std::process::id(), &mut sweep::Swept::default());
    crate::owner::remove_lock(std::process::id());
    let signal = Signal::try_from(signal).unwrap_or(Signal::SIGINT);
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: restores the default action; no handler of ours runs any more.
    let _ = unsafe { sigaction(signal, &default) };
    let _ = raise(signal);
    std::process::exit(130);
}

/// While one of these lives, the first signal is a request and not an end.
#[derive(Debug)]
pub struct Graceful(());

impl Graceful {
    #[must_use]
    pub fn new() -> Self {
        install();
        state().listeners += 1;
        Self(())
    }

    /// Whether somebody asked us to end.
    #[must_use]
    pub fn requested(&self) -> bool {
        state().requested
    }

    /// Waits until somebody asks, at most `timeout` (`None`: for ever). Returns whether somebody did.
    #[must_use]
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        let state = state();
        match timeout {
            None => CHANGED.wait_while(state, |s| !s.requested).is_ok(),
            Some(timeout) => CHANGED
                .wait_timeout_while(state, timeout, |s| !s.requested)
                .is_ok_and(|(s, _)| s.requested),
        }
    }
}

impl Default for Graceful {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Graceful {
    fn drop(&mut self) {
        state().listeners -= 1;
    }
}
