//! HTTP/2 with clients (RFC 9113): one connection, many requests, each treated like one of HTTP/1.1.
//!
//! ```text
//! bytes -> watch (floods) -> h2 (frames, windows, HPACK) -> a task for each stream -> exchange, as for HTTP/1.1
//! ```
//!
//! The `h2` crate itself, and not hyper around it: codes of resets, GOAWAY for a flood and the windows of relayed streams
//! are decided here.

mod body;
mod connection;
mod flood;
mod head;
mod io;
mod stream;
mod tunnel;
mod watch;

pub use body::Received;
pub use connection::{begins, serve};
pub use head::{accepts, to_http1};
pub use io::Ahead;
