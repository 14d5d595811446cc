//! The agent's netlink and raw sockets against a real kernel, in network namespaces of their own. Needs root:
//! `cargo test -p lb-agent --features privileged --test netlink_privileged`.

mod host;
mod netns;
mod punt;
mod reset;
mod sniffer;
mod vips;
