//! Connections to backends: how they are made, and how those for plain requests are kept.

mod connect;
mod kept;
mod ports;

pub use connect::{Connected, Sources, connect, guard};
pub use kept::{Kept, Sender};
pub use ports::Ports;
