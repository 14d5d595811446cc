//! The sidecar's workers, as the agent sees them.

pub mod keys;
pub mod settings;
