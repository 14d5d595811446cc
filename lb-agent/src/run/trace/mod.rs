//! `POST /v1/trace`: follows the packets of some flows through the stages of XDP.
//!
//! ```text
//! Question -> plan -> Traced (loaded here) -> Desk -> Agent: swaps it in -> records -> lines -> who asks
//!                                     session ends, however -> Agent: swaps the usual program in
//! ```
//! The agent alone swaps programs. A session's end reaches it by a channel that closes, so that it cannot be missed.

pub mod desk;
pub mod plan;
pub mod says;
pub mod session;

pub use desk::{Desk, Tracer};
pub use plan::{LONGEST, Question};
pub use says::{End, Packet, Says};
