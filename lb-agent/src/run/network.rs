//! The host's network: what netlink says, which next hops follow from it, and the VIPs that the host has.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};

use crate::{
    config::Edge,
    netlink::{
        Kernel, NetEvent, NetState,
        vip::{VipOp, VipPolicy, plan_vips},
        watch::watch,
    },
    nexthop::{Key, Limit, NextHops},
};

/// How often neighbours are confirmed that only XDP talks to, and asked for where they are missing.
pub const REFRESH: Duration = Duration::from_secs(5);

/// How long a start waits for neighbours: those that are there answer within a few milliseconds.
const SETTLE: Duration = Duration::from_millis(500);

/// The network as last seen.
pub struct Network {
    pub kernel: Kernel,
    pub state: NetState,
    /// Those that are in the maps.
    pub next_hops: NextHops,
    changes: mpsc::Receiver<NetEvent>,
    limits: Vec<Limit>,
}

impl Network {
    /// Subscribes to changes, and then looks, so that nothing falls between.
    pub async fn open() -> Result<Self> {
        let changes = watch().context("netlink: cannot subscribe to changes")?;
        let kernel = Kernel::connect().context("netlink: cannot connect")?;
        let state = kernel.snapshot().await?;
        Ok(Self { kernel, state, next_hops: NextHops::default(), changes, limits: Vec::new() })
    }

    /// Waits for a change; [`Network::refresh`] reads it.
    ///
    /// May be dropped while it waits.
    pub async fn changed(&mut self) -> NetEvent {
        match self.changes.recv().await {
            Some(event) => event,
            None => self.subscribe_anew().await,
        }
    }

    /// The subscription has ended, as after an error of its socket.
    async fn subscribe_anew(&mut self) -> NetEvent {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            match watch() {
                Ok(changes) => {
                    self.changes = changes;
                    return NetEvent::EVERYTHING;
                }
                Err(error) => tracing::error!(%error, "netlink: cannot subscribe to changes"),
            }
        }
    }

    /// Reads anew what changed; whether anything is other than before.
    pub async fn refresh(&mut self, event: NetEvent) -> bool {
        let before = self.state.clone();
        if let Err(error) = self.kernel.refresh(&mut self.state, event).await {
            tracing::warn!("the host's network cannot be read, and may be out of date: {error:#}");
        }
        self.state != before
    }

    /// Indices of those of these interfaces that exist.
    #[must_use]
    pub fn indices(&self, interfaces: &[String]) -> BTreeSet<u32> {
        interfaces.iter().filter_map(|name| Some(self.state.link_named(name)?.index)).collect()
    }

    /// The next hops to write. [`Network::wrote`] must be told once they are in the maps.
    #[must_use]
    pub fn compute(&self, interfaces: &[String], backends: &BTreeSet<IpAddr>) -> NextHops {
        NextHops::compute(&self.next_hops, &self.state, &self.indices(interfaces), backends)
    }

    /// Waits a moment for neighbours to be resolved, so that the first packets need not wait for them.
    pub async fn settle(&mut self, interfaces: &[String], backends: &BTreeSet<IpAddr>) {
        let end = Instant::now() + SETTLE;
        loop {
            let unresolved = self.compute(interfaces, backends).unresolved;
            if unresolved.is_empty() {
                return;
            }
            self.ask_for(&unresolved).await;
            match timeout_at(end, self.changed()).await {
                Ok(event) => drop(self.refresh(event).await),
                Err(_) => return,
            }
        }
    }

    /// Takes note that these next hops are in the maps.
    pub fn wrote(&mut self, next_hops: NextHops) {
        if next_hops.limits != self.limits {
            for limit in &next_hops.limits {
                tracing::warn!("{limit}");
            }
            self.limits.clone_from(&next_hops.limits);
        }
        self.next_hops = next_hops;
    }

    /// Has the kernel resolve what is missing; the outcome is a change.
    pub async fn resolve(&self) {
        self.ask_for(&self.next_hops.unresolved).await;
    }

    async fn ask_for(&self, neighbours: &[Key]) {
        for (ifindex, addr) in neighbours {
            if let Err(error) = self.kernel.resolve(*ifindex, *addr).await {
                tracing::debug!(error = format!("{error:#}"), "neighbour not resolved");
            }
        }
    }

    /// Has the kernel confirm the neighbours which only XDP talks to.
    pub async fn keep_fresh(&self) {
        self.kernel.keep_fresh(&self.state, self.next_hops.to_keep_fresh()).await;
    }

    /// Puts the VIPs on the host that the configuration wants there, and takes ours away that it does not want.
    pub async fn apply_vips(&self, edge: &Edge, vips: &BTreeMap<IpAddr, VipPolicy>) {
        for op in plan_vips(vips, &self.indices(&edge.interfaces), &self.state) {
            let name = |index| self.state.link(index).map_or("?", |link| link.name.as_str());
            match self.kernel.apply_vip(op).await {
                Ok(()) => match op {
                    VipOp::Add { vip, ifindex } => {
                        tracing::info!(%vip, interface = name(ifindex), "VIP added to the host");
                    }
                    VipOp::Remove { vip, ifindex } => {
                        tracing::info!(%vip, interface = name(ifindex), "VIP removed from the host");
                    }
                },
                Err(error) => tracing::error!("{error:#}"),
            }
        }
    }
}
