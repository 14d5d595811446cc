//! Connections to backends: how they are made, and how those for plain requests are kept.

mod connect;
mod kept;

pub use connect::{Sources, connect, guard};
pub use kept::{Kept, Sender};
