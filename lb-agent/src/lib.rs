//! Sluice's agent: the path of a config change.
//!
//! ```text
//! edge.toml + health + netlink -> Config (validated) -> desired state -> diff -> map operations -> BPF maps
//! ```

mod bounded_file;
pub mod bpf;
pub mod choice;
pub mod config;
pub mod decap;
pub mod doctor;
pub mod events;
pub mod flows;
pub mod health;
pub mod netlink;
pub mod nexthop;
pub mod object;
pub mod overrides;
pub mod reset;
pub mod run;
pub mod sidecar;
pub mod splice;
pub mod state;
pub mod unload;
