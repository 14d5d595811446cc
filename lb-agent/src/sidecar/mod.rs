//! The sidecar's workers, as the agent sees them: processes that it starts, feeds and supervises.
//!
//! ```text
//! Plan, Settings -> Fleet (pure) -> Supervisor -> sockets, processes, control connections
//!                                              <- greetings, reports, ends
//! ```
//!
//! Workers outlive the agent. What is in them is in the crate `lb-sidecar`; here nobody reads HTTP.

mod backoff;
mod brokers;
pub mod certificates;
mod confine;
pub mod directory;
mod end;
mod fleet;
pub mod keys;
mod link;
mod memory;
mod reports;
pub mod settings;
mod sockets;
mod spliced;
mod start;
mod status;
mod supervisor;

pub use confine::confine;
pub use directory::Directory;
pub use end::end_all;
pub use link::Heard;
pub use memory::Memory;
pub use reports::{Reports, ServiceSum, Sums};
pub use start::Account;
pub use status::{Sidecar, Worker};
pub use supervisor::{Event, Plan, Prepared, Supervisor};
