//! What the agent asks of and tells to the kernel by netlink: links, routes, neighbours, VIP addresses.
//!
//! All I/O is in [`Kernel`] (and in its `impl` blocks in [`vip`] and [`neigh`]) and in [`watch`]. What it
//! reads are the plain types of [`state`]; what to do about them is decided elsewhere, without I/O.
//!
//! ```no_run
//! # async fn agent() -> anyhow::Result<()> {
//! use lb_agent::netlink::{Kernel, watch::watch};
//! let mut changes = watch()?;          // first, so that nothing falls between
//! let kernel = Kernel::connect()?;
//! let mut state = kernel.snapshot().await?;
//! while let Some(change) = changes.recv().await {
//!     kernel.refresh(&mut state, change).await?;
//! }
//! # Ok(()) }
//! ```

pub mod neigh;
mod parse;
pub mod prefix;
pub mod state;
pub mod vip;
pub mod watch;

use std::{future::Future, io, pin::pin};

use anyhow::{Context, Result};
use futures_util::{Stream, TryStreamExt};
use netlink_packet_route::{AddressFamily, neighbour::NeighbourMessage, route::RouteMessage};
use rtnetlink::{Handle, IpVersion};

pub use self::{
    prefix::Prefix,
    state::{
        Address, LinkInfo, Mac, Neighbour, NetEvent, NetState, Route, RouteKind, Vlan, VlanTag,
    },
};

/// A connection to the kernel's routing netlink, for the network namespace of the thread which opened it.
///
/// Cheap to clone; the socket closes with the last clone.
#[derive(Clone)]
pub struct Kernel {
    handle: Handle,
}

impl Kernel {
    /// Opens the socket and spawns the task which drives it: call it inside a tokio runtime.
    pub fn connect() -> io::Result<Self> {
        let (connection, handle, _unsolicited) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Everything, as of now.
    ///
    /// The kernel's dumps are not atomic, neither one by one nor together. It does not matter to a caller who
    /// opened [`watch::watch`] before: what changes during a dump is announced after it.
    pub async fn snapshot(&self) -> Result<NetState> {
        let mut state = NetState::default();
        self.refresh(&mut state, NetEvent::EVERYTHING).await?;
        Ok(state)
    }

    /// Reads anew what `event` names, and leaves the rest of `state` as it is. On an error `state` keeps its old
    /// values wherever the new ones could not be read.
    pub async fn refresh(&self, state: &mut NetState, event: NetEvent) -> Result<()> {
        if event.links {
            let links = collect(self.handle.link().get().execute())
                .await
                .context("netlink: listing links")?;
            state.links = links.into_iter().map(parse::link).collect();
        }
        if event.addresses {
            state.addresses = self.addresses().await?;
        }
        if event.routes {
            state.routes = self.routes().await?;
            state.policy.v4 = self.policy_rules(IpVersion::V4).await?;
            state.policy.v6 = self.policy_rules(IpVersion::V6).await?;
        }
        if event.neighbours {
            state.neighbours = self.neighbours().await?;
        }
        Ok(())
    }

    async fn addresses(&self) -> Result<Vec<Address>> {
        let all = collect(self.handle.address().get().execute())
            .await
            .context("netlink: listing addresses")?;
        Ok(all.into_iter().filter_map(parse::address).collect())
    }

    async fn routes(&self) -> Result<Vec<Route>> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            let all = collect(self.handle.route().get(request).execute())
                .await
                .context("netlink: listing routes")?;
            // Without IPv6 the kernel answers with every family it has: do not count IPv4 twice.
            routes.extend(
                all.into_iter()
                    .filter(|m| m.header.address_family == family)
                    .filter_map(parse::route),
            );
        }
        Ok(routes)
    }

    async fn neighbours(&self) -> Result<Vec<Neighbour>> {
        let mut neighbours = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = self.handle.neighbours().get();
            let mut message = NeighbourMessage::default();
            message.header.family = family;
            *request.message_mut() = message;
            let all = collect(request.execute()).await.context("netlink: listing neighbours")?;
            neighbours.extend(
                all.into_iter().filter(|m| m.header.family == family).filter_map(parse::neighbour),
            );
        }
        Ok(neighbours)
    }

    async fn policy_rules(&self, version: IpVersion) -> Result<bool> {
        match collect(self.handle.rule().get(version).execute()).await {
            Ok(rules) => Ok(rules.iter().any(|rule| !parse::is_default_rule(rule))),
            // A kernel without CONFIG_IP_MULTIPLE_TABLES, or without IPv6, has no rules.
            Err(e)
                if matches!(errno(&e), Some(nix::libc::EOPNOTSUPP | nix::libc::EAFNOSUPPORT)) =>
            {
                Ok(false)
            }
            Err(e) => Err(e).context("netlink: listing policy rules"),
        }
    }
}

async fn collect<T>(
    stream: impl Stream<Item = Result<T, rtnetlink::Error>>,
) -> Result<Vec<T>, rtnetlink::Error> {
    pin!(stream).try_collect().await
}

/// The errno with which the kernel refused a request, positive.
fn errno(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.code.map(|code| -code.get()),
        _ => None,
    }
}

/// Carries out a request; false if the kernel refused it with one of `fine`, which mean that there was nothing to
/// do. A refusal that an operator can cure says how.
async fn change(
    request: impl Future<Output = Result<(), rtnetlink::Error>>,
    fine: &[i32],
) -> Result<bool> {
    match request.await {
        Err(e) if errno(&e).is_some_and(|code| fine.contains(&code)) => Ok(false),
        Err(e) if errno(&e) == Some(nix::libc::EPERM) => {
            Err(e).context("not permitted: give the agent CAP_NET_ADMIN, or run it as root")
        }
        Err(e) => Err(e.into()),
        Ok(()) => Ok(true),
    }
}
