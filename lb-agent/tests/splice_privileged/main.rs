//! The broker against a kernel, with TCP connections over veth pairs: needs root
//! (`cargo test -p lb-agent --features privileged --test splice_privileged`).
//!
//! No data plane is attached: the maps are looked at, and nothing is to happen on the wire. Every test has namespaces and
//! pins of its own, and removes them.

#[expect(dead_code, reason = "the other tests use the rest")]
#[path = "../netlink_privileged/netns.rs"]
mod netns;
mod offer;
mod refusals;
mod resumption;
mod site;
mod splice;
