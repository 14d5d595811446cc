//! Sluice's sidecar: the path of a handshake.
//!
//! ```text
//! accept -> framing (strict) -> request -> routing (rules) -> pool (cookie, header, ... or balance) -> connect, retry
//!        -> response (cookie set) -> relay, if it was an upgrade
//! ```
//!
//! A sidecar is one or more *workers*: processes of one thread each, without any privilege, which the agent starts.
//! A worker knows no file and no name service: its listening sockets and all its [`settings`] come over the
//! [`control`] socket. It outlives the agent, and the next agent finds it by that socket.
//!
//! This crate knows nothing of BPF (but for the flow table, which it reads: [`splice`]), netlink or TOML.

pub mod access_log;
pub mod control;
pub mod framing;
pub mod life;
pub mod limits;
pub mod outcome;
pub mod passthrough;
pub mod pool;
pub mod proxy_protocol;
pub mod relay;
pub mod routing;
pub mod session;
pub mod settings;
pub mod splice;
pub mod stream;
pub mod times;
pub mod tls;
pub mod worker;

mod admission;
mod body;
mod client;
mod connection;
mod deadline;
mod drain;
mod entry;
mod exchange;
mod farewell;
mod forwarded;
mod fresh;
mod headers;
mod http2;
mod listener;
mod request;
mod reserve;
mod response;
mod scratch;
mod secure;
mod service;
mod shortcut;
mod upgrade;
mod upstream;
