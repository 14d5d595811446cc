//! Chat servers and clients whose every byte is checked.
//!
//! Each session carries a pseudo-random stream that both ends can compute ([`Pattern`]): a byte that is
//! lost, repeated, changed or another session's is noticed at its position, in both directions.

mod knock;
mod load;
mod pattern;
mod server;
mod session;
mod stats;
mod tcp;

pub use knock::{Knock, knock};
pub use load::{Load, LoadConfig};
pub use pattern::{Pattern, Side, Wrong};
pub use server::{ChatServer, ServerConfig, ServerStats};
pub use session::Failure;
pub use stats::{BackendShare, ConnectionReport, LoadStats};
pub use tcp::{EchoServer, Exchange, ExchangeReport, exchange};
pub(crate) use tcp::{adopt, listen_in};

/// Response header that names the backend.
pub const BACKEND_HEADER: &str = "x-backend";

/// First byte of a binary message: the client's stream, which the server sends back.
pub(crate) const ECHO: u8 = b'E';
/// First byte of a binary message: the server's own stream.
pub(crate) const PUSH: u8 = b'P';
/// Start of the server's first message; the backend's name follows.
pub(crate) const HELLO: &str = "hello ";
/// Start of a text message for everybody on the same server.
pub(crate) const BROADCAST: &str = "broadcast ";
/// Close code of a server that got a wrong byte.
pub(crate) const CLOSE_WRONG: u16 = 4000;
