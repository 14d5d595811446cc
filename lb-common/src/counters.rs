//! Counters that every CPU keeps for itself; the agent adds them up.

use crate::map_data;

/// Traffic of one backend, one element per CPU of the map `BACKEND_COUNTERS`, indexed by the id of
/// the backend. A service's traffic is the sum over its backends.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendCounters {
    /// IP packets sent to the backend.
    pub to_backend_packets: u64,
    /// Bytes of them, headers included, without tunnel headers.
    pub to_backend_bytes: u64,
    /// IP packets from the backend to clients (`nat` and splice only).
    pub to_client_packets: u64,
    /// Bytes of them.
    pub to_client_bytes: u64,
    /// SYNs for which this backend was picked, retransmissions not counted.
    pub picked: u64,
    /// Flows entered into the flow table.
    pub opened: u64,
    /// Flows that both sides closed with FIN (the client's in `dsr` and `ipip`).
    pub closed: u64,
    /// Flows that either side ended with RST.
    pub reset: u64,
}

map_data!(BackendCounters);

impl core::ops::AddAssign for BackendCounters {
    fn add_assign(&mut self, other: Self) {
        self.to_backend_packets += other.to_backend_packets;
        self.to_backend_bytes += other.to_backend_bytes;
        self.to_client_packets += other.to_client_packets;
        self.to_client_bytes += other.to_client_bytes;
        self.picked += other.picked;
        self.opened += other.opened;
        self.closed += other.closed;
        self.reset += other.reset;
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_cpus_counters_are_one_cache_line() {
        assert_eq!(core::mem::size_of::<super::BackendCounters>(), 64);
    }
}
