//! What a worker gets so that its connections can be spliced: a broker of its own, and a look at the flow tables.

use std::sync::Arc;

use lb_sidecar::control::ToWorker;

use super::link::Descriptor;
use crate::splice::Splicer;

/// The messages, with their descriptors; none if there can be no broker, and then the worker relays.
pub fn introduce(
    splicer: &Splicer,
    index: u16,
    pid: u32,
) -> impl Iterator<Item = (ToWorker, Arc<Descriptor>)> {
    let broker = splicer.start(&index.to_string()).map(|end| (ToWorker::Broker, Arc::new(end)));
    let broker = broker.inspect_err(|error| {
        tracing::error!(index, pid, "a worker has no broker, and splices nothing: {error}");
    });
    let [ipv4, ipv6] = splicer.flows().clone();
    // A worker that splices must know the ports that it may not use.
    let flows = [(ToWorker::Flows { ipv6: false }, ipv4), (ToWorker::Flows { ipv6: true }, ipv6)];
    broker.into_iter().flat_map(move |broker| flows.clone().into_iter().chain([broker]))
}
