//! The flow tables as the agent sees them: which flows have aged, and who is told.
//!
//! ```text
//! table (kernel) -> sweep (walks, in steps) -> aging (judges, pure) -> ResetOrder -> raw sockets, elsewhere
//! ```

pub mod aging;
pub mod ended;
pub mod list;
pub mod pacer;
pub mod rest;
pub mod sweep;
pub mod table;

pub use aging::{Doom, Policy, Renewed, ResetOrder, Rst, Verdict};
pub use ended::{Ended, How};
pub use pacer::{Pacer, Paces};
pub use sweep::{Census, Load, Resets, Step, Sweeper};
pub use table::{FlowTable, KernelTable};
