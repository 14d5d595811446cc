//! The agent's kernel side: loading, pinning, adopting, attaching and unloading the data plane.
//!
//! ```text
//! capabilities::check, Lock, pins::mount_bpffs -> load(object, pins, sizes) -> Loaded::attach
//! ```
//! It knows maps by their type and size only; what is written to them is decided elsewhere.
//! Everything here is blocking and short, except loading, which takes the verifier's time.

pub mod attach;
pub mod capabilities;
pub mod counters;
pub mod interface;
pub mod loader;
pub mod lock;
pub mod pins;
pub mod rtt;
pub mod specs;
pub mod sys;
pub mod traced;
pub mod unload;

pub use attach::{Attached, LinkState, XdpMode};
pub use counters::Counters;
pub use interface::Mode;
pub use loader::{Loaded, load};
pub use lock::Lock;
pub use pins::{PinDir, PinError};
pub use specs::TableSizes;
pub use unload::unload;
