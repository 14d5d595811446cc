//! Connections to backends: how they are made, and how those for plain requests are kept.

mod connect;
mod kept;
mod pieces;
mod ports;

pub use connect::{Connected, Sources, connect, guard};
pub use kept::{Kept, Sender};
pub use pieces::Pieces;
pub use ports::Ports;
