//! The whole agent as a process, with the built data plane, in network namespaces: needs root and the XDP object
//! (`cargo xtask build`, then `cargo test -p lb-agent --features privileged --test run_privileged`).
//!
//! Every test has an edge of its own, with a client before it and a server behind it, and removes all of it.

mod certificates;
mod commands;
mod doctor;
mod drain;
mod edge;
mod events;
mod lifecycle;
mod measured;
mod network;
mod notify;
mod openapi;
mod operate;
mod outlier;
mod pace;
mod reload;
#[allow(dead_code, reason = "the rest of it is for tests of single structs")]
#[path = "../../src/run/admin/tests/schema.rs"]
mod schema;
mod sidecar;
mod splice;
mod spliced;
mod trace;
mod traffic;
mod tunnel;
mod zones;
