//! The clients: one thread, which costs much less than a proxy and checks every byte that it gets.
//!
//! Each kind of load is a closed loop: a client does its next step when the last one is answered.

mod connection;
mod handshakes;
mod http2;
mod open;
mod plain;
mod relay;
mod tls_handshakes;
mod wire;

use std::time::Duration;

use anyhow::Result;

use crate::bench::account::{Account, Expense};

pub use connection::Entrance;
pub use handshakes::handshakes;
pub use http2::{Http2, ask_again, open_http2};
pub use open::open;
pub use plain::{Page, plain};
pub use relay::{Echoes, relay};
pub use tls_handshakes::tls_handshakes;
pub use wire::Wire;

/// After so long a silence something is stuck.
const STUCK: Duration = Duration::from_secs(5);
/// Handshakes that are under way at a time while many connections are opened.
const AT_ONCE: usize = 100;
/// Largest piece that is read at once.
const BUFFER: usize = 16 * 1024;

/// How long clients run.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    pub warm_up: Duration,
    pub time: Duration,
}

/// What clients have done in a time, and what it took.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    pub done: u64,
    pub expense: Expense,
}

/// Runs `turn`, which returns how many steps were completed, through the warm-up and then the measured time.
fn measure(
    effort: &Effort,
    account: &Account,
    mut turn: impl FnMut() -> Result<u64>,
) -> Result<Sample> {
    let warm = std::time::Instant::now() + effort.warm_up;
    while std::time::Instant::now() < warm {
        turn()?;
    }
    let start = account.now()?;
    let end = std::time::Instant::now() + effort.time;
    let mut done = 0;
    while std::time::Instant::now() < end {
        done += turn()?;
    }
    Ok(Sample { done, expense: account.since(&start)? })
}
