//! The flow tables as the agent sees them: which flows have aged, and who is told.
//!
//! ```text
//! table (kernel) -> sweep (walks, in steps) -> aging (judges, pure) -> ResetOrder -> raw sockets, elsewhere
//! ```

pub mod aging;
pub mod list;
pub mod pacer;
pub mod sweep;
pub mod table;

pub use aging::{Policy, ResetOrder, Rst, Verdict};
pub use pacer::Pacer;
pub use sweep::{Census, Resets, Step, Sweeper};
pub use table::{FlowTable, KernelTable};
