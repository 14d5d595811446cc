//! The agent's kernel side against a kernel: needs root (`cargo test --features privileged`).
//!
//! Every test has pins and namespaces of its own, and removes them. The programs are written by hand,
//! instruction by instruction, so that no BPF compiler is needed.

mod adoption;
mod attachment;
mod fixture;
mod object;
mod tables;
