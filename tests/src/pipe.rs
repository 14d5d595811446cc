//! Upgraded connections as byte streams: every way to use one and to end it, and an account of every byte.
//!
//! The handshake is a WebSocket's; after the 101 either end sends what the [`Terms`] say, with no framing in
//! between, so that a byte which is lost, repeated or another connection's is noticed at its place. The
//! [chat server](crate::chat::ChatServer) answers `GET /pipe?...` so.

mod client;
mod server;
mod terms;

pub use client::{Dial, End, Pipe};
pub(crate) use server::serve;
pub use terms::{Ending, Mode, Terms};

/// Where a server has its pipes.
pub(crate) const PATH: &str = "/pipe";
/// How much is read or written at once.
const PIECE: usize = 64 * 1024;
