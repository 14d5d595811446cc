//! Health checks: probes and the state machine that judges them.
//!
//! ```text
//! Check (spec) -> Runner: one task per target -> Prober (tcp, http, websocket) -> Judge -> HealthEvent
//! ```
//!
//! The [`Judge`], [`effective_weight`], [`history`] and [`outlier`] are pure. The [`Prober`] is the only part that opens sockets, always
//! through [`SourcePorts`]. Nothing here knows BPF maps, pools or what a transition leads to: whoever reads
//! the events decides that.

mod failure;
pub mod history;
mod judge;
pub mod outlier;
mod probe;
mod runner;
mod slow_start;
mod source_ports;
mod spec;
mod status_ranges;

pub use failure::{Failure, Stage};
pub use judge::{Judge, State, Transition};
pub use probe::{Prober, probe};
pub use runner::{HealthEvent, LastProbe, Probe, Runner, Status, StatusView, Target, TargetKey};
pub use slow_start::{effective_weight, next_weight_change};
pub use source_ports::{ConnectError, SourcePorts};
pub use spec::{Check, HttpSpec, Kind, READ_LIMIT, TlsSpec, WebSocketSpec};
pub use status_ranges::StatusRanges;
