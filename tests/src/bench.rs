//! What the benchmarks of the sidecar are made of: the place, the proxies in it, clients that check every byte,
//! and the account of what it all took.

pub mod account;
pub mod backend;
pub mod h2load;
pub mod haproxy;
pub mod load;
pub mod nginx;
mod poll;
pub mod report;
pub mod site;
pub mod sluice;
mod spread;
pub mod tls;
mod websocket;

pub use spread::Spread;
